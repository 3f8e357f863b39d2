"""The page: whole, escaped, the same for small and for huge caches, and with nothing to fetch."""

import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser

import drawn
import numpy as np
import pytest

from logitcache.data import ArrayImages
from logitcache.errors import CacheMismatchError
from logitcache.report import (
    comparison_html,
    report_html,
    sample_images,
    samples_with_images,
    write_comparison,
    write_report,
)
from logitcache.stats import wilson_interval

VOID = {"meta", "img", "br", "input", "link"}


class Elements(HTMLParser):
    """Every element with its attributes; that each is closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.words.append(data)


def figures(page: str) -> list[ET.Element]:
    return [ET.fromstring(svg) for svg in re.findall(r"<svg .*?</svg>", page, re.DOTALL)]


def checked(page: str) -> Elements:
    """Hold a page against what every page must be; returns its elements."""
    page.encode()
    elements = Elements(page)
    assert not elements.open
    names = {name for name, _ in elements.found}
    assert not names & {"script", "link", "iframe", "object", "embed", "base", "form", "h1x"}
    for name, attributes in elements.found:
        assert not [key for key in attributes if key.startswith("on")], name
        for key in ("src", "href", "data", "srcset", "action"):
            assert (attributes.get(key) or "data:").startswith(
                "data:image/png;base64," if key in attributes else "data:"
            )
    assert "url(" not in page and "@import" not in page
    assert not re.search(r"\b(nan|inf|None$)\b", "\n".join(elements.words), re.MULTILINE)
    for figure in figures(page):
        assert figure.get("role") == "img"
        assert all("nan" not in value for one in figure.iter() for value in one.attrib.values())
    return elements


CASES = {
    "one view": ({"views": 1}, 10),
    "240 views": ({"views": 240}, 10),
    "300 views": ({"views": 300}, 3),
    "two classes": ({}, 2),
    "1000 classes": ({"encoding": {"kind": "topk", "k": 20, "dtype": "u8"}}, 1000),
    "21k classes": ({"encoding": {"kind": "topk", "k": 64, "dtype": "f16"}}, 21_000),
    "all right": ({"accuracy": 1.0}, 10),
    "all wrong": ({"accuracy": 0.0}, 10),
    "no rows": ({"rows": 0}, 10),
}


@pytest.mark.parametrize("name", CASES)
def test_caches_of_every_size(name):
    changes, classes = CASES[name]
    page = report_html(
        drawn.stats([f"class {n}" for n in range(classes)], **changes), drawn.fidelity(), ["Do this."], {}
    )
    elements = checked(page)
    assert len(page) < 400_000
    assert [name for name, _ in elements.found].count("h2") == 4
    assert len(figures(page)) >= (1 if name == "no rows" else 6)
    ticks = [
        [one.text for one in figure if one.get("class") == "small quiet tick" and one.get("text-anchor") == anchor]
        for figure in figures(page)
        for anchor in ("end", "middle")
    ]
    assert all(len(set(words)) == len(words) for words in ticks)


def test_what_is_left_out_is_said():
    views = report_html(drawn.stats(["a", "b"], views=300), None, [], {})
    for words in ("60 more are left out", "11 more with a lower confidence", "first 16 of 300 views"):
        assert words in views, words
    assert "19,999 higher ones left out" in report_html(drawn.stats([str(n) for n in range(21_000)]), None, [], {})


def test_hostile_names_stay_words():
    stats = drawn.stats(drawn.HOSTILE)
    elements = checked(report_html(stats, drawn.fidelity(), [drawn.HOSTILE[0]], {}, without_images=drawn.HOSTILE[1]))
    words = "".join(elements.words)
    assert "<script>alert(1)</script>" in words
    assert '"><img src=x onerror=alert(1)>' in words
    assert "class 4 (unnamed)" in words and "class 5 (unnamed)" in words
    assert "img" not in {name for name, _ in elements.found}
    assert "\u202e" not in words
    assert max(len(word) for part in elements.words for word in part.split()) < 100
    checked(comparison_html(drawn.comparison(len(drawn.HOSTILE)), drawn.HOSTILE))


def test_the_page_forbids_fetching_and_has_day_night_and_print():
    page = report_html(drawn.stats(["a", "b"]), None, [], {})
    assert "default-src &#x27;none&#x27;; style-src &#x27;unsafe-inline&#x27;; img-src data:" in page
    assert "prefers-color-scheme:dark" in page
    day = re.search(r":root\{(.*?)\}", page)[1]
    assert f"@media print{{:root{{{day}}}}}" in page


def test_health_is_said_first():
    found = drawn.stats(["a", "b"], rows=0)
    page = report_html(found, None, [], {})
    assert page.count("dump unfinished, 1 block missing") == 2  # in the headline, and among the facts
    assert page.count("no rows can be read") == 2
    assert "0.00%" not in page
    assert "view 0, block 0: missing" in page
    assert "intact: no missing blocks" in report_html(drawn.stats(["a", "b"]), None, [], {})


def test_comparisons_of_every_size(tmp_path):
    for classes in (2, 100, 1000):
        write_comparison(tmp_path / "two.html", drawn.comparison(classes), [f"class {n}" for n in range(classes)])
        page = (tmp_path / "two.html").read_text()
        checked(page)
        assert len(figures(page)) >= 2
        assert "only A correct" in page


def test_images_come_from_the_data_as_it_was(dump, images, tmp_path):
    cache = dump()
    found = sample_images(cache, [3, 250], images)
    assert found.keys() == {3, 250}
    stats = drawn.stats(["a", "b"])
    chosen = samples_with_images(stats)
    assert chosen == sorted(set(chosen)) and len(chosen) <= 72
    elements = checked(report_html(stats, None, [], dict.fromkeys(chosen, found[3])))
    shown = [attributes for name, attributes in elements.found if name == "img"]
    assert len(shown) == 36 + 2 * 18
    assert {(one["width"], one["class"]) for one in shown} == {("16", "small")}
    part = dump(samples=(100, 300), out=tmp_path / "part.zarr")  # ids are those of the whole data set
    assert sample_images(part, [250], images) == {250: found[250]}
    pixels = images.images.permute(0, 2, 3, 1).numpy().copy()
    pixels[0] += 1
    with pytest.raises(CacheMismatchError, match="different samples"):
        sample_images(cache, [3], ArrayImages(pixels, images.labels, images.classes))


def test_large_images_are_made_small(dump):
    pixels = np.random.default_rng(0).integers(0, 255, (20, 320, 160), np.uint8)
    data = ArrayImages(pixels, np.arange(20) % 5)
    png = sample_images(dump(data=data, augment="none", views=1), [0], data)[0]
    assert png[:4] == b"\x89PNG"
    assert (int.from_bytes(png[16:20]), int.from_bytes(png[20:24])) == (80, 160)


def test_without_its_data_a_report_has_no_images_and_says_so(dump, images, tmp_path):
    """A cache that was dumped from an object cannot open it again."""
    stats, path, cache = drawn.stats(["a", "b"]), tmp_path / "out.html", dump()
    assert "passed as an object" in write_report(path, stats, cache)
    assert "there is no cache at" in write_report(path, stats, tmp_path / "nothing.zarr")
    write_report(path, stats, cache)
    elements = checked(path.read_text())
    assert "There are no images here: " in "".join(elements.words)
    assert "img" not in {name for name, _ in elements.found}
    few = replace(stats, odd=stats.odd[:2], duplicates=[])
    assert write_report(path, few, cache, data=images) == ""
    assert [name for name, _ in checked(path.read_text()).found].count("img") == 2


def test_advice_is_grouped_by_what_to_do():
    sentences = [f"{name} loses 20% of its gradient: dump with --top-k 64 (90 B a row)" for name in ("kd", "rld")]
    page = report_html(drawn.stats(["a", "b"]), None, [*sentences, "Look at `x`."], {})
    (group,) = re.findall(r"<li>Dump with .*?</ul></li>", page)
    assert group == (
        "<li>Dump with --top-k 64 (90 B a row)<ul><li>kd loses 20% of its gradient</li><li>rld loses 20% of its gradient</li></ul></li>"
    )
    assert "<li>Look at <code>x</code>.</li>" in page


@pytest.mark.parametrize(("views", "drawn_as_figure"), [(2, False), (3, False), (4, True)])
def test_a_small_matrix_is_a_sentence(views, drawn_as_figure):
    page = report_html(drawn.stats(["a", "b"], views=views), None, [], {})
    assert ("<title>Agreement between views</title>" in page) == drawn_as_figure
    assert "<h3>Agreement between views</h3>" in page
    assert ("views 0 and 1: 89.90%; views 0 and 2: 89.80%" in page) == (views == 3)


def test_accuracies_by_class_come_with_counts_and_intervals():
    found = drawn.stats([f"class {n}" for n in range(10)])
    page = report_html(found, None, [], {})
    share = found.class_accuracy()[0]
    low, high = wilson_interval(share, 100)
    assert f"{share:.2%} ({low:.1%} to {high:.1%}, n 100)" in page
    assert "All 9, with intervals and number of samples" in page  # class 3 has no row


def test_four_numbers_stand_in_the_tiles():
    page = report_html(drawn.stats(["a", "b"]), None, [], {})
    tiles = re.findall(r'class="tile"><span>(.*?)</span>', page)
    assert tiles == ["health", "teacher accuracy", "calibration error", "view agreement", "bytes per row"]


def test_wide_tables_say_that_they_scroll():
    page = report_html(drawn.stats(["a", "b"]), None, [], {})
    tables = re.findall(r'(<p class="hint">.*?</p>)?<div class="scroll"[^>]*><table><thead>(.*?)</thead>', page)
    assert {head.count("<th") > 3 for _, head in tables} == {True, False}
    assert all(bool(hint) == (head.count("<th") > 3) for hint, head in tables)


def test_intervals_are_those_of_wilson():
    assert wilson_interval(0.5, 100) == pytest.approx((0.40383, 0.59617), abs=1e-5)
    assert wilson_interval(0.0, 10) == pytest.approx((0.0, 0.27753), abs=1e-5)
    assert wilson_interval(1.0, 10) == pytest.approx((0.72247, 1.0), abs=1e-5)
    assert wilson_interval(0.3, 0) == (0.0, 1.0)

"""Figures: whole XML, ticks that can be told apart, words that are cut and escaped."""

import xml.etree.ElementTree as ET

import pytest

from logitcache.report.charts import Bar, Scale, bars, heat_map, lines, ticks
from logitcache.report.markup import clean, element, escape, shortened, width_of, with_code
from logitcache.report.runs import draw_runs
from logitcache.runtime.wording import decimals, error_text, percents

SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize("low", [0.0, 0.5, 0.9985, 0.99993])
@pytest.mark.parametrize("span", [1e-4, 3e-4, 0.002, 0.017, 0.4, 1.0])
def test_every_tick_has_a_label_of_its_own_that_is_right(low, span):
    places = ticks(Scale(low, low + span, 0, 200))
    words = percents(places)
    assert 2 <= len(places) <= 7
    assert len(set(words)) == len(words)
    assert [float(word.rstrip("%")) / 100 for word in words] == pytest.approx(places, abs=span / 1000)


def test_numbers_have_the_decimals_they_need():
    assert decimals([0.5, 1.0, 1.5]) == ["0.5", "1.0", "1.5"]
    assert decimals([1000.0, 2000.0]) == ["1,000", "2,000"]


def test_ticks_of_odd_scales():
    assert ticks(Scale(3, 3, 0, 100)) == [3]
    assert ticks(Scale(2e-6, 1, 100, 0, logarithmic=True)) == pytest.approx([1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1])
    assert ticks(Scale(1, 4, 0, 100), 12, whole=True) == [1, 2, 3, 4]


def test_a_picture_of_runs_with_a_small_range_has_labels_that_differ():
    root = ET.fromstring(draw_runs({"ce": [[0.9001, 0.9002, 0.9003]], "kd": [[0.9002, 0.9004, 0.9005]]}))
    words = [one.text for one in root.iter(f"{SVG}text") if (one.text or "").endswith("%")]
    left = [word for word in words if words.count(word) > 2]
    assert len(words) >= 6
    assert not left


def test_words_are_cut_cleaned_and_escaped():
    assert shortened("a" * 50, 10) == "a" * 7 + "…"
    assert width_of(shortened("漢字" * 20, 11)) <= 11
    paths = [shortened(f"teachers/resnet20/{name}", 12) for name in ("ids", "values", "rest")]
    assert [one.rpartition("/")[2] for one in paths] == ["ids", "values", "rest"]
    assert all(one.startswith("…") and width_of(one) <= 12 for one in paths)
    assert clean("a\x00b\ud800\u202ec") == "a\ufffdb\ufffdc"
    assert escape("<b>") == "&lt;b&gt;"
    assert with_code("use `--top-k <K>`") == "use <code>--top-k &lt;K&gt;</code>"
    assert with_code("one ` alone") == "one ` alone"
    assert (
        element("a", "x", class_="y", stroke_width=0.123, name='"')
        == '<a class="y" stroke-width="0.12" name="&quot;">x</a>'
    )
    assert [error_text(share) for share in (0, 1e-7, 0.1)] == ["0.00%", "< 0.01%", "10.00%"]


def test_an_interval_is_drawn_where_it_lies():
    root = ET.fromstring(bars("n", "s", [Bar("a", 0.5, "50%", interval=(0.25, 0.75)), Bar("b", 0.5, "50%")], full=1.0))
    whole, filled, *_ = root.iter(f"{SVG}rect")
    left, width = float(whole.get("x")), float(whole.get("width"))
    assert float(filled.get("width")) == pytest.approx(width / 2, abs=0.1)
    ends = sorted({float(line.get(key)) for line in root.iter(f"{SVG}line") for key in ("x1", "x2")})
    assert ends == pytest.approx([left + width / 4, left + 3 * width / 4], abs=0.1)
    assert len(list(root.iter(f"{SVG}line"))) == 3


def test_bars_stay_inside_of_their_figure():
    root = ET.fromstring(bars("n", "s", [Bar("W" * 90, 3.0, "300.00%"), Bar("b", 0.0, "0.00%")], full=1.0))
    for one in root.iter(f"{SVG}rect"):
        assert float(one.get("x")) >= 0 and float(one.get("x")) + float(one.get("width")) <= 320


def test_a_heat_map_does_not_make_much_of_little():
    depths = [
        float(one.get("fill-opacity"))
        for one in ET.fromstring(
            heat_map("n", "s", [[1, 0.962, 0.963], [0.962, 1, 0.964], [0.963, 0.964, 1]], "views")
        ).iter(f"{SVG}rect")
        if one.get("fill-opacity") and one.find(f"{SVG}title") is not None
    ]
    assert max(depths) - min(depths) < 0.1
    assert max(depths) == 1


def test_a_figure_says_what_it_shows():
    root = ET.fromstring(lines("a title", "what is seen", {"one": [(1, 0.5), (2, 0.6)]}, "x", "y"))
    assert root.get("role") == "img"
    assert root.find(f"{SVG}title").text == "a title"
    assert root.find(f"{SVG}desc").text == "what is seen"

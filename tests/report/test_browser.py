"""The page in a real browser, headless: it renders, fetches nothing, takes no name for an element, and fits a phone."""

import base64
import functools
import io
import json
import re
import shutil
import subprocess
import urllib.parse
from pathlib import Path

import drawn
import numpy as np
import pytest
from PIL import Image

from logitcache.report import comparison_html, report_html, samples_with_images

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome is installed")]

# What a copy of the page says about itself. The page's own policy allows no script, so the copy's allows this one.
MEASURE = """
const shown = one => { const box = one.getBoundingClientRect(); return [Math.round(box.width), Math.round(box.height)] };
const all = names => [...document.querySelectorAll(names)];
const narrow = all('svg text').filter(one => !one.closest('details')).filter(one => {
  const box = one.getBoundingClientRect(), whole = one.ownerSVGElement.getBoundingClientRect();
  return box.left < whole.left - 1.5 || box.right > whole.right + 1.5 || box.bottom > whole.bottom + 1.5;
}).map(one => one.textContent);
document.body.dataset.found = JSON.stringify({
  scroll: document.documentElement.scrollWidth, width: innerWidth, figures: all('svg').map(shown),
  images: all('img').map(one => one.naturalWidth), strange: all('script:not(#measure), h1 h1, svg svg, [onerror], [onload]').length,
  clipped: narrow, paper: getComputedStyle(document.body).backgroundColor,
  ink: [getComputedStyle(document.body).color, getComputedStyle(document.querySelector('svg text:not(.quiet)')).fill],
  smallest: Math.min(...all('figure svg').map(one => one.getBoundingClientRect().width / one.viewBox.baseVal.width)),
});
"""


def browse(page: Path, *options: str, width: int = 1280) -> str:
    """Open a page as a reader would, where no name resolves; return the document as it is then."""
    command = [
        *(BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-dev-shm-usage"),
        *("--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"),
        *("--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={page.parent / 'profile'}"),
        *(f"--window-size={width},2000", *options, page.as_uri()),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout


def measured(tmp_path: Path, page: str, width: int, *options: str) -> dict:
    """Load a copy of the page in a frame as wide as asked, since a headless window has a least width, and ask what it looks like."""
    copy = page.replace(
        "default-src &#x27;none&#x27;", "default-src &#x27;none&#x27;; script-src &#x27;unsafe-inline&#x27;"
    )
    assert copy != page
    copy = copy.replace(
        "</body>", f'<script id="measure">{MEASURE}parent.postMessage(document.body.dataset.found, "*")</script></body>'
    )
    frame = base64.b64encode(copy.encode()).decode()
    outer = tmp_path / "outer.html"
    outer.write_text(
        f'<meta charset="utf-8"><body style="margin:0"><script>onmessage = sent => document.body.dataset.found = sent.data;'
        f'const inside = document.createElement("iframe"); inside.style.cssText = "border:0;width:{width}px;height:2000px";'
        f'inside.srcdoc = new TextDecoder().decode(Uint8Array.from(atob("{frame}"), one => one.charCodeAt(0)));'
        "document.body.append(inside)</script>"
    )
    dumped = browse(outer, "--dump-dom", "--virtual-time-budget=5000", *options)
    found = re.search(r'<body[^>]* data-found="([^"]*)"', dumped)
    assert found, dumped[:500]
    return json.loads(found[1].replace("&quot;", '"').replace("&amp;", "&").replace("&lt;", "<").replace("&gt;", ">"))


def png(size: int) -> bytes:
    written = io.BytesIO()
    Image.fromarray(np.arange(size * size, dtype=np.uint8).reshape(size, size)).save(written, "PNG")
    return written.getvalue()


@functools.cache
def pages() -> dict[str, str]:
    names = [f"class {n}" for n in range(100)]
    usual = drawn.stats(names, views=8, encoding={"kind": "topk", "k": 20, "dtype": "u8"})
    hostile, huge = drawn.stats(drawn.HOSTILE), drawn.stats([f"n{n:08}" for n in range(1000)], views=240)
    images = {sample: png(32 if sample % 2 else 100) for sample in samples_with_images(usual)}
    return {
        "usual": report_html(usual, drawn.fidelity(), ["Do `this`."], images),
        "hostile": report_html(hostile, drawn.fidelity(), drawn.HOSTILE, {}, without_images=drawn.HOSTILE[0]),
        "huge": report_html(huge, None, [], {}),
        "empty": report_html(drawn.stats(["a", "b"], rows=0), None, [], {}),
        "comparison": comparison_html(drawn.comparison(len(drawn.HOSTILE)), drawn.HOSTILE),
    }


NAMES = ["usual", "hostile", "huge", "empty", "comparison"]


@pytest.mark.parametrize("width", [375, 1280])
@pytest.mark.parametrize("name", NAMES)
def test_it_renders_and_fits(tmp_path, name, width):
    found = measured(tmp_path, pages()[name], width)
    assert found["width"] == width
    assert found["scroll"] <= width
    assert len(found["figures"]) >= 1
    assert all(min(size) > 20 for size in found["figures"])
    assert found["smallest"] >= 0.99  # words are as large as they were drawn
    assert found["clipped"] == []
    assert found["strange"] == 0
    assert all(found["images"])
    assert len(found["images"]) == (72 if name == "usual" else 0)


def test_it_is_dark_where_the_reader_is(tmp_path):
    by_day, by_night = (
        measured(tmp_path, pages()["usual"], 800, f"--blink-settings=preferredColorScheme={scheme}")["paper"]
        for scheme in (1, 0)
    )
    assert (by_day, by_night) == ("rgb(246, 247, 248)", "rgb(15, 18, 21)")


@pytest.mark.parametrize("name", NAMES)
def test_it_asks_for_nothing_but_itself(tmp_path, name):
    """The browser's own log of the network has the file, and images that are inside of it."""
    page = tmp_path / "page.html"
    page.write_text(pages()[name])
    log = tmp_path / "net.json"
    document = browse(page, "--dump-dom", f"--log-net-log={log}")
    assert "Likely label errors" in document or name == "comparison"
    asked = map(urllib.parse.urlsplit, re.findall(r'"url":"([^"]*)"', log.read_text()))
    names = {one.hostname for one in asked if one.scheme in ("http", "https", "ws", "wss", "ftp")}
    assert not {
        one for one in names if not one.endswith((".google.com", ".googleapis.com"))
    }  # these are the browser's own


def test_a_page_that_fetched_would_be_found(tmp_path):
    page = tmp_path / "page.html"
    page.write_text('<img src="http://logitcache.invalid/x.png">')
    log = tmp_path / "net.json"
    browse(page, "--dump-dom", f"--log-net-log={log}")
    assert "logitcache.invalid" in log.read_text()


def test_a_printed_page_is_light(tmp_path):
    """Also where the screen is dark: what holds for print, shown on a dark screen. (Chromium itself prints by day, others do not.)"""
    copy = pages()["usual"].replace("@media print", "@media screen")
    found = measured(tmp_path, copy, 800, "--blink-settings=preferredColorScheme=0")
    assert found["ink"] == ["rgb(29, 35, 41)", "rgb(29, 35, 41)"]

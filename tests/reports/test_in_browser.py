# SPDX-License-Identifier: Apache-2.0
"""A page in a real browser: nothing missing, nothing from elsewhere, and the flicker flickers."""

from __future__ import annotations

import base64
import io
import json
import shutil

import numpy as np
import pytest
from nireports._vendored.svgutils.transform import fromstring
from nireports.reportlets.utils import compose_view
from PIL import Image

from bmex_bids.interfaces.reportlets import settled_flicker
from bmex_bids.outputs.pictures import PICTURES
from bmex_bids.reports.group import write_group
from bmex_bids.reports.individual import Page, subject_page, write_subject_report

OPACITY = """(() => {
    const front = document.querySelector('.foreground-svg');
    return front ? Number(getComputedStyle(front).opacity) : null;
})()"""


@pytest.fixture
def page(tmp_path):
    """The page of a participant with two images, one that failed, and a methods text."""
    folder = tmp_path / "sub-01" / "figures"
    folder.mkdir(parents=True)
    before, after = (
        fromstring(
            "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 400 300'>"
            f"<rect width='400' height='300' fill='{colour}'/></svg>"
        )
        for colour in ("red", "blue")
    )
    for run in (1, 2):
        stem = f"sub-01_run-{run}"
        flicker = folder / f"{stem}_desc-enhancement_T1w.svg"
        compose_view([before], [after], out_file=str(flicker))
        flicker.write_text(settled_flicker(flicker.read_text(), stem))
        for desc in ("brainmask", "tissues", "histogram"):
            (folder / f"{stem}_desc-{desc}_T1w.svg").write_text(
                "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 4 3'/>"
            )
    anat = tmp_path / "sub-01" / "anat"
    anat.mkdir()
    record = {"Quality": {"qi": 0.5}, "Gate": {"Verdict": "pass", "Rules": []}}
    (anat / "sub-01_run-1_desc-enhanced_T1w.json").write_text(json.dumps({"BMEX": record}))
    logs = tmp_path / "logs"
    logs.mkdir()
    (logs / "CITATION.html").write_text(
        "<html><head><script src='http://cdn.invalid/x.js'></script></head><body><p>Method.</p>"
        "<link rel='stylesheet' href='http://cdn.invalid/x.css'></body></html>"
    )
    rows = [{"image": "sub-01_T2w", "status": "failed", "reason": "<img src='x.png'>"}]
    return write_subject_report(tmp_path, "01", reason_rows=rows)


def test_the_page_needs_nothing_from_elsewhere(page, browser):
    browser.open(page)
    assert browser.complaints == []
    assert browser.failed == []
    folder = page.parent.as_uri()
    assert all(url.startswith(f"{folder}/") for url in browser.requested)
    pictures = [path.as_uri() for path in (page.parent / "sub-01" / "figures").glob("*.svg")]
    assert sorted(browser.requested) == sorted([page.as_uri(), *pictures])
    sizes = browser.evaluate("Array.from(document.images, image => image.naturalWidth)")
    assert len(sizes) == 6
    assert all(sizes)
    assert browser.evaluate("document.title") == "bmex_bids: sub-01"


def test_every_link_of_the_navigation_leads_somewhere(page, browser):
    browser.open(page)
    targets = browser.evaluate(
        "Array.from(document.querySelectorAll('nav a[href^=\"#\"]'), link => "
        "[link.hash, Boolean(document.getElementById(link.hash.slice(1)))])"
    )
    assert len(targets) > 10
    assert all(found for _, found in targets), targets
    wide = browser.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert wide, "the page must not scroll sideways"


def test_pointing_flickers_between_before_and_after(page, browser):
    browser.open(page)

    def opacities():
        values = [browser.evaluate(OPACITY, context) for context in browser.contexts]
        return [value for value in values if value is not None]

    browser.wait(lambda: len(opacities()) == 2)
    assert opacities() == [1, 1]
    browser.point_at("object")
    browser.wait(lambda: min(opacities()) == 0)
    assert max(opacities()) == 1, "only the picture that is pointed at flickers"
    browser.wait(lambda: opacities() == [1, 1])
    browser.wait(lambda: min(opacities()) < 1)
    browser.point(2, 2)
    browser.wait(lambda: opacities() == [1, 1])


def test_a_page_in_one_file_flickers_too_and_asks_for_nothing(page, browser, tmp_path):
    alone = tmp_path / "elsewhere" / "page.html"
    alone.parent.mkdir()
    alone.write_text(subject_page(page.parent, Page("01"), standalone=True))
    browser.open(alone)
    assert browser.complaints == []
    assert browser.failed == []
    assert [url for url in browser.requested if not url.startswith("data:")] == [alone.as_uri()]

    def opacities():
        return browser.evaluate(
            "Array.from(document.querySelectorAll('.foreground-svg'), front => "
            "Number(getComputedStyle(front).opacity))"
        )

    assert opacities() == [1, 1]
    browser.point_at(".item-enhancement svg")
    browser.wait(lambda: min(opacities()) == 0)


def test_a_button_holds_before_or_after(page, browser, tmp_path):
    alone = tmp_path / "elsewhere" / "page.html"
    alone.parent.mkdir()
    alone.write_text(subject_page(page.parent, Page("01"), standalone=True))
    browser.open(alone)

    def opacities():
        return browser.evaluate(
            "Array.from(document.querySelectorAll('.foreground-svg'), front => "
            "Number(getComputedStyle(front).opacity))"
        )

    assert opacities() == [1, 1]
    press = "document.querySelectorAll('.bmex-hold [value={}]')[{}].click()"
    browser.evaluate(press.format("before", 0))
    assert opacities() == [0, 1]
    browser.point_at(".item-enhancement svg")
    assert opacities() == [0, 1], "what is held does not flicker"
    browser.point(2, 2)
    browser.evaluate(press.format("after", 0))
    assert opacities() == [1, 1]
    words = browser.evaluate(
        "Array.from(document.querySelectorAll('.item-enhancement svg'), picture => {"
        "const bar = picture.querySelector('.foreground-svg .bmex-word').getBoundingClientRect(),"
        "  button = picture.querySelector('.bmex-hold').getBoundingClientRect();"
        "return bar.right < button.right && button.height > 5;})"
    )
    assert words == [True, True]


@pytest.fixture
def adult(tmp_path):
    """Pictures as large as those of an adult, more than 2 MiB each; returns the output."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 255, (1500, 1500), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).save(stream, "png")
    data = base64.b64encode(stream.getvalue()).decode()
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        'viewBox="0 0 400 300"><image width="400" height="300" preserveAspectRatio="none" '
        f'xlink:href="data:image/png;base64,{data}"/></svg>'
    )
    assert len(svg) > 2 * 2**20
    folder = tmp_path / "sub-01" / "figures"
    folder.mkdir(parents=True)
    for desc, picture in PICTURES.items():
        if picture.extension == ".svg":
            (folder / f"sub-01_desc-{desc}_T1w.svg").write_text(svg)
    return tmp_path


@pytest.mark.parametrize("standalone", [False, True], ids=["linked", "in one file"])
def test_every_picture_of_an_adult_is_seen(adult, browser, standalone):
    """A data URI above 2 MiB in an object left before and after blank in bmex-enhance's report."""
    page = adult / "page.html"
    page.write_text(subject_page(adult, Page("01"), standalone=standalone), encoding="utf-8")
    if standalone:
        shutil.rmtree(adult / "sub-01")
    browser.open(page)
    figures = ".item .reportlet"
    count = browser.evaluate(f"document.querySelectorAll('{figures}').length")
    assert count == len([1 for picture in PICTURES.values() if picture.extension == ".svg"])
    for number in range(count):
        browser.wait(lambda n=number: browser.pixels(figures, n).std() > 10)


def test_every_plot_of_the_group_page_is_seen(tmp_path, browser):
    for number in range(20):
        folder = tmp_path / f"sub-{number:02d}" / "anat"
        folder.mkdir(parents=True)
        record = {"Quality": {"qi": number / 20, "tct_before": 1 + number}}
        path = folder / f"sub-{number:02d}_desc-enhanced_T1w.json"
        path.write_text(json.dumps({"BMEX": record}))
    write_group(tmp_path, tmp_path)
    browser.open(tmp_path / "group_T1w.html")
    assert browser.complaints == []
    shown = "Array.from(document.querySelectorAll('svg.box')).filter(e => e.clientWidth).length"
    assert browser.evaluate(shown) == 2
    places = browser.evaluate(
        "Array.from(document.querySelectorAll('svg.box'), e => e.clientWidth > 0)"
    )
    for number, visible in enumerate(places):
        if visible:
            assert browser.pixels("svg.box", number).std() > 5, f"plot {number} is blank"

# SPDX-License-Identifier: Apache-2.0
"""What is on a participant's page; that a browser is content with it is in test_in_browser."""

from __future__ import annotations

import json
import os
import re
import tempfile
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
from nipype import Function, Node
from nipype.pipeline.plugins.tools import report_crash

from bmex_bids.common.failure import Failure
from bmex_bids.outputs import pages
from bmex_bids.reports.crashes import read_crash
from bmex_bids.reports.individual import (
    Page,
    page_name,
    pages_there,
    write_subject_report,
)
from bmex_bids.running import crash_files

PICTURES = ("enhancement", "brainmask", "tissues", "histogram")


@pytest.fixture
def figures(tmp_path):
    """A function that puts the pictures of images into a folder of figures."""

    def make(subject, *stems, suffix="T1w", output=tmp_path):
        folder = output / f"sub-{subject}" / "figures"
        folder.mkdir(parents=True, exist_ok=True)
        for stem in stems:
            for desc in PICTURES:
                (folder / f"{stem}_desc-{desc}_{suffix}.svg").write_text("<svg width='3' />")
            text = f"<p>summary of {stem}</p>"
            (folder / f"{stem}_desc-summary_{suffix}.html").write_text(text)
        return folder

    return make


@pytest.fixture
def sidecar(tmp_path):
    """A function that writes the sidecar of an image, with what is given under BMEX."""

    def make(stem, suffix="T1w", desc="enhanced", **record):
        entities = dict(part.split("-") for part in stem.split("_"))
        folder = tmp_path / f"sub-{entities['sub']}"
        if "ses" in entities:
            folder /= f"ses-{entities['ses']}"
        path = folder / "anat" / f"{stem}_desc-{desc}_{suffix}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"BMEX": record}))
        return path

    return make


@pytest.fixture
def run(tmp_path):
    """A function that makes a run's folder with its status table and its crash files."""

    def make(run_id, *rows, crashes=()):
        folder = tmp_path / "logs" / run_id
        folder.mkdir(parents=True)
        lines = ["image\tstatus\tstep\tseconds\tgate\treason", *("\t".join(row) for row in rows)]
        (folder / "status.tsv").write_text("\n".join(lines) + "\n")
        for workflow, reason in crashes:
            crash(folder, workflow, reason)
        return folder

    return make


def crash(folder, workflow, reason, *, record=True):
    """A crash file as a plugin of ours writes it; ``record`` False: as a job's Nipype does."""
    node = Node(Function(input_names=["value"], output_names=["out"]), name="find_brain")
    node.inputs.value = {"a <b>": 1}
    node._hierarchy = f"run_wf.{workflow}.preprocess_wf"
    node.config = {
        "execution": {
            "crashdump_dir": str(folder),
            "crashfile_format": "txt",
            "hash_method": "content",
        }
    }
    node.base_dir = str(folder / "work")
    traceback = ["Traceback (most recent call last):\n", "  File 'x'\n", f"ValueError: {reason}\n"]
    if record:
        node.failure, node._traceback = Failure("ValueError", reason), traceback
        crash_files.write(node)
    else:
        report_crash(node, traceback=traceback)


def linked(page):
    text = page.read_text(encoding="utf-8")
    return re.findall(r'(?:data|src)="\./([^"]*)"', text)


def test_every_picture_of_every_image_is_on_the_page(tmp_path, figures):
    folder = figures("01", "sub-01_run-1", "sub-01_run-2", "sub-01_run-10")
    page = write_subject_report(tmp_path, "01")
    assert page == tmp_path / "sub-01.html"
    pictures = {f"sub-01/figures/{path.name}" for path in folder.glob("*.svg")}
    assert len(pictures) == 12
    assert sorted(linked(page)) == sorted(pictures)
    text = page.read_text(encoding="utf-8")
    for run in (1, 2, 10):
        name = f"sub-01_run-{run}_T1w"
        assert f"<p>summary of sub-01_run-{run}</p>" in text
        assert f'<section id="{name}">' in text
        assert f'<a href="#{name}">run-{run} T1w</a>' in text
        for desc in PICTURES:
            assert f'<a href="#{name}-{desc}">' in text
            assert f'id="{name}-{desc}"' in text
    assert text.index('id="sub-01_run-2_T1w"') < text.index('id="sub-01_run-10_T1w"')
    assert "3 images" in text


def test_the_flicker_is_an_object_and_the_others_are_not(tmp_path, figures):
    figures("01", "sub-01")
    text = write_subject_report(tmp_path, "01").read_text(encoding="utf-8")
    assert re.findall(r'<object[^>]*data="([^"]*)"', text) == [
        "./sub-01/figures/sub-01_desc-enhancement_T1w.svg"
    ]
    assert '<img alt="Tissues of sub-01_T1w"' in text


@pytest.mark.parametrize(
    ("record", "told"),
    [({}, False), ({"MotionCorrection": {"Applied": False}}, False),
     ({"MotionCorrection": {"Applied": True}}, True)],
    ids=["off", "still", "undone"],
)  # fmt: skip
def test_the_difference_shows_ghosts_where_motion_was_undone(
    tmp_path, figures, sidecar, record, told
):
    folder = figures("01", "sub-01")
    (folder / "sub-01_desc-difference_T1w.svg").write_text("<svg />")
    sidecar("sub-01", **record)
    page = write_subject_report(tmp_path, "01").read_text(encoding="utf-8")
    assert page.count("It should look like noise.") == 1
    assert (
        page.count("faults were corrected in this image (see the summary), so the picture") == told
    )


def test_nothing_is_fetched_from_elsewhere(tmp_path, figures):
    figures("01", "sub-01")
    text = write_subject_report(tmp_path, "01").read_text(encoding="utf-8")
    assert not re.search(r"https?:|//[a-z]|@import|<script", text)


def test_the_pictures_are_left_as_they_are(tmp_path, figures):
    folder = figures("01", "sub-01")
    write_subject_report(tmp_path, "01")
    assert {path.read_text() for path in folder.glob("*.svg")} == {"<svg width='3' />"}


def test_sessions_have_pages_of_their_own_and_know_each_other(tmp_path, figures, run):
    figures("01", "sub-01_ses-A", "sub-01_ses-AB", "sub-01")
    run("r1", ("sub-01_ses-C_T1w", "skipped"))
    for session in ("A", "AB", None, "C"):
        page = write_subject_report(tmp_path, "01", session)
        assert page.name == page_name("01", session)
        text = page.read_text(encoding="utf-8")
        assert len(linked(page)) == (0 if session == "C" else 4)
        assert all(link.startswith(f"sub-01/figures/{page.stem}_desc-") for link in linked(page))
        others = {"A", "AB"} - {session} if session else set()
        assert set(re.findall(r'href="sub-01_ses-(\w+).html"', text)) >= others
        assert f"sub-01_ses-{session}.html" not in text
    assert '<a href="sub-01_ses-A.html">ses-A</a>' in text
    assert "<b>ses-C</b>" in text


def test_participants_and_contrasts_are_not_mixed(tmp_path, figures):
    figures("01", "sub-01")
    figures("01", "sub-01", suffix="T2w")
    figures("012", "sub-012")
    text = write_subject_report(tmp_path, "01").read_text(encoding="utf-8")
    assert text.count("<section id") == 3
    assert "sub-012" not in text
    assert text.index('id="sub-01_T1w"') < text.index('id="sub-01_T2w"')


def test_other_files_and_missing_pictures_do_no_harm(tmp_path, figures):
    folder = figures("01", "sub-01")
    (folder / "sub-01_desc-tissues_T1w.svg").unlink()
    (folder / "sub-01_desc-other_T1w.svg").write_text("<svg/>")
    (folder / "sub-01_T1w.svg").write_text("<svg/>")
    assert len(linked(write_subject_report(tmp_path, "01"))) == 3
    assert linked(write_subject_report(tmp_path, "02")) == []


def test_folders_that_look_like_bids_do_not_confuse(tmp_path, figures, monkeypatch):
    folder = tmp_path / "sub-07" / "ses-B" / "run-2" / "anat" / "acq-x"
    folder.mkdir(parents=True)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    figures("01", "sub-01_part-mag_run-1", "sub-01_part-phase_run-1", output=folder)
    assert len(linked(write_subject_report(folder, "01"))) == 8


def test_the_summary_is_that_of_the_sidecar(tmp_path, figures, sidecar):
    figures("01", "sub-01")
    record = {
        "Age": {"months": 18.5, "unit": "months", "value": 18.5, "fetal": False},
        "Quality": {"tct_before": 1.25, "tct_after": 1.5, "qi": 0.83},
        "Weights": {"Name": "w<1>", "License": "MIT", "Source": "someone"},
        "Warnings": ["mind & this"],
        "Gate": {
            "Verdict": "warn",
            "Rules": [
                {"Rule": "volume", "Value": 1.2, "Verdict": "pass", "Reason": "good"},
                {"Rule": "edge", "Value": None, "Verdict": "warn", "Reason": "cut off"},
            ],
        },
    }
    sidecar("sub-01", **record)
    sidecar("sub-01", desc="quality", Warnings=["of the older kind"])
    (tmp_path / "sub-01/anat/sub-01_res-0p8_desc-enhanced_T1w.json").write_text("{]")
    text = write_subject_report(tmp_path, "01").read_text(encoding="utf-8")
    assert "summary of sub-01" not in text
    for part in ("18.5 months", "0.83", "w&lt;1&gt;", "someone", "mind &amp; this", "cut off"):
        assert part in text
    assert "1.25 → 1.50" in text
    assert "older kind" not in text
    assert 'T1w <span class="badge warn">warn</span>' in text


def test_the_score_is_the_headline_and_contrast_is_not(tmp_path, figures, sidecar):
    figures("01", "sub-01")
    score = {
        "weights": "w",
        "before": {"motion": 1.94, "noise_percent": 2.5, "resolution_mm": 1.13},
        "after": {"motion": 0.21, "noise_percent": 0.4, "resolution_mm": 1.02},
    }
    score["before"] |= {"motion_low": 1.52, "motion_high": 2.31}
    sidecar("sub-01", Quality={"Score": score, "tct_before": 1.25, "tct_after": 1.5, "qi": 0.83})
    text = write_subject_report(tmp_path, "01").read_text(encoding="utf-8")
    cards = text[text.index('<div class="figures">') : text.index("The input shows")]
    for part in ("Motion", "1.9 → 0.2", "2.5 → 0.4 %", "1.1 → 1.0 mm"):
        assert part in cards
    assert "TCT" not in cards
    assert "motion 1.5–2.3" in text
    assert "1.25 → 1.50" in text
    assert (
        "The input shows moderate motion (1.9 of 3), noise of 2.5 % and details down to 1.1 mm; "
        "the enhanced image no motion (0.2 of 3), noise of 0.4 % and details down to 1.0 mm."
        in text
    )


def test_an_image_that_was_only_measured_has_its_summary(tmp_path, sidecar):
    sidecar("sub-01_ses-A", desc="quality", Quality={"qi": 0.5})
    sidecar("sub-01_ses-B", desc="quality", Quality={"qi": 0.7})
    text = write_subject_report(tmp_path, "01", "A").read_text(encoding="utf-8")
    assert "0.50" in text
    assert "0.70" not in text


@pytest.mark.parametrize("session", [None, "A"])
def test_a_failed_image_is_on_the_page_with_its_crash(tmp_path, run, session):
    stem = Page("01", session).stem
    name, workflow = f"{stem}_run-1_T1w", f"{stem}_run-1_T1w_wf".replace("-", "_")
    folder = run(
        "20260101-1_a",
        (name, "failed", "preprocess: brain mask", "3", "", "expected <a brain>, got none"),
        (f"{stem}_T2w", "done"),
        ("sub-012_T1w", "failed", "", "", "", "somebody else"),
        crashes=[
            (workflow, "expected <a brain>"),
            ("sub_012_T1w_wf", "somebody else"),
            ("sub_01_ses_B_T1w_wf", "another session"),
        ],
    )
    assert len(list(folder.glob("crash-*.txt"))) == 3
    text = write_subject_report(tmp_path, "01", session).read_text(encoding="utf-8")
    assert f'<section id="{name}">' in text
    assert '<span class="badge failed">failed</span>' in text
    assert "preprocess: brain mask" in text
    assert "expected &lt;a brain&gt;, got none" in text
    assert "preprocess_wf.find_brain</code>: ValueError: expected &lt;a brain&gt;</p>" in text
    assert "a &lt;b&gt;" in text
    assert "somebody else" not in text
    assert "another session" not in text
    assert "No errors" not in text
    assert text.count("Traceback</summary>") == 1


@pytest.mark.parametrize(
    ("status", "told"), [("skipped", True), ("not run", True), ("unchanged", False)]
)
def test_what_was_not_done_is_told_with_its_reason(tmp_path, figures, run, status, told):
    figures("01", "sub-01")
    run("r1", ("sub-01_T1w", status, "", "", "", "no age in participants.tsv"))
    text = write_subject_report(tmp_path, "01").read_text(encoding="utf-8")
    assert ("no age in participants.tsv" in text) is told
    assert ("No errors" in text) is not told
    assert len(linked(tmp_path / "sub-01.html")) == 4


def test_rows_that_are_given_are_not_read(tmp_path, run):
    run("r1", ("sub-01_T1w", "failed", "", "", "", "as read"))
    rows = [{"image": "sub-01_T1w", "status": "skipped", "reason": "as given"}]
    page = write_subject_report(tmp_path, "01", run_id="r1", reason_rows=rows)
    text = page.read_text(encoding="utf-8")
    assert "as given" in text
    assert "as read" not in text


def test_the_latest_run_that_knows_the_participant_counts(tmp_path, run):
    run("2026-1", ("sub-01_T1w", "failed", "", "", "", "first"))
    run("2026-2", ("sub-01_T1w", "failed", "", "", "", "second"))
    run("2026-3", ("sub-02_T1w", "failed", "", "", "", "of another"))
    text = write_subject_report(tmp_path, "01").read_text(encoding="utf-8")
    assert "second" in text
    assert "2026-2" in text
    assert "first" not in text
    text = write_subject_report(tmp_path, "01", run_id="2026-1").read_text(encoding="utf-8")
    assert "first" in text


def test_the_latest_run_is_the_last_written_whatever_its_local_time(tmp_path, run):
    """A run killed at UTC+14 and resumed at UTC-11 has the later name."""
    run("20260102-010000", ("sub-01_T1w", "waiting", "", "", "", "killed"))
    run("20260101-000000", ("sub-01_T1w", "failed", "", "", "", "resumed"))
    for name, seconds in (("20260102-010000", 1000), ("20260101-000000", 2000)):
        os.utime(tmp_path / "logs" / name / "status.tsv", (seconds, seconds))
    text = write_subject_report(tmp_path, "01").read_text(encoding="utf-8")
    assert "resumed" in text
    assert "killed" not in text


def test_a_crash_without_a_row_is_shown_once(tmp_path, run):
    reasons = [("sub_01_ses_A_T1w_wf", "killed early")] * 2  # Nipype's pool writes some twice
    run("r1", crashes=reasons)
    text = write_subject_report(tmp_path, "01", "A").read_text(encoding="utf-8")
    assert text.count("Traceback</summary>") == 1
    assert "run_wf.sub_01_ses_A_T1w_wf" in text
    assert 'Errors <span class="badge fail">1</span>' in text


@pytest.mark.parametrize("record", [True, False])
def test_a_crash_file_says_why_with_what_and_where(tmp_path, record):
    crash(tmp_path, "sub_01_T1w_wf", "expected a brain", record=record)
    (path,) = tmp_path.glob("crash-*.txt")
    found = read_crash(path)
    assert found.reason == "ValueError: expected a brain"
    assert found.step == "preprocess_wf.find_brain"
    assert "value = " in found.inputs
    assert "Failure" not in found.inputs
    assert found.traceback.startswith("Traceback (most recent call last):\n  File 'x'")
    assert (found.failure is not None) is record


def test_a_strange_crash_file_is_all_traceback(tmp_path):
    (tmp_path / "crash-1.txt").write_bytes(b"Segmentation \xff fault\n")
    crash = read_crash(tmp_path / "crash-1.txt")
    assert (crash.node, crash.inputs) == ("", "")
    assert crash.traceback.startswith("Segmentation")


def test_the_methods_text_is_shown_and_made_harmless(tmp_path):
    logs = tmp_path / "logs"
    logs.mkdir()
    (logs / "CITATION.md").write_text("We <used> *this*.", encoding="utf-8")
    text = write_subject_report(tmp_path, "01").read_text(encoding="utf-8")
    assert '<pre class="methods">We &lt;used&gt; *this*.</pre>' in text
    (logs / "CITATION.html").write_text(
        "<html><head><link href='http://x'></head><body class='a'><p>Wé <em>used</em> this</p>"
        "<script src='http://cdn'></script></body></html>",
        encoding="utf-8",
    )
    (logs / "CITATION.bib").write_text("@article{a}", encoding="utf-8")
    text = write_subject_report(tmp_path, "01").read_text(encoding="utf-8")
    assert "<p>Wé <em>used</em> this</p>" in text
    assert "http:" not in text
    assert "<summary>As BibTeX</summary><pre>@article{a}</pre>" in text
    assert "<summary>As Markdown</summary>" in text


def test_without_a_methods_text_there_is_no_section_of_it(tmp_path, figures):
    figures("01", "sub-01")
    text = write_subject_report(tmp_path, "01").read_text(encoding="utf-8")
    assert "Methods" not in text
    assert "Errors" in text


def test_the_group_pages_are_linked_where_they_are(tmp_path):
    (tmp_path / "group_T2w.html").touch()
    text = write_subject_report(tmp_path, "01").read_text(encoding="utf-8")
    assert '<a href="group_T2w.html">T2w</a>' in text
    assert "group_T1w" not in text


@pytest.mark.parametrize(
    "label", ["<img src=x onerror=alert(1)>", 'q" onmouseover="x\'', "a&b;'\"", "{filename}"]
)
def test_markup_in_a_label_is_text_on_its_page(label, figures, run, tmp_path):
    folder = figures(label, f"sub-{label}")
    (folder / f"sub-{label}_desc-summary_T1w.html").write_text("<p>fine</p>")
    run("20260101", (f"sub-{label}_T1w", "done", "", "1", "pass", ""))
    page = write_subject_report(tmp_path, label)
    assert page == tmp_path / f"sub-{label}.html"
    seen = _Seen()
    seen.feed(page.read_text(encoding="utf-8"))
    assert seen.handlers == []
    assert seen.title == f"bmex_bids: sub-{label}"
    links = [link for link in seen.links if link.endswith("_desc-brainmask_T1w.svg")]
    assert links
    for link in links:  # and they lead to the pictures
        assert (tmp_path / unquote(link)).is_file()


class _Seen(HTMLParser):
    """The title, the links to pictures and the handlers of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.handlers: list[str] = []
        self.title, self.inside = "", ""

    def handle_starttag(self, tag, attrs):
        self.inside = tag
        for name, value in attrs:
            if name.startswith("on") or (tag, name, value) == ("img", "src", "x"):
                self.handlers.append(f"{tag} {name}")
            if name in {"data", "href"} and str(value).endswith(".svg"):
                self.links.append(value)

    def handle_data(self, data):
        if self.inside == "title":
            self.title += data

    def handle_endtag(self, tag):
        self.inside = ""


def test_the_pages_that_are_there(tmp_path):
    names = (
        "sub-01.html",
        "sub-02_ses-A.html",
        "group_T1w.html",
        "sub-01_desc-x.html",
        "mine.html",
    )
    for name in names:
        (tmp_path / name).touch()
    assert pages_there(tmp_path) == [Page("01", None), Page("02", "A")]


def test_about_says_how_the_images_were_made_and_scanned(tmp_path, figures, sidecar, run):
    path = sidecar(
        "sub-01", Input={"Shape": [4, 5, 6], "VoxelSizes": [1, 1, 2.5], "Orientation": "LAS"}
    )
    scan = {
        "Manufacturer": "Maker",
        "ManufacturersModelName": "<Model>",
        "MagneticFieldStrength": 3,
        "ProtocolName": "t1_mprage",
        "SeriesDescription": "t1_mprage",
        "RepetitionTime": 2.4,
        "FlipAngle": 8,
    }
    path.write_text(json.dumps(json.loads(path.read_text()) | scan))
    folder = run("20251121-080534_1f0c9a7e", ("sub-01_T1w", "done"))
    (folder / "config.toml").write_text('version = "0.1.0"\ncommand = "bmex \'a b\' out"\n')
    text = write_subject_report(tmp_path, "01").read_text(encoding="utf-8")
    about = text.split('<section id="About">')[1].split("</section>")[0]
    for row in (
        "<th>Run</th><td>2025-11-21 08:05:34</td>",
        "<th>Command line</th><td>bmex &#39;a b&#39; out</td>",
        "<th>bmex_bids</th><td>0.1.0</td>",
        "<th>Matrix</th><td>4 × 5 × 6</td>",
        "<th>Voxels</th><td>1 × 1 × 2.5 mm</td>",
        "<th>Stored axes</th><td>LAS</td>",
        "<th>Scanner</th><td>Maker &lt;Model&gt; 3 T</td>",
        "<th>Protocol</th><td>t1_mprage, TR 2.4 s, flip angle 8°</td>",
    ):
        assert row in about
    assert "nibabel" in about


def test_a_page_without_any_result_has_no_methods_of_the_others(tmp_path, sidecar, run):
    run("r1", ("sub-01_T1w", "failed"), ("sub-02_T1w", "failed"))
    (tmp_path / "logs" / "CITATION.md").write_text("What was done to the others.")
    assert "Methods" not in write_subject_report(tmp_path, "01").read_text(encoding="utf-8")
    sidecar("sub-02", Version="0.1.0")  # of an earlier run
    assert "Methods" in write_subject_report(tmp_path, "02").read_text(encoding="utf-8")


def test_the_pages_of_participants_and_of_the_group_have_one_style():
    folder = Path(pages.__file__).parents[1] / "data" / "templates"
    for name in ("subject.html.j2", "group.html.j2"):
        assert '{% include "style.css" %}' in (folder / name).read_text(encoding="utf-8")

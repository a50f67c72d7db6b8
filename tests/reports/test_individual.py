# SPDX-License-Identifier: Apache-2.0
import re

import pytest

from bmex_bids.reports.individual import SECTIONS, write_subject_report


@pytest.fixture
def figures(tmp_path):
    """A function that puts the pictures of images into a folder of figures."""

    def make(subject, *stems, suffix="T1w"):
        folder = tmp_path / f"sub-{subject}" / "figures"
        folder.mkdir(parents=True, exist_ok=True)
        for stem in stems:
            for section in SECTIONS:
                extension = "html" if section == "summary" else "svg"
                path = folder / f"{stem}_desc-{section}_{suffix}.{extension}"
                path.write_text(f"<p>summary of {stem}</p>" if extension == "html" else "<svg/>")
        return folder

    return make


def linked(page):
    return re.findall(r"data='([^']*)'", page.read_text(encoding="utf-8"))


def test_every_picture_of_every_image_is_on_the_page(tmp_path, figures):
    folder = figures("01", "sub-01_run-1", "sub-01_run-2")
    page = write_subject_report(tmp_path, "01")
    assert page == tmp_path / "sub-01.html"
    pictures = {f"sub-01/figures/{path.name}" for path in folder.glob("*.svg")}
    assert len(pictures) == 8
    assert set(linked(page)) == pictures
    assert all((tmp_path / link).is_file() for link in pictures)
    text = page.read_text(encoding="utf-8")
    for stem in ("sub-01_run-1", "sub-01_run-2"):
        assert f"<p>summary of {stem}</p>" in text
        assert f"<h2 id='{stem}_T1w'>" in text
        assert f"<a href='#{stem}_T1w'>" in text


def test_nothing_is_fetched_from_elsewhere(tmp_path, figures):
    figures("01", "sub-01")
    text = write_subject_report(tmp_path, "01").read_text(encoding="utf-8")
    assert not re.search(r"https?:|//[a-z]|@import|<script|<link", text)


def test_sessions_have_pages_of_their_own(tmp_path, figures):
    figures("01", "sub-01_ses-A", "sub-01_ses-AB", "sub-01")
    for session, name in (
        ("A", "sub-01_ses-A.html"),
        ("AB", "sub-01_ses-AB.html"),
        (None, "sub-01.html"),
    ):
        page = write_subject_report(tmp_path, "01", session)
        assert page.name == name
        stem = page.stem
        assert len(linked(page)) == 4
        assert all(link.startswith(f"sub-01/figures/{stem}_desc-") for link in linked(page))


def test_participants_and_contrasts_are_not_mixed(tmp_path, figures):
    figures("01", "sub-01")
    figures("01", "sub-01", suffix="T2w")
    figures("012", "sub-012")
    text = write_subject_report(tmp_path, "01").read_text(encoding="utf-8")
    assert text.count("<h2 ") == 2
    assert "sub-012" not in text
    assert text.index("id='sub-01_T1w'") < text.index("id='sub-01_T2w'")


def test_other_files_and_missing_pictures_do_no_harm(tmp_path, figures):
    folder = figures("01", "sub-01")
    (folder / "sub-01_desc-tissues_T1w.svg").unlink()
    (folder / "sub-01_desc-other_T1w.svg").write_text("<svg/>")
    (folder / "sub-01_T1w.svg").write_text("<svg/>")
    assert len(linked(write_subject_report(tmp_path, "01"))) == 3
    assert linked(write_subject_report(tmp_path, "02")) == []

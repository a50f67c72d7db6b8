# SPDX-License-Identifier: Apache-2.0
import json

import pytest

from bmex_bids import __version__
from bmex_bids.outputs.dataset import describe, write_dataset
from bmex_bids.outputs.status import write_status


@pytest.fixture(autouse=True)
def no_container(monkeypatch):
    for name in ("TYPE", "TAG", "URI"):
        monkeypatch.delenv(f"BMEX_CONTAINER_{name}", raising=False)


@pytest.mark.parametrize(
    ("output", "link"),
    [("bids/derivatives/bmex", "../.."), ("out", "../bids"), ("deep/er/out", "../../../bids")],
)
def test_the_link_to_the_raw_data_is_relative(tmp_path, output, link):
    assert describe(tmp_path / "bids", tmp_path / output)["DatasetLinks"] == {"raw": link}


def test_what_made_it_is_said(tmp_path, monkeypatch):
    description = describe(tmp_path / "bids", tmp_path / "out")
    assert description["DatasetType"] == "derivative"
    (generator,) = description["GeneratedBy"]
    assert (generator["Name"], generator["Version"]) == ("bmex_bids", __version__)
    assert "Container" not in generator
    monkeypatch.setenv("BMEX_CONTAINER_TYPE", "docker")
    monkeypatch.setenv("BMEX_CONTAINER_TAG", "bmex/bmex_bids:0.1.0")
    monkeypatch.setenv("BMEX_CONTAINER_URI", "")
    (generator,) = describe(tmp_path / "bids", tmp_path / "out")["GeneratedBy"]
    assert generator["Container"] == {"Type": "docker", "Tag": "bmex/bmex_bids:0.1.0"}


def test_a_doi_of_the_raw_data_is_carried(bids_skeleton, tmp_path):
    bids = bids_skeleton(
        {
            "dataset_description.json": {
                "Name": "x",
                "BIDSVersion": "1.10.0",
                "DatasetDOI": "doi:1/2",
            }
        }
    )
    assert describe(bids, tmp_path / "out")["SourceDatasets"] == [{"DOI": "doi:1/2"}]


@pytest.mark.parametrize("text", [None, "", "{", "[1]", '{"DatasetDOI": 5}'])
def test_a_raw_description_that_is_absent_or_broken_does_no_harm(tmp_path, text):
    if text is not None:
        (tmp_path / "dataset_description.json").write_text(text)
    assert "SourceDatasets" not in describe(tmp_path, tmp_path / "out")


def test_the_files_around_the_dataset_are_written_once(tmp_path):
    out = tmp_path / "out"
    write_dataset(tmp_path, out)
    assert {path.name for path in out.iterdir() if path.is_file()} == {
        "dataset_description.json", ".bidsignore", "desc-enhanced_dseg.tsv", "README.md",
    }  # fmt: skip
    assert json.loads((out / "dataset_description.json").read_text())["Name"]
    rows = [line.split("\t") for line in (out / "desc-enhanced_dseg.tsv").read_text().splitlines()]
    assert [(row[0], row[2]) for row in rows[1:]] == [("1", "GM"), ("2", "WM"), ("3", "CSF")]
    before = {path: path.stat().st_ino for path in out.iterdir() if path.is_file()}
    (out / ".bidsignore").write_text("changed")
    write_dataset(tmp_path, out)
    after = {path: path.stat().st_ino for path in out.iterdir() if path.is_file()}
    assert [path.name for path in before if before[path] != after[path]] == [".bidsignore"]


def test_what_others_ignore_is_kept(tmp_path):
    out = tmp_path / "out"
    write_dataset(tmp_path, out)
    ours = (out / ".bidsignore").read_text()
    (out / ".bidsignore").write_text("myfile.txt\nlogs\nsub-*/fmriprep_extra")
    for _ in range(2):
        write_dataset(tmp_path, out)
        assert (out / ".bidsignore").read_text() == f"myfile.txt\nsub-*/fmriprep_extra\n{ours}"


def test_the_status_has_a_row_for_each_image(tmp_path):
    rows = [
        {"image": "sub-01_T1w", "status": "ok", "message": ""},
        {"image": "sub-02_T1w", "status": "failed", "message": "two\nlines\tand a tab"},
        {"image": "sub-03_T1w", "status": "ok"},
    ]
    path = write_status(tmp_path / "logs" / "status.tsv", rows)
    assert path.read_text() == (
        "image\tstatus\tmessage\n"
        "sub-01_T1w\tok\t\n"
        "sub-02_T1w\tfailed\ttwo lines and a tab\n"
        "sub-03_T1w\tok\t\n"
    )
    assert write_status(path, []).read_text() == "image\tstatus\n"


def test_links_are_uris(tmp_path):
    """They had blanks and letters as they are."""
    raw, masks = tmp_path / "data & <b>ü", tmp_path / "by hand"
    links = describe(raw, tmp_path / "out", {"masks": masks})["DatasetLinks"]
    assert links == {"raw": "../data%20%26%20%3Cb%3E%C3%BC", "masks": "../by%20hand"}


def test_another_datasets_derivatives_in_the_output_are_told(tmp_path, caplog):
    """The link to the raw data was rewritten without a word, and with it all sources."""
    first, second, out = (tmp_path / name for name in ("fir st", "second", "out"))
    first.mkdir()
    second.mkdir()
    write_dataset(first, out)
    write_dataset(first, out)
    assert not caplog.records
    write_dataset(second, out)
    (told,) = [record.getMessage() for record in caplog.records]
    assert f"the output has derivatives of {first} too" in told
    (tmp_path / "link").symlink_to(second)
    write_dataset(tmp_path / "link", out)  # the same dataset, as a container sees it
    assert len(caplog.records) == 1


def test_there_is_a_readme_unless_somebody_wrote_one(tmp_path):
    write_dataset(tmp_path, tmp_path / "out")
    assert "do not diagnose" in (tmp_path / "out" / "README.md").read_text()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "README").write_text("mine")
    write_dataset(tmp_path, tmp_path / "other")
    assert not (tmp_path / "other" / "README.md").exists()

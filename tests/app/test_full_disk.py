# SPDX-License-Identifier: Apache-2.0
"""A full disk ends a run with exit code 5, wherever it strikes."""

from __future__ import annotations

import errno
import os

import pytest
from app_runs import bmex, participants, status_of

from bmex_bids.cli.run import main
from bmex_bids.interfaces import preprocess
from bmex_bids.outputs.pictures import PICTURES

pytestmark = pytest.mark.usefixtures("coarse_grid")


@pytest.fixture
def full(monkeypatch):
    """From now on there is no room for files whose path has a word in it."""
    original = os.open

    def fill(word, number=errno.ENOSPC):
        def call(path, flags, *more, **named):
            if flags & os.O_CREAT and word in os.fspath(path):
                raise OSError(number, os.strerror(number), path)
            return original(path, flags, *more, **named)

        monkeypatch.setattr(os, "open", call)

    return fill


def no_room(*_args, **_named):
    raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), "/work/image.nii.gz")


def test_in_a_step(bids_skeleton, brain, tmp_path, monkeypatch, capsys):
    """It was one image's failure like any other: code 1, or 3 beside images that were done."""
    bids = bids_skeleton(
        {**participants("01", "02"), "sub-01/anat/sub-01_T1w.nii.gz": brain(),
         "sub-02/anat/sub-02_T1w.nii.gz": brain()}
    )  # fmt: skip
    original = preprocess.write

    def write(image, folder, name):
        return no_room() if "sub_02" in folder else original(image, folder, name)

    monkeypatch.setattr(preprocess, "write", write)
    assert bmex(bids, "--qc-only") == 5
    assert [row["status"] for row in status_of(tmp_path / "out")] == ["done", "failed"]
    said = "".join(capsys.readouterr())
    assert "Disk quota exceeded: /work/image.nii.gz; free some space" in said
    assert "Disk quota exceeded" in (tmp_path / "out/sub-02.html").read_text()


@pytest.mark.parametrize(
    "word",
    ["status.tsv", "dataset_description.json", "/anat/", "_desc-summary", "logs"],
)
def test_in_what_a_run_writes(one, full, capsys, word):
    """Status table, description of the dataset, sidecar, picture, the run's own folder."""
    full(word)
    assert bmex(one, "--qc-only") == 5
    assert "No space left on device" in "".join(capsys.readouterr())


def test_in_pages_and_tables(one, full, capsys, monkeypatch):
    monkeypatch.setattr("bmex_bids.outputs.pictures.PICTURES", {"summary": PICTURES["summary"]})
    assert bmex(one, "--qc-only") == 0
    for word in ("sub-01.html", "CITATION", "group_T1w.tsv", "group_T1w.html"):
        full(word)
        assert main([str(one), "out", "participant", "group", "--nprocs", "1", "--qc-only"]) == 5
        said = capsys.readouterr()
        assert "No space left on device" in said.err
        assert word in said.err
        assert "unchanged" in said.out


def test_somewhere_else(one, monkeypatch, capsys):
    """A library's own file, such as a cache: no traceback."""
    monkeypatch.setattr("bmex_bids.running.planning.survey", no_room)
    assert bmex(one) == 5
    assert "bmex: OSError: Disk quota exceeded" in capsys.readouterr().err

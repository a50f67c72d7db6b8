# SPDX-License-Identifier: Apache-2.0
"""A kept index may be of yesterday, of another dataset, or broken: the images are those of now."""

from __future__ import annotations

import contextlib
import logging
import sqlite3

import pytest

from bmex_bids.exceptions import UsageError
from bmex_bids.inputs import index as module
from bmex_bids.inputs.collect import collect
from bmex_bids.inputs.index import INDEX_FILE

ONE = "sub-01/anat/sub-01_T1w.nii.gz"
TWO = "sub-02/ses-a/anat/sub-02_ses-a_T2w.nii.gz"


@pytest.fixture
def root(bids_skeleton):
    return bids_skeleton({ONE: None, TWO: None})


@pytest.fixture
def indexings(monkeypatch):
    """Count how often the dataset is walked."""
    calls = []
    original = module.index

    def counted(*arguments):
        calls.append(arguments)
        return original(*arguments)

    monkeypatch.setattr(module, "index", counted)
    return calls


def found(root, database, **options):
    return [image.relative_path for image in collect(root, database_dir=database, **options)]


def ours(database):
    (path,) = database.glob(f"bmex-*/{INDEX_FILE}")
    return path


def test_the_second_run_walks_no_folder(root, tmp_path, indexings):
    database = tmp_path / "new" / "database"
    assert found(root, database, participants=["01"]) == [ONE]
    assert len(indexings) == 1
    # all participants were indexed, though only one was asked for
    assert found(root, database) == [ONE, TWO]
    assert found(root, database, participants=["02"]) == [TWO]
    assert len(indexings) == 1
    assert [path.name for path in ours(database).parent.iterdir()] == [INDEX_FILE]


@pytest.mark.parametrize("change", ["added", "removed", "renamed"])
def test_an_index_of_yesterday_is_made_again(root, tmp_path, indexings, change, caplog):
    database = tmp_path / "database"
    found(root, database)
    new = root / "sub-03/anat/sub-03_T1w.nii.gz"
    if change != "removed":
        new.parent.mkdir(parents=True)
        new.write_bytes((root / ONE).read_bytes())
    if change != "added":
        (root / ONE).unlink()
    expected = {
        "added": [ONE, TWO, "sub-03/anat/sub-03_T1w.nii.gz"],
        "removed": [TWO],
        "renamed": [TWO, "sub-03/anat/sub-03_T1w.nii.gz"],
    }[change]
    with caplog.at_level(logging.WARNING):
        assert found(root, database) == expected
    assert ("are gone" if change == "removed" else "does not know 1 images") in caplog.text
    assert found(root, database) == expected
    assert len(indexings) == 2


@pytest.mark.parametrize("fault", ["empty", "text", "cut", "no tables", "no root"])
def test_a_broken_index_is_made_again(root, tmp_path, indexings, fault, caplog):
    database = tmp_path / "database"
    found(root, database)
    path = ours(database)
    if fault in {"empty", "text"}:
        path.write_text("" if fault == "empty" else "no database at all" * 100)
    elif fault == "cut":
        path.write_bytes(path.read_bytes()[:5000])
    else:
        with contextlib.closing(sqlite3.connect(path)) as connection:
            connection.execute(
                "DROP TABLE tags" if fault == "no tables" else "DELETE FROM layout_info"
            )
            connection.commit()
    with caplog.at_level(logging.WARNING):
        assert found(root, database) == [ONE, TWO]
    assert "is not used: " in caplog.text
    assert found(root, database) == [ONE, TWO]
    assert len(indexings) == 2


def theirs(root, database):
    """An index as another program writes it, at the top of the folder."""
    from bids.layout import BIDSLayout

    BIDSLayout(root, validate=False).save(database, replace_connection=False)
    return database / INDEX_FILE


@pytest.mark.filterwarnings("ignore:unclosed database:ResourceWarning")
def test_the_index_of_another_program_is_used_and_never_changed(root, tmp_path, indexings):
    database = tmp_path / "database"
    path = theirs(root, database)
    before = path.read_bytes()
    assert found(root, database) == [ONE, TWO]
    assert indexings == []
    (root / TWO).unlink()
    assert found(root, database) == [ONE]
    assert len(indexings) == 1
    assert path.read_bytes() == before
    assert ours(database).is_file()


def test_two_datasets_keep_their_indices_in_one_folder(root, tmp_path, bids_skeleton, indexings):
    other = bids_skeleton({"sub-09/anat/sub-09_T1w.nii.gz": None}, name="other")
    database = tmp_path / "database"
    for _ in range(2):
        assert found(root, database) == [ONE, TWO]
        assert found(other, database) == ["sub-09/anat/sub-09_T1w.nii.gz"]
    assert len(indexings) == 2


def test_an_index_of_another_dataset_is_not_taken(root, tmp_path, bids_skeleton, caplog):
    other = bids_skeleton({"sub-09/anat/sub-09_T1w.nii.gz": None}, name="other")
    database = tmp_path / "database"
    theirs(other, database)
    with caplog.at_level(logging.WARNING):
        assert found(root, database) == [ONE, TWO]
    assert f"it is of the dataset in {other}, not in {root}" in caplog.text


def test_a_folder_that_cannot_be_written_is_no_reason_to_stop(root, tmp_path, caplog, monkeypatch):
    def refuse(layout, folder):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(module, "_keep", refuse)
    with caplog.at_level(logging.WARNING):
        assert found(root, tmp_path / "database") == [ONE, TWO]
    assert "could not be kept" in caplog.text


def test_a_file_is_no_folder(root, tmp_path):
    (tmp_path / "index.sqlite").write_text("")
    with pytest.raises(UsageError, match="expected a folder for pybids' index, got the file"):
        collect(root, database_dir=tmp_path / "index.sqlite")


def test_files_deep_in_the_subject_are_no_images(root, tmp_path, indexings):
    """What the index rightly leaves out must not make it seem old for ever."""
    hidden = root / "sub-01/anat/._sub-01_T1w.nii.gz"  # as macOS leaves beside files
    hidden.write_bytes(b"")
    for _ in range(2):
        assert found(root, tmp_path / "database") == [ONE, TWO]
    assert len(indexings) == 1


def test_a_name_that_is_none_does_not_spoil_the_index(root, tmp_path, indexings):
    """It was in no index, so that each was made again."""
    (root / ONE).with_name("sub-01_acq-0.8mm_T1w.nii.gz").write_bytes((root / ONE).read_bytes())
    for _ in range(2):
        assert found(root, tmp_path / "database") == [ONE, TWO]
    assert len(indexings) == 1

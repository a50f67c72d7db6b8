# SPDX-License-Identifier: Apache-2.0
"""File systems that refuse chmod, links, times, or renaming over a file, or at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import odd_disks
import pytest

from bmex_bids.common.replacing import put_in_place
from bmex_bids.outputs.files import write_text, write_together
from bmex_bids.outputs.lock import alone


@pytest.mark.parametrize("kind", odd_disks.KINDS)
def test_files_are_written_and_written_again_whatever_is_refused(tmp_path, monkeypatch, kind):
    """A folder whose file system refuses chmod (CIFS) ended the run with code 5."""
    odd_disks.refuse(monkeypatch, tmp_path, kind)
    target = tmp_path / "a" / "file.txt"
    for text in ("old", "new"):
        write_text(target, text)
        assert target.read_text() == text
    assert [path.name for path in target.parent.iterdir()] == ["file.txt"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EPERM])
def test_a_disk_that_takes_nothing_keeps_the_old_file(tmp_path, monkeypatch, number):
    target = write_text(tmp_path / "file.txt", "old")
    new = tmp_path / "new"
    new.write_text("new")

    def full(*_):
        raise OSError(number, "refused")

    monkeypatch.setattr(os, "replace", full)
    real = os.rename
    monkeypatch.setattr(os, "rename", lambda a, b: full() if a == new else real(a, b))
    with pytest.raises(OSError, match="refused"):
        put_in_place(new, target)
    assert target.read_text() == "old"


def test_a_folder_in_the_files_place_is_refused_and_left(tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "new").touch()
    with pytest.raises(IsADirectoryError):
        put_in_place(tmp_path / "new", tmp_path / "taken")
    assert (tmp_path / "taken").is_dir()


@pytest.mark.parametrize("kind", odd_disks.KINDS)
def test_the_lock_of_a_process_that_is_gone_is_taken_over(tmp_path, monkeypatch, kind):
    """Where nothing can be renamed it was waited for, for ever."""
    odd_disks.refuse(monkeypatch, tmp_path, kind)
    path = tmp_path / "logs/locks/image"
    path.parent.mkdir(parents=True)
    path.write_text("elsewhere 1 2")
    ticks = iter(range(0, 10**6, 60))
    monkeypatch.setattr("bmex_bids.outputs.lock.POLL_S", 0)
    with alone(tmp_path, "image", clock=lambda: min(next(ticks), 6000)):
        pass
    assert not path.exists()


def test_files_that_belong_together_have_the_modes_of_the_umask(tmp_path, monkeypatch):
    odd_disks.refuse(monkeypatch, tmp_path, "chmod")
    before = os.umask(0o027)
    try:
        write_together({tmp_path / name: lambda path: path.write_text("x") for name in "ab"})
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o640}


def test_the_longest_name_of_the_disk_is_no_obstacle(tmp_path, monkeypatch):
    target = tmp_path / ("x" * 139 + ".txt")
    real = os.open
    monkeypatch.setattr(os, "pathconf", lambda *_: 143)  # eCryptfs

    def short(path, *more, **options):
        if len(Path(path).name) > 143:
            raise OSError(errno.ENAMETOOLONG, "File name too long")
        return real(path, *more, **options)

    monkeypatch.setattr(os, "open", short)
    assert write_text(target, "text").read_text() == "text"

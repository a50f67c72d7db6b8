# SPDX-License-Identifier: Apache-2.0
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bmex_bids.exceptions import OutputError
from bmex_bids.outputs.files import (
    clear_abandoned,
    clear_temporaries,
    copy_whole,
    write_json,
    write_text,
    write_together,
    write_whole,
)


def names(folder):
    return [path.name for path in folder.iterdir()]


def test_a_file_is_written_with_its_folders_and_replaces_the_old_one(tmp_path):
    target = tmp_path / "a" / "b" / "file.txt"
    assert write_text(target, "Größe") == target
    write_text(target, "new")
    assert target.read_bytes() == b"new"
    assert names(target.parent) == ["file.txt"]


@pytest.mark.parametrize("error", [RuntimeError("boom"), KeyboardInterrupt()])
def test_when_filling_fails_the_old_file_stays_and_nothing_else(tmp_path, error):
    target = write_text(tmp_path / "file.txt", "old")

    def fill(path):
        path.write_text("half")
        raise error

    with pytest.raises(type(error)):
        write_whole(target, fill)
    assert target.read_text() == "old"
    assert names(tmp_path) == ["file.txt"]


def test_a_file_system_that_refuses_is_an_output_error(tmp_path):
    def fill(path):
        raise OSError(28, "No space left on device")

    with pytest.raises(OutputError, match=r"file\.txt, got: No space left on device"):
        write_whole(tmp_path / "file.txt", fill)
    assert names(tmp_path) == []
    (tmp_path / "blocked").write_text("")
    with pytest.raises(OutputError, match="blocked"):
        write_text(tmp_path / "blocked" / "file.txt", "text")


def test_files_that_belong_together_appear_after_all_are_complete_in_their_order(
    tmp_path, monkeypatch
):
    targets = [tmp_path / name for name in ("c.nii.gz", "a.json", "b.json")]
    seen, renamed = [], []

    def fill(path):
        seen.append([target.exists() for target in targets])
        path.write_text("new")

    real = Path.replace

    def replace(path, target):
        renamed.append(target)
        return real(path, target)

    monkeypatch.setattr(Path, "replace", replace)
    write_together(dict.fromkeys(targets, fill))
    assert seen == [[False] * 3] * 3
    assert renamed == targets


def test_when_the_last_of_several_fails_the_old_ones_stay(tmp_path):
    first, last = (write_text(tmp_path / name, "old") for name in ("a.nii.gz", "a.json"))

    def full(path):
        raise OSError(28, "No space left on device")

    with pytest.raises(OutputError, match="No space"):
        write_together({first: lambda path: path.write_text("new"), last: full})
    assert (first.read_text(), last.read_text()) == ("old", "old")
    assert sorted(names(tmp_path)) == ["a.json", "a.nii.gz"]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o007, 0o660)])
def test_permissions_follow_the_umask(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        target = write_text(tmp_path / "file.txt", "")
        assert os.umask(umask) == umask  # unchanged by reading it
    finally:
        os.umask(before)
    assert target.stat().st_mode & 0o777 == mode


def test_json_and_copies(tmp_path):
    table = {"name": "Größe", "list": [1, None]}
    target = write_json(tmp_path / "a.json", table)
    assert json.loads(target.read_text(encoding="utf-8")) == table
    assert "Größe" in target.read_text(encoding="utf-8")
    assert copy_whole(target, tmp_path / "new" / "b.json").read_bytes() == target.read_bytes()


def test_only_leftovers_of_the_named_files_and_of_that_age_are_removed(tmp_path):
    old, young, other = (tmp_path / f".{name}" for name in ("a.json.x", "a.json.y", "ab.json.x"))
    for path in (old, young, other):
        path.write_text("half")
    os.utime(old, (0, 0))
    clear_temporaries([tmp_path / "a.json"], older_than_s=60)
    assert [path.exists() for path in (old, young, other)] == [False, True, True]
    clear_temporaries([tmp_path / "a.json"])
    assert [path.exists() for path in (young, other)] == [False, True]


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path):
    """A process is killed while it writes; another one is writing just now."""
    script = (
        "import os, signal, sys; from pathlib import Path; from bmex_bids.outputs import files\n"
        "files.write_whole(Path(sys.argv[1]), lambda path: os.kill(os.getpid(), signal.SIGKILL))"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "page.html")], check=False)
    (left,) = tmp_path.iterdir()
    mine = tmp_path / left.name.replace("page", "mine")
    mine = mine.with_name(re.sub(r"-\d+-", f"-{os.getpid()}-", mine.name))
    far, old = (tmp_path / f".page.html.{'0' * 8}-1-{x}" for x in ("far", "old"))
    user = tmp_path / ".bidsignore"
    for path in (mine, far, old, user):
        path.write_text("")
    os.utime(old, (0, 0))
    clear_abandoned([tmp_path, tmp_path / "not there"])
    assert sorted(tmp_path.iterdir()) == sorted([mine, far, user])


def test_the_longest_name_a_file_may_have(tmp_path):
    target = tmp_path / ("ä" * 125 + ".json")
    write_text(target, "text")
    assert list(tmp_path.iterdir()) == [target]

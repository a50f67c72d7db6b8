# SPDX-License-Identifier: Apache-2.0
"""Who has a lock, who gets it next, and several processes that write to one output folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from bmex_bids.exceptions import OutputError
from bmex_bids.outputs import lock
from bmex_bids.outputs.lock import alone

HELPERS = Path(__file__).parents[1] / "helpers"


def leftovers(out: Path) -> list[str]:
    return [path.name for path in out.rglob("*") if path.is_file()]


def test_one_at_a_time(tmp_path):
    inside, most = [], []

    def work() -> None:
        for _ in range(20):
            with alone(tmp_path, "x"):
                inside.append(1)
                most.append(len(inside))
                time.sleep(0.001)
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(most) == 80
    assert max(most) == 1
    assert leftovers(tmp_path) == []


def test_two_names_are_two_locks(tmp_path):
    with alone(tmp_path, "x"), alone(tmp_path, "y"):
        assert sorted(leftovers(tmp_path)) == ["x", "y"]


def test_a_name_stays_in_the_folder_of_the_locks(tmp_path):
    with alone(tmp_path / "out", "../../../x"):
        (path,) = (tmp_path / "out" / "logs" / "locks").iterdir()
        assert path.is_file()
    assert leftovers(tmp_path) == []


def test_it_is_given_back_after_an_error(tmp_path):
    with pytest.raises(ValueError, match="oh"), alone(tmp_path, "x"):
        raise ValueError("oh")
    assert leftovers(tmp_path) == []


def test_the_lock_of_a_process_that_was_killed_is_taken_at_once(tmp_path):
    code = (
        "import os, signal, sys; from pathlib import Path; from bmex_bids.outputs.lock import alone\n"
        "with alone(Path(sys.argv[1]), 'x'): os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert leftovers(tmp_path) == ["x"]
    start = time.monotonic()
    with alone(tmp_path, "x"):
        pass
    assert time.monotonic() - start < 5
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("text", ["elsewhere 1 abc", "", "nonsense"])
def test_a_lock_of_another_machine_is_taken_when_it_stays(tmp_path, text):
    path = tmp_path / "logs" / "locks" / "x"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    start = time.monotonic()
    with alone(tmp_path, "x", patience_s=0.3):
        assert time.monotonic() - start > 0.3
    assert leftovers(tmp_path) == []


def test_a_lock_that_changes_hands_is_waited_for(tmp_path):
    """Patience begins anew with each holder: a busy lock is not a dead one."""
    path = tmp_path / "logs" / "locks" / "x"
    path.parent.mkdir(parents=True)
    path.write_text("elsewhere 0 a")

    def others() -> None:
        for number in range(6):
            path.write_text(f"elsewhere {number} a")
            time.sleep(0.1)

    thread = threading.Thread(target=others)
    start = time.monotonic()
    thread.start()
    with alone(tmp_path, "x", patience_s=0.3):
        assert time.monotonic() - start > 0.7
    thread.join()


def test_a_live_holder_of_this_machine_is_not_gone():
    import os

    machine = lock.machine()
    assert not lock._is_gone(f"{machine} {os.getpid()} a")
    assert not lock._is_gone(f"{machine} 1 a")
    assert not lock._is_gone("elsewhere 999999999 a")
    assert lock._is_gone(f"{machine} 999999999 a")


def test_a_folder_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "logs").write_text("a file")
    with pytest.raises(OutputError, match="expected to write"), alone(tmp_path, "x"):
        pass


def test_five_processes_write_to_one_output_folder(bids_skeleton, tmp_path):
    """Descriptions, methods text, status tables and products of one image, 30 rounds each."""
    bids, out = bids_skeleton({"sub-01/anat/sub-01_T1w.nii.gz": None}), tmp_path / "out"
    command = [sys.executable, str(HELPERS / "writer.py"), str(bids), str(out)]
    writers = [
        subprocess.Popen(
            [*command, name, "30"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for name in "abcde"
    ]
    told = [writer.communicate(timeout=240) for writer in writers]
    assert [writer.returncode for writer in writers] == [0] * 5, told
    runs = {text.strip() for text, _ in told}
    assert {path.parent.name for path in out.glob("logs/*/status.tsv")} == runs
    assert len(runs) == 5
    description = json.loads((out / "dataset_description.json").read_text())
    tags = [entry["Container"]["Tag"] for entry in description["GeneratedBy"]]
    assert sorted(tags) == [f"bmex_bids:{name}" for name in "abcde"]
    assert [name for name in leftovers(out) if name.startswith(".")] == [".bidsignore"]


def test_a_full_disk_leaves_no_lock_that_others_would_wait_for(tmp_path, monkeypatch):
    def full(handle, *_, **__):
        os.close(handle)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fdopen", full)
    with pytest.raises(OutputError, match="No space left"), lock.alone(tmp_path, "dataset"):
        pass
    assert not list(tmp_path.glob("logs/locks/*"))

# SPDX-License-Identifier: Apache-2.0
"""Runs that share a work folder, and workers whose run was killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bmex_bids.outputs import lock
from bmex_bids.running.claims import in_use, own_folder

IMAGES = ["sub_01_T1w_wf", "sub_02_T1w_wf"]


def work_of(tmp_path, names=IMAGES, run_id="1"):
    return own_folder(tmp_path / "work", "run_wf", names, run_id)


def claim_of(tmp_path, process: int, machine: str | None = None, name: str = IMAGES[1]) -> Path:
    """A claim of another process."""
    path = tmp_path / "work/run_wf/.claims" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{machine or lock.machine()} {process} abc")
    return path


def dead() -> int:
    """The number of a process that has ended."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        return process.pid


def files(tmp_path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "work").rglob("*") if path.is_file())


def test_one_run_has_the_work_folder_and_gives_it_back(tmp_path):
    with work_of(tmp_path) as folder:
        assert folder == tmp_path / "work"
        assert files(tmp_path) == IMAGES
    assert files(tmp_path) == []


def test_of_two_runs_of_one_image_the_second_has_a_folder_of_its_own(tmp_path):
    with work_of(tmp_path) as first:
        with work_of(tmp_path, IMAGES[1:], "2") as second:
            assert second == tmp_path / "work/bmex_2_wf"
            (second / "sub_02_T1w_wf").mkdir()
        assert not second.exists()
        assert files(tmp_path) == IMAGES  # the first one's still
        with work_of(tmp_path, ["sub_03_T1w_wf"], "3") as third:
            assert third == first
    with work_of(tmp_path, IMAGES[1:], "4") as fourth:
        assert fourth == tmp_path / "work"


def test_what_was_claimed_is_given_back_when_an_image_is_anothers_or_the_run_fails(tmp_path):
    path = claim_of(tmp_path, os.getppid())
    with work_of(tmp_path) as folder:
        assert folder != tmp_path / "work"
        assert not path.with_name(IMAGES[0]).exists()
    path.unlink()
    with pytest.raises(ValueError, match="oh"), work_of(tmp_path):
        raise ValueError("oh")
    path.parent.mkdir()
    claim_of(tmp_path, os.getppid())
    assert files(tmp_path) == [IMAGES[1]]


def test_the_claim_of_a_run_that_was_killed_is_taken_over(tmp_path):
    claim_of(tmp_path, dead())
    with work_of(tmp_path) as folder:
        assert folder == tmp_path / "work"


@pytest.mark.parametrize(("hours", "shared"), [(1, False), (25, True)])
def test_the_claim_of_another_machine_is_believed_for_a_day(hours, shared, tmp_path):
    path = claim_of(tmp_path, os.getpid(), "elsewhere")
    then = time.time() - 3600 * hours
    os.utime(path, (then, then))
    with work_of(tmp_path) as folder:
        assert (folder == tmp_path / "work") is shared


def test_an_old_claim_of_a_process_that_lives_is_believed(tmp_path):
    path = claim_of(tmp_path, os.getppid())
    os.utime(path, (0, 0))
    with work_of(tmp_path) as folder:
        assert folder != tmp_path / "work"


def test_a_folder_in_which_others_work_is_in_use(tmp_path):
    assert not in_use(tmp_path / "work/run_wf")
    claim_of(tmp_path, dead())
    assert not in_use(tmp_path / "work/run_wf")
    claim_of(tmp_path, os.getppid(), name=IMAGES[0])
    with work_of(tmp_path) as own:
        assert in_use(tmp_path / "work/run_wf")
        assert in_use(own)
    assert in_use(tmp_path / "work/run_wf")


def test_a_worker_ends_when_its_run_is_killed(tmp_path):
    """It kept its memory for ever, waiting for work."""
    code = (
        "import os, time; from bmex_bids.running.plugins import PoolPlugin\n"
        "if __name__ == '__main__':\n"
        "    pool = PoolPlugin({'n_procs': 1, 'memory_gb': 1}).pool\n"
        "    print(pool.submit(os.getpid).result(), flush=True)\n"
        "    time.sleep(300)\n"
    )
    script = tmp_path / "run.py"
    script.write_text(code)
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as run:
        worker = int(run.stdout.readline())
        assert lock.is_alive(worker)
        run.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 30
    while lock.is_alive(worker) and time.monotonic() < deadline:
        time.sleep(0.05)
    alive = lock.is_alive(worker)
    if alive:
        os.kill(worker, signal.SIGKILL)
    assert not alive

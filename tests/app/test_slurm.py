# SPDX-License-Identifier: Apache-2.0
"""``--submit slurm`` on a real SLURM, with small brains and a tiny network; ``make test-slurm``."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from app_runs import derivatives, expected, participants, status_of

from bmex_bids.cli.run import main
from bmex_bids.outputs.pictures import PICTURES
from bmex_bids.slurm import commands

HELPERS = Path(__file__).parents[1] / "helpers"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(6000),
    pytest.mark.skipif(
        shutil.which("sbatch") is None, reason="there is no sbatch, so no SLURM, on this machine"
    ),
]
#: nothing of it may ever reach a shell
NASTY = "o$(touch pwned)\"u't;%j é"


@pytest.fixture(autouse=True)
def jobs_are_tiny_too(tiny_records, monkeypatch, tmp_path):
    """What conftest.py does in this process, in the jobs' processes."""
    records = tmp_path / "records.json"
    records.write_text(
        json.dumps([dataclasses.asdict(record) for record in tiny_records], default=str)
    )
    monkeypatch.setenv("BMEX_TEST_RECORDS", str(records))
    monkeypatch.setattr("bmex_bids.outputs.pictures.PICTURES", {"summary": PICTURES["summary"]})
    folders = [HELPERS / "in_jobs", HELPERS.parents[1]]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, folders)))
    monkeypatch.setenv("PYTHONWARNINGS", "default")


def dataset(bids_skeleton, brain, count: int, bad: int | None = None):
    labels = [f"{number:02d}" for number in range(1, count + 1)]
    images = {
        f"sub-{label}/anat/sub-{label}_T1w.nii.gz": brain(seed=number)
        for number, label in enumerate(labels)
    }
    if bad is not None:
        images[f"sub-{bad:02d}/anat/sub-{bad:02d}_T1w.nii.gz"] = b"not an image at all"
    return bids_skeleton({**participants(*labels), **images}, name="bi ds")


def submit(bids: Path, out: Path, *flags: str) -> int:
    size = ["--nprocs", "1", "--mem-mb", "3G", "--time-limit", "40"]
    return main([str(bids), str(out), "participant", "--submit", "slurm", *size, *flags])


def queued() -> list[commands.QueuedTask]:
    """Of this test's submissions, which lie below the current folder."""
    names = {f"bmex_{path.name}" for path in Path().glob("*/logs/slurm/*")}
    return [task for task in commands.queued() if task.name.removesuffix("_group") in names]


def wait(until=lambda: not queued(), seconds: float = 2500) -> None:
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end, queued()
        time.sleep(2)


def numbers(text: str) -> tuple[str, str]:
    return (
        re.search(r"^array job (\d+)", text, re.M)[1],
        re.search(r"^group job (\d+)", text, re.M)[1],
    )


def test_six_participants_one_of_them_bad(bids_skeleton, brain, tmp_path, capsys):
    bids = dataset(bids_skeleton, brain, 6, bad=4)
    out = tmp_path / NASTY
    assert submit(bids, out, "--max-running", "2") == 0
    printed = capsys.readouterr().out
    assert "6 participants: 0 finished, 0 in the queue, 6 to submit" in printed
    assert "6 tasks, at most 2 at once" in printed
    # at once again: nothing is submitted twice
    assert submit(bids, out) == 0
    assert "0 finished, 6 in the queue, 0 to submit\nnothing" in capsys.readouterr().out
    wait()

    good = set().union(*(expected(f"sub-{n:02d}") for n in (1, 2, 3, 5, 6)))
    assert derivatives(out) == good
    (folder,) = (path.parent for path in out.glob("logs/slurm/*/participants.sh"))
    assert len(list(folder.glob("task-*.log"))) == 6
    assert "expected a complete NIfTI image" in (folder / "task-3.log").read_text()
    assert len((out / "group_T1w.tsv").read_text().splitlines()) == 6
    assert (out / "logs" / "CITATION.md").is_file(), (folder / "group.log").read_text()
    # a work folder for each task; of the good ones nothing is left in it
    left = {path.parts[-3] for path in (tmp_path / "work").glob("*/bmex_*_wf/sub_*_wf")}
    assert left == {"sub-04"}
    assert sorted(path.name for path in (tmp_path / "work").iterdir()) == [
        f"sub-{n:02d}" for n in range(1, 7)
    ]
    # now one is left; when it is mended, it alone is done
    shutil.copy(bids / "sub-01/anat/sub-01_T1w.nii.gz", bids / "sub-04/anat/sub-04_T1w.nii.gz")
    assert submit(bids, out) == 0
    assert "5 finished, 0 in the queue, 1 to submit" in capsys.readouterr().out
    wait()
    assert derivatives(out) == good | expected("sub-04")
    assert len((out / "group_T1w.tsv").read_text().splitlines()) == 7
    assert submit(bids, out) == 0
    assert "6 finished, 0 in the queue, 0 to submit\nnothing" in capsys.readouterr().out
    assert not list(tmp_path.rglob("pwned"))


def test_cancelled_in_mid_run_and_submitted_again(bids_skeleton, brain, tmp_path, capsys):
    bids, out = dataset(bids_skeleton, brain, 3), tmp_path / "out"
    assert submit(bids, out, "--max-running", "1") == 0
    array, group = numbers(capsys.readouterr().out)
    wait(lambda: bool(list(out.glob("sub-*/anat/*_desc-enhanced_T1w.json"))))
    subprocess.run(["scancel", array, group], check=True)
    wait(seconds=300)
    before = len(list(out.glob("sub-*/anat/*_T1w_desc-enhanced_T1w.json")))
    assert before < 3
    assert submit(bids, out) == 0
    text = capsys.readouterr().out
    assert re.search(r"3 participants: [12] finished, 0 in the queue, [12] to submit", text)
    wait()
    assert derivatives(out) == expected("sub-01") | expected("sub-02") | expected("sub-03")
    assert len((out / "group_T1w.tsv").read_text().splitlines()) == 4
    assert not [path for path in out.rglob(".*") if path.is_file() and path.name != ".bidsignore"]


def test_two_participants_a_task_and_the_scripts_by_hand(bids_skeleton, brain, tmp_path, capsys):
    bids, out = dataset(bids_skeleton, brain, 3), tmp_path / "out"
    assert submit(bids, out, "--participants-per-task", "2", "--qc-only", "--dry-run") == 0
    assert not queued()
    command = re.search(r"to submit it: bash (.+)$", capsys.readouterr().out, re.M)[1]
    subprocess.run(["bash", *shlex.split(command)], check=True)
    assert submit(bids, out) == 0
    assert "3 in the queue, 0 to submit" in capsys.readouterr().out
    wait()
    (folder,) = (path.parent for path in out.glob("logs/slurm/*/participants.sh"))
    assert sorted(path.name for path in folder.glob("task-*.log")) == ["task-0.log", "task-1.log"]
    assert len(list(out.glob("sub-*/anat/*_desc-quality_T1w.json"))) == 3
    assert not derivatives(out)


@pytest.mark.parametrize("plugin", ["MultiProc", "SLURM", "SLURMGraph"])
def test_nipypes_plugins_end_to_end(plugin, bids_skeleton, brain, tmp_path, monkeypatch):
    """``--use-plugin`` with one good and one bad image."""
    bids, out = dataset(bids_skeleton, brain, 2, bad=2), tmp_path / "out"
    settings = tmp_path / "plugin.yml"
    settings.write_text(f"plugin: {plugin}\n")
    monkeypatch.delenv("LOGNAME", raising=False)
    flags = ["--nprocs", "2", "--output-res", "native"]
    monkeypatch.setattr(sys, "warnoptions", [])
    code = main([str(bids), str(out), "participant", "--use-plugin", str(settings), *flags])
    rows = {row["image"]: row for row in status_of(out)}
    assert rows["sub-01_T1w"]["status"] == "done", rows
    assert rows["sub-02_T1w"]["status"] == "failed", rows
    assert "expected a complete NIfTI image" in rows["sub-02_T1w"]["reason"]
    assert code == 3

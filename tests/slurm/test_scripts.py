# SPDX-License-Identifier: Apache-2.0
"""The scripts of a submission: what they ask for, and that they take no text for shell."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from bmex_bids.exceptions import UsageError
from bmex_bids.slurm import scripts
from bmex_bids.slurm.scripts import Jobs, array_script, group_script, submit_script

BASH = shutil.which("bash") or "bash"
NASTY = [
    "a b",
    "$(touch pwned)",
    "`touch pwned`",
    "it's",
    'say "x"',
    ";touch pwned;",
    "&",
    "é",
    "*",
]


@pytest.fixture
def jobs(tmp_path):
    folder = tmp_path / "out" / "logs" / "slurm" / "1"
    folder.mkdir(parents=True)
    return Jobs(
        name="bmex_1",
        folder=folder,
        work_dir=tmp_path / "work",
        bids_dir=tmp_path / "bids",
        output_dir=tmp_path / "out",
        tasks=6,
        per_task=1,
        max_running=4,
        cpus=2,
        mem_mb=3072,
        minutes=50,
        options={"partition": "long", "qos": "a b"},
        gpu=False,
        command=["/usr/bin/python3", "-m", "bmex_bids"],
    )


def directives(script: str) -> dict[str, str]:
    lines = [line.removeprefix("#SBATCH --") for line in script.splitlines()]
    marked = [line for line in script.splitlines() if line.startswith("#SBATCH")]
    return {
        name: value
        for line in lines[2 : 2 + len(marked)]
        for name, _, value in [line.partition("=")]
    }


def test_what_the_array_asks_for(jobs):
    assert directives(array_script(jobs)) == {
        "job-name": "bmex_1",
        "array": "0-5%4",
        "output": "task-%a.log",
        "open-mode": "append",
        "requeue": "",
        "nodes": "1",
        "ntasks": "1",
        "cpus-per-task": "2",
        "mem": "3072M",
        "time": "50",
        "partition": "long",
        "qos": '"a b"',
    }


def test_the_group_job_needs_no_gpu(jobs):
    jobs = dataclasses.replace(
        jobs, gpu=True, options={"gres": "gpu:1", "gpus-per-node": "1", "account": "x"}
    )
    asked = directives(group_script(jobs))
    assert (asked["job-name"], asked["account"]) == ("bmex_1_group", "x")
    assert not {"gres", "gpus-per-node", "array"} & set(asked)
    assert "--nv" not in group_script(jobs)


def run(script: str, folder: Path, index: int = 0, path: str = "") -> list[str]:
    """Run a script and return the words its program got, one a line."""
    environment = os.environ | {
        "SLURM_ARRAY_TASK_ID": str(index), "SLURM_ARRAY_JOB_ID": "7", "PATH": f"{path}:{os.environ['PATH']}",
    }  # fmt: skip
    done = subprocess.run(
        [BASH, "-c", script],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return [line for line in done.stdout.splitlines() if line.startswith("<")]


def program(path: Path) -> Path:
    """A program that says what it was given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('#!/bin/bash\nprintf "<%s>\\n" "$@"\n')
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("text", NASTY)
def test_no_text_of_a_user_is_shell(jobs, tmp_path, text):
    root = tmp_path / text
    jobs = dataclasses.replace(
        jobs,
        folder=root / "logs",
        bids_dir=root / "bids",
        output_dir=root / "out",
        work_dir=root / "work",
        command=[str(program(root / "python")), text],
        variables={"PYTHONPATH": text},
    )
    jobs.folder.mkdir(parents=True)
    (jobs.folder / "participants.txt").write_text(f"sub-01\nsub-{text}\nsub-03\n")
    (tmp_path / "empty").mkdir()
    words = run(array_script(jobs), tmp_path / "empty", 1)
    assert words == [
        f"<{text}>", f"<{root}/bids>", f"<{root}/out>", "<participant>", "<--config-file>",
        f"<{root}/logs/config.toml>", "<--work-dir>", f"<{root}/work/sub-{text}>",
        "<--participant-label>", f"<sub-{text}>",
    ]  # fmt: skip
    assert run(group_script(jobs), tmp_path / "empty")[-1] == f"<{root}/logs/config.toml>"
    assert list((tmp_path / "empty").iterdir()) == []


def test_lots_of_participants(jobs, tmp_path):
    jobs = dataclasses.replace(
        jobs, per_task=3, tasks=3, command=[str(program(tmp_path / "python"))]
    )
    labels = [f"sub-{number}" for number in range(7)]
    (jobs.folder / "participants.txt").write_text("\n".join(labels) + "\n")
    given = []
    for index in range(3):
        words = run(array_script(jobs), tmp_path, index)
        given.append(
            [word.strip("<>") for word in words[words.index("<--participant-label>") + 1 :]]
        )
    assert given == [labels[:3], labels[3:6], labels[6:]]


def test_a_task_without_participants_fails(jobs, tmp_path):
    (jobs.folder / "participants.txt").write_text("")
    with pytest.raises(subprocess.CalledProcessError) as error:
        run(array_script(jobs), tmp_path)
    assert error.value.returncode == 2


def test_a_container_sees_the_paths_it_needs_and_no_more(jobs, tmp_path):
    program(tmp_path / "bin" / "apptainer")
    jobs = dataclasses.replace(
        jobs,
        container=tmp_path / "bmex 1.sif",
        binds=[(Path("/data/raw"), False), (Path("/data/a:b, c"), False), (Path("/o ut"), True)],
        gpu=True,
    )
    (jobs.folder / "participants.txt").write_text("sub-01\n")
    words = run(array_script(jobs), tmp_path, 0, str(tmp_path / "bin"))
    assert words[:11] == [
        "<run>", "<--cleanenv>", "<--no-home>", "<--nv>", "<--bind>", "</data/raw:/data/raw:ro>",
        "<--mount>", '<type=bind,"source=/data/a:b, c","destination=/data/a:b, c",ro>',
        "<--bind>", "</o ut:/o ut>", f"<{tmp_path}/bmex 1.sif>",
    ]  # fmt: skip
    assert "APPTAINERENV_CUDA_VISIBLE_DEVICES" in array_script(jobs)


def test_submitting_by_hand(jobs, tmp_path):
    sbatch = program(tmp_path / "bin" / "sbatch")
    sbatch.write_text(f'#!/bin/bash\necho "$@" >> {tmp_path}/calls\necho "41;there"\n')
    script = jobs.folder / "submit.sh"
    script.write_text(submit_script(dataclasses.replace(jobs, wait_for=["9"])))
    path = f"{tmp_path}/bin:{os.environ['PATH']}"
    subprocess.run([BASH, str(script)], check=True, env=os.environ | {"PATH": path})
    assert (tmp_path / "calls").read_text().splitlines() == [
        "--parsable participants.sh",
        "--parsable --dependency=afterany:9:41 group.sh",
    ]


@pytest.mark.parametrize("folder", ["/a\\b", "/a\nb"])
def test_a_folder_that_slurm_cannot_write_logs_to_is_refused(jobs, folder):
    with pytest.raises(UsageError, match="backslashes"):
        array_script(dataclasses.replace(jobs, folder=Path(folder)))


@pytest.mark.parametrize("text", ["--array=0-9", "mem=9G", "Qos=1", "=x", "a b=c", "job-name=x"])
def test_options_that_are_not_for_users(text):
    with pytest.raises(UsageError):
        scripts.parse_options([text])


@pytest.mark.parametrize("value", ["a\nb", 'a"b', "a'b", "a\\b"])
def test_values_that_cannot_stand_in_a_script(value):
    with pytest.raises(UsageError, match="plain value"):
        scripts.checked_value("qos", value)


def test_an_array_that_is_too_large_says_how_many_a_task():
    with pytest.raises(UsageError, match="100 or more"):
        scripts.tasks_for(100_000, 1, 1001)

# SPDX-License-Identifier: Apache-2.0
"""What is submitted and what is not, with a SLURM of three small scripts."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from pathlib import Path

import nipype.pipeline.engine  # noqa: F401 - asks for the mounts when it is first imported
import pytest

from bmex_bids.cli.parser import parse
from bmex_bids.cli.run import main
from bmex_bids.common.names import BidsName
from bmex_bids.config import Cluster, Config
from bmex_bids.exceptions import EnvironmentProblem
from bmex_bids.outputs.pictures import picture_paths
from bmex_bids.slurm import commands
from bmex_bids.slurm.submit import task_config


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """A folder: ``calls`` is what sbatch was told, ``queue`` what squeue says, ``broken`` fails."""
    folder = tmp_path / "cluster"
    folder.mkdir()
    programs = {
        "sbatch": f"""#!/bin/bash
[ -e {folder}/broken ] && {{ echo "sbatch: error: Invalid account" >&2; exit 1; }}
[ -e {folder}/no-group ] && [[ "$*" == *group.sh* ]] && exit 1
echo "$(basename "$PWD") $@" >> {folder}/calls
echo "Welcome to the cluster"
echo "$((100 + $(wc -l < {folder}/calls)));name"
""",
        "squeue": f"#!/bin/bash\n[ -e {folder}/away ] && exit 1\ncat {folder}/queue\n",
        "scontrol": f"#!/bin/bash\necho 'MaxArraySize            = '$(cat {folder}/size)\n",
    }
    for name, text in programs.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    (folder / "queue").write_text("")
    (folder / "size").write_text("1001")
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.fixture
def bids(bids_skeleton):
    tree = {f"sub-{n:02d}/anat/sub-{n:02d}_T1w.nii.gz": None for n in range(1, 5)}
    rows = [{"participant_id": f"sub-{n:02d}", "age": 1} for n in range(1, 4)]  # 04 has no age
    return bids_skeleton(
        {
            **tree,
            "participants.tsv": rows,
            "participants.json": {"age": {"Units": "months"}},
        }
    )


def submit(bids: Path, *flags: str) -> int:
    return main(
        [str(bids), "out", "participant", "--skip-bids-validation", "--submit", "slurm", *flags]
    )


def calls(cluster: Path) -> list[str]:
    path = cluster / "calls"
    return path.read_text().splitlines() if path.exists() else []


def submissions() -> list[Path]:
    notes = Path("out").glob("logs/slurm/*/submission.json")  # names of one second sort by lot
    return [path.parent for path in sorted(notes, key=lambda path: path.stat().st_mtime_ns)]


def test_one_task_a_participant_and_a_group_job(bids, cluster, capsys):
    assert submit(bids, "--partition", "long", "--slurm-option", "qos=x") == 0
    (folder,) = submissions()
    assert (folder / "participants.txt").read_text() == "sub-01\nsub-02\nsub-03\n"
    script = (folder / "participants.sh").read_text()
    assert "#SBATCH --array=0-2%100\n" in script
    assert "#SBATCH --partition=long\n" in script
    assert "#SBATCH --qos=x\n" in script
    assert calls(cluster) == [
        f"{folder.name} --parsable participants.sh",
        f"{folder.name} --parsable --dependency=afterany:101 group.sh",
    ]
    note = json.loads((folder / "submission.json").read_text())
    assert (note["ArrayJob"], note["GroupJob"]) == ("101", "102")
    printed = capsys.readouterr().out
    assert "sub-04_T1w: skipped: " in printed
    assert "3 participants: 0 finished, 0 in the queue, 3 to submit" in printed
    assert "array job 101: 3 tasks, at most 100 at once, 4 processors and 8192 MB each" in printed
    assert not (Path("out/logs/slurm") / "submitting").exists()


def test_what_is_in_the_queue_is_not_submitted_again(bids, cluster, capsys):
    submit(bids)
    (first,) = submissions()
    job = f"bmex_{first.name}"
    (cluster / "queue").write_text(
        f"101|0|RUNNING|{job}\n101|1|COMPLETING|{job}\n102|N/A|PENDING|{job}_group\n"
        "77|2|RUNNING|bmex_of_another_output\n78|N/A|RUNNING|mine|too\n"
    )
    capsys.readouterr()
    assert submit(bids) == 0
    assert "0 finished, 1 in the queue, 2 to submit" in capsys.readouterr().out
    second = submissions()[-1]
    assert (second / "participants.txt").read_text() == "sub-02\nsub-03\n"
    assert calls(cluster)[-1].endswith("--dependency=afterany:101:103 group.sh")


def test_lots_of_earlier_submissions_are_known_by_their_task(bids, cluster, capsys):
    submit(bids, "--participants-per-task", "2")
    (first,) = submissions()
    (cluster / "queue").write_text(f"101|1|PENDING|bmex_{first.name}\n")
    submit(bids)
    assert (submissions()[-1] / "participants.txt").read_text() == "sub-01\nsub-02\n"


def test_with_all_in_the_queue_nothing_is_submitted(bids, cluster, capsys):
    submit(bids)
    (first,) = submissions()
    tasks = "".join(f"101|{n}|PENDING|bmex_{first.name}\n" for n in range(3))
    (cluster / "queue").write_text(tasks + f"102|N/A|PENDING|bmex_{first.name}_group\n")
    assert submit(bids) == 0
    assert len(calls(cluster)) == 2
    assert len(submissions()) == 1
    assert "nothing to submit" in capsys.readouterr().out


def finish(bids: Path, label: str, *flags: str) -> Path:
    """Write what an image's run would leave, as far as a quick look can tell."""
    from bmex_bids.running import planning

    config = parse([str(bids), "out", "participant", "--participant-label", label, *flags])
    (planned,) = planning.plan(config)
    task = planning.task(config, planned)
    names = [name.rpartition("/")[2] for name in task.outputs]
    task.record.parent.mkdir(parents=True, exist_ok=True)
    for name in names:
        (task.record.parent / name).write_text("x")
    for path in picture_paths(config.paths.output_dir, BidsName.of(f"sub-{label}_T1w")):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    record = {"Fingerprint": task.fingerprint, "Outputs": dict.fromkeys(names, "")}
    task.record.write_text(json.dumps({"BMEX": record}))
    return task.record


def left(cluster: Path, bids: Path, *flags: str) -> list[str]:
    before = len(submissions())
    submit(bids, *flags)
    if len(submissions()) == before:
        return []
    return (submissions()[-1] / "participants.txt").read_text().split()


def test_what_is_finished_is_not_submitted(bids, cluster):
    finish(bids, "02")
    assert left(cluster, bids) == ["sub-01", "sub-03"]


def test_finished_with_other_flags_is_not_finished(bids, cluster):
    finish(bids, "02")
    assert left(cluster, bids, "--output-res", "native") == ["sub-01", "sub-02", "sub-03"]


def test_a_younger_input_is_done_again(bids, cluster):
    finish(bids, "02")
    later = time.time() + 10
    os.utime(bids / "sub-02/anat/sub-02_T1w.nii.gz", (later, later))
    assert "sub-02" in left(cluster, bids)


@pytest.mark.parametrize("missing", ["anat/sub-02_desc-brain_mask.nii.gz", "figures"])
def test_a_missing_product_is_made_again(bids, cluster, missing):
    finish(bids, "02")
    path = Path("out/sub-02") / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert "sub-02" in left(cluster, bids)


def test_when_all_is_finished_only_a_group_job_that_is_asked_for_is_left(bids, cluster, capsys):
    for label in ("01", "02", "03"):
        finish(bids, label)
    assert submit(bids) == 0
    assert calls(cluster) == []
    assert "3 finished, 0 in the queue, 0 to submit\nnothing to submit" in capsys.readouterr().out
    main([str(bids), "out", "participant", "group", "--skip-bids-validation", "--submit", "slurm"])
    assert [call.partition(" ")[2] for call in calls(cluster)] == ["--parsable group.sh"]


def test_the_group_level_alone(bids, cluster):
    assert main([str(bids), "out", "group", "--submit", "slurm"]) == 0
    assert [call.partition(" ")[2] for call in calls(cluster)] == ["--parsable group.sh"]


def test_a_dry_run_writes_and_submits_nothing(bids, cluster, capsys):
    assert submit(bids, "--dry-run") == 0
    assert calls(cluster) == []
    (folder,) = submissions()
    assert f"bash {folder.absolute()}/submit.sh" in capsys.readouterr().out


def test_a_dry_run_needs_no_slurm(bids, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(commands.subprocess, "run", missing_program)
    assert submit(bids, "--dry-run") == 0
    assert "the state of the queue is unknown" in capsys.readouterr().out


def missing_program(*_: object, **__: object) -> None:
    raise FileNotFoundError("sbatch")


@pytest.mark.parametrize(
    ("file", "words"), [("broken", "Invalid account"), ("away", "expected squeue to succeed")]
)
def test_a_cluster_that_refuses(bids, cluster, capsys, file, words):
    (cluster / file).touch()
    assert submit(bids) == 5
    assert words in capsys.readouterr().err
    assert calls(cluster) == []


def test_a_group_job_that_is_refused_leaves_the_array_and_says_so(bids, cluster, capsys):
    (cluster / "no-group").touch()
    assert submit(bids) == 5
    assert "array job 101 was submitted, the group job was not" in capsys.readouterr().err
    (folder,) = submissions()
    assert json.loads((folder / "submission.json").read_text())["ArrayJob"] == "101"


def test_no_slurm_at_all(bids, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(commands.subprocess, "run", missing_program)
    assert submit(bids) == 5
    assert "login node" in capsys.readouterr().err


def test_two_submissions_at_once(bids, cluster, capsys):
    lock = Path("out/logs/slurm/submitting")
    lock.mkdir(parents=True)
    assert submit(bids) == 5
    assert "no other submission" in capsys.readouterr().err
    os.utime(lock, (1, 1))  # of a call that was killed
    assert submit(bids) == 0
    assert not lock.exists()


def test_more_participants_than_an_array_may_have(bids, cluster, capsys):
    (cluster / "size").write_text("2")
    assert submit(bids) == 0
    assert "2 tasks, 2 participants each" in capsys.readouterr().out
    assert submit(bids, "--participants-per-task", "1") == 2


@pytest.mark.parametrize("flag", ["--reports-only", "--boilerplate-only"])
def test_what_takes_seconds_is_not_submitted(bids, cluster, flag):
    assert submit(bids, flag) == 2


def test_no_usable_image(bids, cluster):
    assert submit(bids, "--participant-label", "04") == 4


def test_flags_travel_in_a_file(bids, cluster):
    nasty = Path('ages $(touch pwned) "x"\'y.tsv')
    nasty.write_text("participant_id\tage_months\nsub-01\t2\n")
    flags = ["--age-file", str(nasty), "--output-res", "0p8", "--session-label", "A", "-vv"]
    flags += ["--skull-strip", "force", "--nprocs", "3", "--mem-mb", "10G", "-w", "wo 'rk"]
    config = parse([str(bids), "out", "participant", *flags, "--submit", "slurm", "--debug"])
    told = Config.from_toml(task_config(config).to_toml())
    assert told.age.file == nasty.absolute()
    assert told.processing == config.processing
    assert told.selection.sessions == ("A",)
    assert (told.resources.nprocs, told.resources.omp_nthreads, told.resources.mem_gb) == (
        1,
        1,
        9.0,
    )
    assert told.cluster == Cluster()
    assert told.execution.skip_bids_validation
    assert told.execution.skip_boilerplate
    assert told.execution.drop_workdir
    assert told.execution.verbosity == 2


def test_the_size_of_a_task_is_not_that_of_the_login_node(bids, cluster):
    config = parse([str(bids), "out", "participant", "--submit", "slurm"])
    told = task_config(config).resources
    assert (told.nprocs, told.omp_nthreads, told.mem_gb) == (4, 4, 7.2)


def test_a_container_gets_what_the_flags_name(bids, cluster):
    for name in ("bmex.sif", "ages.tsv"):
        Path(name).write_text("participant_id\tage_months\nsub-01\t2\n")
    Path("masks").mkdir()
    flags = [
        "--container",
        "bmex.sif",
        "--age-file",
        "ages.tsv",
        "-d",
        "m=masks",
        "--gres",
        "gpu:1",
    ]
    assert submit(bids, *flags) == 0
    script = (submissions()[0] / "participants.sh").read_text()
    here = Path.cwd()
    for path in (bids, here / "masks", here / "ages.tsv"):
        assert f"--bind {path}:{path}:ro" in script
    for path in (here / "out", here / "work"):
        assert f"--bind {path}:{path} " in script
    assert "--nv" in script
    assert sys.executable not in script
    assert "PYTHONPATH" not in script


def test_an_answer_without_a_number_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(commands, "_run", lambda *_: "hello\n")
    with pytest.raises(EnvironmentProblem, match="job's number"):
        commands.submit_job(tmp_path / "x.sh")


def test_a_jobs_own_size_is_not_handed_on(monkeypatch):
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "4000")
    monkeypatch.setenv("SBATCH_ACCOUNT", "mine")
    monkeypatch.setenv("SQUEUE_FORMAT", "%i")
    kept = commands._environment()
    assert "SLURM_MEM_PER_NODE" not in kept
    assert "SQUEUE_FORMAT" not in kept
    assert kept["SBATCH_ACCOUNT"] == "mine"

# SPDX-License-Identifier: Apache-2.0
"""The wrapper's command lines, read back as the runtimes read them; nothing is started."""

from __future__ import annotations

import csv
import itertools
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from bmex_bids import __version__
from bmex_bids.cli import docker
from bmex_bids.cli.parser import build_parser, parse


@pytest.fixture
def places(tmp_path, monkeypatch):
    """A dataset, and the folder the user is in."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data set").mkdir()
    return tmp_path


@pytest.fixture(autouse=True)
def machine(monkeypatch, tmp_path_factory):
    """Docker is installed, SELinux is not, and nobody is root."""
    monkeypatch.setattr(docker.shutil, "which", lambda name: name if name == "docker" else None)
    monkeypatch.setattr(docker, "ENFORCING", tmp_path_factory.mktemp("selinux") / "enforce")
    monkeypatch.delenv("BMEX_WEIGHTS_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(docker.os, "getuid", lambda: 1234)
    monkeypatch.setattr(docker.os, "geteuid", lambda: 1234)
    monkeypatch.setattr(docker.os, "getgid", lambda: 567)


def started(*arguments: str, program: str = "main") -> list[str]:
    """The command that would have been started."""
    commands: list[list[str]] = []

    def execute(command) -> int:
        commands.append(list(command))
        return 7

    preferred = docker.DOCKER_LIKE if program == "main" else docker.FILE_LIKE
    assert docker.run("bmex-docker", preferred, arguments, execute) == 7
    return commands[0]


def mounts(command: list[str]) -> dict[str, bool]:
    """Path -> whether it is writable; each is mounted under its own name."""
    found = {}
    for flag, value in itertools.pairwise(command):
        if flag != "--mount":
            continue
        (fields,) = csv.reader([value])
        told = dict(field.split("=", 1) for field in fields if "=" in field)
        assert told["type"] == "bind"
        target = told.get("target", told.get("destination"))
        assert told["source"] == target
        found[target] = told.get("readonly") != "true" and "ro" not in fields
    return found


def inside(command: list[str], image: str = f"bmex_bids:{__version__}") -> list[str]:
    """What bmex is given."""
    return command[command.index(image) + 1 :]


def test_dataset_read_only_output_and_work_writable_and_made_by_the_user(places):
    command = started("data set", "../" + places.name + "/out", "participant", "group")
    root = str(places)
    assert command[:3] == ["docker", "run", "--rm"]
    assert mounts(command) == {
        f"{root}/data set": False,
        f"{root}/out": True,
        f"{root}/work": True,
    }
    assert (places / "out").is_dir()
    assert (places / "work").is_dir()
    assert inside(command) == [
        f"{root}/data set", f"{root}/out", "participant", "group", "--work-dir", f"{root}/work",
    ]  # fmt: skip
    assert command[command.index("--user") + 1] == "1234:567"
    assert command[command.index("--network") + 1] == "none"
    assert "--read-only" in command


def test_every_path_flag_of_bmex_is_known():
    """A new one must be sorted into one of these, or bmex in the container will not find it."""
    known = {name for name, setting in docker.SETTINGS.items() if setting.is_path}
    paths = {action.dest for action in build_parser()._actions if action.type is Path}
    assert paths == known


def test_each_path_flag_is_mounted_and_told(places):
    for name in ("filter.json", "age.tsv", "plugin.yml"):
        (places / "files" / name).parent.mkdir(exist_ok=True)
        (places / "files" / name).write_text("{}")
    for name in ("masks=1", "published", "more"):
        (places / name).mkdir()
    command = started(
        "data set", "out", "participant", "-w", "scratch/w", "--bids-filter-file", "files/filter.json",
        "--age_file=files/age.tsv", "--nipype-plugin-file", "files/plugin.yml",
        "-d", "byhand=masks=1", "more", "--weights-dir", "published",
        "--bids-database-dir", "index",
    )  # fmt: skip
    root = str(places)
    assert mounts(command) == {
        f"{root}/data set": False, f"{root}/out": True, f"{root}/scratch/w": True,
        f"{root}/files/filter.json": False, f"{root}/files/age.tsv": False,
        f"{root}/files/plugin.yml": False, f"{root}/masks=1": False, f"{root}/more": False,
        f"{root}/published": False, f"{root}/index": True,
    }  # fmt: skip
    config = parse(inside(command))  # what bmex inside makes of it: the same as outside
    assert config.selection.filter_file == places / "files" / "filter.json"
    assert config.processing.derivatives == (f"byhand={root}/masks=1", f"more={root}/more")
    assert config.processing.weights_dir == places / "published"
    assert config.selection.database_dir == places / "index"
    assert config.paths.work_dir == places / "scratch" / "w"


def test_other_flags_arrive_as_they_were_written(places):
    given = [
        "--participant-label", "sub-01", "02", "--mem", "8G", "--nprocs", "3", "-vv", "--fetal",
        "--age-months", "6.5", "--output-res", "native",
    ]  # fmt: skip
    told = inside(started("data set", "out", "participant", *given))
    assert " ".join(told[3:]) == (
        "--participant-label sub-01 02 --age-months 6.5 --fetal --output-res native "
        f"--nprocs 3 --mem-mb 8G --verbose --verbose --work-dir {places}/work"
    )
    assert parse(told).execution.verbosity == 2
    assert parse(told).resources.mem_gb == 8.0


def test_a_dry_run_shows_the_command_and_makes_nothing(places, capsys):
    assert docker.main(["data set", "out", "participant", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    command = shlex.split(printed)
    assert mounts(command)[f"{places}/data set"] is False
    assert "--dry-run" not in printed
    assert [path.name for path in places.iterdir()] == ["data set"]


@pytest.mark.parametrize("kind", ["table", "json"])
def test_the_dry_run_of_bmex_goes_into_the_container(places, kind):
    assert f"--dry-run={kind}" in inside(
        started("data set", "out", "participant", f"--dry-run={kind}")
    )


@pytest.mark.parametrize("runtime", ["docker", "podman", "apptainer"])
@pytest.mark.parametrize("name", ["a b", "a,b", "a:b", 'a"b', "Hôpital", "a'b$(touch x)"])
def test_odd_names_reach_the_runtime_whole(places, runtime, name):
    (places / name).mkdir()
    (places / "bmex_bids.sif").touch()
    command = started(name, "out", "participant", "--runtime", runtime)
    assert mounts(command)[f"{places}/{name}"] is False
    assert f"{places}/{name}" in command[-6:]


@pytest.mark.parametrize(
    "arguments",
    [
        ["nowhere", "out", "participant"],
        ["data set", "out", "participant", "--age-file", "nowhere.tsv"],
        ["data set", "out", "participant", "--bids-filter-file", "nowhere.json"],
        ["data set", "out", "participant", "--config-file", "nowhere.toml"],
        ["data set", "out", "participant", "--weights-dir", "nowhere"],
        ["data set", "out", "participant", "--derivatives", "x=nowhere"],
        ["data set", "out", "participant", "--mount", "nowhere"],
        ["data set", "out", "participant", "--runtime", "apptainer", "--image", "nowhere.sif"],
    ],
)
def test_what_is_missing_is_named_and_nothing_is_started(places, capsys, arguments):
    assert docker.run("bmex-docker", ["docker"], arguments, pytest.fail) == 2
    said = capsys.readouterr().err
    assert "nowhere" in said
    assert "expected" in said
    assert [path.name for path in places.iterdir()] == ["data set"]


@pytest.mark.parametrize(
    "place",
    ["/", "/usr", "/opt", "/proc/self", "/etc", "/opt/bmex/x", "/tmp"],  # noqa: S108
)
def test_nothing_is_laid_over_the_image(places, capsys, place):
    arguments = ["data set", "out", "participant", "--mount", place]
    if not Path(place).exists():
        arguments = ["data set", place, "participant"]
    assert docker.run("bmex-docker", ["docker"], arguments, pytest.fail) == 2
    assert "under its own name" in capsys.readouterr().err


def test_an_output_inside_the_dataset_is_refused_as_bmex_does(places, capsys):
    arguments = ["data set", "data set/derivatives", "participant"]
    assert docker.run("bmex-docker", ["docker"], arguments, pytest.fail) == 2
    assert "outside the dataset" in capsys.readouterr().err


def test_a_file_in_the_dataset_needs_no_mount_of_its_own(places):
    (places / "data set" / "filter.json").write_text("{}")
    command = started(
        "data set", "out", "participant", "--bids-filter-file", "data set/filter.json"
    )
    assert set(mounts(command)) == {f"{places}/{name}" for name in ("data set", "out", "work")}


def test_the_folder_of_published_weights_is_taken_along(places, monkeypatch):
    monkeypatch.setenv("BMEX_WEIGHTS_DIR", str(places / "published"))
    assert "--weights-dir" not in started("data set", "out", "participant")  # it is not there
    (places / "published").mkdir()
    command = started("data set", "out", "participant")
    assert mounts(command)[f"{places}/published"] is False
    assert parse(inside(command)).processing.weights_dir == places / "published"
    (places / "others").mkdir()
    command = started("data set", "out", "participant", "--weights-dir", "others")
    assert f"{places}/published" not in mounts(command)


@pytest.mark.parametrize("flags", [["--submit", "slurm"], ["--container", "x.sif"]])
def test_a_cluster_is_for_bmex_outside(places, capsys, flags):
    arguments = ["data set", "out", "participant", *flags]
    assert docker.run("bmex-docker", ["docker"], arguments, pytest.fail) == 2
    assert "--submit slurm --container" in capsys.readouterr().err


def test_a_link_is_followed(places):
    (places / "link").symlink_to("data set")
    assert mounts(started("link", "out", "participant"))[f"{places}/data set"] is False


def test_what_a_configuration_file_names_is_mounted_too(places):
    (places / "ages.tsv").write_text("participant_id\tage_months\n")
    (places / "masks").mkdir()
    config = parse(
        ["data set", "out", "participant", "--age-file", "ages.tsv", "-w", "elsewhere",
         "-d", "m=masks", "--device", "cuda"]
    )  # fmt: skip
    (places / "run.toml").write_text(config.to_toml())
    command = started("data set", "other", "participant", "--config-file", "run.toml")
    root = str(places)
    assert mounts(command) == {
        f"{root}/data set": False, f"{root}/other": True, f"{root}/elsewhere": True,
        f"{root}/run.toml": False, f"{root}/ages.tsv": False, f"{root}/masks": False,
    }  # fmt: skip
    assert command[command.index("--gpus") + 1] == "all"
    assert parse(inside(command)).age.file == places / "ages.tsv"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--device", "cuda"], ["--gpus", "all"]),
        (["--gpus", "0,2"], ["--gpus", '"device=0,2"']),
        (["--gpus", "0,2", "--runtime", "podman"],
         ["--device", "nvidia.com/gpu=0", "--device", "nvidia.com/gpu=2"]),
        (["--gpus", "--runtime", "apptainer"], ["--nv"]),
        (["--gpus", "1", "--runtime", "apptainer"],
         ["--nv", "--env", "CUDA_VISIBLE_DEVICES=1"]),
    ],
)  # fmt: skip
def test_gpus_as_each_runtime_wants_them(places, arguments, expected):
    (places / "bmex_bids.sif").touch()
    command = started("data set", "out", "participant", *arguments)
    at = next(k for k in range(len(command)) if command[k : k + len(expected)] == expected)
    image = next(
        k for k, word in enumerate(command) if "bmex_bids" in word and "/data" not in word
    )
    assert at < image or str(places) in command[image]


def test_no_gpu_unless_asked_for(places):
    assert "--gpus" not in started("data set", "out", "participant")


def test_podman_without_root_keeps_the_user(places, monkeypatch):
    command = started("data set", "out", "participant", "--runtime", "podman")
    assert command[command.index("--userns") + 1] == "keep-id"
    monkeypatch.setattr(docker.os, "geteuid", lambda: 0)
    assert "--userns" not in started("data set", "out", "participant", "--runtime", "podman")


def test_selinux_is_asked_to_let_the_mounts_be(places):
    assert "--security-opt" not in started("data set", "out", "participant")
    docker.ENFORCING.write_text("1")
    command = started("data set", "out", "participant")
    assert command[command.index("--security-opt") + 1] == "label=disable"


def test_apptainer_sees_nothing_of_the_machine_but_the_mounts(places):
    (places / "x.sif").touch()
    command = started(
        "data set", "out", "participant", "--runtime", "apptainer", "--image", "x.sif"
    )
    assert command[:5] == ["apptainer", "run", "--containall", "--cleanenv", "--no-home"]
    assert mounts(command) == {
        f"{places}/data set": False, f"{places}/out": True, f"{places}/work": True,
    }  # fmt: skip
    assert inside(command, str(places / "x.sif"))[2] == "participant"


@pytest.mark.parametrize(
    ("there", "arguments", "expected"),
    [
        ({"docker", "podman"}, [], "docker"),
        ({"podman"}, [], "podman"),
        ({"docker", "singularity"}, ["--image", "x.sif"], "singularity"),
    ],
)
def test_the_runtime_that_is_installed(places, monkeypatch, there, arguments, expected):
    monkeypatch.setattr(docker.shutil, "which", lambda name: name if name in there else None)
    (places / "x.sif").touch()
    assert started("data set", "out", "participant", *arguments)[0] == expected


def test_no_runtime_at_all(places, monkeypatch, capsys):
    monkeypatch.setattr(docker.shutil, "which", lambda name: None)
    assert docker.main(["data set", "out", "participant"]) == 5
    assert "expected docker or podman" in capsys.readouterr().err


def test_words_for_the_runtime_and_another_user_and_image(places):
    command = started(
        "data set", "out", "participant", "--runtime-arg=--memory=16g", "--user", "0:0",
        "--image", "lab/bmex:1",
    )  # fmt: skip
    assert "--memory=16g" in command[: command.index("lab/bmex:1")]
    assert command[command.index("--user") + 1] == "0:0"


def test_it_becomes_the_command_without_a_shell(places, monkeypatch):
    called = []
    monkeypatch.setattr(docker.os, "execvp", lambda *given: called.append(given))
    docker.main(["data set", "out", "participant"])
    ((program, command),) = called
    assert program == command[0] == "docker"
    assert f"{places}/data set" in command


def test_a_runtime_that_cannot_be_started(places, monkeypatch, capsys):
    monkeypatch.setattr(docker.shutil, "which", lambda name: "/nowhere/docker")
    monkeypatch.setenv("PATH", str(places))
    assert docker.main(["data set", "out", "participant"]) == 5
    assert "expected to start docker" in capsys.readouterr().err


def test_it_needs_python_and_nothing_else(places):
    """From a checkout, before anything is installed: -S hides all site-packages."""
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-S", "-m", "bmex_bids.cli.docker", "data set", "out", "participant",
         "--dry-run", "--runtime", "docker"],
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if sys.version_info >= (3, 11):  # tomli, before
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("docker run --rm")


def test_a_dry_run_inside_leaves_no_folders(places, monkeypatch, capfd):
    """The output's and the work folder stayed, empty."""
    monkeypatch.setattr(docker.subprocess, "run", lambda *_, **__: FINISHED)
    given = ["data set", "new/out", "participant", "-w", "new/work", "--dry-run=table"]
    assert docker.main(given) == 4
    assert [path.name for path in places.iterdir()] == ["data set"]
    (places / "new").mkdir()
    (places / "new" / "mine").touch()
    assert docker.main(given) == 4
    assert [path.name for path in (places / "new").iterdir()] == ["mine"]


FINISHED = subprocess.CompletedProcess([], 4)


def test_a_folder_with_the_name_of_a_set_is_not_mounted(places):
    (places / "bmex-1.0.1").mkdir()
    command = started("data set", "out", "participant", "--weights", "bmex-1.0.1")
    assert f"{places}/bmex-1.0.1" not in mounts(command)
    assert "bmex-1.0.1" in inside(command)

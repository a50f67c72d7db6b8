# SPDX-License-Identifier: Apache-2.0
"""The files that images are built from; that the images work is for ``make image-test`` to show."""

from __future__ import annotations

import configparser
import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import bmex_bids

ROOT = Path(__file__).resolve().parents[1]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
RECIPE = (ROOT / "Singularity.def").read_text(encoding="utf-8")
judge = runpy.run_path(str(ROOT / "containers" / "torch_build.py"))["judge"]


def report(version: str, *others: str) -> dict[str, object]:
    packages = [("torch", version), *((name, "1") for name in others)]
    return {"install": [{"metadata": {"name": n, "version": v}} for n, v in packages]}


@pytest.mark.parametrize(
    ("wanted", "found", "good"),
    [
        ("cpu", report("2.13.0+cpu", "sympy"), True),
        ("cpu", report("2.13.0"), True),
        ("cpu", report("2.13.0", "nvidia-cublas", "triton"), False),
        ("cpu", report("2.13.0+cu126"), False),
        ("cuda", report("2.13.0", "nvidia-cublas"), True),
        ("cuda", report("2.13.0+cu126"), True),
        ("cuda", report("2.13.0+cpu"), False),
        ("rocm", report("2.13.0"), False),
    ],
)
def test_the_build_of_torch_is_judged_before_it_is_downloaded(wanted, found, good):
    assert (judge(wanted, found) == "") is good


def test_the_wrong_build_ends_the_script_with_a_way_out():
    done = subprocess.run(
        [sys.executable, ROOT / "containers" / "torch_build.py", "cuda"],
        input=json.dumps(report("2.13.0+cpu")), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "TORCH_INDEX" in done.stderr


def test_the_requirements_are_those_of_setup_cfg():
    done = subprocess.run(
        [sys.executable, ROOT / "containers" / "requirements.py", ROOT / "setup.cfg"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    wanted = config["options"]["install_requires"].strip().splitlines()
    assert done.stdout.splitlines() == wanted
    assert any(line.startswith("torch") for line in wanted)


@pytest.mark.parametrize("text", [DOCKERFILE, RECIPE], ids=["Dockerfile", "Singularity.def"])
def test_a_build_without_arguments_has_the_right_version(text):
    found = re.search(r"\bVERSION=([\w.]+)", text)
    assert found is not None
    assert found[1] == bmex_bids.__version__


@pytest.mark.parametrize("text", [DOCKERFILE, RECIPE], ids=["Dockerfile", "Singularity.def"])
def test_nothing_asks_the_network_and_both_say_the_same(text):
    for setting in (
        "TEMPLATEFLOW_AUTOUPDATE=false", "TEMPLATEFLOW_HOME=/opt/bmex/share/templateflow",
        "NO_ET=1", "MPLBACKEND=Agg", "PYTHONNOUSERSITE=1", "BMEX_CONTAINER_TAG=",
        "BMEX_CONTAINER_REVISION=", "BMEX_CONTAINER_CREATED=", "bmex-health",
    ):  # fmt: skip
        assert setting in text, setting


def test_what_is_copied_exists_and_reaches_the_builder():
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    allowed = {line[1:] for line in ignored if line.startswith("!")}
    copied = set()
    for line in DOCKERFILE.splitlines():
        if line.startswith("COPY ") and "--from" not in line:
            copied |= set(line.split()[1:-1])
    files = RECIPE.split("%files")[1].split("%post")[0].split("\n")
    copied |= {line.split()[0] for line in files if line.strip()}
    for name in copied:
        assert (ROOT / name).exists(), name
        assert name.split("/")[0] in allowed, name


def test_the_dependencies_do_not_depend_on_the_source():
    stage = DOCKERFILE.split("AS dependencies")[1].split("FROM ")[0]
    for name in ("bmex_bids", "setup.cfg", "pyproject.toml", "VERSION", "REVISION"):
        assert not re.search(rf"\b{re.escape(name)}\b", stage), name


LABELS = ("version 9.8", "revision abc", "created 2001-02-03")


@pytest.mark.parametrize("from_docker", [False, True])
def test_the_recipe_labels_only_what_it_installed_itself(tmp_path, from_docker):
    """A SIF from a Docker image said one build date in its labels and another in the sidecars."""
    assert not re.search(r"image\.(version|revision|created)", RECIPE.split("%labels")[1])
    script = RECIPE.split("%post")[1].split("%environment")[0]
    for name, value in [line.split() for line in LABELS]:
        script = script.replace(f"{{{{ {name.upper()} }}}}", value)
    script = script.replace("/opt/bmex", f"{tmp_path}/bmex").replace("/build", f"{tmp_path}/build")
    (tmp_path / "build" / "containers").mkdir(parents=True)
    for name in ("requirements.py", "torch_build.py", "dependencies.sh", "package.sh"):
        (tmp_path / "build" / "containers" / name).touch()
    if from_docker:
        (tmp_path / "bmex" / "bin").mkdir(parents=True)
        (tmp_path / "bmex" / "bin" / "bmex").touch(mode=0o755)
    labels = tmp_path / "labels"
    environment = {**os.environ, "APPTAINER_LABELS": str(labels)}
    subprocess.run(["sh", "-e", "-c", script], env=environment, check=True)
    wanted = [] if from_docker else [f"org.opencontainers.image.{line}" for line in LABELS]
    assert (labels.read_text().splitlines() if labels.exists() else []) == wanted
    assert not (tmp_path / "build").exists()


@pytest.mark.parametrize("name", ["PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP"])
def test_apptainer_is_kept_from_passing_on_the_python_of_the_shell(name):
    """Apptainer restores what %environment unsets, and unsets what it leaves empty."""
    script = RECIPE.split("%environment")[1].split("%runscript")[0]
    done = subprocess.run(
        ["sh", "-c", f'{script}\necho "<${{{name}-unset}}>"'],
        env={"PATH": os.environ["PATH"], name: "/elsewhere"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "<>\n"

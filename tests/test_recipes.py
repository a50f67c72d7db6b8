# SPDX-License-Identifier: Apache-2.0
"""The recipes for other programs: valid by their own tools, and with flags that bmex takes."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from bmex_bids import __version__
from bmex_bids.cli.parser import parse

CONTAINERS = Path(__file__).resolve().parents[1] / "containers"
RECIPES = CONTAINERS / "recipes"
DESCRIPTOR = RECIPES / "nipoppy" / "descriptor.json"


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A dataset folder, and a current folder apart from it."""
    (tmp_path / "bids").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


def generated():
    """What containers/boutiques.py makes."""
    spec = importlib.util.spec_from_file_location("boutiques_script", CONTAINERS / "boutiques.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.descriptor()


def bosh(*arguments):
    """Run boutiques in this process; return what it printed."""
    pytest.importorskip("boutiques")
    from boutiques import bosh as program

    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        program(list(arguments))
    return said.getvalue()


def test_the_descriptor_is_that_of_the_parser():
    assert json.loads(DESCRIPTOR.read_text()) == generated(), (
        "make it again: python containers/boutiques.py > containers/recipes/nipoppy/descriptor.json"
    )


@pytest.mark.filterwarnings("ignore")  # of boutiques and what it imports
def test_boutiques_takes_the_descriptor_and_writes_a_command_line_that_bmex_takes(study):
    bosh("validate", str(DESCRIPTOR))
    invocation = {
        "bids_dir": str(study / "bids"),
        "output_dir": str(study / "out"),
        "analysis_level": ["participant", "group"],
        "participant_label": ["01", "02"],
        "age_months": 18,
        "low_mem": True,
        "no_mirroring": True,
        "output_res": ["native"],
        "dry_run": "json",
    }
    (study / "invocation.json").write_text(json.dumps(invocation))
    said = bosh("exec", "simulate", str(DESCRIPTOR), "-i", str(study / "invocation.json"))
    (line,) = (line for line in said.splitlines() if line.startswith("bmex "))
    config = parse(shlex.split(line)[1:])
    assert config.analysis_levels == ("participant", "group")
    assert config.selection.participants == ("01", "02")
    assert config.age.months == 18
    assert config.resources.low_mem
    assert not config.processing.mirroring
    assert config.processing.output_res == ("native",)
    assert config.execution.dry_run == "json"


def test_nipoppy_names_inputs_of_the_descriptor_and_files_that_are_there():
    folder = DESCRIPTOR.parent
    config = json.loads((folder / "config.json").read_text())
    assert config["VERSION"] == __version__
    for step in config["STEPS"]:
        assert all((folder / name).is_file() for name in step.values())
    # Nipoppy 0.4.8 refuses a file without it
    for name in ("config.json", "tracker.json"):
        assert json.loads((folder / name).read_text())["SCHEMA_VERSION"] == "1"
    inputs = {item["id"] for item in generated()["inputs"]}
    assert set(json.loads((folder / "invocation.json").read_text())) <= inputs


def test_nipoppy_finds_the_pipeline_valid():
    """Where ``nipoppy`` is on the path; it is no requirement of the tests."""
    program = shutil.which("nipoppy")
    if program is None:
        pytest.skip("needs nipoppy (pip install nipoppy, in an environment of its own)")
    command = [program, "pipeline", "validate", str(DESCRIPTOR.parent)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_flags_of_babs_are_taken(study):
    recipe = yaml.safe_load((RECIPES / "babs.yaml").read_text())
    flags = []
    for flag, value in recipe["bids_app_args"].items():
        name = value if flag.startswith("$") else flag
        word = "01" if flag.startswith("$") else value
        flags += [name, *([word.replace("$BABS_TMPDIR", str(study / "w"))] if word else [])]
    config = parse([str(study / "bids"), str(study / "out"), "participant", *flags])
    assert config.selection.participants == ("01",)
    assert config.execution.skip_bids_validation
    # BABS 0.5.4 takes each other name for one more folder of results, and needs these sections
    assert recipe["zip_foldernames"] == {"bmex_bids": __version__.replace(".", "-")}
    assert recipe["all_results_in_one_zip"] is True
    for dataset in recipe["input_datasets"].values():
        assert {"origin_url", "path_in_babs", "is_zipped"} <= set(dataset)
    for section in ("cluster_resources", "script_preamble", "job_compute_space"):
        assert recipe[section]


def test_neurodesk_deploys_commands_that_exist():
    recipe = yaml.safe_load((RECIPES / "neurodesk.yaml").read_text())
    assert recipe["version"] == __version__
    setup = (CONTAINERS.parent / "setup.cfg").read_text()
    assert all(
        f"\n    {command} = bmex_bids.cli." in setup for command in recipe["deploy"]["bins"]
    )


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_bosh_runs_the_descriptor(bids_skeleton, brain, tmp_path):
    """The program itself with the bundled weights, started by ``bosh exec launch``."""
    pytest.importorskip("boutiques")
    bids = bids_skeleton(
        {
            "participants.tsv": [{"participant_id": "sub-01", "age_months": 0.5}],
            "sub-01/anat/sub-01_T1w.nii.gz": brain(),
        }
    )
    invocation = {
        "bids_dir": str(bids),
        "output_dir": str(tmp_path / "out"),
        "analysis_level": ["participant"],
        "work_dir": str(tmp_path / "work"),
        "skull_strip": "skip",
        "no_mirroring": True,
        "output_res": ["native"],
        "nprocs": 1,
    }
    (tmp_path / "invocation.json").write_text(json.dumps(invocation))
    programs = str(Path(sys.executable).parent)
    done = subprocess.run(
        [
            sys.executable, "-W", "ignore", "-c",
            "import sys; from boutiques import bosh; sys.exit(bosh(sys.argv[1:]).exit_code)",
            "exec", "launch", str(DESCRIPTOR), str(tmp_path / "invocation.json"),
            "--skip-data-collection",
        ],
        cwd=tmp_path,
        env={**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert (tmp_path / "out/sub-01/anat/sub-01_desc-enhanced_T1w.nii.gz").is_file(), (
        done.stdout[-2000:] + done.stderr[-2000:]
    )

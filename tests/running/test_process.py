# SPDX-License-Identifier: Apache-2.0
"""From the flags to the workflow of an image."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from bmex_bids.cli.parser import parse
from bmex_bids.config import ENTRIES
from bmex_bids.running import process
from bmex_bids.workflows import base
from bmex_bids.workflows.request import Machine, Networks, Target

FLAGS = (
    "--precision", "float32", "--geometry", "reference", "--no-mirroring", "--low-mem",
    "--mem-mb", "3072", "--omp-nthreads", "2", "--output-res", "0p8", "--qc-only",
    "--skull-strip", "skip", "--max-change", "5", "--reorient", "--segment", "rois",
    "--motion-correction", "off", "--uncertainty", "off",
)  # fmt: skip


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """What the workflow of an image is built from, for a command line and a device."""
    (tmp_path / "bids").mkdir()
    monkeypatch.setattr(base, "init_image_wf", lambda *given, **named: (given, named))

    def ask(device, *flags):
        config = parse([str(tmp_path / "bids"), str(tmp_path / "out"), "participant", *flags])
        task = SimpleNamespace(
            name="x",
            planned="plan",
            weights="enhance",
            strip_weights="strip",
            segment_weights="structures",
            super_weights="halving",
            fingerprint={"a": "b"},
        )
        return process.image_workflow(config, task, device)

    return ask


def test_every_flag_reaches_the_workflow(asked, tmp_path):
    given, named = asked("cuda:1", *FLAGS)
    assert given == (
        "plan",
        Networks(
            "enhance", "strip", "structures", "halving", geometry="reference", mirroring=False, precision="float32",
            max_change=5.0,
        ),
        Target(
            tmp_path / "bids", tmp_path / "out", output_res=("0p8",), qc_only=True,
            uncertainty="off", segment="rois", fingerprint={"a": "b"},
        ),
        Machine("cuda:1", use_gpu=True, low_mem=True, memory_limit_gb=3.0, omp_nthreads=2),
    )  # fmt: skip
    assert named == {"skull_strip": "skip", "reorient": True, "motion_correction": "off"}


def test_every_flag_of_the_processing_is_among_those_that_reach_it():
    """``--uncertainty`` was not: lost on its way, it left every test green."""
    results_depend_on = {entry.setting.flag for entry in ENTRIES if entry.setting.fingerprint}
    assert results_depend_on - set(FLAGS) == set()


def test_a_processor_needs_no_place_on_the_gpu(asked):
    given, _ = asked("cpu")
    assert given[3].device == "cpu"
    assert not given[3].use_gpu


SETTINGS = (
    "remove_unnecessary_outputs", "remove_node_directories", "keep_inputs", "use_relative_paths",
    "stop_on_first_rerun", "write_provenance", "create_report", "stop_on_first_crash",
)  # fmt: skip
IN_A_RUN = f"""
import sys
from pathlib import Path
from bmex_bids.cli.parser import parse
from bmex_bids.running import process
with process.surroundings(parse([sys.argv[1], sys.argv[1] + "_out", "participant"])):
    from bmex_bids.running import engine
    from nipype import config
    engine.configure(crash_dir=Path(sys.argv[1]))
    print([config.get("execution", name) for name in {SETTINGS!r}])
    print(config.get("execution", "crashfile_format"), config.get("logging", "log_to_file"))
"""


@pytest.mark.parametrize("place", ["home", "here"])
def test_settings_for_nipype_of_the_users_do_not_count(place, tmp_path):
    """A log file that could not be made ended the run in a traceback, when Nipype was loaded."""
    home, here, bids = (tmp_path / name for name in ("home/.nipype", "here", "bids"))
    for folder in (home, here, bids):
        folder.mkdir(parents=True)
    lines = ["[execution]", *(f"{name} = true" for name in SETTINGS), "crashfile_format = pklz"]
    if place == "home":
        lines += ["[logging]", "log_to_file = true", f"log_directory = {tmp_path}/absent"]
    {"home": home, "here": here}[place].joinpath("nipype.cfg").write_text("\n".join(lines))
    environment = {**os.environ, "HOME": str(home.parent)}
    environment.pop("NIPYPE_CONFIG_DIR", None)
    done = subprocess.run(
        [sys.executable, "-c", IN_A_RUN, str(bids)],
        env=environment, cwd=here, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout.splitlines() == [str(["false"] * len(SETTINGS)), "txt false"], done.stderr

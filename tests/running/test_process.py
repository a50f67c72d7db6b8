# SPDX-License-Identifier: Apache-2.0
"""From the flags to the workflow of an image."""

from __future__ import annotations

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

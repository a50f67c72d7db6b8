# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from bmex_bids.config import (
    AgeOverride,
    Config,
    Execution,
    Paths,
    Processing,
    Resources,
    Selection,
)
from bmex_bids.exceptions import UsageError

PATHS = Paths(bids_dir=Path("/bids"), output_dir=Path("/out"), work_dir=Path("/work"))
PLAIN = Config(run_id="r1", version="0.1.0", paths=PATHS)
FULL = Config(
    run_id="r2",
    version="0.1.0",
    paths=Paths(Path('/with "quotes" and\ttab'), Path("/ünïcode"), Path("/back\\slash\x7f")),
    selection=Selection(("01", "02"), ("V01",), ("1",), ("T2w",), Path("/f.json"), Path("/db")),
    age=AgeOverride(months=0.0, fetal=True, file=Path("/ages.tsv")),
    processing=Processing(
        skull_strip="force",
        derivatives=("masks=/masks",),
        device="cuda:1",
        weights="mine",
        weights_dir=Path("/weights"),
        output_res=("0p8",),
        qc_only=True,
        random_seed=3,
    ),
    resources=Resources(nprocs=4, omp_nthreads=2, mem_gb=1.5, low_mem=True, gpu_slots=2),
    execution=Execution(
        skip_bids_validation=True,
        dry_run="json",
        reports_only=True,
        write_graph=True,
        debug=True,
        plugin_file=Path("/plugin.yml"),
        verbosity=2,
    ),
)


@pytest.mark.parametrize("config", [PLAIN, FULL], ids=["plain", "full"])
def test_toml_brings_everything_back(config):
    assert Config.from_toml(config.to_toml()) == config


def test_an_age_of_zero_is_written():
    assert "months = 0.0" in FULL.to_toml()


def test_what_is_not_set_is_not_written():
    assert "participants" not in PLAIN.to_toml()
    assert Config.from_toml(PLAIN.to_toml()).selection.participants is None


def test_a_whole_number_will_do_for_a_float():
    text = PLAIN.to_toml().replace("[age]", "[age]\nmonths = 3")
    months = Config.from_toml(text).age.months
    assert months == 3.0
    assert isinstance(months, float)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("[age]", "[age]\nmoths = 3"), r"moths.*spelling"),
        (("nprocs = 1", 'nprocs = "many"'), r"expected int for nprocs, got 'many'"),
        (("nprocs = 1", "nprocs = true"), r"expected int for nprocs, got True"),
        (('run_id = "r1"', ""), "lacks a key"),
        (("[age]", "[age"), "expected TOML"),
    ],
)
def test_a_faulty_file_is_refused(change, words):
    with pytest.raises(UsageError, match=words):
        Config.from_toml(PLAIN.to_toml().replace(*change))


def test_a_configuration_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        PLAIN.run_id = "other"


def test_logs_of_a_run_have_their_own_folder():
    assert PLAIN.log_dir == Path("/out/logs/r1")

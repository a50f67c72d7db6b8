# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from bmex_bids.cli.parser import build_parser, parse
from bmex_bids.config import (
    ABOUT_SUBMITTING,
    ENTRIES,
    MAY_HOLD_SCRIPTS,
    WHAT_NOW,
    WHICH_DATA,
    AgeOverride,
    Config,
    Execution,
    Paths,
    Processing,
    Resources,
    Selection,
)
from bmex_bids.exceptions import UsageError
from bmex_bids.settings import Place
from bmex_bids.slurm.submit import task_config

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
        uncertainty="off",
        segment="off",
        max_change=2.5,
        motion_correction="off",
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


# --- every setting, from flag to flag ---

#: settings that a configuration file does not bring back, by the reason they give
EXCEPTIONS = {
    "bids_dir": WHICH_DATA, "output_dir": WHICH_DATA, "analysis_level": WHICH_DATA,
    "dry_run": WHAT_NOW, "reports_only": WHAT_NOW, "boilerplate_only": WHAT_NOW,
    "clean_workdir": WHAT_NOW, "debug": WHAT_NOW,
    "use_plugin": MAY_HOLD_SCRIPTS,
    **dict.fromkeys(
        ("submit", "partition", "account", "gres", "time_limit", "slurm_option", "max_running",
         "participants_per_task", "container"),
        ABOUT_SUBMITTING,
    ),
}  # fmt: skip


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A dataset, a file and a folder that flags may name."""
    for name in ("bids", "folder"):
        (tmp_path / name).mkdir()
    (tmp_path / "file").write_text("")
    monkeypatch.chdir(tmp_path)
    return tmp_path


#: options that take templates
TEMPLATES = {"output_spaces", "histogram_reference"}


def words_for(entry) -> list[str]:
    """A command line's words that give a setting another value than its default."""
    one = entry.setting
    if not one.flags[0].startswith("-"):
        return []
    if one.switch is not None or one.counts:
        return [one.flag]
    if one.place is not None:
        return [one.flag, {Place.FILE: "file", Place.FOLDER: "folder"}.get(one.place, "elsewhere")]
    if one.choices is not None:
        return [one.flag, next(c for c in reversed(one.choices) if c != entry.default)]
    if one.read is not None:
        return [one.flag, "cpu" if one.option == "device" else "3"]
    return [one.flag, "MNIInfant" if one.option in TEMPLATES else "name=value"]


BASE = ["bids", "out", "participant"]
ALWAYS = ["--nprocs", "3", "--omp-nthreads", "2"]  # else the machine decides


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.setting.option)
def test_each_flag_survives_the_configuration_file_or_says_why_not(entry, files):
    option, words = entry.setting.option, words_for(entry)
    if entry.setting.flag in ALWAYS:
        words = []
    submit = ["--submit", "slurm"] if entry.section == "cluster" and option != "submit" else []
    given = parse([*BASE, *ALWAYS, *submit, *words])
    plain = parse([*BASE])
    assert entry.value(given) != entry.value(plain) or not words
    assert Config.from_toml(given.to_toml()) == given
    Path("config.toml").write_text(given.to_toml())
    again = parse([*BASE, "--config-file", "config.toml"])
    assert entry.setting.command_line_only == EXCEPTIONS.get(option, "")
    if option in EXCEPTIONS:
        assert entry.value(again) == entry.value(plain)
    else:
        assert entry.value(again) == entry.value(given)


def test_what_debug_overrules_does_not_come_from_a_file_of_such_a_run(files):
    Path("config.toml").write_text(parse([*BASE, "--debug"]).to_toml())
    overruled = {entry.setting.option for entry in ENTRIES if entry.setting.debug is not None}
    assert overruled == {"nprocs", "omp_nthreads", "stop_on_first_crash", "verbose"}
    assert overruled.isdisjoint(parse([*BASE, "--debug"]).as_options())
    assert overruled <= parse(BASE).as_options().keys()


def test_each_argument_of_the_parser_is_a_setting():
    known = {entry.setting.option for entry in ENTRIES}
    others = {"help", "version", "config_file", "random_seed", "notrack"}
    assert {action.dest for action in build_parser()._actions} == known | others


@pytest.mark.parametrize(
    ("flag", "section", "name"),
    [
        (["--precision", "float32"], "processing", "precision"),
        (["--device", "cpu"], "processing", "device"),
        (["--low-mem"], "resources", "low_mem"),
        (["--gpu-slots", "3"], "resources", "gpu_slots"),
        (["--age-file", "file"], "age", "file"),
    ],
)
def test_a_task_of_a_cluster_is_told(flag, section, name, files):
    """What a task is not told it would do in another way, without a word."""
    here = parse([*BASE, "--submit", "slurm", *flag])
    Path("config.toml").write_text(task_config(here).to_toml())
    there = parse([*BASE, "--config-file", "config.toml"])
    assert getattr(getattr(there, section), name) == getattr(getattr(here, section), name)
    assert getattr(getattr(here, section), name) != getattr(getattr(parse(BASE), section), name)

# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import configparser
from pathlib import Path

import pytest

import bmex_bids
from bmex_bids.cli.parser import _memory, new_run_id, parse
from bmex_bids.exceptions import UsageError


@pytest.fixture
def places(tmp_path, monkeypatch):
    """A dataset folder, an output that does not exist, and a current folder apart from both."""
    (tmp_path / "bids").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return [str(tmp_path / "bids"), str(tmp_path / "out"), "participant"]


def test_without_flags(places, monkeypatch):
    monkeypatch.setattr("bmex_bids.cli.parser.available_cpus", lambda: 12)
    config = parse(places)
    assert config.paths.work_dir == Path.cwd() / "work"
    assert config.selection.participants is None
    assert config.age.months is None
    assert (config.resources.nprocs, config.resources.omp_nthreads) == (12, 8)
    assert config.processing.skull_strip == "auto"
    assert config.execution.verbosity == 0


@pytest.mark.parametrize("flag", ["--participant-label", "--participant_label"])
def test_participants_lose_their_prefix_and_their_doubles_and_are_sorted(places, flag):
    config = parse([*places, flag, "sub-02", "01", "02"])
    assert config.selection.participants == ("01", "02")


@pytest.mark.parametrize("flag", ["--session-label", "--session_label", "--session-id"])
def test_sessions(places, flag):
    assert parse([*places, flag, "ses-V02", "V01"]).selection.sessions == ("V01", "V02")


@pytest.mark.parametrize("flag", ["--nprocs", "--n-cpus", "--n_cpus"])
def test_processors(places, flag):
    config = parse([*places, flag, "3"])
    assert (config.resources.nprocs, config.resources.omp_nthreads) == (3, 3)


def test_one_step_never_gets_more_processors_than_there_are(places):
    assert parse([*places, "--nprocs", "2", "--omp-nthreads", "9"]).resources.omp_nthreads == 2


@pytest.mark.parametrize("flag", ["-w", "--work-dir", "--work_dir"])
def test_work_folder(places, flag, tmp_path):
    assert parse([*places, flag, str(tmp_path / "w")]).paths.work_dir == tmp_path / "w"


def test_an_age_of_zero_is_an_age(places):
    assert parse([*places, "--age-months", "0"]).age.months == 0.0


def test_a_folder_as_weights_means_the_published_files_in_it(places, tmp_path):
    (tmp_path / "weights").mkdir()
    processing = parse([*places, "--weights", str(tmp_path / "weights")]).processing
    assert (processing.weights, processing.weights_dir) == ("bmex-1.0.5", tmp_path / "weights")


def test_a_folder_that_happens_to_be_called_auto_changes_nothing(places):
    Path("auto").mkdir()
    assert parse(places).processing.weights_dir is None


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--age-months", "-1"], "a number of 0 or more"),
        (["--age-months", "nan"], "a number of 0 or more"),
        (["--nprocs", "0"], "a whole number of 1 or more"),
        (["--nprocs", "2.5"], "a whole number of 1 or more"),
        (["--device", "tpu"], "auto, cpu, cuda or cuda:N"),
        (["--mem-mb", "lots"], "memory such as"),
        (["--skull-strip", "maybe"], "invalid choice"),
        (["--no-such-flag"], "unrecognized arguments"),
        (["--partic", "01"], "unrecognized arguments"),  # abbreviations are not guessed
    ],
)
def test_a_faulty_flag_ends_with_2_and_says_what_is_expected(places, flags, words, capsys):
    with pytest.raises(SystemExit) as stop:
        parse([*places, *flags])
    assert stop.value.code == 2
    assert words in capsys.readouterr().err


def test_a_missing_dataset_is_refused_with_a_hint(places):
    with pytest.raises(UsageError, match=r"expected a dataset folder at .*nowhere.*mounted"):
        parse(["/nowhere", *places[1:]])


@pytest.mark.parametrize("inside", ["", "/derivatives/bmex", "/../bids/out"])
def test_output_inside_the_dataset_is_refused(places, inside):
    with pytest.raises(UsageError, match="output folder outside the dataset"):
        parse([places[0], places[0] + inside, "participant"])


def test_output_inside_the_dataset_is_found_out_through_a_link(places, tmp_path):
    (tmp_path / "link").symlink_to(places[0])
    with pytest.raises(UsageError, match="output folder outside the dataset"):
        parse([places[0], str(tmp_path / "link" / "out"), "participant"])


def test_output_beside_the_dataset_with_a_longer_name_is_fine(places):
    assert parse([places[0], places[0] + "-bmex", "participant"]).paths.output_dir.name


@pytest.mark.parametrize("place", [0, 1])
def test_work_inside_the_dataset_or_the_output_is_refused(places, place):
    with pytest.raises(UsageError, match="with -w"):
        parse([*places, "-w", places[place] + "/work"])


def test_memory_units():
    assert _memory("1024") == 1.0
    assert _memory("1048576K") == 1.0
    assert _memory("3g") == _memory("3GB") == 3.0


def test_run_names_differ_and_sort_by_time():
    first, second = new_run_id(), new_run_id()
    assert first != second
    assert first[:15] <= second[:15]


def test_the_version_is_that_of_setup_cfg():
    parser = configparser.ConfigParser()
    parser.read(Path(__file__).resolve().parents[2] / "setup.cfg", encoding="utf-8")
    assert bmex_bids.__version__ == parser["metadata"]["version"]

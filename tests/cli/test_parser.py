# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import configparser
import dataclasses
import re
from pathlib import Path

import pytest

import bmex_bids
from bmex_bids.cli.foreign import FOREIGN
from bmex_bids.cli.parser import parse
from bmex_bids.config import ENTRIES
from bmex_bids.exceptions import UsageError
from bmex_bids.network.weights.registry import bundled
from bmex_bids.running.planning import new_run_id
from bmex_bids.values import memory

BUNDLED = next(record.name for record in bundled() if record.kind == "enhance")


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


def test_the_command_line_is_kept_for_the_report(places):
    command = parse([*places, "--mem_gb", "1", "--fetal"]).command
    assert command == f"bmex {' '.join(places)} --mem_gb 1 --fetal"


def test_an_age_of_zero_is_an_age(places):
    assert parse([*places, "--age-months", "0"]).age.months == 0.0


def test_a_folder_as_weights_means_the_published_files_in_it(places, tmp_path):
    (tmp_path / "weights").mkdir()
    processing = parse([*places, "--weights", str(tmp_path / "weights")]).processing
    assert (processing.weights, processing.weights_dir) == ("bmex-1.0.5", tmp_path / "weights")


@pytest.mark.parametrize("name", ["auto", "bundled", "bmex-1.0.1", BUNDLED])
def test_a_folder_that_happens_to_be_called_as_a_set_changes_nothing(places, name):
    """Beside the unzipped folder ``bmex-1.0.1`` its name meant another set."""
    Path(name).mkdir()
    processing = parse([*places, "--weights", name]).processing
    assert (processing.weights, processing.weights_dir) == (name, None)
    processing = parse([*places, "--weights", f"./{name}"]).processing
    assert processing.weights_dir == Path(name).absolute()


@pytest.mark.parametrize("value", ["0", "-1", "-8G", "0.5", "nan", "inf", "", "all"])
@pytest.mark.parametrize("flag", ["--nprocs", "--omp-nthreads", "--gpu-slots", "--mem-mb"])
def test_a_limit_that_is_none_is_refused(places, flag, value, capsys):
    if (flag, value) == ("--mem-mb", "0.5"):
        pytest.skip("too little, see test_too_little_memory_is_refused_at_once")
    with pytest.raises(SystemExit) as ended:
        parse([*places, f"{flag}={value}"])
    assert ended.value.code == 2
    assert "expected" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--nprocs", "--omp-nthreads", "--gpu-slots", "--mem-mb"])
def test_a_huge_limit_is_no_error(places, flag):
    resources = parse([*places, flag, str(10**12)]).resources
    assert resources.omp_nthreads <= resources.nprocs


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
        (["--partic", "01"], "did you mean --participant-label?"),  # abbreviations are not guessed
        (["--particpant_lable", "01"], "did you mean --participant-label?"),
        (["--output_resolution=0p8"], "did you mean --output-res?"),
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
    assert memory("1024") == 1.0
    assert memory("1048576K") == 1.0
    assert memory("3g") == memory("3GB") == 3.0


def test_run_names_differ_and_sort_by_time():
    first, second = new_run_id(), new_run_id()
    assert first != second
    assert first[:15] <= second[:15]


def test_the_version_is_that_of_setup_cfg():
    parser = configparser.ConfigParser()
    parser.read(Path(__file__).resolve().parents[2] / "setup.cfg", encoding="utf-8")
    assert bmex_bids.__version__ == parser["metadata"]["version"]


# every flag of BIDS_APP.md §1 with every spelling, and where it ends up
SPELLINGS = [
    ("--participant-label", ["sub-02,01"], "selection.participants", ("01", "02")),
    ("--participant-label --participant_label", ["sub-01"], "selection.participants", ("01",)),
    ("--session-label --session_label --session-id", ["ses-A"], "selection.sessions", ("A",)),
    ("--run-label --run_label --run-id --run_id", ["run-1"], "selection.runs", ("1",)),
    ("--modalities -m", ["T2w"], "selection.modalities", ("T2w",)),
    ("--skip-bids-validation --skip_bids_validation", [], "execution.skip_bids_validation", True),
    ("--clean-workdir --clean_workdir", [], "execution.clean_workdir", True),
    ("--nprocs --n-cpus --n_cpus --nthreads --n-procs", ["3"], "resources.nprocs", 3),
    ("--omp-nthreads --omp_nthreads", ["1"], "resources.omp_nthreads", 1),
    ("--mem-mb --mem_mb --mem", ["2G"], "resources.mem_gb", 2.0),
    ("--low-mem --low_mem", [], "resources.low_mem", True),
    ("--geometry", ["reference"], "processing.geometry", "reference"),
    ("--no-mirroring --no_mirroring", [], "processing.mirroring", False),
    ("--precision", ["float32"], "processing.precision", "float32"),
    ("--gpu-slots --gpu_slots", ["2"], "resources.gpu_slots", 2),
    ("--device", ["cuda:1"], "processing.device", "cuda:1"),
    ("--age-months --age_months", ["0"], "age.months", 0.0),
    ("--fetal", [], "age.fetal", True),
    ("--strict-ages --strict_ages", [], "age.strict", True),
    (
        "--skull-strip --skull-strip-t1w --skull_strip_t1w",
        ["force"],
        "processing.skull_strip",
        "force",
    ),
    (
        "--brain-extraction --brain_extraction",
        ["deepbet"],
        "processing.brain_extraction",
        "deepbet",
    ),
    ("--reorient", [], "processing.reorient", True),
    (
        "--motion-correction --motion_correction",
        ["off"],
        "processing.motion_correction",
        "off",
    ),
    ("--weights", ["bundled"], "processing.weights", "bundled"),
    ("--output-res --output_res", ["0p8"], "processing.output_res", ("0p8",)),
    ("--output-layout --output_layout", ["bme-x"], "processing.output_layout", "bme-x"),
    ("--qc-only --qc_only", [], "processing.qc_only", True),
    ("--uncertainty", ["off"], "processing.uncertainty", "off"),
    ("--segment", ["off"], "processing.segment", "off"),
    ("--max-change --max_change", ["5"], "processing.max_change", 5.0),
    ("--dry-run --dry_run", [], "execution.dry_run", "table"),
    ("--dry-run --dry_run", ["json"], "execution.dry_run", "json"),
    ("--stop-on-first-crash --stop_on_first_crash", [], "execution.stop_on_first_crash", True),
    ("--resource-monitor --resource_monitor", [], "execution.resource_monitor", True),
    ("--write-graph --write_graph", [], "execution.write_graph", True),
    ("--reports-only --reports_only", [], "execution.reports_only", True),
    ("--boilerplate-only --boilerplate_only", [], "execution.boilerplate_only", True),
    ("--md-only-boilerplate --md_only_boilerplate", [], "execution.md_only_boilerplate", True),
    ("-v --verbose", [], "execution.verbosity", 1),
]


@pytest.mark.parametrize(
    ("flag", "values", "field", "expected"),
    [(flag, *rest) for flags, *rest in SPELLINGS for flag in flags.split()],
)
def test_every_spelling_of_every_flag(places, flag, values, field, expected):
    config = parse([*places, flag, *values])
    section, name = field.split(".")
    assert getattr(getattr(config, section), name) == expected


@pytest.mark.parametrize(
    ("flags", "field"),
    [
        ("--bids-filter-file --bids_filter_file", "selection.filter_file"),
        ("--age-file --age_file", "age.file"),
        ("--use-plugin --use_plugin --nipype-plugin-file", "execution.plugin_file"),
    ],
)
def test_flags_that_name_a_file(places, tmp_path, flags, field):
    section, name = field.split(".")
    path = tmp_path / "file"
    for flag in flags.split():
        path.unlink(missing_ok=True)
        with pytest.raises(UsageError, match=r"expected a file for .*mounted"):
            parse([*places, flag, str(path)])
        path.write_text("")
        assert getattr(getattr(parse([*places, flag, str(path)]), section), name) == path


def test_derivatives_have_a_name_and_an_absolute_path(places, tmp_path):
    (tmp_path / "masks").mkdir()
    for given in (f"mine={tmp_path / 'masks'}", str(tmp_path / "masks")):
        name = given.partition("=")[0] if "=" in given else "masks"
        for flag in ("-d", "--derivatives"):
            found = parse([*places, flag, given]).processing.derivatives
            assert found == (f"{name}={tmp_path / 'masks'}",)
    with pytest.raises(UsageError, match="expected a folder of derivatives"):
        parse([*places, "-d", f"x={tmp_path / 'nowhere'}"])


@pytest.mark.parametrize("flag", [["--notrack"], ["--random-seed", "7"], ["--random_seed", "7"]])
def test_a_flag_without_effect_is_taken_and_changes_nothing(places, flag):
    with_flag, without = parse([*places, *flag]), parse(places)
    assert dataclasses.replace(with_flag, run_id="") == dataclasses.replace(without, run_id="")


def test_debug_is_one_process_that_says_all_and_stops(places):
    config = parse([*places, "--debug", "--nprocs", "4"])
    assert config.resources.nprocs == config.resources.omp_nthreads == 1
    assert config.execution.stop_on_first_crash
    assert config.execution.verbosity == 2


def test_both_levels_at_once(places):
    assert parse([*places, "group"]).analysis_levels == ("participant", "group")


def test_a_configuration_file_gives_the_flags_and_the_command_line_overrules_it(places, tmp_path):
    flags = ["--participant-label", "01", "--qc-only", "--nprocs", "2", "--mem", "3G", "-v"]
    first = parse([*places, *flags, "--age-months", "5", "-w", str(tmp_path / "w")])
    path = tmp_path / "config.toml"
    path.write_text(first.to_toml())
    again = parse([*places, "--config-file", str(path)])
    assert dataclasses.replace(again, run_id="") == dataclasses.replace(first, run_id="")
    changed = parse([*places, "--config_file", str(path), "--age-months", "0", "--nprocs", "1"])
    assert (changed.age.months, changed.resources.nprocs) == (0, 1)
    assert changed.selection.participants == ("01",)


def test_what_to_do_now_is_not_taken_from_a_file(places, tmp_path):
    path = tmp_path / "config.toml"
    path.write_text(parse([*places, "--dry-run", "--clean-workdir", "--reports-only"]).to_toml())
    execution = parse([*places, "--config-file", str(path)]).execution
    assert (execution.dry_run, execution.clean_workdir, execution.reports_only) == (
        "",
        False,
        False,
    )


def test_what_debug_made_of_the_others_is_not_taken_from_a_file(places, tmp_path):
    """One process, and the end at the first failure, stayed with a run of the "same settings"."""
    path = tmp_path / "config.toml"
    path.write_text(parse([*places, "--debug", "--age-months", "3"]).to_toml())
    again, usual = parse([*places, "--config-file", str(path)]), parse(places)
    assert again.age.months == 3
    assert again.resources == usual.resources
    assert again.execution.verbosity == usual.execution.verbosity
    assert not again.execution.stop_on_first_crash


@pytest.mark.parametrize("text", [None, "a = [", "magic = 1"])
def test_a_configuration_file_that_is_wrong(places, tmp_path, text):
    path = tmp_path / "config.toml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UsageError, match="expected"):
        parse([*places, "--config-file", str(path)])


def test_help_is_grouped_as_fmriprep_groups_it(capsys):
    with pytest.raises(SystemExit):
        parse(["--help"])
    text = capsys.readouterr().out
    for heading in (
        "Options for filtering BIDS queries",
        "Options to handle performance",
        "Options for performing only a subset of the workflow",
        "Other options",
    ):
        assert heading in text


@pytest.mark.parametrize("flag", [flag for item in FOREIGN for flag in item.flags])
@pytest.mark.parametrize("written", ["hyphens", "underscores", "equals"])
def test_flags_of_other_apps_are_taken_each_with_a_line(places, capsys, flag, written):
    item = next(item for item in FOREIGN if flag in item.flags)
    said = flag if written == "hyphens" else re.sub(r"(?<=\w)-(?=\w)", "_", flag)
    word = {"--age": "18m"}.get(flag, "2")
    words = [word] if item.words in {"1", "*"} else []
    if written == "equals" and words:
        parse([*places, f"{said}={word}", "--fetal"])
    else:
        parse([*places, said, *words, "--fetal"])
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"{said}: {item.said}"


@pytest.mark.parametrize(
    ("flags", "field", "expected"),
    [
        (["--age", "18m"], "age.months", 18.0),
        (["--age", "1.5 years"], "age.months", 18.0),
        (["--gpu"], "processing.device", "cuda"),
        (["--gpu", "1"], "processing.device", "cuda:1"),
        (["--mem_gb", "1.5"], "resources.mem_gb", 1.5),
        (["--mem-gb=2"], "resources.mem_gb", 2.0),
        (["--ants-nthreads", "1"], "resources.omp_nthreads", 1),
        (["--float32"], "processing.precision", "float32"),
        (
            ["--output-spaces", "MNI152NLin6Asym:res-2", "T1w", "fsnative", "--low-mem"],
            "processing.output_spaces",
            ("MNI152NLin6Asym:res-2",),
        ),
    ],
)
def test_flags_of_other_apps_become_ours(places, flags, field, expected):
    section, name = field.split(".")
    assert getattr(getattr(parse([*places, *flags]), section), name) == expected


@pytest.mark.parametrize("text", ["30", "thirty", "18 moons"])
def test_an_age_without_its_unit_is_refused(places, text):
    with pytest.raises(UsageError, match="such as 18m, 6w or 30y"):
        parse([*places, "--age", text])


def test_ours_are_never_taken_for_another_apps():
    ours = {flag for entry in ENTRIES for flag in entry.setting.flags}
    assert not ours & {flag for item in FOREIGN for flag in item.flags}

# SPDX-License-Identifier: Apache-2.0
"""What a run sets for the libraries, and puts back."""

import dataclasses
import json
import os
from pathlib import Path

import pytest
from bad_cases import bomb

from bmex_bids.cli import run
from bmex_bids.cli.parser import parse
from bmex_bids.exceptions import NoInputError, UsageError
from bmex_bids.reports.individual import write_subject_report
from bmex_bids.running import process
from bmex_bids.running.validation import Finding


@pytest.fixture
def config(tmp_path: Path):
    (tmp_path / "bids").mkdir()
    flags = [str(tmp_path / "bids"), str(tmp_path / "out"), "participant", "--omp-nthreads", "1"]
    return parse(flags)


def test_threads_that_wait_give_way_and_all_is_put_back(config, monkeypatch):
    """Found on a busy machine: threads that waited by turning made the network 5 times
    slower; threads that never turn, on a quiet one, 3 times."""
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    with process.surroundings(config):
        assert os.environ["GOMP_SPINCOUNT"] == "3000"
        assert os.environ["OMP_NUM_THREADS"] == "1"
    assert "GOMP_SPINCOUNT" not in os.environ
    assert os.environ["OMP_NUM_THREADS"] == "7"


def test_what_the_user_set_stays(config, monkeypatch):
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    with process.surroundings(config):
        assert os.environ["GOMP_SPINCOUNT"] == "7"
    assert os.environ["GOMP_SPINCOUNT"] == "7"


@pytest.mark.parametrize(("code", "levels"), [(1, ["participant", "group"]), (0, ["group"])])
def test_a_group_level_without_images_keeps_the_exit_code_of_what_failed(
    config, monkeypatch, capsys, code, levels
):
    """It said 'run participant first' with code 4, after participant had run and failed."""

    def nothing(_config):
        raise NoInputError("found none")

    monkeypatch.setattr(run, "_participant", lambda _config: code)
    monkeypatch.setattr(run, "_group", nothing)
    config = dataclasses.replace(config, analysis_levels=tuple(levels))
    if code:
        assert run._run(config) == code
        assert "no group level: found none" in "".join(capsys.readouterr())
    else:
        with pytest.raises(NoInputError):
            run._run(config)


def test_the_group_level_puts_the_participants_pages_together_again(config, monkeypatch):
    """On a cluster no page had its methods text or the link to the group, which come after it."""
    out = config.paths.output_dir
    out.mkdir(parents=True, exist_ok=True)
    write_subject_report(out, "01")
    write_subject_report(out, "02", "A")
    before = (out / "sub-01.html").read_text()
    assert "group_T1w.html" not in before

    def group(*_):
        (out / "group_T1w.html").touch()
        (out / "logs").mkdir(exist_ok=True)
        (out / "logs" / "CITATION.md").write_text("Two images were enhanced.\n")
        (out / "logs" / "CITATION.html").write_text("<p>Two images were enhanced.</p>\n")
        return []

    monkeypatch.setattr("bmex_bids.reports.group.write_group", group)
    run._group(config)
    for name in ("sub-01.html", "sub-02_ses-A.html"):
        text = (out / name).read_text()
        assert '<a href="group_T1w.html">T1w</a>' in text
        assert "Two images were enhanced." in text


@pytest.mark.parametrize("level", ["participant", "group"])
@pytest.mark.parametrize("more", [[], ["--dry-run"], ["--submit", "slurm"]])
def test_too_little_memory_is_refused_at_once(tmp_path, monkeypatch, capsys, level, more):
    """``--mem 8`` is meant in GB by users of MRIQC: the run waited for ever."""
    monkeypatch.setattr(run, "_validate", lambda _: pytest.fail("the dataset was read"))
    (tmp_path / "bids").mkdir()
    places = [str(tmp_path / "bids"), str(tmp_path / "out"), "participant", level]
    assert run.main([*places, "--mem", "8", *more]) == 2
    said = capsys.readouterr().err
    assert "at least 1024 MB for any image, got 8 MB; the unit is MB: 8 GB are 8G" in said
    assert not (tmp_path / "out").exists()


def test_memory_that_is_enough_for_no_image_is_refused_with_what_the_smallest_needs(
    bids_skeleton, tmp_path, capsys
):
    table = [{"participant_id": "sub-01", "age": 1}]
    units = {"age": {"Units": "months"}}
    image = {"sub-01/anat/sub-01_T1w.nii.gz": bomb(2600)[:200_000]}
    bids = bids_skeleton({"participants.tsv": table, "participants.json": units, **image})
    flags = ["--skip-bids-validation", "--mem", "1100"]
    assert run.main([str(bids), str(tmp_path / "out"), "participant", *flags]) == 2
    said = capsys.readouterr().err
    assert "MB for the smallest image, got 1100 MB; the unit is MB" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["n_procs", "memory_gb", "n_gpu_procs"])
@pytest.mark.parametrize("value", [-1, "many", float("nan"), True])
def test_a_plugins_limits_are_looked_at(tmp_path, name, value):
    path = tmp_path / "plugin.yml"
    path.write_text(json.dumps({"plugin": "MultiProc", "plugin_args": {name: value}}))
    with pytest.raises(UsageError, match=f"expected {name} of"):
        process.read_plugin(path)
    path.write_text(json.dumps({"plugin": "MultiProc", "plugin_args": {name: 2}}))
    assert process.read_plugin(path) == ("MultiProc", {name: 2})


@pytest.mark.parametrize("more", [[], ["--dry-run"], ["--submit", "slurm"]])
def test_a_fatal_error_of_the_validator_ends_the_run(tmp_path, monkeypatch, capsys, more):
    (tmp_path / "bids").mkdir()
    fatal = Finding("MISSING_DATASET_DESCRIPTION", "/dataset_description.json")
    monkeypatch.setattr("bmex_bids.running.validation.validate", lambda *_: [fatal])
    monkeypatch.setattr(run.planning, "survey", lambda *_: pytest.fail("the dataset was read"))
    assert run.main([str(tmp_path / "bids"), str(tmp_path / "out"), "participant", *more]) == 4
    assert "but the validator found: MISSING_DATASET_DESCRIPTION" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.fixture
def with_results(tmp_path: Path):
    """A dataset without images, and the flags of a group level over one image's results."""
    (tmp_path / "bids").mkdir()
    anat = tmp_path / "out" / "sub-01" / "anat"
    anat.mkdir(parents=True)
    (anat / "sub-01_desc-enhanced_T1w.json").write_text('{"BMEX": {}}')
    return [str(tmp_path / "bids"), str(tmp_path / "out"), "group"]


def test_a_dry_run_of_the_group_level_says_what_would_be_written(with_results, tmp_path, capsys):
    assert run.main([*with_results, "--dry-run"]) == 0
    out = tmp_path / "out"
    assert capsys.readouterr().out.splitlines() == [
        f"group: 1 T1w image with results; would write group_T1w.tsv and group_T1w.html in {out}",
        f"group: no T2w image has results yet in {out}",
    ]
    assert not list(out.glob("group*"))


def test_a_dry_run_of_the_group_level_for_programs_is_one_object(with_results, tmp_path, capsys):
    """It printed nothing."""
    assert run.main([*with_results, "--dry-run=json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["group"] == [
        {"suffix": "T1w", "images": 1, "outputs": ["group_T1w.tsv", "group_T1w.html"]},
        {"suffix": "T2w", "images": 0, "outputs": []},
    ]
    assert plan["output_dir"] == str(tmp_path / "out")
    assert not list((tmp_path / "out").glob("group*"))

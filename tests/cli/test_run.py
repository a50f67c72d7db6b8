# SPDX-License-Identifier: Apache-2.0
"""What a run sets for the libraries, and puts back."""

import dataclasses
import os
from pathlib import Path

import pytest

from bmex_bids.cli import run
from bmex_bids.cli.parser import parse
from bmex_bids.exceptions import NoInputError
from bmex_bids.reports.individual import write_subject_report


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
    with run._surroundings(config):
        assert os.environ["GOMP_SPINCOUNT"] == "3000"
        assert os.environ["OMP_NUM_THREADS"] == "1"
    assert "GOMP_SPINCOUNT" not in os.environ
    assert os.environ["OMP_NUM_THREADS"] == "7"


def test_what_the_user_set_stays(config, monkeypatch):
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    with run._surroundings(config):
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
        assert "<a href='group_T1w.html'>T1w</a>" in text
        assert "Two images were enhanced." in text

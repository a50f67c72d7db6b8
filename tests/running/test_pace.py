# SPDX-License-Identifier: Apache-2.0
"""The plan's minutes, by what this machine did before, else by what it does now."""

import dataclasses
from types import SimpleNamespace

import pytest

from bmex_bids.cli.parser import parse
from bmex_bids.running import pace as module
from bmex_bids.running.pace import REFERENCE_S, pace, timed_convolution


@pytest.fixture
def config(tmp_path):
    (tmp_path / "bids").mkdir()
    return parse([str(tmp_path / "bids"), str(tmp_path / "out"), "participant"])


@pytest.fixture
def tasks(monkeypatch):
    monkeypatch.setattr(module, "estimate", lambda task, *_: (task.expected, 1.0))
    monkeypatch.setattr(module, "timed_convolution", lambda: 3 * REFERENCE_S)
    planned = SimpleNamespace(runnable=True)
    return [
        SimpleNamespace(name=name, planned=planned, expected=seconds)
        for name, seconds in (("a", 100.0), ("b", 50.0), ("c", 10.0))
    ]


def run_of(config, day, rows):
    folder = config.log_dir.parent / f"202601{day:02d}-000000_abc"
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text(config.to_toml())
    lines = [("image", "status", "seconds"), *rows]
    (folder / "status.tsv").write_text("".join("\t".join(line) + "\n" for line in lines))


def test_without_an_earlier_run_a_convolution_is_timed(config, tasks):
    found = pace(config, tasks, "cpu")
    assert found.factor == pytest.approx(3)
    assert found.spread == 1.5
    assert found.source == "by a timed convolution"
    assert found.range(100) == pytest.approx((200, 450))


def test_earlier_runs_of_the_same_kind_count_more(config, tasks):
    rows = [
        ("a", "done", "210.0"),
        ("b", "done", "90"),
        ("c", "failed", "900"),
        ("d", "done", "9"),
    ]
    run_of(config, 1, rows)
    found = pace(config, tasks, "cpu")
    assert found.factor == pytest.approx((2.1 + 1.8) / 2)
    assert found.source == "by earlier runs"
    assert found.spread < 1.5


def test_runs_of_another_kind_and_broken_tables_do_not_count(config, tasks):
    other = dataclasses.replace(
        config, resources=dataclasses.replace(config.resources, omp_nthreads=99)
    )
    run_of(other, 1, [("a", "done", "210.0")])
    run_of(config, 2, [("a", "done", ""), ("b", "unchanged", ""), ("c", "done", "x")])
    (config.log_dir.parent / "20260103-000000_abc").mkdir()
    assert pace(config, tasks, "cpu").source == "by a timed convolution"


def test_the_convolution_is_short_and_leaves_the_threads_alone():
    import torch

    before = torch.get_num_threads()
    assert 1e-5 < timed_convolution(repeats=3) < 10
    assert torch.get_num_threads() == before

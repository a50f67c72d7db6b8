# SPDX-License-Identifier: Apache-2.0
"""``bmex-evaluate score``: the table's figures by hand, and a run that goes on."""

from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pytest

from bmex_bids.cli import evaluate
from bmex_bids.evaluation import score as judged
from bmex_bids.exceptions import UsageError
from bmex_bids.network.inference.score import Estimate, Score
from bmex_bids.network.weights.registry import bundled
from bmex_bids.training.images import CleanImage
from bmex_bids.training.linear import VALIDATION


def row(cell, motion, level, **more):
    return {"image": "a", "cell": cell, "motion": str(motion), "level": str(level), **more}


ROWS = [
    row("clean", 0.1, 0, tct="1.5"),
    row("minor", 0.8, 1, tct="1.6"),
    row("moderate", 2.2, 2, tct="1.4"),
    row("severe", 2.9, 3, tct="1.8"),
]


def test_figures_by_hand():
    assert judged.spearman(ROWS, "motion") == 1
    assert judged.spearman(ROWS, "tct") == pytest.approx(0.4)
    assert judged.auc(ROWS, "motion") == 1
    assert judged.auc(ROWS, "tct", better=True) == 0.5
    assert math.isnan(judged.auc(ROWS[:2], "motion"))
    found = {line.what: line for line in judged.lines(ROWS)}
    error = found["mean absolute error, levels"]
    assert error.value == pytest.approx(0.15)
    assert error.reached
    assert found["noise, mean relative error"].reached is False  # not computed is not reached


def test_smoothing_that_looks_better_is_seen():
    rows = [*ROWS, row("smoothed clean", 0.0, "nan"), row("blurred clean", 0.05, "nan")]
    found = {line.what: line.value for line in judged.lines(rows)}
    assert found["clean image, gain by smoothing"] == pytest.approx(0.1)
    rows = [*ROWS, row("smoothed severe", -0.4, "nan", reported="1.5")]
    found = {line.what: line.value for line in judged.lines(rows)}
    assert found["clean image, gain by smoothing"] == pytest.approx(0.5)
    assert found["motion of: severe"] == 2.9
    named = list(judged.lines(rows))
    place = next(k for k, line in enumerate(named) if line.what == "motion of: smoothed severe")
    assert (named[place + 1].what, named[place + 1].value) == ("  as a report has it", 1.5)


@pytest.fixture
def small(monkeypatch):
    """A ball as the only validation image, and a score that counts."""
    x, y, z = np.indices((24, 26, 22)) - np.array([12, 13, 11]).reshape(3, 1, 1, 1)
    r = np.sqrt(x**2 + y**2 + z**2) / 10
    labels = np.select([r < 0.5, r < 0.8, r < 1], [3, 2, 1], 0).astype(np.uint8)
    data = np.array([0, 150, 400, 560], np.float32)[labels]
    ball = CleanImage(VALIDATION[0].name, data, r < 1, labels, (0.8,) * 3, "month24", "T1w")
    calls = []

    def score(image, mask, record):
        calls.append(image)
        return Score(*[Estimate(1.0, 0.5, 1.5)] * 3)

    monkeypatch.setattr(judged, "read", lambda data, source, kept: ball)
    monkeypatch.setattr(judged, "score", score)
    monkeypatch.setattr(
        judged, "refocus", lambda image, _: SimpleNamespace(image=image, motion={})
    )
    return calls


def test_a_run_goes_on_and_refuses_other_weights(tmp_path, small):
    record = bundled()[0]
    units = list(judged.plan(1, images=[VALIDATION[0].name], second=False))
    assert {unit.cell for unit in units} >= {*judged.SEVERITIES, *judged.SMOOTHED, "4.8 mm"}
    first = judged.run(tmp_path, tmp_path / "out", units[:3], record)
    rows = judged.run(tmp_path, tmp_path / "out", units, record)
    assert rows[:3] == first
    # a smoothed image is held against the one that was smoothed
    assert len(small) == len(units) + len(judged.SMOOTHED)
    moved, clean = small[1], small[0]
    assert np.abs(moved - clean).max() > 10
    assert rows[1]["level"] == "1"
    reported = {row["cell"]: row["reported"] for row in rows}
    assert reported["smoothed severe"] == "1"
    assert reported["severe"] == "nan"
    with pytest.raises(UsageError, match="other weights"):
        judged.run(tmp_path, tmp_path / "out", units, dataclasses.replace(record, sha256="x"))


def test_motion_that_is_found_counts(tmp_path, small, monkeypatch):
    record = bundled()[0]
    units = list(judged.plan(1, images=[VALIDATION[0].name], second=False))[:4]
    found = SimpleNamespace(motion={"Model": "periodic"})

    def undone(image, _):
        found.image = np.roll(image, 2, axis=0)
        return found

    monkeypatch.setattr(judged, "refocus", undone)
    rows = judged.run(tmp_path, tmp_path / "out", units, record)
    assert [row["motion"] for row in rows] == ["1"] * 4
    assert all(float(row["known"]) > 2 for row in rows)
    lines = {line.what: line.value for line in judged.lines(rows)}
    assert lines["AUC, moderate or worse"] == 0.5


def test_the_command_is_there():
    options = evaluate.build_parser().parse_args(["score", "--out", "O", "--draws", "2"])
    assert options.draws == 2

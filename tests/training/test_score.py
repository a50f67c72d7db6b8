# SPDX-License-Identifier: Apache-2.0
"""The score's training: labels, patches, twenty steps that go on where they stopped."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from bmex_bids.cli import train as command
from bmex_bids.network.inference.score import score
from bmex_bids.network.models.score import QUANTITIES, ScoreNet
from bmex_bids.network.weights.registry import bundled
from bmex_bids.training import scans
from bmex_bids.training import score as training
from bmex_bids.training.images import CleanImage
from bmex_bids.training.linear import TRAINING, Collection
from bmex_bids.training.loop import Schedule
from bmex_bids.training.score import (
    ScoreChunks,
    ScoreConfig,
    Spoiled,
    augmented,
    drawn_patches,
    fit_score,
    known_scan,
    level,
    measured_levels,
    stacked,
)


@pytest.fixture
def clean() -> CleanImage:
    """Nested ellipsoids, brain mean 400, with room around."""
    x, y, z = np.indices((36, 40, 34)) - np.array([18, 20, 17]).reshape(3, 1, 1, 1)
    r = np.sqrt((x / 15.0) ** 2 + (y / 17.0) ** 2 + (z / 14.0) ** 2)
    data = np.select([r < 0.5, r < 0.85, r < 1], [560, 380, 150], 0).astype(np.float32)
    data *= 400 / data[r < 1].mean()
    labels = np.zeros(data.shape, np.uint8)
    return CleanImage("ball", data, r < 1, labels, (0.8,) * 3, "month24", "T1w")


class OneBrain(Collection):
    def pick(self, rng: np.random.Generator) -> tuple[str, CleanImage]:
        return "adults", self.sources[0]


@pytest.fixture
def sources(clean: CleanImage, tmp_path: Path) -> Collection:
    return OneBrain(tmp_path, tmp_path, [clean], [])


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "WINDOW", 2)
    monkeypatch.setattr(training, "PATCH", 32)
    monkeypatch.setattr(training, "STANDARD_CHUNKS", 1)
    monkeypatch.setattr(scans, "AIR", 4)
    monkeypatch.setattr(scans, "IN_A_HEAD", 0.1)


def test_levels_rise_with_the_error_and_end_at_severe():
    found = [level(rms) for rms in (0, 5, 14.5, 29, 40, 56, 60, 80, 200)]
    assert found == sorted(found)
    assert found[2] == pytest.approx(0.5)
    assert found[0] == 0
    assert found[-1] == found[-2] == pytest.approx(3)


def test_the_named_severities_have_rising_errors(clean):
    minor, moderate, severe = measured_levels(clean)
    assert 0 < minor < moderate < severe


@pytest.mark.parametrize("fault", scans.FAULTS)
def test_what_is_known_of_each_fault(clean, fault, monkeypatch):
    parts = [] if fault == "clean" else fault.split("+")
    monkeypatch.setattr(scans, "draw_faults", lambda rng: parts)
    rng = np.random.default_rng(3)
    known = known_scan("adults", clean, 1.0, rng)
    found = drawn_patches(known, rng, original=False)
    if "ghosting" in parts:
        assert math.isnan(found.motion)
    else:
        assert (found.motion > 0) == ("motion" in parts)
    assert (known.truth.noise > 0) == ("noise" in parts)
    assert (found.resolution > 1.0) == bool({"slices", "smoothing"} & set(parts)) or (
        known.truth.thickness_mm <= 1.0
    )
    original = drawn_patches(known, rng, original=True)
    assert (original.motion, original.resolution) == (0, 1.0)


def test_the_motion_of_a_scan_is_the_error_of_motion_alone(clean, monkeypatch):
    monkeypatch.setattr(scans, "draw_faults", lambda rng: ["motion"])
    found, truth = scans.scan_with_truth("painted", clean, np.random.default_rng(1))
    change = (found.bad.astype(float) - found.clean)[found.mask]
    assert truth.motion == pytest.approx(float(np.sqrt((change**2).mean())), rel=0.2)


def flat(noise: float) -> Spoiled:
    image, mask = np.full((3, 32, 32), 400, np.float32), np.ones((3, 32, 32), bool)
    return Spoiled([(image, mask)] * 3, 1.0, noise, 1.0)


def test_added_noise_has_the_deviation_that_the_target_says():
    seen = []
    for seed in range(60):
        found = augmented(flat(1.5), np.random.default_rng(seed))
        if math.isfinite(found.noise) and found.noise > 5:
            spread = np.mean([x[m].std() for x, m in found.patches])
            seen.append(spread / found.noise)
    assert len(seen) > 8
    assert np.median(seen) == pytest.approx(1, abs=0.1)


def test_smoothing_keeps_the_motion_and_forgets_what_it_changed():
    found = [augmented(flat(1.5), np.random.default_rng(seed)) for seed in range(40)]
    assert {f.motion for f in found} == {1.0}
    smoothed = [f for f in found if math.isnan(f.resolution)]
    assert smoothed
    assert all(math.isnan(f.noise) for f in smoothed)


def test_what_is_not_known_has_no_gradient():
    sample = dataclasses.replace(flat(2.0), motion=math.nan)
    network = ScoreNet()
    value = training.loss_of(network, stacked([sample]))
    value.backward()
    bias = network.conclude[-1].bias.grad
    assert bias[0] == 0
    assert bias[len(QUANTITIES)] == 0
    assert bias[1] != 0


def test_volumes_are_functions_of_the_seed(sources):
    def image(seed: int) -> torch.Tensor:
        return ScoreChunks(sources, {}, seed=seed, chunks=4, per_volume=2)[1][0]

    torch.testing.assert_close(image(1), image(1))
    assert (image(1) != image(2)).any()


def test_twenty_steps_in_two_sittings_and_weights_that_score(sources, clean, tmp_path):
    schedule = Schedule(steps=12, batch=4, validate_every=10, threads=1, warmup=2)
    config = ScoreConfig(schedule=schedule)
    out = tmp_path / "out"
    fit_score(sources, sources, {}, out, config, held_scans=2)
    longer = dataclasses.replace(config, schedule=dataclasses.replace(schedule, steps=20))
    weights = fit_score(sources, sources, {}, out, longer, held_scans=2)
    state = load_file(weights)
    assert all(v.dtype == torch.float16 and v.isfinite().all() for v in state.values())
    assert int(torch.load(out / "checkpoint.pt", weights_only=True)["step"]) == 20
    log = (out / "log.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in log] == ["step", "10", "20"]
    assert set(QUANTITIES) <= set(log[0].split(","))
    record = dataclasses.replace(bundled()[0], path=weights, variant="bmex-score")
    found = score(clean.data, clean.mask, record)
    assert 0 <= found.motion.low <= found.motion.value <= found.motion.high <= 3


def test_the_command_knows_it_and_the_held_images_train_nothing():
    assert command.MAKERS["score"] == ("score", "ScoreConfig")
    assert set(training.HELD) < {source.name for source in TRAINING}

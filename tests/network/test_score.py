# SPDX-License-Identifier: Apache-2.0
"""The score of an image: what it does not depend on, and what it says of odd images."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bmex_bids.common.contrasts import MEAN
from bmex_bids.network.inference.score import (
    SLICES,
    Estimate,
    Score,
    after_change,
    answer,
    change_between,
    chosen_slices,
    level,
    of_slices,
    rms_of,
    score,
)
from bmex_bids.network.models.score import STATISTICS, ScoreNet, build, statistics


@pytest.fixture(scope="module")
def brain():
    x, y, z = np.indices((40, 48, 36)) - np.array([20, 24, 18]).reshape(3, 1, 1, 1)
    r = np.sqrt((x / 17.0) ** 2 + (y / 21.0) ** 2 + (z / 15.0) ** 2)
    data = np.select([r < 0.5, r < 0.85, r < 1], [560, 380, 150], 0).astype(np.float32)
    return data, r < 1


@pytest.fixture
def record(brain, make_record):
    torch.manual_seed(3)
    network = ScoreNet()
    figures = [statistics(x, m.float()) for x, m in chosen_slices(*brain)]
    network.standardise(torch.stack(figures, dim=1))
    return make_record(network, "bmex-score", kind="score")


def test_intensity_units_and_what_is_outside_do_not_matter(brain, record):
    data, mask = brain
    first = score(data, mask, record).as_table()
    other = np.where(mask, data * 7.5, 999).astype(np.float32)
    assert score(other, mask, record).as_table() == pytest.approx(first, abs=2e-3)
    assert set(first) >= {"motion", "motion_low", "noise_percent_high", "resolution_mm"}


def test_the_voxel_size_scales_the_resolution(brain, record):
    fine, coarse = (score(*brain, record, spacing_mm=s) for s in (0.8, 1.6))
    assert coarse.resolution_mm.value == pytest.approx(2 * fine.resolution_mm.value)
    assert coarse.motion == fine.motion


@pytest.mark.parametrize("what", ["nothing", "thin", "dark", "not finite"])
def test_too_little_brain_has_no_score(brain, record, what):
    data, mask = brain
    if what == "nothing":
        mask = np.zeros_like(mask)
    elif what == "thin":
        mask = mask & (np.indices(mask.shape)[2] < 8)
    else:
        data = np.full_like(data, 0 if what == "dark" else np.nan)
    assert score(data, mask, record) is None


def test_slices_are_of_the_brain_and_scaled(brain):
    planes = chosen_slices(*brain)
    assert [len(image) for image, _ in planes] == [SLICES] * 3
    for image, mask in planes:
        assert not image[~mask].any()
        assert mask.flatten(1).any(1).all()
        assert float(image[mask].mean()) == pytest.approx(MEAN, rel=0.15)


def test_the_interval_is_wider_where_the_network_is_less_sure():
    mean = np.array([1.0, 2.0, 0.1])
    sure, unsure = (answer(mean, np.full(3, spread)) for spread in (0.1, 0.5))
    assert unsure.motion.low < sure.motion.low < 1 < sure.motion.high < unsure.motion.high
    assert sure.noise_percent.value == pytest.approx(np.exp(2.0) / 10)  # % of 1000, mean 400
    assert answer(np.array([9.0, 2, 0]), np.ones(3)).motion.value == 3


def test_noise_raises_the_statistics_of_the_finest_detail(brain):
    data, mask = (torch.from_numpy(part[20][None].astype(np.float32)) for part in brain)
    noisy = data + 20 * torch.from_numpy(
        np.random.default_rng(0).standard_normal(data.shape, dtype=np.float32)
    )
    before, after = statistics(data, mask), statistics(noisy, mask)
    assert before.shape == (1, STATISTICS)
    assert after[0, 0] > before[0, 0] + 0.5


def test_the_network_of_a_file_has_its_sizes():
    network = ScoreNet()
    again = build(network.state_dict())
    again.load_state_dict(network.state_dict())


# ------------------------------------------------------------------ an image that was changed
def said(motion, noise=1.0):
    exact = Estimate(noise, noise, noise)
    return Score(Estimate(motion, motion - 0.2, motion + 0.2), exact, exact)


@pytest.mark.parametrize("severity", [0.0, 0.3, 1.0, 1.7, 2.0, 3.0])
def test_a_level_is_that_of_its_error(severity):
    assert level(rms_of(severity)) == pytest.approx(severity)


def test_what_a_change_does_not_explain_is_still_there():
    """An image whose error was 56 and that was changed by 20 looked still: it has 52 left."""
    found = after_change(said(2.0), said(0.4), 20.0)
    assert found.motion.value == pytest.approx(level(np.sqrt(56**2 - 20**2)))
    assert (found.motion.low, found.motion.high) == (pytest.approx(0.2), found.motion.value)
    assert found.noise_percent == said(0.4).noise_percent
    # what undid all of it is believed, and so is what the network says to be worse
    assert after_change(said(2.0), said(0.4), 60.0) == said(0.4)
    assert after_change(said(2.0), said(2.1), 20.0) == said(2.1)
    assert after_change(said(0.0), said(0.0), 0.0) == said(0.0)
    assert after_change(said(2.0), said(0.4), 0.0).motion.value == pytest.approx(2.0)


def test_a_change_that_removed_noise_removed_no_motion():
    # noise of 5 % has a standard deviation of 50 where the brain's mean is 400
    noisy, quiet = said(2.0, noise=5.0), said(0.4, noise=1.0)
    change = float(np.hypot(20.0, np.sqrt(50**2 - 10**2)))
    found = after_change(noisy, quiet, change).motion.value
    assert found == pytest.approx(after_change(said(2.0), said(0.4), 20.0).motion.value)


def test_a_change_is_that_of_the_brain_in_its_own_unit(brain):
    data, mask = brain
    other = np.where(mask, data, 5000)
    assert change_between(data, 3 * other, mask) == pytest.approx(0, abs=1e-3)
    noise = np.random.default_rng(0).normal(0, 10, data.shape).astype(np.float32)
    scale = 400 / data[mask].mean()
    assert change_between(data, data + noise, mask) == pytest.approx(10 * scale, rel=0.05)


def test_a_score_knows_the_slices():
    seen = Estimate(1.2, 1.0, 1.5)
    found = Score(Estimate(1.0, 0.5, 1.5), Estimate(2.0, 1.0, 3.0), seen)
    assert of_slices(found, 1.1) is found
    known = of_slices(found, 2.4)
    assert known.resolution_mm == Estimate(2.4, 2.4, 2.4)
    assert (known.motion, known.noise_percent) == (found.motion, found.noise_percent)
    assert of_slices(found, 1.3).resolution_mm == Estimate(1.3, 1.3, 1.5)

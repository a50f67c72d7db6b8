# SPDX-License-Identifier: Apache-2.0
"""Uneven lines of k-space and spikes are found and mended; what has none stays as it is."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from bmex_bids.degrade.ghost import ghosting
from bmex_bids.degrade.motion import apply_motion, periodic
from bmex_bids.refocus import refocus as module
from bmex_bids.refocus.lines import Spike, find_uneven_lines, without_spikes
from bmex_bids.refocus.refocus import NOTHING, refocus

SPACING = (2.0, 1.5, 2.0)


@pytest.fixture(scope="module")
def slab():
    """``image``, (60, 112, 32): many phase-encoding lines along axis 1; ``mask`` of the brain."""
    rng = np.random.default_rng(1)
    shape = (60, 112, 32)
    places = [np.linspace(-1, 1, n) for n in shape]
    x, y, z = np.meshgrid(*places, indexing="ij", sparse=True)
    radius = np.sqrt((x / 0.75) ** 2 + (y / 0.8) ** 2 + (z / 0.8) ** 2)
    folds = gaussian_filter(rng.normal(size=shape), 1.4)
    depth = radius + folds * (0.12 / folds.std())
    image = np.where(radius < 1.05, 850, 0).astype(np.float32)
    image[radius < 0.97] = 60
    mask = radius < 0.88
    image[mask] = 170
    image[mask & (depth < 0.84)] = 480
    image[mask & (depth < 0.66)] = 720
    image = gaussian_filter(image, 0.6)
    noise = rng.normal(0, 6, (2, *shape)).astype(np.float32)
    return SimpleNamespace(image=np.hypot(image + noise[0], noise[1]), mask=mask)


def every(image, period, weight, axis=1):
    """Each so-many-th line too weak but the central one; real values, cut at zero."""
    n = image.shape[axis]
    lines = np.ones(n)
    lines[::period] = weight
    lines[n // 2] = 1
    shape = [1, 1, 1]
    shape[axis] = n
    spectrum = np.fft.fft(image, axis=axis) * np.fft.ifftshift(lines).reshape(shape)
    return np.clip(np.fft.ifft(spectrum, axis=axis).real, 0, None).astype(np.float32)


def squared(image, truth, mask):
    """Squared error in the brain after a linear fit."""
    fit = np.polyfit(image[mask], truth[mask], 1)
    return float(((np.polyval(fit, image[mask]) - truth[mask]) ** 2).sum())


def support(mask=None):
    return torch.ones((60, 112, 32)) if mask is None else torch.from_numpy(mask).float()


GHOSTS = {
    "each fourth": lambda image: every(image, 4, 0.4),
    "each seventh": lambda image: every(image, 7, 0.4),
    "in turn": lambda image: ghosting(image, 0.3, 2, 0.3),
    "slow wave": lambda image: ghosting(image, 0.5, 9.3, 0.4),
}


@pytest.mark.parametrize("stripped", [False, True], ids=["head", "brain"])
@pytest.mark.parametrize("name", GHOSTS)
def test_ghosts_of_uneven_lines_go(slab, name, stripped):
    mask = slab.mask if stripped else None
    truth = slab.image * slab.mask if stripped else slab.image
    bad = GHOSTS[name](truth)
    if stripped:
        bad = bad * slab.mask
    found = find_uneven_lines(torch.from_numpy(bad), support(mask))
    assert found is not None
    assert found.phase_axis == 1
    mended = found.undo(torch.from_numpy(bad), support(mask)).numpy()
    # a mask takes the ghosts beside the brain away, and what they tell
    limit = (0.4 if stripped else 0.2) * squared(bad, truth, slab.mask)
    assert squared(mended, truth, slab.mask) < limit
    assert mended.min() >= 0
    if stripped:
        assert not mended[~slab.mask].any()
    json.dumps(found.facts(), allow_nan=False)


def thick(image):
    triples = image[..., :30].reshape(*image.shape[:2], -1, 3).mean(axis=-1)
    return np.repeat(triples, 3, axis=-1).astype(np.float32)


def noisy(image):
    noise = np.random.default_rng(3).normal(0, 40, (2, *image.shape)).astype(np.float32)
    return np.hypot(image + noise[0], noise[1])


def moved(image):
    path = periodic(image.shape[1], np.array([1.0, 0.8, 0, 1.2, 0, 0]), 0.18, 0.4).centred()
    return apply_motion(image, SPACING, path, phase_axis=1)


def zero_filled(image):
    spectrum = np.fft.fftshift(np.fft.fft(image, axis=1), axes=1)
    spectrum[:, :20] = spectrum[:, -20:] = 0
    return np.abs(np.fft.ifft(np.fft.ifftshift(spectrum, axes=1), axis=1)).astype(np.float32)


@pytest.mark.parametrize("change", [np.copy, thick, noisy, moved, zero_filled])
def test_even_lines_and_no_spike_are_left_as_they_are(slab, change):
    image = torch.from_numpy(np.ascontiguousarray(change(slab.image)))
    assert find_uneven_lines(image, torch.ones(image.shape)) is None
    result, spikes = without_spikes(image)
    assert result is image
    assert spikes == []


@pytest.mark.parametrize(
    "spikes",
    [[Spike((11, -30, 5), (40.0, 20.0))], [Spike((11, 17, 5), (0, 50.0)), Spike((-12, 0, 9), (60.0, 0))]],
    ids=["one", "two"],
)  # fmt: skip
@pytest.mark.parametrize("stripped", [False, True], ids=["head", "brain"])
def test_spikes_go(slab, spikes, stripped):
    truth = slab.image * slab.mask if stripped else slab.image
    bad = truth.copy()
    for spike in spikes:
        cosine, sine = spike.stripes(truth.shape)
        bad += (spike.size[0] * cosine + spike.size[1] * sine).numpy()
    bad = np.clip(bad, 0, None)
    if stripped:
        bad = bad * slab.mask
    result, found = without_spikes(torch.from_numpy(bad))
    for spike in spikes:  # what was cut at zero has harmonics beside them
        size = next(one.size for one in found if one.place == spike.place)
        assert size == pytest.approx(spike.size, abs=10)
    result = result.numpy()
    assert squared(result, truth, slab.mask) < 0.1 * squared(bad, truth, slab.mask)
    assert result.min() >= 0
    if stripped:
        assert not result[~slab.mask].any()


@pytest.fixture(params=["no motion", pytest.param("search", marks=pytest.mark.slow)])
def searched(request, monkeypatch):
    """Motion is searched for, or known to be none, which is quick."""
    if request.param == "no motion":
        monkeypatch.setattr(module, "find", lambda *_: None)
        monkeypatch.setattr(module, "find_odd", lambda *_: None)


@pytest.mark.usefixtures("searched")
def test_the_whole_step_says_what_was_mended(slab):
    spike = Spike((11, -30, 5), (40.0, 20.0))
    stripes = spike.size[0] * spike.stripes(slab.image.shape)[0]
    bad = np.clip(every(slab.image, 5, 0.4) + stripes.numpy(), 0, None)
    found = refocus(bad, SPACING)
    assert found.applied
    assert found.reason == "1 spike in k-space; uneven lines of k-space along axis 1"
    assert found.motion == {}
    assert found.spikes == 1
    assert found.lines["Period"] == 5
    assert found.lines["WeakestLine"] < 0.9
    assert found.entropy_after < found.entropy_before
    assert squared(found.image, slab.image, slab.mask) < 0.2 * squared(bad, slab.image, slab.mask)
    # the unit is kept
    fit = np.polyfit(found.image[slab.mask], slab.image[slab.mask], 1)
    assert fit[0] == pytest.approx(1, abs=0.05)


@pytest.mark.usefixtures("searched")
def test_a_still_head_comes_back(slab):
    found = refocus(slab.image, SPACING)
    assert found.image is slab.image
    assert (found.applied, found.reason, found.lines, found.spikes) == (False, NOTHING, {}, 0)

# SPDX-License-Identifier: Apache-2.0
"""A moved head gets better, and whatever else comes stays as it is."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import scipy.ndimage
import torch
from swing import AXIS, FREQUENCY, PHASE, SWING

from bmex_bids.degrade.motion import apply_motion, periodic
from bmex_bids.refocus import refocus as module
from bmex_bids.refocus.lines import UnevenLines, beat_of
from bmex_bids.refocus.refocus import refocus
from bmex_bids.refocus.search import FINE_MM, Found, of_whole_image
from bmex_bids.refocus.view import View, Wave, gradient_entropy


@pytest.fixture
def known(monkeypatch):
    """The search finds at once what was put in."""

    def find(image, spacing, _):
        lines = image.shape[AXIS]
        phase = PHASE + math.pi * FREQUENCY * lines  # at the centre of k-space
        wave = Wave(FREQUENCY, phase, torch.tensor(SWING[:4]), 0)
        return Found(AXIS, wave, -0.1, 0.1), View(image, spacing, AXIS, FINE_MM)

    monkeypatch.setattr(module, "find", find)


def squared(image, head):
    """The squared error in the brain."""
    return float(((image - head.image) ** 2)[head.mask].sum())


def test_a_moved_head_gets_better(head, moved):
    found = refocus(moved, head.spacing)
    assert found.applied
    assert found.image.dtype == np.float32
    assert found.image.min() >= 0
    assert squared(found.image, head) < 0.4 * squared(moved, head)
    assert found.entropy_after < found.entropy_before
    facts = json.loads(json.dumps(found.motion, allow_nan=False))
    assert facts["Model"] == "periodic"
    assert facts["PhaseEncodingAxis"] == AXIS
    assert facts["Frequency"] == pytest.approx(FREQUENCY, abs=0.003)
    assert np.abs(facts["Translation"]).tolist() == pytest.approx(SWING[:3], abs=0.4)
    # root mean square of a sine of this size; its rotation adds to it
    assert facts["RMSDisplacement"] == pytest.approx(
        math.sqrt(sum(v**2 for v in SWING[:3]) / 2), abs=0.4
    )
    assert found.reason == (
        f"periodic motion of {facts['RMSDisplacement']:.1f} mm, phase encoding along axis {AXIS}"
    )


def test_lines_that_motion_makes_uneven_are_taken_for_motion(head, moved, known, monkeypatch):
    """Its magnitude image has a pattern at twice the motion's frequency."""
    line = torch.arange(moved.shape[AXIS]) - moved.shape[AXIS] // 2
    weights = torch.fft.ifftshift(torch.exp(0.3 * torch.cos(4 * math.pi * FREQUENCY * line)))
    period = 1 / (2 * FREQUENCY)

    def refocused(axis, period):
        pattern = UnevenLines(axis, period, weights)
        monkeypatch.setattr(module, "find_uneven_lines", lambda *_: pattern)
        return refocus(moved, head.spacing)

    found = refocused(AXIS, period)
    assert found.lines == {}
    assert found.reason.startswith("periodic motion")
    assert squared(found.image, head) < 0.4 * squared(moved, head)
    found = refocused(AXIS, 1.2 * period)  # not of motion
    assert found.lines["Period"] == round(1.2 * period, 2)
    assert found.reason.startswith("uneven lines")


def test_uneven_lines_that_explain_the_image_better_than_motion_are_evened(
    head, moved, known, monkeypatch
):
    """Weak lines beat as those of a motion of half their frequency do."""
    pattern = UnevenLines(AXIS, 1 / (2 * FREQUENCY), torch.ones(moved.shape[AXIS]))
    even = torch.from_numpy(head.image) * 1.01
    monkeypatch.setattr(UnevenLines, "undo", lambda *_: even)
    monkeypatch.setattr(module, "find_uneven_lines", lambda *_: pattern)
    found = refocus(moved, head.spacing)
    assert found.lines["Period"] == round(pattern.period, 2)


def test_a_motion_that_its_opposite_equals_is_found_by_the_beat_of_the_lines(head, monkeypatch):
    """Odd about the centre of k-space: backwards in time it is its own opposite."""
    still = scipy.ndimage.zoom(head.image, [2 if axis == AXIS else 1 for axis in range(3)])
    spacing = [step / 2 if axis == AXIS else step for axis, step in enumerate(head.spacing)]
    lines = still.shape[AXIS]
    phase = 0.06 - 2 * math.pi * FREQUENCY * (lines // 2)
    path = periodic(lines, np.array(SWING), FREQUENCY, phase).centred()
    odd = apply_motion(still, spacing, path, phase_axis=AXIS)
    image = torch.from_numpy(odd)
    assert beat_of(image, AXIS) == pytest.approx(2 * FREQUENCY, abs=0.005)
    assert [beat_of(image, axis) for axis in (0, 2)] == [None, None]
    assert [beat_of(torch.from_numpy(still), axis) for axis in range(3)] == [None] * 3
    monkeypatch.setattr(module, "find", lambda *_: None)
    found = refocus(odd, spacing)
    error, left = (float(((x - still) ** 2).mean()) for x in (odd, found.image))
    assert left < 0.7 * error
    assert found.motion["PhaseEncodingAxis"] == AXIS
    assert found.motion["Frequency"] == pytest.approx(FREQUENCY, abs=0.6 / lines)


@pytest.mark.parametrize(
    ("gain", "whole", "applied"),
    [(-0.002, 0.005, True), (-0.001, 0.005, False), (-0.002, 0.003, False)],
)
def test_less_sharpening_is_enough_where_the_lines_tell_of_motion(
    head, moved, monkeypatch, gain, whole, applied
):
    wave = Wave(FREQUENCY, 0.1, torch.tensor(SWING[:4]), 0)
    view = View(torch.from_numpy(moved), head.spacing, AXIS, FINE_MM)
    result = Found(AXIS, wave, gain, 0.0), view
    image = torch.from_numpy(moved)
    monkeypatch.setattr(
        module, "_undone", lambda *_: (of_whole_image(wave, view, head.spacing), image, 1 - whole)
    )
    monkeypatch.setattr(module._Sharpness, "__call__", lambda *_: 1.0)
    monkeypatch.setattr(module, "find", lambda *_: result)
    monkeypatch.setattr(module, "find_odd", lambda *_: None)
    assert not refocus(moved, head.spacing).motion
    monkeypatch.setattr(module, "find", lambda *_: None)
    monkeypatch.setattr(module, "find_odd", lambda *_: result)
    assert bool(refocus(moved, head.spacing).motion) == applied


@pytest.mark.parametrize(
    ("size", "applied"),
    [((4.0, 4, 4, 1), True), ((5.0, 5, 5, 1), False), ((0.0, 1, 0, -9), False)],
    ids=["large", "translation", "rotation"],
)
def test_a_motion_that_no_scan_survives_is_noise_that_was_fitted(
    head, moved, monkeypatch, size, applied
):
    """Some simulated scans of 64 mT have less entropy after such a motion is undone."""
    wave = Wave(FREQUENCY, 1.0, torch.tensor(size), 0)
    view = View(torch.from_numpy(moved), head.spacing, AXIS, FINE_MM)
    motion = of_whole_image(wave, view, head.spacing)
    monkeypatch.setattr(module, "_undone", lambda *_: (motion, torch.from_numpy(moved), 0.9))
    monkeypatch.setattr(module._Sharpness, "__call__", lambda *_: 1.0)
    monkeypatch.setattr(module, "find", lambda *_: (Found(AXIS, wave, -0.1, 0.1), view))
    monkeypatch.setattr(module, "find_odd", lambda *_: None)
    assert bool(refocus(moved, head.spacing).motion) == applied


def test_iterations_go_on_as_long_as_the_image_stays_sharp(head, moved, known, monkeypatch):
    def with_settings(iterations, more, slack):
        monkeypatch.setattr(module, "ITERATIONS", iterations)
        monkeypatch.setattr(module, "MORE_ITERATIONS", more)
        monkeypatch.setattr(module, "SLACK", slack)
        return refocus(moved, head.spacing)

    whole = with_settings(4, 0, 0.0)
    np.testing.assert_allclose(with_settings(2, 2, 1.0).image, whole.image, rtol=1e-4, atol=0.05)
    two = with_settings(2, 0, 1.0)
    assert np.abs(two.image - whole.image).max() > 1
    blunt = with_settings(2, 2, -1.0)  # no entropy is low enough
    np.testing.assert_array_equal(blunt.image, two.image)
    assert blunt.entropy_after == two.entropy_after


def test_motion_that_blurs_the_whole_image_is_not_undone(head, monkeypatch):
    """The coarse view may prefer the opposite of what happened."""

    def find(image, spacing, _):
        wave = Wave(0.2, math.pi / 2, torch.tensor([2.0, 1.5, 0.0, 0.0]))
        return Found(AXIS, wave, -0.1, 0.1), View(image, spacing, AXIS, FINE_MM)

    monkeypatch.setattr(module, "find", find)
    found = refocus(head.image, head.spacing)
    assert found.image is head.image
    assert not found.applied


@pytest.mark.parametrize(
    ("times", "share", "applied"),
    [(1.5, 0.0, True), (3.0, 1.0, False), (3.0, 0.6, True)],
    ids=["right", "no-smaller-one", "smaller"],
)
def test_what_sharpens_the_coarse_view_far_more_than_the_image_becomes_smaller(
    head, moved, known, monkeypatch, times, share, applied
):
    """Too large a motion does so; it is not undone where a smaller one sharpens no more."""
    found, view = module.find(torch.from_numpy(moved), head.spacing, 0)
    right = refocus(moved, head.spacing)
    gain = times * (right.entropy_after - right.entropy_before)
    size = 1.5 if times > 2 else 1.0
    large = replace(found, gain=gain, wave=replace(found.wave, size=size * found.wave.size))
    asked = []

    def smaller(found, _):
        asked.append(found)
        return replace(found, wave=replace(found.wave, size=share * found.wave.size))

    monkeypatch.setattr(module, "find", lambda *_: (large, view))
    monkeypatch.setattr(module, "smaller", smaller)
    again = refocus(moved, head.spacing)
    assert again.applied == applied
    assert (again.image is moved) != applied
    assert bool(asked) == (times > 2)
    if share == 0.6:
        assert squared(again.image, head) < 0.4 * squared(moved, head)
        assert again.motion["Translation"][1] == pytest.approx(0.9 * SWING[1], abs=0.02)


def noisy(image):
    noise = np.random.default_rng(3).normal(0, 40, (2, *image.shape)).astype(np.float32)
    return np.hypot(image + noise[0], noise[1])


def thick(image):
    pairs = image.reshape(*image.shape[:2], -1, 2).mean(axis=-1)
    return np.repeat(pairs, 2, axis=-1).astype(np.float32)


@pytest.mark.parametrize(
    "change",
    [
        np.copy,
        pytest.param(noisy, marks=pytest.mark.slow),
        pytest.param(thick, marks=pytest.mark.slow),
    ],
    ids=["still", "noisy", "thick"],
)
def test_without_motion_the_image_comes_back_voxel_for_voxel(head, change):
    image = change(head.image)
    before = image.copy()
    found = refocus(image, head.spacing)
    assert not found.applied
    assert found.image is image
    np.testing.assert_array_equal(image, before)
    assert found.motion == {}
    assert found.reason == module.NOTHING


def test_a_moved_brain_without_its_head_gets_better_and_keeps_its_zeros(head, moved):
    brain = np.where(head.mask, moved, 0)
    found = refocus(brain, head.spacing)
    assert found.applied
    assert found.motion["PhaseEncodingAxis"] == AXIS
    assert not found.image[~head.mask].any()
    assert squared(found.image, head) < squared(brain, head)


def test_empty_space_around_a_stripped_brain_changes_nothing(head, moved, known):
    """Only the box of the brain is computed; the rotation stays about the same point."""
    brain = np.where(head.mask, moved, 0)
    found = refocus(brain, head.spacing)
    room = [(0, 24), (0, 0), (15, 3)]
    wide = refocus(np.pad(brain, room), head.spacing)
    assert found.applied
    assert wide.applied
    box = tuple(slice(a, a + n) for (a, _), n in zip(room, brain.shape, strict=True))
    difference = np.abs(wide.image[box] - found.image)[head.mask].mean()
    assert difference < 0.03 * np.abs(found.image - brain)[head.mask].mean()
    outside = wide.image.copy()
    outside[box] = 0
    assert not outside.any()


def test_noise_in_fine_voxels_does_not_judge_the_whole_image():
    """Images of infants have voxels that are finer than what was measured."""
    index = np.indices((64, 60, 56))
    smooth = 800 * np.exp(-(((index.T - [32, 30, 28]) / 12) ** 2).sum(-1).T)
    noisy = smooth + 20 * (1 - 2 * (index.sum(0) % 2))
    smooth, noisy = (torch.from_numpy(x.astype(np.float32)) for x in (smooth, noisy))
    head = (smooth > 50).float()
    fine = [float(gradient_entropy(x, head)) for x in (smooth, noisy)]
    judged = [module._Sharpness(head, [0.8] * 3)(x) for x in (smooth, noisy)]
    assert abs(fine[1] - fine[0]) > 0.05
    assert judged[1] == pytest.approx(judged[0], abs=0.005)


@pytest.mark.parametrize("factor", [7.0, 1e-3])
def test_the_result_has_the_units_of_the_input(head, moved, known, factor):
    found = refocus(moved, head.spacing)
    assert found.applied
    assert squared(found.image, head) < 0.2 * squared(moved, head)
    scaled = refocus(moved * np.float32(factor), head.spacing)
    # rounding turns the phase of single voxels that are nearly zero
    off = np.linalg.norm(scaled.image / factor - found.image)
    assert off < 1e-3 * np.linalg.norm(found.image)
    assert scaled.entropy_before == pytest.approx(found.entropy_before, rel=1e-5)


def test_what_does_not_sharpen_the_image_is_not_taken(head, known):
    """A still image, and motion that the search would find in it."""
    found = refocus(head.image, head.spacing)
    assert not found.applied
    assert found.image is head.image
    assert found.entropy_after >= found.entropy_before > 0


@pytest.mark.parametrize("shape", [(20, 20, 20), (8, 40, 40)], ids=["empty", "tiny"])
def test_where_nothing_can_be_seen_nothing_is_done(shape, monkeypatch):
    monkeypatch.setattr(module, "find", None)
    image = np.full(shape, 300.0 if 8 in shape else 0.0, np.float32)
    found = refocus(image, (1, 1, 1))
    assert found.image is image
    assert not found.applied
    assert found.motion == {}
    assert "empty, flat or too small" in found.reason


def test_a_brain_of_one_brightness_comes_back(head):
    """As a mask that is taken for an image."""
    image = np.where(head.mask, 7, 0).astype(np.float32)
    found = refocus(image, head.spacing)
    assert found.image is image
    assert not found.applied


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.full((20, 20, 20), np.nan), "3 dimensions and values that are not finite"),
        (np.full((20, 20, 20), np.inf), "not finite"),
        (np.ones((20, 20)), "got 2 dimensions$"),
        (np.ones((20, 20, 20, 2)), "got 4 dimensions$"),
    ],
)
def test_what_is_no_image_is_refused(image, words):
    with pytest.raises(ValueError, match=words):
        refocus(image.astype(np.float32), (1, 1, 1))


def test_the_threads_are_as_many_as_before_whatever_happens(head, monkeypatch):
    usual = torch.get_num_threads()
    seen = []

    def find(*_):
        seen.append(torch.get_num_threads())
        if len(seen) > 1:
            raise RuntimeError("no memory")

    monkeypatch.setattr(module, "find", find)
    assert not refocus(head.image, head.spacing, num_threads=usual + 1).applied
    assert torch.get_num_threads() == usual
    with pytest.raises(RuntimeError, match="no memory"):
        refocus(head.image, head.spacing, num_threads=usual + 1)
    assert torch.get_num_threads() == usual
    assert seen == [usual + 1] * 2

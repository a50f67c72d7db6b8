# SPDX-License-Identifier: Apache-2.0
"""Line by line, a correction says how the head lay."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from bmex_bids.refocus import evidence
from bmex_bids.refocus.evidence import Evidence, derivatives, moved, size_mm

SPACING = (2.0, 1.5, 1.8)
AXIS = 1


@pytest.fixture(scope="module")
def image():
    rng = np.random.default_rng(0)
    data = np.zeros((40, 64, 48), np.float32)
    data[8:-8, 12:-12, 10:-10] = 400 + gaussian_filter(rng.normal(0, 3000, (24, 40, 28)), 2)
    return torch.from_numpy(gaussian_filter(data, 1.2))


def centre(image):
    return [(n - 1) / 2 * step for n, step in zip(image.shape, SPACING, strict=True)]


@pytest.mark.parametrize("freedom", range(6))
def test_the_derivatives_are_those_of_small_motions(image, freedom):
    pose = np.zeros(6)
    pose[freedom] = 0.02
    change = (moved(image, pose, SPACING) - moved(image, -pose, SPACING)) / 0.04
    expected = derivatives(image, SPACING, centre(image))[freedom]
    assert float((change - expected).norm() / expected.norm()) < 0.03


def test_a_motion_is_undone_by_its_way_back(image):
    pose = np.array([1.0, -0.7, 0.4, 2.0, -1.0, 1.5])
    there = moved(image, pose, SPACING)
    again = moved(there, pose, SPACING, back=True)
    assert float((again - image).abs().max()) < 2
    assert float((there - image).abs().max()) > 30


def test_the_size_of_a_turn_is_that_of_a_ball():
    points = np.random.default_rng(0).normal(size=(4000, 3))
    radius = 80 * np.random.default_rng(1).random(4000) ** (1 / 3)
    points *= (radius / np.linalg.norm(points, axis=1))[:, None]
    turned = math.radians(1) * np.linalg.norm(np.cross([0, 0, 1], points), axis=1)
    expected = math.sqrt((turned**2).mean())
    assert size_mm(np.array([0, 0, 0, 0, 0, 1.0])) == pytest.approx(expected, rel=0.03)
    assert size_mm(np.array([3.0, 4.0, 0, 0, 0, 0])) == pytest.approx(5)


def stepped(image, poses):
    """A correction that undoes poses, {(first line, last line): pose}, by the derivatives."""
    parts = torch.fft.rfft(derivatives(image, SPACING, centre(image)), dim=1 + AXIS)
    total = torch.zeros_like(parts[0])
    for (first, last), pose in poses.items():
        line = (parts * torch.tensor(-pose, dtype=torch.float32)[:, None, None, None]).sum(0)
        total[:, first:last] = line[:, first:last]
    return torch.fft.irfft(total, n=image.shape[AXIS], dim=AXIS)


POSES = {
    (7, 15): np.array([0.3, 0, -0.2, 0.1, 0, 0.2]),
    (15, 40): np.array([0, 0.4, 0, 0, -0.3, 0]),
}


@pytest.mark.parametrize("target_mm", [0.1, 3.0])
def test_steps_are_found_where_they_begin(image, target_mm):
    correction = stepped(image, POSES)
    found = Evidence.of(image, correction, SPACING, AXIS, target_mm).steps(2, 2)
    assert found.lines[0] == 7
    assert found.lines[1] == pytest.approx(15, abs=1)
    assert found.share > 0.85
    for pose, expected in zip(found.poses, POSES.values(), strict=True):
        assert pose == pytest.approx(expected, abs=0.2)


def test_along_another_axis_less_is_explained(image):
    correction = stepped(image, POSES)
    shares = [Evidence.of(image, correction, SPACING, a, 3.0).steps(1, 2).share for a in range(3)]
    assert shares[AXIS] > 3 * max(shares[0], shares[2])


def test_the_poses_between_given_lines(image):
    correction = stepped(image, POSES)
    first, second = Evidence.of(image, correction, SPACING, AXIS, 0.1).between([7, 15])
    assert first == pytest.approx(POSES[7, 15], abs=0.02)
    assert second == pytest.approx(POSES[15, 40], abs=0.02)


def test_brightness_is_no_motion(image):
    smooth = stepped(image, {(1, evidence.FIRST_LINE): np.array([2.0, 0, 0, 0, 0, 0])})
    assert Evidence.of(image, smooth, SPACING, AXIS, 3.0).steps(1, 2).share < 1e-9


def test_nothing_to_correct_explains_nothing(image):
    found = Evidence.of(image, torch.zeros_like(image), SPACING, AXIS, 3.0).steps(1, 2)
    assert found.share == 0


def test_too_few_lines_have_no_steps(image):
    looked = Evidence.of(image, stepped(image, POSES), SPACING, AXIS, 3.0)
    few = Evidence(looked.products[:4], looked.squares[:4], looked.total)
    assert few.steps(3, 4).lines == ()

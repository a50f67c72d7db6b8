# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.ndimage import affine_transform, gaussian_filter

from bmex_bids.degrade.motion import Trajectory, apply_motion, periodic, piecewise, rotate

SPACING = (0.8, 0.8, 0.8)


@pytest.fixture
def blob() -> np.ndarray:
    """A smooth, lopsided object well inside its field of view."""
    image = np.zeros((40, 48, 44), np.float32)
    image[14:24, 15:32, 16:26] = 500
    image[18:20, 20:26, 20:30] = 900
    return gaussian_filter(image, 1.5)


def still(n: int, translation=(0.0, 0.0, 0.0), rotation=(0.0, 0.0, 0.0)) -> Trajectory:
    return Trajectory(np.tile(translation, (n, 1)), np.tile(rotation, (n, 1)))


@pytest.mark.parametrize("phase_axis", [0, 1, 2])
def test_no_motion_is_the_identity(blob, phase_axis):
    path = still(blob.shape[phase_axis])
    assert_allclose(apply_motion(blob, SPACING, path, phase_axis=phase_axis), blob, atol=2e-3)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("phase_axis", [0, 1, 2])
def test_a_constant_translation_by_whole_voxels_is_a_roll(blob, axis, phase_axis):
    shift = np.zeros(3)
    shift[axis] = 3 * 0.8  # three voxels, in mm
    path = still(blob.shape[phase_axis], translation=shift)
    moved = apply_motion(blob, SPACING, path, phase_axis=phase_axis)
    assert_allclose(moved, np.roll(blob, 3, axis), atol=5e-3)


def test_one_moved_line_has_the_known_phase_ramp(blob):
    """Only line k is shifted along the read-out: that line of k-space gains exp(-2πi f t)."""
    n = blob.shape[1]
    shifts = np.zeros((n, 3))
    time_index = n // 2 + 5  # acquired at time index 29 is FFT frequency +5
    shifts[time_index, 2] = 1.7 * 0.8
    # the magnitude hides the phase, so put the object on a large real pedestal
    pedestal = blob + 5000
    moved = apply_motion(pedestal, SPACING, Trajectory(shifts, np.zeros((n, 3))))
    before = np.fft.fft2(pedestal, axes=(1, 2))
    after = np.fft.fft2(moved, axes=(1, 2))
    frequency = np.fft.fftfreq(blob.shape[2])
    ramp = np.exp(-2j * np.pi * frequency * 1.7)
    # taking the magnitude of a nearly real image keeps the hermitian part: the mean of line +5 and
    # the mirror of line -5, of which only the former has moved
    expected = before[:, 5] * (1 + ramp) / 2
    assert_allclose(after[:, 5, 1:22], expected[:, 1:22], atol=np.abs(before[:, 5]).max() * 2e-2)


def test_translation_keeps_the_energy(blob):
    path = periodic(48, np.array([0.7, 1.1, 0.9, 0, 0, 0]), 0.12, 0.3)
    moved = apply_motion(blob, SPACING, path.centred())
    assert (moved.astype(float) ** 2).sum() == pytest.approx(
        (blob.astype(float) ** 2).sum(), rel=1e-5
    )


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_rotation_turns_the_right_way_by_the_right_angle(blob, axis):
    degrees = np.zeros(3)
    degrees[axis] = 7.0
    turned = rotate(blob, degrees, np.array(SPACING))
    a, b = [(1, 2), (2, 0), (0, 1)][axis]
    cos, sin = np.cos(np.deg2rad(7)), np.sin(np.deg2rad(7))
    matrix = np.eye(3)
    matrix[a, a], matrix[a, b], matrix[b, a], matrix[b, b] = cos, -sin, sin, cos
    centre = (np.array(blob.shape) - 1) / 2
    expected = affine_transform(blob, matrix.T, offset=centre - matrix.T @ centre, order=3)
    assert np.abs(turned - expected).max() < 0.02 * blob.max()
    assert np.abs(turned - blob).max() > 0.1 * blob.max()


def test_rotation_allows_for_anisotropic_voxels(blob):
    """A quarter of a degree times the lever arm in mm, not in voxels."""
    spacing = np.array([1.0, 1.0, 2.0])
    turned = rotate(blob, np.array([5.0, 0.0, 0.0]), spacing)
    back = rotate(turned, np.array([-5.0, 0.0, 0.0]), spacing)
    assert_allclose(back, blob, atol=0.5)
    # a point 8 voxels above the centre along axis 2 (16 mm) moves 16·sin 5° ≈ 1.39 mm along axis 1
    point = np.zeros_like(blob)
    point[20, 24, 30] = 1000
    moved = rotate(gaussian_filter(point, 1.5), np.array([5.0, 0.0, 0.0]), spacing)
    weights = moved.clip(0).sum(axis=(0, 2))
    centre = (weights * np.arange(48)).sum() / weights.sum()
    lever = (30 - (44 - 1) / 2) * 2.0
    arm = 24 - (48 - 1) / 2
    assert centre - 23.5 == pytest.approx(
        arm * np.cos(np.deg2rad(5)) - lever * np.sin(np.deg2rad(5)), abs=0.05
    )


def test_centred_motion_rests_in_the_middle_of_k_space():
    path = piecewise(64, [0.0, 0.25], [[0] * 6, [1, 2, 3, 4, 5, 6]], smooth=False).centred()
    assert_allclose(path.translations[32], 0)
    assert_allclose(path.translations[0], [-1, -2, -3])
    assert_allclose(path.rotations[0], [-4, -5, -6])


def test_more_motion_is_worse(blob):
    errors = []
    for amplitude in (0.5, 1.0, 2.0, 4.0):
        path = periodic(48, np.full(6, amplitude), 0.12, 0.0).centred()
        errors.append(np.abs(apply_motion(blob, SPACING, path) - blob).mean())
    assert errors == sorted(errors)


def test_a_trajectory_of_another_length_is_refused(blob):
    with pytest.raises(ValueError, match="48 lines, got 47"):
        apply_motion(blob, SPACING, still(47))

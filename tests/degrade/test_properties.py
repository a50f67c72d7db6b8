# SPDX-License-Identifier: Apache-2.0
"""What holds for every image, pose and number that hypothesis can think of."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from bmex_bids.degrade.blur import average_slabs, slab_centres, thick_slices
from bmex_bids.degrade.ghost import ghosting
from bmex_bids.degrade.intensity import bias_field, gamma
from bmex_bids.degrade.kinds import KINDS
from bmex_bids.degrade.levels import draw, draw_level
from bmex_bids.degrade.motion import Trajectory, apply_motion, rotate, shear
from bmex_bids.degrade.recipe import Recipe
from bmex_bids.degrade.steps import Scan

SETTINGS = settings(max_examples=25, deadline=None)
AXES = st.integers(0, 2)
SEEDS = st.integers(0, 2**31 - 1)
SHAPES = st.tuples(*[st.integers(4, 13)] * 3)


def noise(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """A random image, 0 to 100."""
    return np.random.default_rng(seed).random(shape, dtype=np.float32) * 100


def still(n: int, mm=(0.0, 0.0, 0.0), degrees=(0.0, 0.0, 0.0)) -> Trajectory:
    return Trajectory(np.tile(mm, (n, 1)).astype(float), np.tile(degrees, (n, 1)).astype(float))


@given(SHAPES, SEEDS, AXES)
@SETTINGS
def test_no_motion_is_the_identity(shape, seed, phase_axis):
    image = noise(shape, seed)
    result = apply_motion(image, (1, 2, 3), still(shape[phase_axis]), phase_axis=phase_axis)
    assert_allclose(result, image, atol=1e-4)


@given(SHAPES, SEEDS, AXES, st.tuples(*[st.integers(-5, 5)] * 3))
@SETTINGS
def test_whole_voxels_are_a_roll(shape, seed, phase_axis, shift):
    image, spacing = noise(shape, seed), (0.5, 1.0, 2.0)
    path = still(shape[phase_axis], np.multiply(shift, spacing))
    result = apply_motion(image, spacing, path, phase_axis=phase_axis)
    assert_allclose(result, np.roll(image, shift, (0, 1, 2)), atol=2e-4)


@given(SHAPES, SEEDS, AXES)
@SETTINGS
def test_translations_keep_the_energy(shape, seed, phase_axis):
    """Phases only: Parseval.  The magnitude of a complex image holds all of its energy."""
    image = noise(shape, seed)
    path = np.random.default_rng(seed).normal(0, 3, (shape[phase_axis], 3))
    moved = apply_motion(
        image, (1, 1, 1), Trajectory(path, np.zeros_like(path)), phase_axis=phase_axis
    )
    before, after = (np.sum(values.astype(np.float64) ** 2) for values in (image, moved))
    assert after == pytest.approx(before, rel=1e-5)


@given(st.tuples(*[st.sampled_from([5, 7, 9, 11])] * 3), SEEDS, st.floats(-1, 1))
@SETTINGS
def test_a_shear_keeps_the_energy_and_is_undone_by_its_opposite(shape, seed, slope):
    """Odd lengths, which have no Nyquist term."""
    image = noise(shape, seed)
    sheared = shear(image, 0, 2, slope)
    assert np.sum(sheared.astype(float) ** 2) == pytest.approx(
        np.sum(image.astype(float) ** 2), rel=1e-5
    )
    assert_allclose(shear(sheared, 0, 2, -slope), image, atol=1e-3)


@given(SEEDS, AXES, AXES, st.sampled_from([-1, 1]))
@settings(max_examples=15, deadline=None)
def test_a_quarter_turn_of_every_line_is_the_turned_image(seed, axis, phase_axis, sign):
    """Shears by whole voxels at 90 degrees: the image comes out turned, exactly."""
    n = 15  # odd: the centre is a voxel
    image = np.zeros((n, n, n), np.float32)
    image[5:10, 5:10, 5:10] = noise((5, 5, 5), seed)
    degrees = np.zeros(3)
    degrees[axis] = 90.0 * sign
    path = still(n, degrees=degrees)
    turned = apply_motion(image, (1, 1, 1), path, phase_axis=phase_axis)
    a, b = [(1, 2), (2, 0), (0, 1)][axis]  # right-handed: a turns towards b
    assert_allclose(turned, np.rot90(image, sign, (a, b)), atol=1e-3)
    assert_allclose(rotate(turned, -degrees, np.ones(3)), image, atol=1e-3)


@given(SHAPES, SEEDS, AXES, st.floats(1, 6))
@SETTINGS
def test_slabs_keep_the_mean_and_constants(shape, seed, axis, factor):
    image = noise(shape, seed)
    n = shape[axis]
    slabs = average_slabs(image, axis, factor)
    assert slabs.shape[axis] == len(slab_centres(n, factor)) == int(np.ceil(n / factor - 1e-9))
    # each slab weighs as much as the voxels it covers
    edges = np.minimum(np.arange(slabs.shape[axis] + 1) * factor, n)
    weights = np.diff(edges) / n
    mean = np.tensordot(slabs, weights, axes=(axis, 0))
    assert_allclose(mean, image.mean(axis=axis), rtol=1e-4, atol=1e-3)
    assert_allclose(thick_slices(np.full(shape, 7, np.float32), axis, factor), 7, rtol=1e-5)
    result = thick_slices(image, axis, factor)
    assert result.shape == shape
    assert result.min() >= image.min() - 1e-3
    assert result.max() <= image.max() + 1e-3


@given(SEEDS, st.integers(2, 6), st.sampled_from([3, 5]))
@SETTINGS
def test_odd_factors_that_fit_keep_the_mean_of_every_slab_at_its_centre(seed, count, factor):
    image = noise((3, 4, count * factor), seed)
    middle = factor // 2
    slabs = image.reshape(3, 4, count, factor).mean(axis=3)
    assert_allclose(thick_slices(image, 2, factor)[..., middle::factor], slabs, rtol=1e-5)


@given(SHAPES, SEEDS, AXES, st.floats(0, 0.9), st.sampled_from([2, 3, 4]))
@SETTINGS
def test_ghosts_are_rolled_copies(shape, seed, axis, strength, period):
    shape = tuple(period * n if k == axis else n for k, n in enumerate(shape))
    image = noise(shape, seed)
    step = shape[axis] // period
    copies = (np.roll(image, step, axis) + np.roll(image, -step, axis)) / 2
    expected = (image + strength * copies) / (1 + strength)
    assert_allclose(ghosting(image, strength, period, 0.0, phase_axis=axis), expected, atol=1e-3)


@given(SHAPES, SEEDS, st.floats(0, 190))
@SETTINGS
def test_bias_stays_between_its_limits(shape, seed, percent):
    (step,) = draw_level("bias-field", percent, np.random.default_rng(seed)).steps
    field = bias_field(np.ones(shape, np.float32), np.array(step["control"]))
    assert field.min() >= 1 - percent / 200 - 1e-5
    assert field.max() <= 1 + percent / 200 + 1e-5


@given(SHAPES, SEEDS, st.floats(0.3, 3))
@SETTINGS
def test_gamma_keeps_the_order_of_intensities(shape, seed, exponent):
    image = noise(shape, seed)
    bent = gamma(image, exponent, 100.0)
    order = np.argsort(image, axis=None)
    assert (np.diff(bent.ravel()[order]) >= 0).all()


@given(SEEDS, st.sampled_from(list(KINDS)), AXES, st.floats(0.1, 1000))
@SETTINGS
def test_every_drawn_recipe_is_valid_and_survives_json(seed, kind, phase_axis, full):
    scan = Scan(intensity_range=full, phase_axis=phase_axis, slice_axis=phase_axis)
    for level in KINDS[kind].levels:
        recipe = draw_level(kind, level, np.random.default_rng(seed), scan)
        assert Recipe.from_json(recipe.to_json()) == recipe


@given(SEEDS, st.sampled_from(["mixed", "noise", "low-resolution", "smoothing", "severe++"]))
@SETTINGS
def test_what_training_draws_is_valid_and_leaves_its_input_alone(seed, name):
    recipe = draw(name, np.random.default_rng(seed))
    assert Recipe.from_json(recipe.to_json()) == recipe
    image = noise((9, 10, 11), seed)
    before = image.copy()
    result = recipe.apply(image, (0.8, 0.8, 0.8))
    assert_array_equal(image, before)
    assert result.dtype == np.float32
    assert np.isfinite(result).all()

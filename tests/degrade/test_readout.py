# SPDX-License-Identifier: Apache-2.0
"""Motion during the read-out, fold-over, ringing and parallel noise, by numbers made by hand."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from bmex_bids.degrade.kinds import ACTS
from bmex_bids.degrade.levels import draw, draw_level
from bmex_bids.degrade.noise import Alias, parallel
from bmex_bids.degrade.readout import LEVER_MM, Timing, acquire, at_rest, displacement, snapped
from bmex_bids.degrade.recipe import Recipe
from bmex_bids.degrade.sampling import fold_over, gibbs
from bmex_bids.degrade.steps import Scan

MM = (1.0, 1.0, 1.0)


def ball(shape=(16, 24, 20)) -> np.ndarray:
    """A blurred ball off the middle."""
    place = np.indices(shape) - np.array([7, 13, 9])[:, None, None, None]
    return (500 * np.exp(-(place**2).sum(axis=0) / 18)).astype(np.float32)


def jump(*pose: float, at: float = 0.5) -> dict:
    """At rest, then in one pose."""
    return {"jump_times": [0.0, at], "jumps": [[0.0] * 6, [*pose, *[0.0] * (6 - len(pose))]]}


def test_a_3d_scan_reads_one_plane_of_k_space_a_repetition():
    times = Timing(phase_axis=1).line_times((8, 5, 9))
    assert_array_equal(times, np.arange(5)[:, None])
    centric = Timing(phase_axis=1, centric=True).line_times((8, 5, 9))
    assert centric[2] == 0  # the middle of k-space comes first
    assert set(centric[[1, 3]].ravel()) == {1, 2}


def test_slices_are_read_interleaved_within_a_repetition_or_in_passes():
    shape = (6, 3, 4)  # 3 lines, 4 planes
    times = Timing(1, 2, interleave=2).line_times(shape)
    assert times.shape == (3, 4)
    assert_allclose(times[0], [0, 0.5, 0.25, 0.75])  # 0, 2, 1, 3
    assert_allclose(times[2], times[0] + 2)
    twice = Timing(1, 2, interleave=2, concatenations=2)
    assert_allclose(twice.line_times(shape)[0], [0, 3, 0.5, 3.5])  # odd ones in the second pass
    assert twice.duration(shape) == 6
    thick = Timing(1, 2, slab_voxels=2).line_times(shape)
    assert_allclose(thick[0], [0, 0, 0.5, 0.5])


def test_a_3d_scan_puts_lines_of_the_moved_head_together():
    image, n = ball(), 24
    got = acquire(image, MM, jump(0, 3, 0, at=0.75), Timing(1), most=9)
    lines = np.fft.fft(image.astype(np.float64), axis=1)
    moved = np.fft.fft(np.roll(image, 3, axis=1).astype(np.float64), axis=1)
    late = np.fft.ifftshift(np.arange(n) / (n - 1) >= 0.75)[None, :, None]
    assert_allclose(got, np.abs(np.fft.ifft(np.where(late, moved, lines), axis=1)), atol=2e-3)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_jump_between_two_passes_moves_every_second_slice_as_a_whole(axis):
    """Half of it each way, since the mean pose of the middle of k-space is rest."""
    image = ball()
    shift = np.zeros(3)
    shift[axis] = 4
    timing = Timing(1, 2, interleave=2, concatenations=2)
    got = acquire(image, MM, jump(*shift), timing)
    for plane, way in ((0, -2), (1, 2), (8, -2), (9, 2)):
        wanted = np.abs(np.roll(image, way, axis=axis)[:, :, plane])
        assert_allclose(got[:, :, plane], wanted, atol=5e-3)


def test_a_2d_scan_turns_each_slice_at_its_own_time():
    image = ball((21, 21, 6))
    image = np.ascontiguousarray(np.broadcast_to(image[:, :, 3:4], image.shape))
    timing = Timing(1, 2, interleave=2, concatenations=2)
    got = acquire(image, MM, jump(0, 0, 0, 0, 0, 8), timing)
    assert_allclose(got[:, :, 0], got[:, :, 2], atol=1e-3)
    assert_allclose(got[:, :, 1], got[:, :, 5], atol=1e-3)
    still = acquire(image, MM, jump(0, 0, 0, 0, 0, 0), timing)
    assert_allclose(still, np.abs(image), atol=1e-3)
    assert np.abs(got[:, :, 0] - got[:, :, 1]).max() > 5


def test_one_slice_that_is_all_planes_is_a_3d_scan():
    """With every line of every plane read at once the two ways agree."""
    image, motion = ball(), jump(2, 1.5, 0, 0, 0, 6, at=0.7)
    whole = acquire(image, MM, motion, Timing(1), most=9)
    slabs = acquire(image, MM, motion, Timing(1, 2, slab_voxels=99), most=9)
    assert_allclose(slabs, whole, atol=0.02)


@pytest.mark.parametrize(("slice_axis", "cycles"), [(None, 0.25), (2, 0.25), (None, 0.125)])
def test_breathing_of_f_cycles_a_line_leaves_ghosts_f_times_n_voxels_away(slice_axis, cycles):
    n = 64
    point = np.zeros((4, n, 4), np.float32)
    point[:, 20] = 1000
    motion = {"waves": [[0, 0.2, 0, 0, 0, 0, cycles, 0.3]]}
    timing = Timing(1, slice_axis, slab_voxels=99)
    line = acquire(point, MM, motion, timing)[2, :, 2]
    assert line.argmax() == 20
    line[19:22] = 0
    # a small shift adds the derivative, so the ghost of a point is a pair about its place
    places = {abs(int(k) - 20) for k in np.argsort(line)[-4:]}
    assert places == {round(cycles * n) - 1, round(cycles * n) + 1}


def test_displacement_is_the_root_mean_square_of_a_ball():
    still = np.zeros((64, 6))
    there = still.copy()
    there[:16, 0] = 4  # a quarter of the lines, 4 mm away: sqrt(16 / 4)
    assert displacement(there) == pytest.approx(2)
    turned = still.copy()
    turned[:16, 4] = np.rad2deg(0.04)
    assert displacement(turned) == pytest.approx(LEVER_MM * 0.02)
    assert pytest.approx(50.6, abs=0.1) == LEVER_MM
    assert_array_equal(at_rest(still + 3), still)


@pytest.mark.parametrize("kind", ["rigid-motion", "rigid-motion-2d"])
def test_the_number_of_a_drawn_motion_is_its_displacement(kind):
    from bmex_bids.degrade.readout import poses_at

    for seed in range(12):
        (step,) = draw_level(kind, 1.5, np.random.default_rng(seed)).steps
        times = np.arange(192.0)
        assert displacement(poses_at(step, times, 192.0)) == pytest.approx(1.5)


def test_poses_are_grouped_without_changing_those_that_are_few():
    few = np.array([[0.0, 1], [2, 0], [0, 1], [5, 5]])
    labels, centres = snapped(few, 3)
    assert_array_equal(centres[labels], few)
    path = np.stack([np.linspace(0, 10, 101), np.zeros(101)], axis=1)
    labels, centres = snapped(path, 5)
    assert len(centres) == 5
    assert np.abs(centres[labels] - path).max() < 1.6


def test_what_a_short_field_of_view_cuts_off_comes_in_on_the_other_side():
    line = np.zeros(20, np.float32)
    line[5:15] = np.arange(11, 21)
    image = np.broadcast_to(line[None, :, None], (3, 20, 2))
    folded = fold_over(image, 1, 0.2)[1, :, 1]
    # eight voxels are left, 6 … 13; 5 falls on 13, and 14 on 6
    assert_array_equal(np.flatnonzero(folded), np.arange(6, 14))
    assert_array_equal(folded[6:14], [12 + 20, 13, 14, 15, 16, 17, 18, 19 + 11])
    assert_array_equal(fold_over(image, 1, 0.0), image)


def test_half_of_k_space_keeps_slow_waves_and_loses_fast_ones():
    place = np.arange(32)
    slow, fast = (np.cos(2 * np.pi * k * place / 32) for k in (8, 9))
    image = np.broadcast_to((10 + slow + fast)[:, None, None], (32, 3, 3)).astype(np.float32)
    got = gibbs(image, (0.5, 1.0, 1.0))
    assert_allclose(got[:, 1, 1], 10 + slow, atol=1e-4)


def test_an_edge_overshoots_by_nine_percent():
    step = np.zeros((512, 2, 2), np.float32)
    step[128:384] = 1
    assert gibbs(step, (1 / 16, 1.0, 1.0)).max() == pytest.approx(1.0895, abs=0.004)


def test_parallel_noise_follows_the_g_factor_and_couples_aliases():
    shape, rho = (40, 64, 40), 0.5
    gain = np.ones(shape, np.float32)
    gain[:20] = 2
    flat = np.full(shape, 1e4, np.float32)
    rng = np.random.default_rng(1)
    noise = parallel(flat, 10.0, gain, rng, alias=Alias(1, 2, rho)) - flat
    assert noise[:20].std() == pytest.approx(20, rel=0.03)
    assert noise[20:].std() == pytest.approx(10, rel=0.03)

    def correlation(field, shift):
        return np.corrcoef(field.ravel(), np.roll(field, shift, axis=1).ravel())[0, 1]

    assert correlation(noise / gain, 32) == pytest.approx(2 * rho / (1 + rho**2), abs=0.02)
    assert correlation(noise / gain, 16) == pytest.approx(0, abs=0.02)
    smooth = parallel(flat, 10.0, gain * 0 + 1, rng, alias=Alias(1, 2, 0), kept=(1, 0.5, 1)) - flat
    assert smooth.std() == pytest.approx(10, rel=0.03)
    assert correlation(smooth, 1) == pytest.approx(2 / np.pi, abs=0.03)  # sinc(1/2)


def test_an_acquisition_is_read_back_and_has_slices_as_thick_as_its_timing():
    kinds = set()
    for seed in range(60):
        recipe = draw("acquisition", np.random.default_rng(seed))
        assert Recipe.from_json(recipe.to_json()) == recipe
        by = {step["kind"]: step for step in recipe.steps}
        kinds |= set(by)
        if "low-resolution" in by:
            assert by["low-resolution"]["thickness_mm"] == by["rigid-motion"]["slice_mm"]
            assert 1.5 <= by["low-resolution"]["thickness_mm"] <= 5
    assert kinds == {
        "rigid-motion", "low-resolution", "fold-over", "gibbs", "parallel-noise", "rician-noise",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"jump_times": [0.5, 0.1], "jumps": [[0] * 6] * 2}, "jump_times"),
        ({"drifts": [[0] * 6]}, "drift_times"),
        ({"slice_axis": 1}, "slice axis"),
        ({"waves": [[0] * 7]}, "n × 8"),
        ({"interleave": 0}, "interleave"),
    ],
)
def test_a_motion_that_cannot_be_is_refused(change, word):
    with pytest.raises(ValueError, match=word):
        ACTS["rigid-motion"].check(1, {"kind": "rigid-motion", "phase_axis": 1, **change})


def test_a_2d_scan_never_has_its_slices_along_the_phase_axis():
    for axis in range(3):
        scan = Scan(phase_axis=axis, slice_axis=axis)
        (step,) = draw_level("rigid-motion-2d", 1.0, np.random.default_rng(0), scan).steps
        assert step["slice_axis"] != axis

# SPDX-License-Identifier: Apache-2.0
"""The search for periodic motion: its measure, its views, and where it starts."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.ndimage import center_of_mass, gaussian_filter
from scipy.spatial.transform import Rotation
from swing import AXIS, FREQUENCY, PHASE, SWING

from bmex_bids.refocus import search
from bmex_bids.refocus.kspace import undo
from bmex_bids.refocus.search import COARSE_MM, Found, of_whole_image, starts
from bmex_bids.refocus.view import View, Wave, coarser, gradient_entropy, poses_of


def test_the_entropy_of_equal_gradients_is_the_logarithm_of_their_number():
    ramp = (100 * torch.arange(8.0))[:, None, None].expand(8, 4, 4).contiguous()
    where = torch.ones_like(ramp)
    where[-1] = 0  # no neighbour
    wanted = pytest.approx(math.log(7 * 16), abs=1e-4)
    assert float(gradient_entropy(ramp, where)) == wanted
    assert float(gradient_entropy(ramp * (0.6 + 0.8j), where)) == pytest.approx(
        math.log(7 * 16), abs=1e-3
    )
    edge = torch.zeros(8, 4, 4)
    edge[4:] = 700
    assert float(gradient_entropy(edge, where)) == pytest.approx(math.log(16), abs=0.01)


def test_coarser_voxels_keep_the_mean_and_the_phase_axis(head):
    image = torch.from_numpy(head.image)
    for phase_axis in range(3):
        small, spacing = coarser(
            image, head.spacing, 4.0, [k for k in range(3) if k != phase_axis]
        )
        assert float(small.mean()) == pytest.approx(float(image.mean()), rel=1e-4)
        for axis in range(3):
            assert small.shape[axis] * spacing[axis] == pytest.approx(
                image.shape[axis] * head.spacing[axis]
            )
            same = small.shape[axis] == image.shape[axis]
            assert same == (axis == phase_axis)
        assert max(spacing) < 4.5


@pytest.mark.parametrize("phase_axis", [0, 1, 2])
def test_a_view_knows_where_it_lies(phase_axis):
    """A blob lies as far from the view's centre as from the image's, less their distance."""
    image = np.zeros((60, 70, 66), np.float32)
    image[20:44, 30:60, 10:40] = 800
    image = gaussian_filter(image, 2)
    spacing = (3.1, 2.9, 3.3)
    view = View(torch.from_numpy(image), spacing, phase_axis, COARSE_MM)
    assert view.lines == image.shape[phase_axis]
    assert view.image.shape != image.shape
    for axis in range(3):
        there, here = (
            (center_of_mass(part)[axis] - (part.shape[axis] - 1) / 2) * step[axis]
            for part, step in ((image, spacing), (view.image.numpy(), view.spacing))
        )
        assert here == pytest.approx(there + view.offset_mm[axis], abs=0.3)


@pytest.mark.parametrize("phase_axis", [0, 1, 2])
@pytest.mark.parametrize("turn_axis", [0, 1, 2])
def test_a_turn_about_the_views_centre_is_one_about_the_images_centre_and_a_shift(
    head, phase_axis, turn_axis
):
    view = View(torch.from_numpy(head.image), head.spacing, phase_axis, COARSE_MM)
    view.offset_mm = [9.0, -14.0, 21.0]
    wave = Wave(0.11, 0.3, torch.tensor([0.5, -0.3, 0.8, 1.5]), turn_axis)
    motion = of_whole_image(wave, view, head.spacing)
    assert (motion.phase_axis, motion.turn_axis) == (phase_axis, turn_axis)
    assert motion.turns is not None
    assert motion.turns.abs().max() > 1
    places = np.random.default_rng(0).uniform(-60, 60, (20, 3))  # mm from the image's centre
    centre = -np.array(view.offset_mm)
    for turn, shift in zip(motion.turns.numpy(), motion.shifts.numpy(), strict=True):
        about = Rotation.from_rotvec(np.deg2rad(turn) * np.eye(3)[turn_axis])
        own = turn / 1.5 * wave.size[:3].numpy()  # what the wave shifts at this line
        wanted = about.apply(places - centre) + centre + own
        np.testing.assert_allclose(about.apply(places) + shift, wanted, atol=0.02)


def test_the_search_starts_from_the_motion_that_was_put_in(head, moved):
    view = View(torch.from_numpy(moved), head.spacing, AXIS, COARSE_MM)
    signed, wave = starts(view, 1)[0]
    assert wave.frequency == pytest.approx(FREQUENCY, abs=1.5 / view.lines)
    shift = wave.size[:3].abs()
    assert int(shift.argmax()) == AXIS
    opposite = replace(wave, size=-wave.size)
    assert view.of_wave(wave) < view.of_wave(opposite)
    still = View(torch.from_numpy(head.image), head.spacing, AXIS, COARSE_MM)
    wrong = View(torch.from_numpy(moved), head.spacing, 0, COARSE_MM)
    assert signed > 3 * max(starts(view, 1)[0][0] for view in (still, wrong))


def test_few_frequencies_are_compared_and_the_motions_is_among_them(head, moved, monkeypatch):
    """The slope of the entropy at rest promises it; the whole search is one pass backwards more."""
    compared = []

    def signed(view, frequency):
        compared.append(frequency)
        return np.zeros(3) + (abs(frequency - FREQUENCY) < 0.01)

    monkeypatch.setattr(search, "_signed", signed)
    monkeypatch.setattr(search, "COMPARED", 6)
    starts(View(torch.from_numpy(moved), head.spacing, AXIS, COARSE_MM))
    assert len(compared) == 6
    assert min(abs(frequency - FREQUENCY) for frequency in compared) < 0.01


def test_a_start_that_hardly_beats_its_opposite_is_not_followed(head, monkeypatch):
    """Not even where a start of another axis beats its own by far."""
    monkeypatch.setattr(search, "FEWEST_LINES", 16)
    waves = {axis: Wave(0.1 + 0.1 * axis, 0.0, torch.zeros(4)) for axis in range(3)}
    monkeypatch.setattr(
        search,
        "starts",
        lambda view: [(0.01 if view.phase_axis == 1 else 0.001, waves[view.phase_axis])],
    )
    followed: list[float] = []

    def descend(view, wave, evaluations):
        followed.append(wave.frequency)
        return -0.01, wave

    monkeypatch.setattr(search, "descend", descend)
    found = search.find(torch.from_numpy(head.image), head.spacing, 0.005)
    assert found is not None
    assert found[0].phase_axis == 1
    assert set(followed) == {waves[1].frequency}
    assert search.find(torch.from_numpy(head.image), head.spacing, 0.02) is None


def test_along_an_axis_with_few_lines_no_motion_is_looked_for(head, monkeypatch):
    tried: list[int] = []
    monkeypatch.setattr(search, "starts", lambda view: tried.append(view.phase_axis) or [])
    assert search.find(torch.from_numpy(head.image), head.spacing, 0.005) is None
    assert [head.image.shape[axis] >= search.FEWEST_LINES for axis in range(3)] == [
        False,
        True,
        False,
    ]
    assert tried == [1]


def test_a_start_that_leads_nowhere_is_not_followed(head, monkeypatch):
    wave = Wave(0.2, 0.0, torch.zeros(4))
    monkeypatch.setattr(search, "starts", lambda view: [(0.01, wave)])
    monkeypatch.setattr(search, "descend", lambda view, wave, evaluations: (0.0, wave))
    monkeypatch.setattr(search, "_with_turn", None)  # would be called
    assert search.find(torch.from_numpy(head.image), head.spacing, 0.005) is None


def truth(lines):
    """The wave that moved the head."""
    phase = PHASE + math.pi * FREQUENCY * lines  # at the centre of k-space
    return Wave(FREQUENCY, phase, torch.tensor(SWING[:4]), 0)


def test_the_misfit_is_what_the_result_moved_again_leaves(head, moved):
    view = View(torch.from_numpy(moved), head.spacing, AXIS, COARSE_MM)
    wave = truth(view.lines)
    motion = view.motion(*poses_of(view.lines, FREQUENCY, wave.phase, wave.size), 0)
    back = undo(view.image, torch.ones_like(view.image), motion, 1)
    left = (motion.forward(back).abs() - view.image).norm() / view.image.norm()
    assert float(left) > 0.01
    more = view.of_wave(wave, 2.0) - view.of_wave(wave)
    assert more == pytest.approx(2 * float(left), rel=1e-3)


@pytest.mark.parametrize("cosine", [1.0, 2.5], ids=["right", "too-large"])
def test_too_large_a_motion_becomes_smaller(head, moved, monkeypatch, cosine):
    """Where the cosine is too large, the start has less of it; else it stays."""
    monkeypatch.setattr(search, "EVALUATIONS", 2)
    view = View(torch.from_numpy(moved), head.spacing, AXIS, COARSE_MM)
    wave = truth(view.lines)
    a, b = cosine * math.sin(wave.phase), math.cos(wave.phase)
    given = replace(wave, phase=math.atan2(a, b), size=wave.size * math.hypot(a, b))
    with monkeypatch.context() as patch:
        patch.setattr(search, "descend", lambda view, wave, *_: (0.0, wave))
        start = search.smaller(Found(AXIS, given, -0.1, 0.02), view)
    share = start.wave.size * math.sin(start.wave.phase) / (given.size * math.sin(given.phase))
    assert float(share[0]) == pytest.approx(1.0 if cosine == 1.0 else 0.4)
    assert start.gain == pytest.approx(view.of_wave(start.wave))
    found = search.smaller(Found(AXIS, given, -0.1, 0.02), view)
    assert found.signed == 0.02
    assert view.of_wave(found.wave, search.MISFIT) < view.of_wave(start.wave, search.MISFIT)


def test_the_misfit_chooses_the_start_of_a_smaller_motion(monkeypatch):
    """The entropy alone would choose the largest."""
    monkeypatch.setattr(search, "descend", lambda view, wave, *_: (0.0, wave))
    view = SimpleNamespace(
        of_wave=lambda wave, misfit=0.0: float((misfit - 0.1) * wave.size.norm())
    )
    given = Wave(0.2, 1.0, torch.ones(4), 0)
    found = search.smaller(Found(AXIS, given, -0.1, 0.02), view)
    assert float(found.wave.size.norm()) < 0.6 * 2


def test_a_descent_with_misfit_tells_the_sum_even_where_it_is_positive(head, moved):
    view = View(torch.from_numpy(moved), head.spacing, AXIS, COARSE_MM)
    wave = replace(truth(view.lines), axis=None)
    value, found = search.descend(view, wave, 1, 100.0)
    assert value > 0
    assert view.of_wave(found, 100.0) == pytest.approx(value, rel=1e-3)
    assert search.descend(view, replace(wave, size=-wave.size), 1)[0] == 0

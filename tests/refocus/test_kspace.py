# SPDX-License-Identifier: Apache-2.0
"""Motion in k-space: the same as the simulation's, with a true adjoint, and undone again."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from swing import SWING

from bmex_bids.degrade.motion import Trajectory, apply_motion, periodic, rotate
from bmex_bids.refocus.kspace import (
    LineMotion,
    _shifted_lines,
    fourier,
    over_plane,
    turned,
    undo,
)

STEPS = (1.0, 1.4, 0.8)
PHASE_AXES = pytest.mark.parametrize("phase_axis", [0, 1, 2])


def in_fft_order(path: Trajectory, phase_axis, spacing, turn_axis, levels) -> LineMotion:
    """The motion of a simulated scan."""
    shifts, turns = (
        torch.tensor(np.fft.ifftshift(part, axes=0), dtype=torch.float32)
        for part in (path.translations, path.rotations[:, turn_axis])
    )
    return LineMotion(phase_axis, spacing, shifts, turns, turn_axis, levels)


def swinging(lines, turn_axis) -> Trajectory:
    swing = np.array([0.7, -1.1, 0.4, 0, 0, 0])
    swing[3 + turn_axis] = 2.5
    return periodic(lines, swing, 0.13, 0.4).centred()


@PHASE_AXES
@pytest.mark.parametrize("turns", [False, True])
def test_a_head_at_rest_is_the_image(head, phase_axis, turns):
    image = torch.from_numpy(head.image)
    n = image.shape[phase_axis]
    motion = LineMotion(
        phase_axis, head.spacing, torch.zeros(n, 3), torch.zeros(n) if turns else None
    )
    shown = motion.forward(image)
    torch.testing.assert_close(shown.real, image, atol=2e-3, rtol=0)
    assert float(shown.imag.abs().max()) < 2e-3
    back = motion.adjoint(fourier(shown, phase_axis), real=True)
    torch.testing.assert_close(back, image, atol=2e-3, rtol=0)


@PHASE_AXES
@pytest.mark.parametrize("turn_axis", [None, 0, 1, 2])
def test_the_adjoint_is_the_adjoint(phase_axis, turn_axis):
    """<A x, y> = <x, A* y>; of odd sizes, for which a half spectrum has no Nyquist term."""
    draw = torch.Generator().manual_seed(1)
    shape = (15, 17, 13)
    x = torch.randn(shape, generator=draw)
    y = torch.complex(torch.randn(shape, generator=draw), torch.randn(shape, generator=draw))
    n = shape[phase_axis]
    turns = None if turn_axis is None else 3 * torch.randn(n, generator=draw)
    shifts = torch.randn(n, 3, generator=draw)
    motion = LineMotion(phase_axis, STEPS, shifts, turns, turn_axis or 0)
    left = (motion.forward(x).conj() * y).sum()
    back = motion.adjoint(fourier(y, phase_axis))
    torch.testing.assert_close(left, (x * back).sum(), rtol=1e-3, atol=1e-2)
    real = motion.adjoint(fourier(y, phase_axis), real=True)
    torch.testing.assert_close(real, back.real, rtol=0, atol=1e-4)


@pytest.mark.parametrize("is_complex", [False, True])
@pytest.mark.parametrize("shape", [(12, 14, 10), (13, 11, 15)], ids=["even", "odd"])
@pytest.mark.parametrize(("axis", "by"), [(0, 1), (1, 0), (2, 1), (0, 2)])
def test_the_gradient_by_hand_is_that_of_autograd(shape, axis, by, is_complex):
    draw = torch.Generator().manual_seed(2)
    image, weight = torch.randn((2, *shape), generator=draw)
    if is_complex:
        image = torch.complex(image, torch.randn(shape, generator=draw))
    voxels = torch.randn(shape[by], generator=draw)

    def literal(image, voxels):
        n = shape[axis]
        frequencies = torch.fft.fftfreq(n) if is_complex else torch.fft.rfftfreq(n)
        ramp = over_plane(torch.exp(-2j * np.pi * torch.outer(frequencies, voxels)), axis, by)
        if is_complex:
            return torch.fft.ifft(torch.fft.fft(image, dim=axis) * ramp, dim=axis)
        return torch.fft.irfft(torch.fft.rfft(image, dim=axis) * ramp, n=n, dim=axis)

    def values(shift):
        given = image.clone().requires_grad_(), voxels.clone().requires_grad_()
        shifted = shift(*given)
        return shifted.detach(), *torch.autograd.grad((weight * shifted.abs()).sum(), given)

    wanted = values(literal)
    found = values(lambda image, voxels: _shifted_lines(image, voxels, axis, by))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    still = image.clone(), voxels.clone().requires_grad_()  # the first shear of a still head
    (alone,) = torch.autograd.grad(
        (weight * _shifted_lines(*still, axis, by).abs()).sum(), still[1]
    )
    torch.testing.assert_close(alone, wanted[2], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_turn_is_that_of_the_simulation(head, axis):
    degrees = np.zeros(3)
    degrees[axis] = 4.0
    image = torch.from_numpy(head.image)
    wanted = torch.from_numpy(rotate(head.image, degrees, np.array(STEPS)))
    assert float((wanted - image).abs().max()) > 200
    angle = torch.tensor(4.0)
    torch.testing.assert_close(turned(image, axis, angle, STEPS), wanted, atol=0.01, rtol=0)
    torch.testing.assert_close(
        turned(image.to(torch.complex64), axis, angle, STEPS).real, wanted, atol=10, rtol=0
    )  # the Nyquist term is another


@PHASE_AXES
@pytest.mark.parametrize("turn_axis", [0, 1, 2])
def test_moved_images_are_those_of_the_simulation(head, phase_axis, turn_axis):
    path = swinging(head.image.shape[phase_axis], turn_axis)
    wanted = apply_motion(head.image, STEPS, path, phase_axis=phase_axis, max_rotations=9)
    assert np.abs(wanted - head.image).max() > 100
    motion = in_fft_order(path, phase_axis, STEPS, turn_axis, 9)
    shown = motion.forward(torch.from_numpy(head.image)).abs().numpy()
    assert np.abs(shown - wanted).max() < 0.02 * np.abs(wanted - head.image).max()


@PHASE_AXES
def test_true_motion_is_undone(head, phase_axis):
    """A wave that is even about the centre of k-space; one that is odd turns ghosts into phase,
    which a magnitude image has lost, and less can be undone."""
    n, frequency = head.image.shape[phase_axis], 0.17
    path = periodic(n, np.array(SWING), frequency, np.pi * (0.5 - frequency * n)).centred()
    moved = apply_motion(head.image, head.spacing, path, phase_axis=phase_axis)
    motion = in_fft_order(path, phase_axis, head.spacing, 0, 9)
    image = torch.from_numpy(moved)
    found = undo(image, torch.ones_like(image), motion, 2).numpy()
    assert found.min() >= 0
    before, after = (((part - head.image) ** 2)[head.mask].sum() for part in (moved, found))
    assert after < 0.2 * before
    inside = torch.from_numpy(head.mask.astype(np.float32))
    masked = undo(image * inside, inside, motion, 2).numpy()
    assert not masked[~head.mask].any()

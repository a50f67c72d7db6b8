# SPDX-License-Identifier: Apache-2.0
"""Jumps of the head between parts of the read-out: a network hints at them, physics decides.

What an enhancement network would correct is mostly too little to help, but what it has in common
with the image's derivatives for small translations and rotations, taken line by line of k-space,
shows how the head lay while each line was read (:mod:`bmex_bids.refocus.evidence`).  Along the true
phase-encoding axis this explains many times as much as along the others.

A magnitude image does not tell the line k from the line −k, so two poses belong to each distance
from the centre of k-space; a jump exchanges one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from bmex_bids.refocus.evidence import Evidence, Pose, Steps, filtered, inner, moved, size_mm
from bmex_bids.refocus.kspace import AXES
from bmex_bids.refocus.search import FEWEST_LINES
from bmex_bids.refocus.view import coarser, gradient_entropy

#: share of the network's correction that steps along the phase axis explain, and how many times as
#: much as along another axis
LEAST_SHARE, LEAST_RATIO = 0.003, 2.0
#: nats by which undoing the jump must sharpen the brain, and one of SIGNED_MM more than its opposite
LEAST_GAIN, LEAST_SIGNED = 0.0003, 0.0012
SIGNED_MM = 1.0
#: of the step that the network hints at, what may be left once it is undone: less than nothing where
#: it was smaller
LEFT = (-0.5, 0.6)
#: mm, root mean square displacement of the jump
TRIED_MM = (0.5, 1.0, 1.5, 2.0, 2.8, 4.0)
#: edge of the voxels, mm: where hints are taken, and where the entropy is measured
COARSE_MM, FINE_MM = 3.5, 2.0
#: lines of k-space that a step has at least
APART = 2
#: of the conjugate gradients; two of them amplify what the jumps do not explain
ITERATIONS = 1
#: voxels: of a smaller brain, nothing is said
LEAST_BRAIN = 10_000


@dataclass(frozen=True)
class Hints:
    """A network over brains.

    Attributes
    ----------
    correction : (image, brain) → (X, Y, Z), what the network would add, 0 outside the brain
    brain : (image of a head, voxel sizes in mm) → (X, Y, Z), 1 in the brain and 0 outside; None:
        nothing is looked for in heads
    """

    correction: Callable[[Tensor, Tensor], Tensor]
    brain: Callable[[Tensor, Sequence[float]], Tensor] | None = None


@dataclass(frozen=True)
class Jump:
    """From a line on, one of the two lines at that distance sees the head in another pose.

    Attributes
    ----------
    line : distance from the centre of k-space
    member : 0 or 1, which of the two
    pose : (6,) translation along the array's axes in mm, rotation about them in degrees, through
        the array's centre, from the pose at the centre of k-space
    """

    line: int
    member: int
    pose: Pose


@dataclass(frozen=True)
class Jumps:
    """A head that jumps during the read-out.

    Attributes
    ----------
    phase_axis : of the array
    jumps : ordered by line
    gain : change of the entropy of the gradients in the brain, nats; negative where it sharpens
    share : of the network's correction, that the first jump explains
    """

    phase_axis: int
    jumps: tuple[Jump, ...]
    gain: float = 0.0
    share: float = 0.0

    def weights(self, lines: int) -> Tensor:
        """(1 + jumps, lines // 2 + 1): share of each pose in each pair of lines; the first is rest."""
        table = torch.zeros(1 + len(self.jumps), lines // 2 + 1)
        for line in range(lines // 2 + 1):
            pair = [0, 0]
            for number, jump in enumerate(self.jumps, 1):
                if line >= jump.line:
                    pair[jump.member] = number
            for number in pair:
                table[number, line] += 0.5
        return table

    def _parts(self, image: Tensor) -> Iterator[tuple[Pose | None, Tensor]]:
        poses: list[Pose | None] = [None, *(jump.pose for jump in self.jumps)]
        return zip(poses, self.weights(image.shape[self.phase_axis]), strict=True)

    def forward(self, image: Tensor, spacing: Sequence[float]) -> Tensor:
        """The image (X, Y, Z) of a head that jumps so, from that of the head at rest."""
        total = torch.zeros_like(image)
        for pose, weight in self._parts(image):
            part = image if pose is None else moved(image, pose, spacing)
            total += filtered(part, weight, self.phase_axis)
        return total

    def adjoint(self, image: Tensor, spacing: Sequence[float]) -> Tensor:
        """The adjoint of :meth:`forward`."""
        total = torch.zeros_like(image)
        for pose, weight in self._parts(image):
            part = filtered(image, weight, self.phase_axis)
            total += part if pose is None else moved(part, pose, spacing, back=True)
        return total

    def undo(
        self, image: Tensor, support: Tensor, spacing: Sequence[float], iterations: int
    ) -> Tensor:
        """The head at rest, by conjugate gradients from the image; never negative.

        Parameters
        ----------
        image, support : (X, Y, Z); 1 where the image is known and the head may be, else 0
        spacing : mm
        iterations : one or two; more of them amplify noise
        """
        estimate = image * support
        left = image - self.forward(estimate, spacing)
        slope = self.adjoint(left, spacing) * support
        direction, size = slope, float((slope**2).sum())
        for _ in range(iterations):
            ahead = self.forward(direction, spacing)
            step = size / max(float((ahead**2).sum()), 1e-12)
            estimate = estimate + step * direction
            left = left - step * ahead
            slope = self.adjoint(left, spacing) * support
            now = float((slope**2).sum())
            direction, size = slope + now / max(size, 1e-12) * direction, now
        return estimate.clamp(min=0) * support

    def facts(self, lines: int) -> dict[str, Any]:
        """Ready for JSON; ``lines`` is the length of the phase axis."""
        squares = [size_mm(jump.pose) ** 2 for jump in self.jumps]
        weights = self.weights(lines)[1:]
        weights[:, 1 : (lines + 1) // 2] *= 2  # of the lines k and −k
        displacement = float((weights.sum(1) * torch.tensor(squares)).sum() / lines) ** 0.5
        return {
            "PhaseEncodingAxis": self.phase_axis,
            "Model": "jumps",
            "RMSDisplacement": round(displacement, 2),
            "Jumps": [
                {
                    "Line": jump.line,
                    "Translation": [round(float(v), 2) for v in jump.pose[:3]],
                    "Rotation": [round(float(v), 2) for v in jump.pose[3:]],
                }
                for jump in self.jumps
            ],
            "EntropyChange": round(self.gain, 4),
            "ExplainedShare": round(self.share, 4),
        }


class _View:
    """An image at :data:`FINE_MM`, where the entropy of the brain's gradients is measured."""

    def __init__(
        self, image: Tensor, brain: Tensor, support: Tensor, spacing: Sequence[float]
    ) -> None:
        self.image, self.spacing = coarser(image, spacing, FINE_MM)
        self._brain, self._support = (
            (coarser(part, spacing, FINE_MM)[0] > level).float()
            for part, level in ((brain, 0.9), (support, 0.5))
        )
        known = self.image.clamp(min=0) * self._support
        self._before = float(gradient_entropy(known, self._brain))

    def gain(self, jumps: Jumps) -> float:
        """Change of the entropy when these jumps are undone."""
        still = jumps.undo(self.image, self._support, self.spacing, ITERATIONS)
        return float(gradient_entropy(still, self._brain)) - self._before


@torch.no_grad()
def find_jumps(
    image: Tensor, support: Tensor, spacing: Sequence[float], hints: Hints
) -> tuple[Jumps, Tensor] | None:
    """The jumps that an image shows, and the image without them; None for none.

    Parameters
    ----------
    image : (X, Y, Z) float32, range about 1000
    support : (X, Y, Z), 1 where the image is known, else 0
    spacing : mm
    """
    if not bool(support.all()):  # a brain without its head
        brain = support
    elif hints.brain is not None:
        brain = hints.brain(image, spacing)
    else:
        return None
    if float(brain.sum()) < LEAST_BRAIN:
        return None
    correction = hints.correction(image, brain)
    axes = [axis for axis in AXES if image.shape[axis] >= FEWEST_LINES]
    looked = {
        axis: Evidence.of(image * brain, correction, spacing, axis, COARSE_MM) for axis in axes
    }
    first = {axis: evidence.steps(1, APART) for axis, evidence in looked.items()}
    order = sorted(axes, key=lambda axis: -first[axis].share)
    if not order or first[order[0]].share < LEAST_SHARE:
        return None
    steps = first[order[0]]
    if len(order) > 1 and steps.share < LEAST_RATIO * first[order[1]].share:
        return None
    view = _View(image, brain, support, spacing)
    best = _first(view, order[0], steps)
    if best.gain > -LEAST_GAIN or _signed(view, best) > -LEAST_SIGNED:
        return None
    still = best.undo(image, support, spacing, ITERATIONS)
    correction = hints.correction(still, brain)
    looked_again = Evidence.of(still * brain, correction, spacing, best.phase_axis, COARSE_MM)
    jumps = _corrected(view, best, steps.poses[0], looked_again.between(steps.lines)[0])
    if jumps is None:
        return None
    return jumps, jumps.undo(image, support, spacing, ITERATIONS)


def _first(view: _View, axis: int, steps: Steps) -> Jumps:
    """One jump where the step begins, of the size that sharpens most.

    A step of both lines by a pose is one of a single line by twice as much.
    """
    jumps = Jumps(axis, (Jump(steps.lines[0], 0, steps.poses[0]),), share=steps.share)
    return min((_sized(view, jumps, size) for size in TRIED_MM), key=lambda one: one.gain)


def _sized(view: _View, jumps: Jumps, size: float) -> Jumps:
    """A single jump of another size in mm; negative for the opposite."""
    (jump,) = jumps.jumps
    pose = size / size_mm(jump.pose) * jump.pose
    jumps = replace(jumps, jumps=(replace(jump, pose=pose),))
    return replace(jumps, gain=view.gain(jumps))


def _signed(view: _View, jumps: Jumps) -> float:
    """Nats by which a jump lowers the entropy more than its opposite; negative for a true one."""
    return _sized(view, jumps, SIGNED_MM).gain - _sized(view, jumps, -SIGNED_MM).gain


def _corrected(view: _View, jumps: Jumps, before: Pose, after: Pose) -> Jumps | None:
    """The jump that would leave nothing to correct; None where too much, or the opposite, is left.

    Parameters
    ----------
    before, after : the steps at which the network hints, in the image as it came and without the
        jump.  They show in which proportion it hints
    """
    share = inner(after, before) / size_mm(before) ** 2
    if not LEFT[0] <= share <= LEFT[1]:
        return None
    (jump,) = jumps.jumps
    scale = size_mm(jump.pose) / (size_mm(before) * (1 - share))
    jumps = replace(jumps, jumps=(replace(jump, pose=jump.pose + scale * after),))
    return replace(jumps, gain=view.gain(jumps))

# SPDX-License-Identifier: Apache-2.0
"""The layers of a dense U-Net as a table of steps, and what follows from the table alone.

The forward pass, the engine, how far each layer is needed and how much memory that takes all read
the same table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: names of the features that go in and come out
INPUT, OUTPUT = "input", "output"
PERIOD = 8  # voxels after which a place looks the same to all layers: three halvings
Span = tuple[int, int]  # first voxel and last


@dataclass(frozen=True)
class Step:
    """One row of the table.

    Attributes
    ----------
    kind : ``conv`` (3×3×3, padding 1), ``dense`` (four of them, each reads all that was made
        before it), ``pool`` (max, 3×3×3, stride 2), ``up`` (transposed, 4×4×4, stride 2)
    layers : names of the modules
    reads, makes : names of features; those that are read are concatenated
    scale : the features that are made have 1/scale of the image's resolution
    before : normalisation, with a ReLU behind it, of what is read
    after : the same of what is made
    new_first : dense, first concatenation: the new features come before the old
    activated : dense, third concatenation: the old features are taken after normalisation and ReLU
    """

    kind: str
    layers: tuple[str, ...]
    reads: tuple[str, ...]
    makes: str
    scale: int
    before: str | None = None
    after: str | None = None
    new_first: bool = False
    activated: bool = False

    @property
    def inner(self) -> tuple[str, ...]:
        """Normalisations between the convolutions of a dense block."""
        return tuple(name.replace("conv", "bn") for name in self.layers[:-1])


def last_read(steps: Sequence[Step]) -> list[list[str]]:
    """For each step the features that nothing needs after it."""
    last = {name: k for k, step in enumerate(steps) for name in (*step.reads, step.makes)}
    return [[n for n, k in last.items() if k == at and n != OUTPUT] for at in range(len(steps))]


def evaluate(net: nn.Module, steps: Sequence[Step], x: Tensor) -> Tensor:
    """What the steps make of (N, C, D, H, W), by torch's own operations.

    ``net`` has the layers, and ``pool`` and ``dropout``.
    """
    held = {INPUT: x}
    for step, free in zip(steps, last_read(steps), strict=True):
        parts = [held[name] for name in step.reads]
        x = torch.cat(parts, 1) if len(parts) > 1 else parts[0]
        x = _make(net, step, activate(net, step.before, x))
        held[step.makes] = activate(net, step.after, x)
        for name in free:
            del held[name]
    return held[OUTPUT]


def activate(net: nn.Module, norm: str | None, x: Tensor) -> Tensor:
    """A normalisation and the ReLU behind it; None does nothing."""
    return x if norm is None else F.relu(net.get_submodule(norm)(x))


def _make(net: nn.Module, step: Step, x: Tensor) -> Tensor:
    stack: Tensor = net.get_submodule(step.layers[0])(x)
    for k, (norm, layer) in enumerate(zip(step.inner, step.layers[1:], strict=True)):
        active = activate(net, norm, stack)
        new = net.get_submodule("dropout")(net.get_submodule(layer)(active))
        old = active if step.activated and k == 2 else stack
        stack = torch.cat([new, old] if step.new_first and k == 0 else [old, new], dim=1)
    return stack


# ------------------------------------------------------------------ how far a layer reaches
def read_by(step: Step, made: Span) -> Span:
    """Voxels of an axis that a step reads, in those of its input, for voxels that it makes."""
    first, last = made
    if step.kind == "pool":  # the published releases pad on one side or on the other
        return 2 * first - 1, 2 * last + 2
    if step.kind == "up":  # a result o is made of the values (o − 2)/2 … (o + 1)/2
        return -((2 - first) // 2), (last + 1) // 2
    return first - len(step.layers), last + len(step.layers)


def needs(steps: Sequence[Step], of_output: int) -> dict[str, int]:
    """How far beyond what is wanted each feature is needed, in voxels of the full grid.

    Parameters
    ----------
    of_output : the same of the output, which has the resolution of the image
    """
    scales = {step.makes: step.scale for step in steps} | {INPUT: 1}
    farthest = {INPUT: of_output, OUTPUT: of_output}
    for place in range(PERIOD, 2 * PERIOD):
        found: dict[str, Span] = {OUTPUT: (place, place)}
        for step in reversed(steps):
            needed = read_by(step, found[step.makes])
            for name in step.reads:
                low, high = found.get(name, needed)
                found[name] = min(low, needed[0]), max(high, needed[1])
        for name, (low, high) in found.items():
            beyond = max(place - low * scales[name], (high + 1) * scales[name] - 1 - place)
            farthest[name] = max(farthest.get(name, 0), of_output + beyond)
    return farthest


# ------------------------------------------------------------------ how much memory they take
def channels(net: nn.Module, steps: Sequence[Step], of_input: int) -> dict[str, int]:
    """Channels of each feature."""
    found = {INPUT: of_input}
    for step in steps:
        if step.kind == "pool":
            found[step.makes] = sum(found[name] for name in step.reads)
        else:
            biases = (net.get_parameter(f"{name}.bias") for name in step.layers)
            found[step.makes] = sum(len(bias) for bias in biases)
    return found


def most_held(net: nn.Module, steps: Sequence[Step], of_input: int) -> float:
    """Numbers that are held at once, at most, for each voxel of the full grid."""
    width = channels(net, steps, of_input)
    scales = {step.makes: step.scale for step in steps} | {INPUT: 1}
    here, most = {INPUT}, 0.0
    for step, free in zip(steps, last_read(steps), strict=True):
        here.add(step.makes)
        held = [width[name] / float(scales[name]) ** 3 for name in here]
        most = max(most, sum(held))
        here -= set(free)
    return most

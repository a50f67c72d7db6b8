# SPDX-License-Identifier: Apache-2.0
"""The dense U-Nets layer by layer over a whole volume, from their tables of steps.

The result is what ``network(x)`` computes, in about a third of the memory: dense stacks are
written in place, and only the surroundings of the brain are computed.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from bmex_bids.network.engine.folding import affine, folded, parameters
from bmex_bids.network.engine.layers import Layer, Layers, Patterns
from bmex_bids.network.engine.regions import Box, Regions
from bmex_bids.network.models.adunet import ADUNet
from bmex_bids.network.models.bmex import BMEX, CONNECTION
from bmex_bids.network.models.topology import (
    INPUT,
    OUTPUT,
    PERIOD,
    Step,
    last_read,
    most_held,
    needs,
)

#: bytes a voxel beside the features: the image, the result, the softmax of the scores
BESIDE = 48


@dataclass(frozen=True)
class _Network:
    """One dense U-Net on its way through a volume."""

    run: Layers
    net: ADUNet
    prefix: str

    def steps(self, features: list[Tensor], out: Tensor, need: int) -> None:
        """Features (D, H, W, C), taken out of the list → ``out`` (D, H, W, classes).

        ``need`` is how far beyond what is wanted the result is needed.  Features are let go as
        soon as they have been read for the last time.
        """
        far = needs(self.net.steps, need)
        held = {INPUT: features.pop()}
        for step, free in zip(self.net.steps, last_read(self.net.steps), strict=True):
            parts = [held[name] for name in step.reads]
            here = far[step.makes]
            if step.kind == "dense":
                held[step.makes] = self._dense(step, parts, here)
            else:
                target = out if step.makes == OUTPUT else self._room(step, parts)
                held[step.makes] = target
                self._plain(step, parts, target, here)
                del target
            del parts
            for name in free:
                del held[name]

    def _room(self, step: Step, parts: list[Tensor]) -> Tensor:
        if step.kind == "pool":
            return self.run.array(step.scale, sum(part.shape[3] for part in parts))
        _, bias = parameters(self.net.get_submodule(step.layers[0]))
        return self.run.array(step.scale, len(bias))

    def _layer(
        self, name: str, parts: list[Tensor], out: Tensor, step: Step, need: int, norm: str | None
    ) -> Layer:
        before = None if norm is None else affine(self.net.get_submodule(norm))
        label = f"{self.prefix}{name}"
        return Layer(label, parts, out, step.scale, need, before, relu=step.after is not None)

    def _plain(self, step: Step, parts: list[Tensor], out: Tensor, need: int) -> None:
        module = self.net.get_submodule(step.layers[0])
        if step.kind == "pool":
            layer = self._layer(step.makes, parts, out, step, need, step.before)
            self.run.pool(layer, int(self.net.pool.padding))  # type: ignore[arg-type]
            return
        layer = self._layer(step.layers[0], parts, out, step, need, step.before)
        if step.kind == "up":
            self.run.upsample(layer, *parameters(module))
        elif step.after is None:
            self.run.convolve(layer, *parameters(module))
        else:
            self.run.convolve(layer, *folded(module, self.net.get_submodule(step.after)))

    def _dense(self, step: Step, parts: list[Tensor], need: int) -> Tensor:
        """Four convolutions whose results lie side by side."""
        weights = [parameters(self.net.get_submodule(name)) for name in step.layers]
        wide, narrow = len(weights[0][1]), len(weights[1][1])
        stack = self.run.array(step.scale, wide + 3 * narrow)
        start = narrow if step.new_first else 0
        low, high = start, start + wide  # channels that are there
        for k, (name, weight) in enumerate(zip(step.layers, weights, strict=True)):
            further = need + (3 - k) * step.scale
            if k == 0:
                fed, norm, place = parts, step.before, slice(low, high)
            else:
                fed, norm = [stack[..., low:high]], step.inner[k - 1]
                place = slice(0, start) if low else slice(high, high + narrow)
            layer = self._layer(name, fed, stack[..., place], step, further, norm)
            self.run.convolve(layer, *weight)
            if k == 3 and step.activated:  # what is handed on is activated, not raw
                before = affine(self.net.get_submodule(step.inner[2]))
                self.run.activate(stack[..., low:high], step.scale, need, before)
            low, high = min(low, place.start), max(high, place.stop)
        return stack


def _classes(run: Layers, net: ADUNet, x: Tensor, _: bool) -> Tensor:
    result = run.array(1, net.classes, torch.float32)
    _Network(run, net, "").steps([x], result, 0)
    return result


def _bmex(run: Layers, network: BMEX, x: Tensor, tissues_only: bool) -> Tensor:
    classes = network.classes
    result = run.array(1, classes + (not tissues_only), torch.float32)
    scores = result[..., :classes]
    of_features = needs(network.recon.steps, 0)[INPUT]
    of_scores = 0 if tissues_only else of_features + 1
    _Network(run, network.tissue, "tissue.").steps([x], scores, of_scores)
    if tissues_only:
        return result
    seen = scores if network.caffe else _softmax(run, scores, of_scores)
    features = run.array(1, 2 * CONNECTION)
    for name, part, place in (
        ("1", seen, slice(0, CONNECTION)),
        ("2", x, slice(CONNECTION, 2 * CONNECTION)),
    ):
        conv, norm = (network.get_submodule(f"{kind}{name}_con") for kind in ("conv", "bn"))
        layer = Layer(f"con{name}", [part], features[..., place], 1, of_features, relu=True)
        run.convolve(layer, *folded(conv, norm))
    inputs = [features]
    del features, layer, part, seen
    _Network(run, network.recon, "recon.").steps(inputs, result[..., classes:], 0)
    return result


def _softmax(run: Layers, scores: Tensor, need: int) -> Tensor:
    """Softmax over the channels, around the region too.

    Class by class: over the last axis torch takes ten times as long.
    """
    result = torch.empty_like(scores, memory_format=torch.contiguous_format)

    def work(box: Box) -> None:
        result[box] = torch.softmax(scores[box].movedim(-1, 0).contiguous(), dim=0).movedim(0, -1)

    run.everywhere(1, need, work)
    return result


# ------------------------------------------------------------------ which networks
_PROGRAMS: dict[type[nn.Module], Callable[[Layers, nn.Module, Tensor, bool], Tensor]] = {
    BMEX: _bmex,  # type: ignore[dict-item]
    ADUNet: _classes,  # type: ignore[dict-item]
}
_patterns: weakref.WeakKeyDictionary[nn.Module, dict[object, Patterns]] = (
    weakref.WeakKeyDictionary()
)


def _program(network: nn.Module) -> Callable[[Layers, nn.Module, Tensor, bool], Tensor]:
    return next(made for kind, made in _PROGRAMS.items() if isinstance(network, kind))


def runs_in_layers(network: nn.Module) -> bool:
    """Whether a network can be run layer by layer."""
    return isinstance(network, tuple(_PROGRAMS))


def emptiness(
    network: nn.Module, device: torch.device, dtype: torch.dtype = torch.float32
) -> Patterns:
    """What each layer makes of endless zeros; computed once for a network, device and type."""
    known = _patterns.setdefault(network, {})
    if (device, dtype) not in known:
        cube = np.ones((PERIOD,) * 3, bool)
        run = Layers(Regions(cube, whole=True, slab=PERIOD), device, dtype)
        with torch.inference_mode():
            _program(network)(run, network, torch.zeros((*cube.shape, 1), device=device), False)
        known[device, dtype] = run.found
    return known[device, dtype]


@dataclass(frozen=True)
class LayerRun:
    """What the layers of a network made.

    Attributes
    ----------
    values : (D, H, W, C) float32: scores of the classes and, where it was wanted, the image.
        Outside the wanted voxels they mean nothing
    operations : floating-point operations of the convolutions, a product and a sum being two
    """

    values: Tensor
    operations: float


def run_layers(
    network: nn.Module,
    volume: Tensor,
    regions: Regions,
    *,
    tissues_only: bool = False,
    dtype: torch.dtype = torch.float32,
) -> LayerRun:
    """What a network makes of a volume, where it is wanted.

    Parameters
    ----------
    network : one for which :func:`runs_in_layers` holds
    volume : (D, H, W) on the device that is to compute, template units
    regions : of the volume
    tissues_only : leave the image out
    dtype : of the features
    """
    run = Layers(regions, volume.device, dtype, emptiness(network, volume.device, dtype))
    with torch.inference_mode(), run:
        values = _program(network)(run, network, volume[..., None].float(), tissues_only)
    return LayerRun(values, run.operations)


def bytes_per_voxel(network: nn.Module, dtype: torch.dtype = torch.float32) -> int:
    """Memory that the layers take at their peak for each voxel of the volume."""
    parts = [(network, 1)]
    if isinstance(network, BMEX):
        parts = [(network.tissue, 1), (network.recon, 2 * CONNECTION)]
    most = max(most_held(net, net.steps, fed) for net, fed in parts)  # type: ignore[arg-type]
    return int(dtype.itemsize * most) + BESIDE

# SPDX-License-Identifier: Apache-2.0
"""Layers of a network over a whole volume, computed piece by piece.

Tiles that go through a whole network repeat work where they overlap, and their borders see
padding.  Here each *layer* goes through the volume in pieces instead: a piece reads its
neighbours' values from the layer before, so there is no overlap and no border.

* Features are arrays (D, H, W, C), channels last; what is concatenated lies side by side in one
  array, so nothing is copied for a concatenation.
* A batch normalisation before a convolution is done while a piece is read; one after a
  convolution is folded into its weights.
* Only pieces near the brain are computed (:mod:`bmex_bids.network.engine.regions`).  Further out, a layer
  has the values that it has in endless emptiness.  They repeat every 8 voxels or less, and are
  found by running the same layers over 8×8×8 voxels whose opposite faces touch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from bmex_bids.network.engine.folding import Affine
from bmex_bids.network.engine.regions import Box, Regions, Run

#: pieces that are computed at once, at most: each has work arrays of its own
AT_ONCE = 4
#: results up to which a float32 convolution is faster as one matrix product
THIN = 4
T = TypeVar("T")
#: values of a layer in endless emptiness, by its name
Patterns = dict[str, Tensor]


@dataclass(frozen=True)
class Layer:
    """What a layer reads and writes.

    Attributes
    ----------
    name : under which its pattern of emptiness is kept
    parts : (D, H, W, C) each; read side by side
    out : (D, H, W, C), an array or some channels of one
    scale, need : see :meth:`.regions.Regions.runs`
    before, relu : done to what is read; whether a ReLU is done to what is written
    """

    name: str
    parts: Sequence[Tensor]
    out: Tensor
    scale: int
    need: int
    before: Affine | None = None
    relu: bool = False


class Layers:
    """Runs layers over one volume; a context, in which pieces are computed side by side.

    Parameters
    ----------
    regions : where
    device, dtype : of the features
    patterns : what emptiness looks like; None while that is being found out: the volume is then
        taken as one whose opposite faces touch, and ``found`` has the patterns afterwards

    ``operations`` counts those of the convolutions: a product and a sum are two.
    """

    def __init__(
        self,
        regions: Regions,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        patterns: Patterns | None = None,
    ) -> None:
        self.regions, self.device, self.dtype, self.patterns = regions, device, dtype, patterns
        self.found: Patterns = {}
        self.operations = 0.0
        self._crew: ThreadPoolExecutor | None = None

    def __enter__(self) -> Layers:
        """One thread a piece and two pieces at once are faster than two threads for one piece."""
        self._threads = torch.get_num_threads()
        if self.device.type == "cpu" and self._threads > 1:
            share = -(-self._threads // AT_ONCE)
            self._crew = ThreadPoolExecutor(
                self._threads // share, initializer=torch.set_num_threads, initargs=(share,)
            )
        return self

    def __exit__(self, *_: object) -> None:
        if self._crew is not None:
            self._crew.shutdown()
            self._crew = None
            torch.set_num_threads(self._threads)

    def array(self, scale: int, channels: int, dtype: torch.dtype | None = None) -> Tensor:
        """Room for features at 1/scale, (D, H, W, channels); nothing is in it yet."""
        shape = (*(n // scale for n in self.regions.shape), channels)
        return torch.empty(shape, device=self.device, dtype=dtype or self.dtype)

    # -------------------------------------------------------------- layers
    def convolve(self, layer: Layer, weight: Tensor, bias: Tensor) -> None:
        """A 3×3×3 convolution, padding 1; weights are (out, in, 3, 3, 3) and (out,)."""
        kind = self._type(layer)
        thin = kind == torch.float32 and self.device.type == "cpu" and len(weight) <= THIN
        ready = weight.to(self.device, kind)
        if not thin:
            ready = ready.contiguous(memory_format=torch.channels_last_3d)
        bias = bias.to(self.device, kind)

        def make(box: Box) -> Tensor:
            x = self._read(layer, box, (1, 1), kind)
            if thin:
                return thin_convolution(x, ready, bias)
            return _last(convolution(_first(x), ready, bias))

        self._each(layer, make, lambda box: 2.0 * weight.numel() * _voxels(box))

    def upsample(self, layer: Layer, weight: Tensor, bias: Tensor) -> None:
        """A transposed 4×4×4 convolution of stride 2, padding 1; ``scale`` is that of the result.

        Weights are (in, out, 4, 4, 4) and (out,).
        """
        kind = self._type(layer)
        weight, bias = weight.to(self.device, kind), bias.to(self.device, kind)

        def make(box: Box) -> Tensor:
            x = self._read(layer, _halved(box), (1, 1), kind)
            return _last(F.conv_transpose3d(_first(x), weight, bias, stride=2, padding=3))

        self._each(layer, make, lambda box: 2.0 * weight.numel() * _voxels(_halved(box)))

    def pool(self, layer: Layer, padding: int) -> None:
        """Max-pooling 3×3×3, stride 2, of what a ReLU gives; ``scale`` is that of the result.

        Nothing is below zero then, so zeros may stand for the padding.  With ``padding`` 0 the
        windows begin at each result, and the last ones end behind the volume.
        """

        def make(box: Box) -> Tensor:
            x = self._read(layer, _doubled(box), (padding, 1 - padding), self.dtype)
            for axis in range(3):
                n = (x.shape[axis] - 1) // 2
                low, mid, high = (
                    x[(slice(None),) * axis + (slice(k, k + 2 * n, 2),)] for k in range(3)
                )
                x = torch.maximum(torch.maximum(low, mid), high)
            return x

        self._each(layer, make, lambda _: 0.0)

    def everywhere(self, scale: int, need: int, work: Callable[[Box], object]) -> None:
        """Do something for each part of a region and of its surroundings."""
        runs = self.regions.runs(scale, need)
        self._do(
            work, [box for run in runs for box in (*([run.box] if run.box else []), *run.around)]
        )

    # -------------------------------------------------------------- pieces
    def _type(self, layer: Layer) -> torch.dtype:
        """float32 where a layer reads or writes float32: the image goes in and comes out with all
        its grey values."""
        whole = any(a.dtype == torch.float32 for a in (*layer.parts, layer.out))
        return torch.float32 if whole else self.dtype

    def _each(
        self, layer: Layer, make: Callable[[Box], Tensor], operations: Callable[[Box], float]
    ) -> None:
        """Make a layer, and fill what lies around its region."""
        runs = self.regions.runs(layer.scale, layer.need)
        pattern = None if self.patterns is None else self.patterns[layer.name]

        def work(run: Run) -> None:
            if run.box is not None:
                target = layer.out[run.box].copy_(make(run.box))
                if layer.relu:
                    target.clamp_min_(0)
            if pattern is not None:
                for strip in run.around:
                    repeat(pattern, layer.out[strip])

        self.operations += sum(operations(run.box) for run in runs if run.box is not None)
        # the largest first, so that the threads are done at nearly the same time
        self._do(work, sorted(runs, key=lambda run: -_voxels(run.box)))
        if self.patterns is None:
            self.found[layer.name] = layer.out.clone()

    def _do(self, work: Callable[[T], object], parts: Sequence[T]) -> None:
        """Do it for all of them; none reads what another writes."""

        def alone(part: T) -> None:
            with torch.inference_mode():  # each thread has this to itself
                work(part)

        for _ in (map if self._crew is None else self._crew.map)(alone, parts):
            pass

    def _read(self, layer: Layer, box: Box, halo: tuple[int, int], dtype: torch.dtype) -> Tensor:
        """A piece and its halo, concatenated and activated; zeros beyond the volume."""
        limits = layer.parts[0].shape[:3]
        shape = [s.stop - s.start + sum(halo) for s in box]
        lows = [s.start - halo[0] for s in box]
        if self.patterns is None:  # opposite faces touch
            places = [
                torch.arange(a, a + n, device=self.device) % limit
                for a, n, limit in zip(lows, shape, limits, strict=True)
            ]
            x = torch.cat(list(layer.parts), dim=-1).to(dtype)
            for axis, index in enumerate(places):
                x = x.index_select(axis, index)
            return x if layer.before is None else _activate(x, x, layer.before.to(x.device, dtype))
        x = torch.empty(
            *shape, sum(p.shape[3] for p in layer.parts), device=self.device, dtype=dtype
        )
        here = [
            slice(max(-a, 0), min(n, limit - a))
            for a, n, limit in zip(lows, shape, limits, strict=True)
        ]
        for axis, (s, n) in enumerate(zip(here, shape, strict=True)):
            for beyond in (slice(0, s.start), slice(s.stop, n)):
                if beyond.stop > beyond.start:
                    x[(*(slice(None),) * axis, beyond)] = 0
        there = tuple(slice(a + s.start, a + s.stop) for a, s in zip(lows, here, strict=True))
        inside, at = x[tuple(here)], 0
        before = None if layer.before is None else layer.before.to(self.device, dtype)
        for part in layer.parts:
            end = at + part.shape[3]
            source, target = part[there], inside[..., at:end]
            if before is None:
                target.copy_(source)
            else:
                _activate(source, target, Affine(before.scale[at:end], before.shift[at:end]))
            at = end
        return x

    def activate(self, features: Tensor, scale: int, need: int, before: Affine) -> None:
        """A normalisation and its ReLU where the features are, around the region too."""
        here = before.to(self.device, self.dtype)
        self.everywhere(scale, need, lambda box: _activate(features[box], features[box], here))


def _activate(x: Tensor, out: Tensor, before: Affine) -> Tensor:
    """The same number format for ``x`` and ``out``, or x is converted."""
    return torch.addcmul(before.shift, x.to(out.dtype), before.scale, out=out).clamp_min_(0)


def repeat(pattern: Tensor, target: Tensor) -> None:
    """Repeat a pattern over a part of an array; the part begins where a pattern does."""
    (depth, height, width, channels), (a, b, c, _) = target.shape, pattern.shape
    i, j, k, _ = target.stride()
    view = target.as_strided(
        (depth // a, a, height // b, b, width // c, c, channels),
        (a * i, i, b * j, j, c * k, k, 1),
    )
    view.copy_(pattern[None, :, None, :, None, :])


def convolution(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A convolution without padding, of (1, C, D, H, W).

    Always oneDNN's where that is there: left to itself, torch takes its own for a float32 piece of
    few channels, which needs several times as long and 27 times the memory.
    """
    if x.device.type == "cpu" and torch.backends.mkldnn.is_available():
        result: Tensor = torch.mkldnn_convolution(
            x, weight, bias, padding=(0, 0, 0), stride=(1, 1, 1), dilation=(1, 1, 1), groups=1
        )
        return result
    return F.conv3d(x, weight, bias)


def thin_convolution(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A 3×3×3 convolution with few results: one matrix product, whose 27 parts are added up.

    Parameters
    ----------
    x : (D + 2, H + 2, W + 2, C)
    weight, bias : (out, C, 3, 3, 3) and (out,)

    Returns
    -------
    (D, H, W, out)
    """
    depth, height, width = (n - 2 for n in x.shape[:3])
    rows = weight.permute(2, 3, 4, 0, 1).reshape(-1, x.shape[3])  # (27 · out, C)
    parts = (rows @ x.reshape(-1, x.shape[3]).T).view(3, 3, 3, -1, *x.shape[:3])
    result = bias.view(-1, 1, 1, 1).repeat(1, depth, height, width)
    for i in range(3):
        for j in range(3):
            for k in range(3):
                result += parts[i, j, k, :, i : i + depth, j : j + height, k : k + width]
    return result.permute(1, 2, 3, 0)


def _voxels(box: Box | None) -> int:
    if box is None:
        return 0
    a, b, c = (s.stop - s.start for s in box)
    return a * b * c


def _halved(box: Box) -> Box:
    a, b, c = (slice(s.start // 2, s.stop // 2) for s in box)
    return a, b, c


def _doubled(box: Box) -> Box:
    a, b, c = (slice(s.start * 2, s.stop * 2) for s in box)
    return a, b, c


def _first(x: Tensor) -> Tensor:
    """(D, H, W, C) → (1, C, D, H, W), in the same memory."""
    return x.permute(3, 0, 1, 2)[None]


def _last(x: Tensor) -> Tensor:
    """(1, C, D, H, W) → (D, H, W, C), in the same memory."""
    return x[0].permute(1, 2, 3, 0)

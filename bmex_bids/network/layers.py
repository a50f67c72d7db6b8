# SPDX-License-Identifier: Apache-2.0
"""Layers of a network over a whole volume, computed piece by piece and nowhere twice.

Tiles that go through a whole network do much of its work again where they overlap, and their
borders see padding.  Here each *layer* goes through the volume in pieces instead: a piece reads
its neighbours' values from the layer before, so there is no overlap and no border.

* Features are arrays (D, H, W, C), channels last; what is concatenated lies side by side in one
  array, made once, so nothing is copied for a concatenation.
* A batch normalisation before a convolution is one multiplication and addition while the piece is
  read (it is in the processor's cache then); one after a convolution is folded into its weights.
* Only pieces near the brain are computed (:mod:`bmex_bids.network.regions`).  Further out, a layer
  has the values that it has in endless emptiness.  They repeat every 8 voxels or less, and are
  found by running the same layers over 8×8×8 voxels whose opposite faces touch.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from bmex_bids.network.folding import Affine, ahead
from bmex_bids.network.kernels import (
    THIN,
    copy_rows,
    halves,
    no_less,
    parities,
    rectify,
    thin_convolution,
)
from bmex_bids.network.pool import Pool, Workspace
from bmex_bids.network.regions import Box, Regions
from bmex_bids.network.winograd import BLOCK, convolve, transform_weight, values_needed

#: pieces that are computed at once, at most: each has work arrays of its own
AT_ONCE = 4
#: numbers in the largest work array of a piece: 8 MB of float32, which stays in a cache
PIECE = 2_000_000
#: channels from which on Winograd's convolution is the faster one (processor, float32)
FEWEST_CHANNELS = 8
#: results up to which a bfloat16 convolution of a processor wants its channels in whole groups of so many:
#: 80 with 16 zeros behind them take 0.83 of the time of 80
NARROW, TOGETHER = 16, 32
#: patterns of emptiness, by the name of the layer
Patterns = dict[str, Tensor]


@dataclass
class Tally:
    """Floating-point operations of the convolutions, a product and a sum being two.

    Attributes
    ----------
    plain : what plain convolutions of the computed voxels take
    done : what the matrix products that were made instead take
    """

    plain: float = 0.0
    done: float = 0.0


@dataclass(frozen=True)
class Piece:
    """A part of a layer that is computed at once, and what is to be done with it, before it."""

    box: Box
    first: Callable[[], None]


@dataclass
class Layers:
    """Runs layers over one volume.

    Attributes
    ----------
    regions : where
    device, dtype : of the features
    patterns : what emptiness looks like, from :meth:`emptiness`; None while that is being found
        out: the volume is then taken as one whose opposite faces touch
    winograd : use it where it is faster
    room : bytes that the program's arrays take at their peak, if that is known
    """

    regions: Regions
    device: torch.device
    dtype: torch.dtype = torch.float32
    patterns: Patterns | None = None
    winograd: bool = True
    piece: int = PIECE
    room: int = 0
    found: Patterns = field(default_factory=dict)
    tally: Tally = field(default_factory=Tally)

    def __post_init__(self) -> None:
        self._local = threading.local()
        self._crew: ThreadPoolExecutor | None = None
        self._pool = Pool(self.room) if self.room and self.device.type == "cpu" else None
        self._on_processor = self.device.type == "cpu"
        self._winograd = (
            self.winograd
            and self.patterns is not None
            and self._on_processor
            and self.dtype == torch.float32
        )

    # -------------------------------------------------------------- arrays
    def array(
        self,
        scale: int,
        channels: int,
        dtype: torch.dtype | None = None,
        *,
        brief: bool = False,
    ) -> Tensor:
        """Room for features at 1/scale, (D, H, W, channels); nothing is in it yet.

        ``brief``: it is let go before the next ones at a smaller scale are made.
        """
        shape = (*(n // scale for n in self.regions.shape), channels)
        kind = dtype or self.dtype
        if self._pool is not None:
            return self._pool.take(shape, kind, high=brief or scale > 1)
        return torch.empty(shape, device=self.device, dtype=kind)

    def _type(self, *arrays: Tensor) -> torch.dtype:
        """What a layer is computed in: float32 where it reads or writes float32.

        So the image goes in, and comes out, with all its grey values.
        """
        whole = any(a.dtype == torch.float32 for a in arrays)
        return torch.float32 if whole else self.dtype

    def _space(self, dtype: torch.dtype) -> Workspace:
        """Work arrays of this thread."""
        if not hasattr(self._local, "spaces"):
            self._local.spaces = {}
        found: Workspace = self._local.spaces.setdefault(dtype, Workspace(self.device, dtype))
        return found

    # -------------------------------------------------------------- pieces at once
    def __enter__(self) -> Layers:
        """Take on threads that compute pieces side by side.

        One thread for a piece and two pieces at once is faster than two threads for one piece.
        """
        threads = torch.get_num_threads()
        if self.device.type == "cpu" and threads > 1:
            share = -(-threads // AT_ONCE)
            self._crew = ThreadPoolExecutor(
                threads // share, initializer=torch.set_num_threads, initargs=(share,)
            )
            self._threads = threads
        return self

    def __exit__(self, *_: object) -> None:
        if self._crew is not None:
            self._crew.shutdown()
            self._crew = None
            torch.set_num_threads(self._threads)

    def _each(self, pieces: Sequence[Piece], work: Callable[[Box], None]) -> None:
        """Do it for every piece, the largest first; no piece reads what another writes.

        So the threads are done at nearly the same time.
        """

        def alone(piece: Piece) -> None:
            with torch.inference_mode():  # each thread has this to itself
                piece.first()
                work(piece.box)

        pieces = sorted(pieces, key=lambda piece: _voxels(piece.box), reverse=True)
        if self._crew is None or len(pieces) < 2:
            for piece in pieces:
                alone(piece)
            return
        for _ in self._crew.map(alone, pieces):
            pass

    # -------------------------------------------------------------- layers
    def convolve(
        self,
        name: str,
        parts: Sequence[Tensor],
        out: Tensor,
        weights: tuple[Tensor, Tensor],
        *,
        scale: int,
        need: int,
        before: Affine | None = None,
        relu: bool = False,
        add: bool = False,
    ) -> None:
        """A 3×3×3 convolution with padding 1 of features side by side.

        Parameters
        ----------
        name : of the layer, for its pattern
        parts : (D, H, W, C) each
        out : (D, H, W, C), a part of an array
        weights : (out, in, 3, 3, 3) and (out,)
        scale, need : see :meth:`Regions.runs`
        before : done to what is read
        relu : done to what is written
        add : add to ``out`` instead of overwriting it; ``parts`` must not share its memory
        """
        work = self._convolution(parts, out, weights, before=before, relu=relu, add=add)
        fast = self._is_winograd(self._type(*parts, out), weights[0])
        pieces = self._pieces(
            name, out, scale, need, max(weights[0].shape[:2]) if fast else 0, add
        )
        for piece in pieces:
            self._count(out[piece.box], weights[0])
            if fast:
                self._count_winograd(out[piece.box], _blocks(out[piece.box]), weights[0])
        self._each(pieces, work)
        self._learn(name, out)

    def _convolution(
        self,
        parts: Sequence[Tensor],
        out: Tensor,
        weights: tuple[Tensor, Tensor],
        *,
        before: Affine | None,
        relu: bool,
        add: bool,
    ) -> Callable[[Box], None]:
        """What makes one piece of a 3×3×3 convolution; the parameters are those of :meth:`convolve`."""
        kind = self._type(*parts, out)
        half = self.dtype == out.dtype == torch.bfloat16
        if half and kind == torch.float32 and self._on_processor and before is None:
            return self._convolution_in_halves(parts, out, weights, relu=relu, add=add)
        before, *weights_ahead = ahead(before, *weights, kind)
        weight, bias = (w.to(self.device, kind) for w in weights_ahead)
        before = self._cast(before, kind)
        if self._is_winograd(kind, weight):
            return self._winograds(parts, out, (weight, bias), before=before, relu=relu, add=add)
        thin = kind == torch.float32 and self._on_processor and weight.shape[0] <= THIN
        idle = 0
        if self._on_processor and kind == torch.bfloat16 and weight.shape[0] <= NARROW:
            idle = -weight.shape[1] % TOGETHER
        ready = F.pad(weight, (0,) * 7 + (idle,))
        ready = ready.contiguous(memory_format=torch.channels_last_3d)

        def work(box: Box) -> None:
            x = self._read(parts, box, (1, 1), before, kind, idle=idle)
            if thin:
                y = thin_convolution(x, weight, bias, self._space(kind))
            else:
                y = _last(F.conv3d(_first(x), ready, bias))
            _write(y, out[box], relu=relu, add=add)

        return work

    def _convolution_in_halves(
        self,
        parts: Sequence[Tensor],
        out: Tensor,
        weights: tuple[Tensor, Tensor],
        *,
        relu: bool,
        add: bool,
    ) -> Callable[[Box], None]:
        """The same of few channels of float32, with products of bfloat16 and hardly a loss.

        The bias is the weight of one more channel, of ones, that it may have a second half too.
        """
        weight, bias = (w.to(self.device, torch.float32) for w in weights)
        centre = F.pad(bias.view(-1, 1, 1, 1, 1), (1,) * 6)
        first, second = halves(torch.cat([weight, centre], dim=1))
        ready = torch.stack([first, first, second], dim=2).flatten(1, 2)
        ready = ready.contiguous(memory_format=torch.channels_last_3d)
        ones = weight.new_ones(1).expand(*parts[0].shape[:3], 1)

        def work(box: Box) -> None:
            x = self._read([*parts, ones], box, (1, 1), None, torch.float32)
            both = self._space(torch.bfloat16).take("halves", (*x.shape, 3))
            both[..., 0] = x
            both[..., 1] = x - both[..., 0]
            both[..., 2] = both[..., 0]
            y = _last(F.conv3d(_first(both.flatten(3)), ready))
            _write(y, out[box], relu=relu, add=add)

        return work

    def _is_winograd(self, kind: torch.dtype, weight: Tensor) -> bool:
        return (
            self._winograd and kind == torch.float32 and min(weight.shape[:2]) >= FEWEST_CHANNELS
        )

    def _winograds(
        self,
        parts: Sequence[Tensor],
        out: Tensor,
        weights: tuple[Tensor, Tensor],
        *,
        before: Affine | None,
        relu: bool,
        add: bool,
    ) -> Callable[[Box], None]:
        """The same by Winograd's algorithm, in float32; ``weights`` and ``before`` as they are to be used."""
        weight, bias = weights
        ready, space = transform_weight(weight), partial(self._space, torch.float32)

        def work(box: Box) -> None:
            target = out[box]
            sides = _blocks(target)
            x = self._read(parts, box, (1, 1), before, torch.float32, (*sides, target.shape[2]))
            y = target
            if add or list(target.shape[:2]) != sides:
                y = space().take("result", (*sides, *target.shape[2:]))
            convolve(x, ready, y, space())
            y = y[: target.shape[0], : target.shape[1]]
            if add:
                target.add_(y).add_(bias)
            elif y is target:
                target.add_(bias)
            else:
                target.copy_(y.add_(bias))
            if relu:
                rectify(target)

        return work

    def upsample(
        self,
        name: str,
        parts: Sequence[Tensor],
        out: Tensor,
        weights: tuple[Tensor, Tensor],
        *,
        scale: int,
        need: int,
        before: Affine | None = None,
        add: bool = False,
    ) -> None:
        """A transposed convolution of stride 2; ``scale`` is that of ``out``.

        Its kernel is 4 (padding 1) or 2 (none).  The other parameters are those of
        :meth:`convolve`; weights are (in, out, k, k, k) and (out,).
        """
        kind = self._type(*parts, out)
        weight, bias = (w.to(self.device, kind) for w in weights)
        before = self._cast(before, kind)
        halo, padding = {4: (1, 3), 2: (0, 0)}[weight.shape[2]]
        apart = parities(weight) if halo and self.device.type == "cpu" and not add else None
        pieces = self._pieces(name, out, scale, need, 0, add)

        def work(box: Box) -> None:
            x = self._read(parts, _halved(box), (halo, halo), before, kind)
            if apart is not None:
                for corner, taps in apart.items():
                    part = x[
                        tuple(slice(a, a + n - 1) for a, n in zip(corner, x.shape, strict=False))
                    ]
                    every_other = tuple(slice(a, None, 2) for a in corner)
                    out[box][every_other] = _last(F.conv3d(_first(part), taps, bias))
                return
            y = _last(F.conv_transpose3d(_first(x), weight, bias, 2, padding))
            if add:
                out[box] += y
            else:
                out[box] = y

        for piece in pieces:
            self._count(parts[0][_halved(piece.box)], weight)
        self._each(pieces, work)
        self._learn(name, out)

    def downsample(
        self,
        name: str,
        parts: Sequence[Tensor],
        out: Tensor,
        weights: tuple[Tensor, Tensor],
        *,
        scale: int,
        need: int,
    ) -> None:
        """A convolution of kernel 2 and stride 2; ``scale`` is that of ``out``."""
        kind = self._type(*parts, out)
        weight, bias = (w.to(self.device, kind) for w in weights)
        pieces = self._pieces(name, out, scale, need, 0)

        def work(box: Box) -> None:
            x = self._read(parts, _doubled(box), (0, 0), None, kind)
            out[box] = _last(F.conv3d(_first(x), weight, bias, 2))

        for piece in pieces:
            self._count(out[piece.box], weight)
        self._each(pieces, work)
        self._learn(name, out)

    def pool(
        self, name: str, part: Tensor, out: Tensor, *, scale: int, need: int, before: Affine
    ) -> None:
        """Max-pooling 3, stride 2, padding 1, of what a ReLU gives; ``scale`` is that of ``out``.

        Nothing is below zero then, so zeros may stand for the padding.
        """
        before = self._cast(before, self.dtype) or before

        def work(box: Box) -> None:
            x = self._read([part], _doubled(box), (1, 0), before, self.dtype)
            for axis in range(3):
                n = (x.shape[axis] - 1) // 2
                low, mid, high = (
                    x[(slice(None),) * axis + (slice(k, k + 2 * n, 2),)] for k in range(3)
                )
                x = torch.maximum(torch.maximum(low, mid), high)
            out[box] = x

        self._each(self._pieces(name, out, scale, need, 0), work)
        self._learn(name, out)

    def activate(self, part: Tensor, *, scale: int, need: int, before: Affine) -> None:
        """Do it where it is, the surroundings of the region included."""
        before = self._cast(before, self.dtype) or before

        def work(box: Box) -> None:
            x = part[box]
            if before.scale is not None and before.shift is not None:
                x.mul_(before.scale).add_(before.shift)
            rectify(x)

        self.everywhere(scale, need, work)

    def everywhere(self, scale: int, need: int, work: Callable[[Box], None]) -> None:
        """Do something for each part of a region and of its surroundings."""
        runs = self.regions.runs(scale, need)
        boxes = [b for run in runs for b in (*([run.box] if run.box else []), *run.around)]
        self._each([Piece(box, lambda: None) for box in boxes], work)

    # -------------------------------------------------------------- pieces
    def _pieces(
        self, name: str, out: Tensor, scale: int, need: int, channels: int, add: bool = False
    ) -> list[Piece]:
        """The pieces of a layer; with them what lies around is filled, unless that was done before."""
        runs = self.regions.runs(scale, need)
        boxes = [part for run in runs if run.box for part in self._cut(run.box, channels)]
        strips = [strip for run in runs for strip in run.around]
        if self.patterns is None or add:
            strips = []

        def fill(some: Sequence[Box]) -> None:
            for strip in some:
                self._fill(out[strip], self.patterns[name])  # type: ignore[index]

        if not boxes:
            fill(strips)
        # each has its share of what is to be filled
        return [Piece(box, partial(fill, strips[k :: len(boxes)])) for k, box in enumerate(boxes)]

    def _cut(self, box: Box, channels: int) -> list[Box]:
        """A run in pieces whose work arrays are small; cuts lie at even voxels."""
        if channels == 0:
            return [box]
        depth, height, width = (s.stop - s.start for s in box)
        tall = -(-depth // BLOCK) * BLOCK, -(-height // BLOCK) * BLOCK
        number = -(-values_needed(*tall, width, channels) // self.piece)
        length = max(-(-width // number), min(width, 8))
        length += length % 2
        return [
            (box[0], box[1], slice(at, min(at + length, box[2].stop)))
            for at in range(box[2].start, box[2].stop, length)
        ]

    def _fill(self, target: Tensor, pattern: Tensor) -> None:
        """Repeat a pattern over a part of an array; the part begins where a pattern does."""
        depth, height, width, channels = target.shape
        a, b, c, _ = pattern.shape
        i, j, k, _ = target.stride()
        view = target.as_strided(  # one call for what three would do
            (depth // a, a, height // b, b, width // c, c, channels),
            (a * i, i, b * j, j, c * k, k, 1),
        )
        view.copy_(pattern[None, :, None, :, None, :])

    def _count(self, result: Tensor, weight: Tensor) -> None:
        """A convolution: each of the values (transposed: each of those read) meets each weight."""
        operations = 2.0 * weight.numel() * result[..., 0].numel()
        self.tally.plain += operations
        self.tally.done += operations

    def _count_winograd(self, result: Tensor, sides: Sequence[int], weight: Tensor) -> None:
        """The same convolution, as it is done: instead of what :meth:`_count` says."""
        self.tally.done -= 2.0 * weight.numel() * result[..., 0].numel()
        rows = values_needed(sides[0], sides[1], result.shape[2], 1)
        self.tally.done += 2.0 * 3 * rows * weight.shape[0] * weight.shape[1]

    def _learn(self, name: str, out: Tensor) -> None:
        if self.patterns is None:
            self.found[name] = out.clone()

    def _cast(self, before: Affine | None, dtype: torch.dtype) -> Affine | None:
        if before is None:
            return None
        scale, shift, floor = (
            None if part is None else part.to(self.device, dtype)
            for part in (before.scale, before.shift, before.floor)
        )
        return Affine(scale, shift, floor, before.below)

    def _read(
        self,
        parts: Sequence[Tensor],
        box: Box,
        halo: tuple[int, int],
        before: Affine | None,
        dtype: torch.dtype,
        sides: Sequence[int] | None = None,
        idle: int = 0,
    ) -> Tensor:
        """A piece and its halo, concatenated and activated; beyond the volume zeros, or the floor.

        ``sides`` are those of the result without halo, where they are longer than the box's; ``idle`` is the
        number of channels of zeros behind the others.
        """
        sides = sides or [s.stop - s.start for s in box]
        channels = sum(part.shape[3] for part in parts)
        shape = tuple(n + sum(halo) for n in sides)
        if idle:  # a work array of their own, in which those channels are never written to
            padded = self._space(dtype).take(
                f"read {channels}", (*shape, channels + idle), zeros=True
            )
            x = padded[..., :channels]
        else:
            padded = x = self._space(dtype).take("read", (*shape, channels))
        lows = [s.start - halo[0] for s in box]
        if self.patterns is None:
            here: tuple[slice, ...] = (slice(None),) * 3
        else:
            limits = parts[0].shape[:3]
            here = tuple(
                slice(max(-a, 0), min(n, limit - a))
                for a, n, limit in zip(lows, shape, limits, strict=True)
            )
            padding = 0 if before is None or before.floor is None else before.floor
            for axis, (s, n) in enumerate(zip(here, shape, strict=True)):
                before_it = (slice(None),) * axis
                x[(*before_it, slice(0, s.start))] = padding
                x[(*before_it, slice(s.stop, n))] = padding
        at = 0
        for part in parts:
            end = at + part.shape[3]
            if self.patterns is None:
                source = part
                for axis, (a, n) in enumerate(zip(lows, shape, strict=True)):
                    index = torch.arange(a, a + n, device=part.device) % part.shape[axis]
                    source = source.index_select(axis, index)
            else:
                source = part[
                    tuple(slice(a + s.start, a + s.stop) for a, s in zip(lows, here, strict=True))
                ]
            target = x[here][..., at:end]
            if before is not None and source.dtype != dtype:
                # the image is in full precision, features may be in half
                source = target.copy_(source)
            if before is None:
                target.copy_(source)
            elif before.floor is not None:
                below = [channel - at for channel in before.below if at <= channel < end]
                no_less(source, before.floor[at:end], target, below)
            elif before.scale is None or before.shift is None:
                rectify(source, target)
            else:
                scale, shift = before.scale[at:end], before.shift[at:end]
                torch.addcmul(shift, source, scale, out=target)
                rectify(target)
            at = end
        return padded


def _write(y: Tensor, target: Tensor, *, relu: bool, add: bool) -> None:
    """Results of a convolution where they belong, or added to what is there."""
    if add:
        target.add_(y)
    else:
        copy_rows(y, target)
    if relu:
        rectify(target)


def _voxels(box: Box) -> int:
    return math.prod(s.stop - s.start for s in box)


def _halved(box: Box) -> Box:
    """The voxels of half the grid."""
    a, b, c = (slice(s.start // 2, s.stop // 2) for s in box)
    return a, b, c


def _doubled(box: Box) -> Box:
    """The voxels of twice the grid."""
    a, b, c = (slice(s.start * 2, s.stop * 2) for s in box)
    return a, b, c


def _blocks(target: Tensor) -> list[int]:
    """Depth and height in whole blocks of Winograd's."""
    return [-(-n // BLOCK) * BLOCK for n in target.shape[:2]]


def _first(x: Tensor) -> Tensor:
    """(D, H, W, C) → (1, C, D, H, W), in the same memory."""
    return x.permute(3, 0, 1, 2)[None]


def _last(x: Tensor) -> Tensor:
    """(1, C, D, H, W) → (D, H, W, C), in the same memory."""
    return x[0].permute(1, 2, 3, 0)

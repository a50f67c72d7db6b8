# SPDX-License-Identifier: Apache-2.0
"""Layers of a network over a whole volume, computed piece by piece and nowhere twice.

Tiles that go through a whole network do much of its work again where they overlap, and their
borders see padding.  Here each *layer* goes through the volume in pieces instead: a piece reads
its neighbours' values from the layer before, so there is no overlap and no border.

* Features are arrays (D, H, W, C), channels last; what is concatenated lies side by side in one
  array, made once, so nothing is copied for a concatenation.
* A batch normalisation before a convolution is one multiplication and addition while the piece is
  read (it is in the processor's cache then); one after a convolution is folded into its weights.
* Only pieces near the brain are computed (:mod:`bmex_bids.network.engine.regions`).  Further out, a layer
  has the values that it has in endless emptiness.  They repeat every 8 voxels or less, and are
  found by running the same layers over 8×8×8 voxels whose opposite faces touch.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from bmex_bids.network.engine.folding import Affine, ahead
from bmex_bids.network.engine.kernels import (
    THIN,
    copy_rows,
    halves,
    largest,
    no_less,
    parities,
    rectify,
    thin_convolution,
)
from bmex_bids.network.engine.pieces import (
    Arrange,
    Piece,
    doubled,
    halved,
    joined,
    longest_of_winograd,
    shortened,
    voxels,
)
from bmex_bids.network.engine.pool import Pool, Workspace
from bmex_bids.network.engine.regions import Box, Regions
from bmex_bids.network.engine.winograd import BLOCK, convolve, transform_weight, values_needed

#: pieces that are computed at once, at most: each has work arrays of its own
AT_ONCE = 4
#: numbers in the largest work array of a piece: 8 MB of float32, which stays in a cache
PIECE = 2_000_000
#: channels from which on Winograd's convolution is the faster one (processor, float32)
FEWEST_CHANNELS = 8
#: results up to which a bfloat16 convolution of a processor wants its channels in whole groups of so many:
#: 80 with 16 zeros behind them take 0.83 of the time of 80
NARROW, TOGETHER = 16, 32
#: results from which on a bfloat16 convolution of a processor wants rows that are no longer than so many voxels:
#: oneDNN multiplies 128 results in blocks of 32 then instead of 64, in 0.7 of the time
WIDE, LONGEST = 128, 48
#: patterns of emptiness, by the name of the layer
Patterns = dict[str, Tensor]
#: the results of a piece, (D, H, W, C); it may make them where they belong, if it is given the place
Maker = Callable[[Box, Tensor | None], Tensor]


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
    memory : what lends the memory of large arrays; None: torch does
    """

    regions: Regions
    device: torch.device
    dtype: torch.dtype = torch.float32
    patterns: Patterns | None = None
    winograd: bool = True
    piece: int = PIECE
    memory: Pool | None = None
    found: Patterns = field(default_factory=dict)
    tally: Tally = field(default_factory=Tally)

    def __post_init__(self) -> None:
        self._local = threading.local()
        self._crew: ThreadPoolExecutor | None = None
        self._on_processor = self.device.type == "cpu"
        self._in_halves = self._on_processor and self.dtype == torch.bfloat16
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
        if self.memory is not None:
            return self.memory.take(shape, kind, high=brief or scale > 1)
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
        if self._on_processor and threads > 1:
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
                if piece.first is not None:
                    piece.first()
                work(piece.box)

        pieces = sorted(pieces, key=lambda piece: voxels(piece.box), reverse=True)
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
        kind = self._type(*parts, out)
        weight = weights[0]
        fast = (
            self._winograd and kind == torch.float32 and min(weight.shape[:2]) >= FEWEST_CHANNELS
        )
        if fast:
            make = self._winograds(parts, weights, before)
        elif (
            kind == torch.float32
            and self._in_halves
            and (made := self._halved(parts, weights, before, out.dtype))
        ):
            make = made
        else:
            make = self._plain(parts, weights, before, kind)

        def work(box: Box) -> None:
            target = out[box]
            result = make(box, None if add else target)
            if add:
                target.add_(result)
            elif result is not target:
                copy_rows(result, target)
            if relu:
                rectify(target)

        arrange = self._together(scale)
        if fast:
            channels = max(weight.shape[:2])
            arrange = partial(shortened, longest=longest_of_winograd(channels, self.piece))
        elif self._in_halves and len(weight) >= WIDE:
            arrange = partial(shortened, longest=lambda _: LONGEST)
        pieces = self._pieces(name, out, scale, need, arrange, add=add)
        for piece in pieces:
            self._count(out[piece.box], weight, _blocks(piece.box) if fast else None)
        self._each(pieces, work)
        self._learn(name, out)

    def _plain(
        self,
        parts: Sequence[Tensor],
        weights: tuple[Tensor, Tensor],
        before: Affine | None,
        kind: torch.dtype,
    ) -> Maker:
        """torch's own convolution, of arrays of ``kind``; or one matrix product where results are few."""
        before, *weights_ahead = ahead(before, *weights, kind)
        weight, bias = (w.to(self.device, kind) for w in weights_ahead)
        before = self._cast(before, kind)
        if kind == torch.float32 and self._on_processor and len(weight) <= THIN:
            return lambda box, _: thin_convolution(
                self._read(parts, box, (1, 1), before, kind), weight, bias, self._space(kind)
            )
        idle = 0
        if self._in_halves and kind == torch.bfloat16 and len(weight) <= NARROW:
            idle = -weight.shape[1] % TOGETHER
        ready = _ready(F.pad(weight, (0,) * 7 + (idle,)) if idle else weight)

        def make(box: Box, _: Tensor | None) -> Tensor:
            x = self._read(parts, box, (1, 1), before, kind, idle=idle)
            return _last(F.conv3d(_first(x), ready, bias))

        return make

    def _halved(
        self,
        parts: Sequence[Tensor],
        weights: tuple[Tensor, Tensor],
        before: Affine | None,
        results: torch.dtype,
    ) -> Maker | None:
        """float32 in or out of products of bfloat16, with hardly a loss; None where that cannot be."""
        if results == torch.bfloat16:
            return self._of_float32(parts, weights) if before is None else None
        return self._to_float32(parts, weights, before)

    def _of_float32(self, parts: Sequence[Tensor], weights: tuple[Tensor, Tensor]) -> Maker:
        """float32 → bfloat16, of few channels.

        The bias is the weight of one more channel, of ones, that it may have a second half too.
        """
        weight, bias = (w.to(self.device, torch.float32) for w in weights)
        centre = F.pad(bias.view(-1, 1, 1, 1, 1), (1,) * 6)
        first, second = halves(torch.cat([weight, centre], dim=1))
        ready = _ready(torch.cat([first, first, second], dim=1))
        ones = weight.new_ones(1).expand(*parts[0].shape[:3], 1)

        def make(box: Box, _: Tensor | None) -> Tensor:
            first, second = halves(self._read([*parts, ones], box, (1, 1), None, torch.float32))
            return _last(F.conv3d(_first(torch.cat([first, second, first], dim=-1)), ready))

        return make

    def _to_float32(
        self, parts: Sequence[Tensor], weights: tuple[Tensor, Tensor], before: Affine | None
    ) -> Maker | None:
        """bfloat16 → float32, of few results.

        One convolution gives the first half of the results, and all that the weights' second halves make.
        Another reads those first halves too, takes them away, and so gives what their rounding has lost.
        """
        kind, results = torch.bfloat16, len(weights[1])
        if not 1 < results <= NARROW // 2 or any(part.dtype != kind for part in parts):
            return None
        before, weight, bias = ahead(before, *weights, kind)
        if before is None or before.floor is None:
            return None
        before, at = self._cast(before, kind), weight.shape[1]
        idle = results + -(at + results) % TOGETHER
        both = F.pad(torch.cat(halves(weight.float())), (0,) * 7 + (idle,))
        less = both[:results].clone()
        less[range(results), range(at, at + results), 1, 1, 1] = -1
        once, again = _ready(both), _ready(less)
        biases = torch.cat(halves(bias.float()))
        rest = (bias - biases.double().view(2, -1).sum(dim=0)).float()

        def make(box: Box, _: Tensor | None) -> Tensor:
            x = self._read(parts, box, (1, 1), before, kind, idle=idle)
            first = _last(F.conv3d(_first(x), once, biases))
            x[1:-1, 1:-1, 1:-1, at : at + results] = first[..., :results]
            lost = _last(F.conv3d(_first(x), again, biases[:results]))
            return rest + first[..., :results] + lost + first[..., results:]

        return make

    def _winograds(
        self, parts: Sequence[Tensor], weights: tuple[Tensor, Tensor], before: Affine | None
    ) -> Maker:
        """Winograd's algorithm, in float32."""
        kind = torch.float32
        before, *weights_ahead = ahead(before, *weights, kind)
        weight, bias = (w.to(self.device, kind) for w in weights_ahead)
        before = self._cast(before, kind)
        ready, space = transform_weight(weight), partial(self._space, kind)

        def make(box: Box, place: Tensor | None) -> Tensor:
            depth, height, width = (s.stop - s.start for s in box)
            sides = _blocks(box)
            x = self._read(parts, box, (1, 1), before, kind, (*sides, width))
            if place is None or [depth, height] != sides:
                whole = space().take("result", (*sides, width, len(weight)))
                place = whole[:depth, :height]
            else:
                whole = place
            convolve(x, ready, whole, space())
            return place.add_(bias)

        return make

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
        apart = parities(weight) if halo and self._on_processor and not add else None
        pieces = self._pieces(name, out, scale, need, self._together(scale), add=add)

        def work(box: Box) -> None:
            x = self._read(parts, halved(box), (halo, halo), before, kind)
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
            self._count(parts[0][halved(piece.box)], weight)
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
        pieces = self._pieces(name, out, scale, need, self._together(scale // 2))

        def work(box: Box) -> None:
            x = self._read(parts, doubled(box), (0, 0), None, kind)
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
            x = self._read([part], doubled(box), (1, 0), before, self.dtype)
            for axis in range(3):
                n = (x.shape[axis] - 1) // 2
                low, mid, high = (
                    x[(slice(None),) * axis + (slice(k, k + 2 * n, 2),)] for k in range(3)
                )
                x = largest(low, mid, high)
            out[box] = x

        self._each(self._pieces(name, out, scale, need, self._together(scale // 2)), work)
        self._learn(name, out)

    def activate(self, part: Tensor, *, scale: int, need: int, before: Affine) -> None:
        """Do it where it is, the surroundings of the region included."""
        before = self._cast(before, self.dtype) or before

        def work(box: Box) -> None:
            x = part[box]
            if before.scale is not None and before.shift is not None:
                torch.addcmul(before.shift, x, before.scale, out=x)
            rectify(x)

        self.everywhere(scale, need, work)

    def everywhere(self, scale: int, need: int, work: Callable[[Box], None]) -> None:
        """Do something for each part of a region and of its surroundings."""
        runs = self.regions.runs(scale, need)
        boxes = [b for run in runs for b in (*([run.box] if run.box else []), *run.around)]
        self._each([Piece(box) for box in boxes], work)

    # -------------------------------------------------------------- pieces
    def _together(self, finest: int) -> Arrange:
        """Pieces as the regions have them; joined where the finest grid that is read or written is a coarse one."""
        return joined if self._in_halves and finest > 1 else list

    def _pieces(
        self,
        name: str,
        out: Tensor,
        scale: int,
        need: int,
        arrange: Arrange,
        *,
        add: bool = False,
    ) -> list[Piece]:
        """The pieces of a layer; with them what lies around is filled, unless that was done before."""
        runs = self.regions.runs(scale, need)
        boxes = arrange([run.box for run in runs if run.box])
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

    def _count(self, result: Tensor, weight: Tensor, blocks: Sequence[int] | None = None) -> None:
        """A convolution: each of the values (transposed: each of those read) meets each weight.

        ``blocks``: done by Winograd's algorithm, whose blocks make that depth and height.
        """
        plain = 2.0 * weight.numel() * result[..., 0].numel()
        self.tally.plain += plain
        if blocks is None:
            self.tally.done += plain
        else:
            depth, height = blocks
            rows = values_needed(depth, height, result.shape[2], 1)
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
        number of channels of zeros behind the others, which the caller may write to.
        """
        sides = sides or [s.stop - s.start for s in box]
        channels = sum(part.shape[3] for part in parts)
        shape = tuple(n + sum(halo) for n in sides)
        if idle:  # a work array of their own, in which those channels are never written to
            padded = self._space(dtype).take(
                f"read {channels}+{idle}", (*shape, channels + idle), zeros=True
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
                for beyond in (slice(0, s.start), slice(s.stop, n)):
                    if beyond.stop > beyond.start:
                        x[(*before_it, beyond)] = padding
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


def _blocks(box: Box) -> list[int]:
    """Depth and height in whole blocks of Winograd's."""
    return [-(-(s.stop - s.start) // BLOCK) * BLOCK for s in box[:2]]


def _ready(weight: Tensor) -> Tensor:
    """Weights as features lie: channels last."""
    return weight.contiguous(memory_format=torch.channels_last_3d)


def _first(x: Tensor) -> Tensor:
    """(D, H, W, C) → (1, C, D, H, W), in the same memory."""
    return x.permute(3, 0, 1, 2)[None]


def _last(x: Tensor) -> Tensor:
    """(1, C, D, H, W) → (D, H, W, C), in the same memory."""
    return x[0].permute(1, 2, 3, 0)

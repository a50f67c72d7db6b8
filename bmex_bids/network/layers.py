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

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bmex_bids.network.kernels import THIN, no_less, parities, rectify, thin_convolution
from bmex_bids.network.pool import Pool, Workspace
from bmex_bids.network.regions import Box, Regions
from bmex_bids.network.winograd import BLOCK, convolve, transform_weight, values_needed

#: pieces that are computed at once, at most: each has work arrays of its own
AT_ONCE = 4
#: numbers in the largest work array of a piece: 8 MB of float32, which stays in a cache
PIECE = 2_000_000
#: channels from which on Winograd's convolution is the faster one (processor, float32)
FEWEST_CHANNELS = 8
#: standard deviations from the mean beyond which a ReLU hardly ever, or hardly never, cuts
UNUSUAL = 3.0
#: from zero, that a ReLU may cut and be done by a comparison
FARTHEST = 1e15
#: patterns of emptiness, by the name of the layer
Patterns = dict[str, Tensor]


@dataclass(frozen=True)
class Affine:
    """``relu(scale · x + shift)``, for each channel; ``scale`` None is the ReLU alone.

    With ``floor`` it is ``max(x, floor)``, and the rest is left to the weights: see :func:`ahead`.
    ``below``: the channels whose floor is below zero.
    """

    scale: Tensor | None = None
    shift: Tensor | None = None
    floor: Tensor | None = None
    below: tuple[int, ...] = ()

    def lifted(self, by: Tensor) -> Affine:
        """The same of features that are stored higher, each channel ``by`` its own."""
        assert self.scale is not None  # noqa: S101 - for mypy
        assert self.shift is not None  # noqa: S101
        return Affine(self.scale, self.shift - self.scale * by)


def lift(readers: Sequence[tuple[nn.Module, tuple[int, int]]], channels: int) -> Tensor:
    """How much higher features are to be stored, that hardly a floor of who reads them is below zero.

    The lowest floor comes to lie a hair above zero, since processors compare numbers that are not below
    zero several times as fast (:func:`.kernels.no_less`).  The price, where several read a feature with
    floors far apart, is some of bfloat16's precision: the highest of them lies where numbers are coarser.

    Parameters
    ----------
    readers : batch normalisations with a ReLU behind them; the channels that each reads, first and end
    channels : of the features

    Returns
    -------
    (channels,) float64; zero where nobody reads.  Floors of scales that are not positive do not count
    (see :func:`ahead`), nor do those that are :data:`UNUSUAL`: whoever hardly uses a channel has its
    floor anywhere, and must not take the precision from the others who read it.
    """
    floors = [(_usual_floor(norm), span) for norm, span in readers]
    lowest = floors[0][0].new_full((channels,), torch.inf)
    for floor, (low, end) in floors:
        lowest[low:end] = torch.minimum(lowest[low:end], floor)
    return torch.where(lowest.isfinite(), 1e-6 * (1 + lowest.abs()) - lowest, 0.0)


def _usual_floor(norm: nn.Module) -> Tensor:
    """What a normalisation takes to zero, (channels,) float64; infinite where that is to count for nothing."""
    before = affine(norm)
    assert isinstance(norm, nn.BatchNorm3d)  # noqa: S101 - affine has seen to it
    assert before.scale is not None  # noqa: S101 - for mypy, like those below
    assert norm.running_mean is not None  # noqa: S101
    assert norm.running_var is not None  # noqa: S101
    floor = _floor(before)
    away = (floor - norm.running_mean).abs() / (norm.running_var + norm.eps).sqrt()
    return torch.where((before.scale > 0) & (away <= UNUSUAL), floor, torch.inf)


def _floor(before: Affine) -> Tensor:
    """What a normalisation takes to zero, (channels,) float64; not finite where a scale is zero."""
    assert before.scale is not None  # noqa: S101 - for mypy
    assert before.shift is not None  # noqa: S101
    return -before.shift.double() / before.scale.double()


def ahead(
    before: Affine | None, weight: Tensor, bias: Tensor, dtype: torch.dtype
) -> tuple[Affine | None, Tensor, Tensor]:
    """A normalisation and ReLU done by one comparison and the weights of the convolution behind them.

    For a positive scale ``relu(scale · x + shift) = scale · (max(x, floor) − floor)`` with
    ``floor = −shift / scale``.  The factor goes into the weights, what is taken away into the bias, and
    the padding must be ``floor`` where it was zero.  Half the time of a product, a sum and a comparison.

    Parameters
    ----------
    before : what is read goes through it; left as it is unless all its scales are positive and all its
        floors nearer than :data:`FARTHEST`
    weight, bias : (out, in, 3, 3, 3) and (out,)
    dtype : of what is read; the floor is rounded to it first, so that nothing is exactly nothing

    Returns
    -------
    before, weight, bias : in float64 where they have changed
    """
    if before is None or before.scale is None or before.shift is None or before.scale.is_meta:
        return before, weight, bias
    scale = before.scale.double()
    floor = _floor(before).to(dtype)
    # a floor far away comes of a scale that has decayed to nothing, by which weights would vanish in bfloat16
    if not bool((scale > 0).all()) or not bool((floor.abs() < FARTHEST).all()):
        return before, weight, bias
    scaled = weight.double() * scale.view(1, -1, 1, 1, 1)
    less = scaled.sum(dim=(2, 3, 4)) @ floor.double()
    below = tuple(torch.nonzero(floor < 0).flatten().tolist())
    return Affine(floor=floor, below=below), scaled, bias.double() - less


def affine(norm: nn.Module) -> Affine:
    """A batch normalisation in inference, and the ReLU behind it."""
    if (
        not isinstance(norm, nn.BatchNorm3d)
        or norm.running_mean is None
        or norm.running_var is None
    ):
        raise TypeError(f"expected a batch normalisation with statistics, got {norm}")
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.affine:
        scale = scale * norm.weight.double()
    shift = -norm.running_mean.double() * scale
    if norm.affine:
        shift = shift + norm.bias.double()
    return Affine(scale, shift)


def folded(layer: nn.Module, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution that does the batch normalisation behind it too.

    Exact but for rounding (the product is made in float64): see the tests.
    """
    found = affine(norm)
    weight, bias = parameters(layer)
    assert found.scale is not None  # noqa: S101 - for mypy
    assert found.shift is not None  # noqa: S101
    return (
        (weight.double() * found.scale.view(-1, 1, 1, 1, 1)).to(weight.dtype),
        (bias.double() * found.scale + found.shift).to(bias.dtype),
    )


def parameters(layer: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight and bias of a (transposed) convolution; zeros for a bias that it does not have."""
    if not isinstance(layer, nn.Conv3d | nn.ConvTranspose3d):
        raise TypeError(f"expected a three-dimensional convolution, got {layer}")
    weight = layer.weight.detach()
    if layer.bias is None:
        return weight, weight.new_zeros(layer.out_channels)
    return weight, layer.bias.detach()


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
        self._winograd = (
            self.winograd
            and self.patterns is not None
            and self.device.type == "cpu"
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

    def _each(self, boxes: Sequence[Box], work: Callable[[Box], None]) -> None:
        """Do it for every piece; no piece reads what another writes."""
        if self._crew is None or len(boxes) < 2:
            for box in boxes:
                work(box)
            return

        def alone(box: Box) -> None:
            with torch.inference_mode():  # each thread has this to itself
                work(box)

        for _ in self._crew.map(alone, boxes):
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
        before, *weights_ahead = ahead(before, *weights, kind)
        weight, bias = (w.to(self.device, kind) for w in weights_ahead)
        before = self._cast(before, kind)
        fast = self._winograd and min(weight.shape[:2]) >= FEWEST_CHANNELS
        thin = kind == torch.float32 and self.device.type == "cpu" and weight.shape[0] <= THIN
        ready = (
            transform_weight(weight)
            if fast
            else weight.contiguous(memory_format=torch.channels_last_3d)
        )
        boxes = self._boxes(name, out, scale, need, max(weight.shape[:2]) if fast else 0, add)

        def work(box: Box) -> None:
            target = out[box]
            if not fast:
                x = self._read(parts, box, (1, 1), before, kind)
                if thin:
                    y = thin_convolution(x, weight, bias, self._space(kind))
                else:
                    y = _last(F.conv3d(_first(x), ready, bias))
                if add:
                    target.add_(y)
                else:
                    target.copy_(y)
            else:
                sides = _blocks(target)
                x = self._read(parts, box, (1, 1), before, kind, (*sides, target.shape[2]))
                y = target
                if add or list(target.shape[:2]) != sides:
                    y = self._space(kind).take("result", (*sides, *target.shape[2:]))
                convolve(x, ready, y, self._space(kind))
                y = y[: target.shape[0], : target.shape[1]]
                if add:
                    target.add_(y).add_(bias)
                elif y is target:
                    target.add_(bias)
                else:
                    target.copy_(y.add_(bias))
            if relu:
                rectify(target)

        for box in boxes:
            self._count(out[box], weight)
            if fast:
                self._count_winograd(out[box], _blocks(out[box]), weight)
        self._each(boxes, work)
        self._learn(name, out)

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
        boxes = self._boxes(name, out, scale, need, 0, add)

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

        for box in boxes:
            self._count(parts[0][_halved(box)], weight)
        self._each(boxes, work)
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
        boxes = self._boxes(name, out, scale, need, 0)

        def work(box: Box) -> None:
            x = self._read(parts, _doubled(box), (0, 0), None, kind)
            out[box] = _last(F.conv3d(_first(x), weight, bias, 2))

        for box in boxes:
            self._count(out[box], weight)
        self._each(boxes, work)
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

        self._each(self._boxes(name, out, scale, need, 0), work)
        self._learn(name, out)

    def activate(self, part: Tensor, *, scale: int, need: int, before: Affine) -> None:
        """Do it where it is, the surroundings of the region included."""
        before = self._cast(before, self.dtype) or before
        boxes = [
            box
            for run in self.regions.runs(scale, need)
            for box in ((run.box, *run.around) if run.box else run.around)
        ]
        for box in boxes:
            x = part[box]
            if before.scale is not None and before.shift is not None:
                x.mul_(before.scale).add_(before.shift)
            rectify(x)

    # -------------------------------------------------------------- pieces
    def _boxes(
        self, name: str, out: Tensor, scale: int, need: int, channels: int, add: bool = False
    ) -> list[Box]:
        """The pieces of a layer; what lies around them is filled, unless that was done before."""
        boxes = []
        for run in self.regions.runs(scale, need):
            if self.patterns is not None and not add:
                for strip in run.around:
                    self._fill(out[strip], self.patterns[name])
            if run.box is not None:
                boxes += self._cut(run.box, channels)
        return boxes

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
        view = target
        for axis in range(3):
            period = pattern.shape[axis]
            view = view.unflatten(2 * axis, (view.shape[2 * axis] // period, period))
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
    ) -> Tensor:
        """A piece and its halo, concatenated and activated; beyond the volume zeros, or the floor.

        ``sides`` are those of the result without halo, where they are longer than the box's.
        """
        sides = sides or [s.stop - s.start for s in box]
        channels = sum(part.shape[3] for part in parts)
        shape = tuple(n + sum(halo) for n in sides)
        x = self._space(dtype).take("read", (*shape, channels))
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
        return x


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

# SPDX-License-Identifier: Apache-2.0
"""Run an enhancement network over a brain.

``fast``, the default, is the whole brain at once, layer by layer (:mod:`bmex_bids.network.engine.layers`),
or as few tiles as memory asks for.  ``reference`` is the published geometry, for comparison.
"""

from __future__ import annotations

import functools
import itertools
import logging
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bmex_bids.common.boxes import bounding_box
from bmex_bids.exceptions import ImageError, MemoryLimitError
from bmex_bids.network.devices import (
    free_bytes,
    freed_memory_kept,
    is_out_of_memory,
    native_dtype,
    reason_of,
    resolve_device,
)
from bmex_bids.network.engine.layers import Tally
from bmex_bids.network.engine.pool import Memory
from bmex_bids.network.engine.programs import (
    best_dtype,
    bytes_per_voxel,
    has_program,
    receptive_field,
    run_program,
    slab,
)
from bmex_bids.network.engine.regions import Regions
from bmex_bids.network.inference.slices import FEW_PLANES, PLANES, run_slices
from bmex_bids.network.inference.tiling import (
    WeightedSum,
    boxes,
    cores,
    fitted,
    network_order,
    reference_grid,
    tile_weight,
    volume_order,
)
from bmex_bids.network.models.compact import whose_turn
from bmex_bids.network.models.slices import SliceUNet
from bmex_bids.network.weights.checkpoints import load_network
from bmex_bids.network.weights.registry import SLICES, WeightRecord

LOGGER = logging.getLogger(__name__)

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
CLASSES = 4  # background, CSF, GM, WM
MULTIPLE = 8  # three halvings
MARGIN = 8  # voxels around the brain that the network may see
OVERLAP = 24  # voxels that a tile sees beyond its core
GEOMETRIES = ("fast", "reference")
#: the published way: cubes of 40 voxels every 18, of whose results the outer 5 are dropped
PATCH, STRIDE, CROP = 40, 18, 5
#: of the Caffe release, which drops nothing
CAFFE_STRIDE, CAFFE_CROP = 12, 0
PADDING = 5  # voxels around the brain's bounding box that patches cover too
#: networks without a program of layers: edge of a tile, voxels, and what a voxel takes, bytes
TILE, TILE_BYTES = 96, 4000
SMALLEST = 32  # edge of the tile at which trying smaller ones ends


@dataclass(frozen=True)
class Enhancement:
    """What the network made of one image; all on the input's grid.

    Attributes
    ----------
    image : (X, Y, Z) float32, template units, zero outside the mask
    labels : (X, Y, Z) uint8; 0 background, 1 CSF, 2 GM, 3 WM; zero outside the mask
    probabilities : (4, X, Y, Z) float32 in the labels' order; background is 1 outside the mask
    device, precision : where and how it was computed
    mirrored : axes along which mirror images of the brain went through the network too
    networks : how many took turns with them
    tally : the network's floating-point operations; zero where they were not counted (reference)
    seconds : of the network, wall-clock time unless another clock was given
    passes : of that, of each pass: of the brain and of each mirror image
    """

    image: NDArray[np.float32]
    labels: NDArray[np.uint8]
    probabilities: NDArray[np.float32]
    device: str
    precision: str
    seconds: float
    mirrored: tuple[str, ...] = ()
    networks: int = 1
    tally: Tally = field(default_factory=Tally)
    passes: tuple[float, ...] = ()


def _network(record: WeightRecord, device: torch.device) -> nn.Module:
    """The network of a record on a device; a run loads each of its weights once a process."""
    return _loaded(record.sha256, record.path, record.variant, str(device))


@functools.lru_cache(maxsize=4)
def _loaded(sha256: str, path: Path, variant: str, device: str) -> nn.Module:
    """The checksum is in the key: a file that was exchanged is read again."""
    network = load_network(path, variant).to(device)
    if isinstance(network, SliceUNet):
        return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]
    return network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload, no-any-return]


def brain_box(mask: NDArray[np.bool_], margin: int = MARGIN) -> tuple[slice, slice, slice]:
    """The mask's bounding box with a margin; an empty mask is an ImageError."""
    if not mask.any():
        raise ImageError("expected a brain mask with voxels in it, got an empty one")
    return bounding_box(mask, margin)


def enhance(
    data: NDArray[np.float32],
    mask: NDArray[np.bool_],
    record: WeightRecord,
    *,
    device: str = "auto",
    threads: int | None = None,
    geometry: str = "fast",
    memory_mb: float | None = None,
    tile: int | None = None,
    overlap: int = OVERLAP,
    precision: str = "auto",
    mirroring: bool | Sequence[str] = True,
    clock: Callable[[], float] = time.monotonic,
) -> Enhancement:
    """Classify the tissues of a brain and make its enhanced image.

    Parameters
    ----------
    data : (X, Y, Z), axes LPS, template units, matched to the age's histogram
    mask : (X, Y, Z) brain
    record : which weights
    device : ``auto``, ``cpu``, ``cuda`` or ``cuda:N``
    threads : processor threads for the network; all that this process may use when None
    geometry : ``fast``, or ``reference``: the published cubes, in float32, for comparison
    memory_mb : what this process may take in all, 2^20 bytes; what is free when None
    tile : largest edge of a tile in voxels, a multiple of 8; as large as memory allows when None
    overlap : voxels that a tile sees beyond its core, a multiple of 8
    precision : ``auto`` (see :func:`~bmex_bids.network.engine.programs.best_dtype`), ``float32``, ``bfloat16``
    mirroring : average over the brain and its mirror images along the axes ``record.mirrored``, with
        as many passes of the network; the published weights have none.  Or along these axes
    clock : that the seconds are taken from
    """
    job = _Job(record, device, threads, geometry, memory_mb, tile, overlap, precision, mirroring)
    job.clock = clock
    begun = clock()
    values, box, inside = job.run(data, mask, tissues_only=False)
    scores, image = values[:CLASSES], values[CLASSES]
    probabilities = _tissue_probabilities(scores, inside)
    result = Enhancement(
        image=_embed(np.where(inside, np.clip(image, 0, None), 0), box, data.shape),
        labels=_embed(_labels(probabilities, inside), box, data.shape),
        probabilities=np.stack(
            [_embed(p, box, data.shape, fill=float(k == 0)) for k, p in enumerate(probabilities)]
        ),
        device=_describe(job.device),
        precision=str(job.dtype).removeprefix("torch."),
        seconds=clock() - begun,
        mirrored=job.mirrored,
        networks=job.networks,
        tally=job.tally,
        passes=tuple(job.passes),
    )
    LOGGER.debug("network: %s, %.1f s", inside.shape, result.seconds)
    return result


def classify(
    data: NDArray[np.float32],
    mask: NDArray[np.bool_],
    record: WeightRecord,
    *,
    device: str = "auto",
    threads: int | None = None,
    geometry: str = "fast",
    memory_mb: float | None = None,
    tile: int | None = None,
    overlap: int = OVERLAP,
    precision: str = "auto",
    mirroring: bool = True,
) -> NDArray[np.uint8]:
    """Classify the tissues of a brain and leave it at that: a part of what :func:`enhance` costs.

    The labels are those of ``enhance`` for the same image, (X, Y, Z) uint8: 0 background, 1 CSF,
    2 GM, 3 WM; zero outside the mask.  The parameters are those of ``enhance``.
    """
    job = _Job(record, device, threads, geometry, memory_mb, tile, overlap, precision, mirroring)
    scores, box, inside = job.run(data, mask, tissues_only=True)
    return _embed(_labels(_tissue_probabilities(scores, inside), inside), box, data.shape)


class _Job:
    """A network over one brain and its mirror images, with smaller tiles and another device in reserve.

    ``device`` and ``dtype`` say, after :meth:`run`, what it was done with.
    """

    def __init__(
        self,
        record: WeightRecord,
        device: str,
        threads: int | None,
        geometry: str,
        memory_mb: float | None,
        tile: int | None,
        overlap: int,
        precision: str,
        mirroring: bool | Sequence[str],
    ) -> None:
        if geometry not in GEOMETRIES:
            raise ValueError(f"expected a geometry of {GEOMETRIES}, got {geometry!r}")
        self.record, self.geometry, self.overlap = record, geometry, overlap
        self.memory_mb, self.tile, self.precision = memory_mb, tile, precision
        self.device = resolve_device(device)
        self.dtype = torch.float32
        self.tried: float = math.inf  # voxels of a tile, the last time
        self.mirrored = record.mirrored if mirroring is True else tuple(mirroring or ())
        self.networks = 1  # that took turns
        self.tally = Tally()
        self.clock: Callable[[], float] = time.monotonic
        self.passes: list[float] = []  # seconds
        self._memory = Memory()  # one pass uses that of the one before
        self._fits: int | None = None  # voxels, when nothing was held yet
        torch.set_num_threads(threads or len(os.sched_getaffinity(0)))

    def run(
        self, data: NDArray[np.float32], mask: NDArray[np.bool_], *, tissues_only: bool
    ) -> tuple[NDArray[np.float32], tuple[slice, slice, slice], NDArray[np.bool_]]:
        """Values (channels, X, Y, Z) of the brain's box, zero outside the mask; the box; the mask.

        Raises MemoryLimitError when even the smallest tiles do not fit on the processor.
        """
        if self.record.variant == SLICES:
            sliced = _network(self.record, self.device)
            return self._in_slices(cast(SliceUNet, sliced), data, mask, tissues_only)
        box, inside, brain, wanted = _fed(data, mask)
        views = mirrorings(self.mirrored)
        channels = CLASSES if tissues_only else CLASSES + 1
        values = np.zeros((*brain.shape, channels), np.float32)
        share, done = 1.0, 0
        with freed_memory_kept():
            while done < len(views):
                flip = functools.partial(np.flip, axis=views[done])
                begun = self.clock()
                try:
                    network = whose_turn(_network(self.record, self.device), len(views[done]))
                    seen = flip(
                        self._pass(network, flip(brain), flip(wanted), tissues_only, share)
                    )
                except Exception as error:
                    if not is_out_of_memory(error):
                        raise
                    reason = reason_of(error)
                else:
                    values += seen
                    del seen  # not held while the next one is made
                    self.passes.append(self.clock() - begun)
                    done += 1
                    continue
                # outside of the handler: its traceback would keep the memory
                share = self._retreat(min(share, self.tried / brain.size), brain.size, reason)
        loaded = _network(self.record, self.device)
        self.networks = len({whose_turn(loaded, len(axes)) for axes in views})
        values[~wanted] = 0
        values /= len(views)
        if not np.isfinite(values).all():
            raise ImageError(
                f"expected numbers from the network {self.record.name}, got some that are not finite; try "
                "--precision float32 with --geometry reference, and report it as an error of bmex_bids"
            )
        result = volume_order(np.moveaxis(values, -1, 0))
        return result[(slice(None), *_sides(inside))], box, inside

    def _in_slices(
        self,
        network: SliceUNet,
        data: NDArray[np.float32],
        mask: NDArray[np.bool_],
        tissues_only: bool,
    ) -> tuple[NDArray[np.float32], tuple[slice, slice, slice], NDArray[np.bool_]]:
        """As :meth:`run`, of a network over slices; all directions when mirroring, else three."""
        _check_shapes(data, mask)
        box = brain_box(mask, 0)
        inside = np.asarray(mask[box], dtype=bool)
        part = np.where(inside, data[box], 0).astype(np.float32)
        if not np.isfinite(part).all():
            raise ImageError("expected finite intensities in the brain, got some not finite")
        self.dtype = PRECISIONS.get(self.precision, native_dtype(self.device))
        begun = self.clock()
        found = run_slices(
            network.to(self.device),
            part,
            inside,
            device=self.device,
            dtype=self.dtype,
            planes=PLANES if self.mirrored else FEW_PLANES,
        )
        self.passes.append(self.clock() - begun)
        scores = [np.zeros_like(part)[np.newaxis], found.scores]
        image = [] if tissues_only else [(part + found.correction)[np.newaxis]]
        values = np.concatenate([*scores, *image])
        if not np.isfinite(values).all():
            raise ImageError(_not_finite(self.record.name))
        return values, box, inside

    def _retreat(self, share: float, voxels: int, reason: str) -> float:
        """The next smaller share of a volume to try; after the smallest, the processor."""
        self._memory.release()
        self._fits = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        share /= 2
        if self.geometry == "fast" and share * voxels >= SMALLEST**3 / 2:
            LOGGER.warning("memory was short (%s); continuing with smaller tiles", reason)
            return share
        if self.device.type != "cpu":
            LOGGER.warning(
                "memory of %s was short (%s); continuing without it", self.device, reason
            )
            self.device = torch.device("cpu")
            return 1.0
        raise MemoryLimitError(
            f"expected memory for tiles of {SMALLEST} voxels, and there was none ({reason}); give "
            "the run more memory, or fewer processes at once (--nprocs)"
        )

    def _pass(
        self,
        network: nn.Module,
        brain: NDArray[np.float32],
        wanted: NDArray[np.bool_],
        tissues_only: bool,
        share: float,
    ) -> NDArray[np.float32]:
        """(D, H, W, channels); ``share`` is the largest part of the volume in one tile."""
        most = max(int(share * brain.size), 1)
        if self.tile is not None:
            most = min(most, self.tile**3)
        if self.geometry == "fast" and has_program(network):
            return self._in_layers(network, brain, wanted, tissues_only, most)
        self.dtype = torch.float32
        function = _function(network, tissues_only)
        channels = CLASSES if tissues_only else CLASSES + 1
        if self.geometry == "reference":
            caffe = bool(getattr(network, "caffe", False))
            grid = (CAFFE_STRIDE, CAFFE_CROP) if caffe else (STRIDE, CROP)
            values = _run_patches(function, channels, brain, wanted, self.device, *grid)
        else:
            free = free_bytes(self.device, self.memory_mb)
            most = min(most, max(free // TILE_BYTES, SMALLEST**3), TILE**3)
            self.tried = most
            edge = max(int(round(most ** (1 / 3), 6)) // MULTIPLE * MULTIPLE, MULTIPLE)
            overlap = min(self.overlap, edge // 2)
            values = _run_tiles(function, channels, brain, self.device, edge, overlap)
        return np.moveaxis(values, 0, -1)

    def _in_layers(
        self,
        network: nn.Module,
        brain: NDArray[np.float32],
        wanted: NDArray[np.bool_],
        tissues_only: bool,
        most: int,
    ) -> NDArray[np.float32]:
        self.dtype = (
            best_dtype(network, self.device)
            if self.precision == "auto"
            else PRECISIONS[self.precision]
        )
        if self._fits is None:
            free = free_bytes(self.device, self.memory_mb)
            self._fits = max(free // bytes_per_voxel(network, self.dtype), SMALLEST**3)
        shape = (brain.shape[0], brain.shape[1], brain.shape[2])
        result = np.zeros((*shape, CLASSES + (not tissues_only)), np.float32)
        self.tried = most = min(most, self._fits)
        # no further than the network sees, and not the greater part of a small tile
        edge = int(most ** (1 / 3))
        overlap = min(self.overlap, receptive_field(network), max(edge // 4, MULTIPLE))
        overlap = overlap // MULTIPLE * MULTIPLE
        for core, tile in cores(shape, most, overlap, MULTIPLE):
            if not wanted[core].any():
                continue
            here = np.zeros_like(wanted[tile])
            place = tuple(
                slice(c.start - t.start, c.stop - t.start) for c, t in zip(core, tile, strict=True)
            )
            here[place] = wanted[core]
            values = run_program(
                network,
                torch.from_numpy(np.ascontiguousarray(brain[tile])).to(self.device),
                Regions(here, wanted[tile], slab=slab(network, self.device)),
                tissues_only=tissues_only,
                dtype=self.dtype,
                tally=self.tally,
                memory=self._memory,
            )
            result[core] = values[place].float().cpu().numpy()
            del values
        return result


def mirrorings(axes: Sequence[str]) -> list[tuple[int, ...]]:
    """The axes to flip, in the network's order (z, x, y), for a brain and each of its mirror images.

    >>> mirrorings(()), mirrorings(("x", "y"))
    ([()], [(), (1,), (2,), (1, 2)])
    """
    places = sorted("zxy".index(axis) for axis in axes)
    counts = range(len(places) + 1)
    return [flips for n in counts for flips in itertools.combinations(places, n)]


def _function(network: nn.Module, tissues_only: bool) -> Callable[[Tensor], Tensor]:
    """(1, 1, d, h, w) → (1, channels, d, h, w)."""
    if tissues_only:
        return network.classify  # type: ignore[return-value]

    def both(x: Tensor) -> Tensor:
        return torch.cat(network(x), dim=1)

    return both


def _not_finite(name: str) -> str:
    return (
        f"expected numbers from the network {name}, got some that are not finite; try --precision "
        "float32, and report it if that does not help"
    )


def _check_shapes(data: NDArray[np.float32], mask: NDArray[np.bool_]) -> None:
    if data.shape != mask.shape or data.ndim != 3:
        raise ImageError(
            "expected an image and a mask of one three-dimensional shape, got "
            f"{data.shape} and {mask.shape}"
        )


def _fed(
    data: NDArray[np.float32], mask: NDArray[np.bool_]
) -> tuple[tuple[slice, slice, slice], NDArray[np.bool_], NDArray[np.float32], NDArray[np.bool_]]:
    """Where the brain lies, the mask there, and both as a network is fed.

    The last two have the axes (z, x, y), sizes that are multiples of 8, and zeros outside the
    mask.
    """
    _check_shapes(data, mask)
    mask = np.asarray(mask, dtype=bool)
    box = brain_box(mask)
    inside = mask[box]
    brain = network_order(np.where(inside, data[box], 0).astype(np.float32))
    padding = [(0, -n % MULTIPLE) for n in brain.shape]
    return box, inside, np.pad(brain, padding), np.pad(network_order(inside), padding)


def _sides(part: NDArray[np.bool_]) -> tuple[slice, ...]:
    """The slices that take the padding off again."""
    return tuple(slice(0, n) for n in part.shape)


def _run_patches(
    function: Callable[[Tensor], Tensor],
    channels: int,
    brain: NDArray[np.float32],
    wanted: NDArray[np.bool_],
    device: torch.device,
    stride: int,
    crop: int,
) -> NDArray[np.float32]:
    """The published geometry, one patch after the other, (channels, D, H, W).

    Each patch of the grid is computed, also where there is no brain, as in the published code.
    """
    box = brain_box(wanted, 0)
    low = [s.start - PADDING for s in box]
    sides = [max(s.stop - s.start + 2 * PADDING, PATCH) for s in box]
    # room around the volume: the grid may begin before it and end behind it
    room = [(PATCH, PATCH)] * 3
    padded = np.pad(brain, room)
    shape = (sides[0], sides[1], sides[2])
    fed = padded[tuple(slice(a + PATCH, a + PATCH + n) for a, n in zip(low, sides, strict=True))]
    sums = WeightedSum.zeros(channels, shape)
    weight = np.ones((PATCH - 2 * crop,) * 3, np.float32)
    kept = (slice(None), *(slice(crop, PATCH - crop),) * 3)
    with torch.inference_mode():
        for patch in reference_grid(shape, PATCH, stride):
            x = torch.from_numpy(np.ascontiguousarray(fed[patch]))[None, None].to(device)
            middle = tuple(slice(s.start + crop, s.stop - crop) for s in patch)
            sums.add(middle, function(x)[0].float().cpu().numpy()[kept], weight)  # type: ignore[arg-type]
    result = np.zeros((channels, *(n + 2 * PATCH for n in brain.shape)), np.float32)
    result[
        (slice(None), *(slice(a + PATCH, a + PATCH + n) for a, n in zip(low, sides, strict=True)))
    ] = sums.result()
    return result[(slice(None), *(slice(PATCH, PATCH + n) for n in brain.shape))]


def _run_tiles(
    function: Callable[[Tensor], Tensor],
    channels: int,
    brain: NDArray[np.float32],
    device: torch.device,
    tile: int,
    overlap: int,
) -> NDArray[np.float32]:
    """What a function makes of a volume whose sizes are multiples of 8, (channels, D, H, W).

    The function takes (1, 1, d, h, w) and returns (1, channels, d, h, w).
    """
    shape = (brain.shape[0], brain.shape[1], brain.shape[2])
    a, b, c = (fitted(n, tile, overlap, MULTIPLE) for n in shape)
    sums = WeightedSum.zeros(channels, shape)
    weight = tile_weight((a, b, c), overlap // 2)
    with torch.inference_mode():
        for box in boxes(shape, (a, b, c), overlap):
            part = brain[box]
            if not part.any():
                continue
            x = torch.from_numpy(np.ascontiguousarray(part))[None, None].to(device)
            sums.add(box, function(x)[0].float().cpu().numpy(), weight)
    return sums.result()


def _tissue_probabilities(
    scores: NDArray[np.float32], inside: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """Softmax of the scores; outside the mask the background is certain.

    Inside the mask the background's share is given to the tissues, since a mask says that there is
    one.
    """
    probabilities = np.empty((CLASSES, *inside.shape), np.float32)
    probabilities[0] = ~inside
    probabilities[1:] = torch.softmax(torch.from_numpy(scores[1:]), dim=0).numpy()
    probabilities[1:] *= inside
    return probabilities


def _labels(probabilities: NDArray[np.float32], inside: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """The most probable tissue, the first of equals; several times as fast as ``argmax``."""
    labels = inside.astype(np.uint8)
    best = probabilities[1]
    for tissue in range(2, CLASSES):
        labels[inside & (probabilities[tissue] > best)] = tissue
        best = np.maximum(best, probabilities[tissue])
    return labels


def _embed(
    part: NDArray, box: tuple[slice, slice, slice], shape: tuple[int, ...], fill: float = 0
) -> NDArray:  # type: ignore[type-arg]
    whole = np.full(shape, fill, dtype=part.dtype if part.dtype == np.uint8 else np.float32)
    whole[box] = part
    return whole


def _describe(device: torch.device) -> str:
    """``cpu``, or the name of the GPU."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return "cpu"

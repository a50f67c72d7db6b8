# SPDX-License-Identifier: Apache-2.0
"""Run an enhancement network over a brain.

``fast``, the default, is the whole brain at once, or as few tiles as memory asks for.
``reference`` is the published geometry, for comparison.
"""

from __future__ import annotations

import functools
import logging
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from bmex_bids.exceptions import ImageError, MemoryLimitError
from bmex_bids.network.devices import (
    free_bytes,
    freed_memory_kept,
    is_out_of_memory,
    reason_of,
    resolve_device,
)
from bmex_bids.network.inference.options import Options
from bmex_bids.network.inference.passes import Pass, precision_of
from bmex_bids.network.inference.slices import BATCH, FEW_PLANES, PLANES, SliceResult, run_slices
from bmex_bids.network.inference.volumes import (
    MARGIN,
    Fed,
    embed,
    fed,
    labels_of,
    mirrorings,
    tissue_probabilities,
)
from bmex_bids.network.models.compact import whose_turn
from bmex_bids.network.variants import facts
from bmex_bids.network.weights.checkpoints import load_network
from bmex_bids.network.weights.registry import WeightRecord

LOGGER = logging.getLogger(__name__)

SMALLEST = 32  # edge of the tile at which trying smaller ones ends
T = TypeVar("T")


@dataclass(frozen=True)
class Tissues:
    """The tissues of one image.

    Attributes
    ----------
    labels : (X, Y, Z) uint8; 0 background, 1 CSF, 2 GM, 3 WM; zero outside the mask
    shares : (3, X, Y, Z) uint8, probabilities of CSF, GM and WM, 255 is certain
    """

    labels: NDArray[np.uint8]
    shares: NDArray[np.uint8]

    @staticmethod
    def of(probabilities: NDArray[np.float32], mask: NDArray[np.bool_]) -> Tissues:
        """Of the probabilities of background, CSF, GM and WM (4, X, Y, Z) in a mask."""
        shares = np.rint(255 * probabilities[1:]).astype(np.uint8)
        return Tissues(labels_of(probabilities, mask), shares)


@dataclass(frozen=True)
class Enhancement:
    """What the network made of one image; all on the input's grid.

    Attributes
    ----------
    image : (X, Y, Z) float32, template units, zero outside the mask
    labels : (X, Y, Z) uint8; 0 background, 1 CSF, 2 GM, 3 WM; zero outside the mask
    classified : what :func:`classify` finds in the same image
    probabilities : (classes, X, Y, Z) float32 in the labels' order; background is 1 outside the mask
    deviation : (X, Y, Z) float32, expected error of the image (standard deviation), template units,
        zero outside the mask; None from a network that has not learnt it
    device, precision : where and how it was computed
    mirrored : axes along which mirror images of the brain went through the network too
    networks : how many took turns with them
    operations : floating-point operations of the convolutions; zero where they were not counted
    seconds : of the network, wall-clock time unless another clock was given
    passes : of that, of each pass: of the brain and of each mirror image
    """

    image: NDArray[np.float32]
    labels: NDArray[np.uint8]
    classified: Tissues
    probabilities: NDArray[np.float32]
    device: str
    precision: str
    seconds: float
    mirrored: tuple[str, ...] = ()
    networks: int = 1
    operations: float = 0.0
    passes: tuple[float, ...] = ()
    deviation: NDArray[np.float32] | None = None


def _network(record: WeightRecord, device: torch.device) -> nn.Module:
    """The network of a record on a device; a run loads each of its weights once a process."""
    return _loaded(record.sha256, record.path, record.variant, str(device))


@functools.lru_cache(maxsize=4)
def _loaded(sha256: str, path: Path, variant: str, device: str) -> nn.Module:
    """The checksum is in the key: a file that was exchanged is read again."""
    layout = torch.channels_last if facts(variant).slices else torch.channels_last_3d
    network = load_network(path, variant).to(device)
    return network.to(memory_format=layout)  # type: ignore[call-overload, no-any-return]


def enhance(
    data: NDArray[np.float32],
    mask: NDArray[np.bool_],
    record: WeightRecord,
    options: Options = Options(),  # noqa: B008 - it is frozen
    **changed: Any,
) -> Enhancement:
    """Classify the tissues of a brain and make its enhanced image.

    Parameters
    ----------
    data : (X, Y, Z), axes LPS, template units, matched to the age's histogram
    mask : (X, Y, Z) brain
    record : which weights
    options, changed : how; single fields of :class:`~.options.Options` as keywords

    Raises
    ------
    ImageError
        Shapes that do not fit, an empty mask, values that are not finite.
    DeviceError, MemoryLimitError
        No such device; not even the smallest tiles fit on the processor.
    """
    job = _Job(record, replace(options, **changed), tissues_only=False)
    begun = job.options.clock()
    here = job.fed(data, mask)
    values = job.run(here)
    scores, image = values[:-1], values[-1]
    probabilities = tissue_probabilities(scores, here.inside)
    labels = embed(labels_of(probabilities, here.inside), here.box, data.shape)
    few = scores if job.few_scores is None else job.few_scores
    result = Enhancement(
        image=embed(np.where(here.inside, np.clip(image, 0, None), 0), here.box, data.shape),
        labels=labels,
        classified=_tissues(few, here, data.shape),
        probabilities=np.stack(
            [
                embed(p, here.box, data.shape, fill=float(k == 0))
                for k, p in enumerate(probabilities)
            ]
        ),
        deviation=None if job.deviation is None else embed(job.deviation, here.box, data.shape),
        device=_describe(job.device),
        precision=str(job.dtype).removeprefix("torch."),
        seconds=job.options.clock() - begun,
        mirrored=job.mirrored,
        networks=job.networks,
        operations=job.operations,
        passes=tuple(job.passes),
    )
    LOGGER.debug("network: %s, %.1f s", here.inside.shape, result.seconds)
    return result


def classify(
    data: NDArray[np.float32],
    mask: NDArray[np.bool_],
    record: WeightRecord,
    options: Options = Options(),  # noqa: B008 - it is frozen
    **changed: Any,
) -> Tissues:
    """Classify the tissues of a brain and leave it at that: a part of what :func:`enhance` costs.

    They are ``Enhancement.classified`` of the same image: a network over slices uses half of the
    directions for them.  The parameters are those of ``enhance``.
    """
    job = _Job(record, replace(options, **changed), tissues_only=True)
    here = job.fed(data, mask)
    return _tissues(job.run(here), here, data.shape)


def _tissues(scores: NDArray[np.float32], here: Fed, shape: tuple[int, ...]) -> Tissues:
    """The tissues of an image of ``shape`` from the scores (classes, X, Y, Z) of the brain's box."""
    found = Tissues.of(tissue_probabilities(scores, here.inside), here.inside)
    return Tissues(
        embed(found.labels, here.box, shape),
        np.stack([embed(part, here.box, shape) for part in found.shares]),
    )


class _Job:
    """A network over one brain, with less at once and another device in reserve.

    ``device`` and ``dtype`` say, after :meth:`run`, what it was done with.
    """

    def __init__(self, record: WeightRecord, options: Options, *, tissues_only: bool) -> None:
        self.record, self.options, self.tissues_only = record, options, tissues_only
        self.variant = facts(record.variant)
        self.device = resolve_device(options.device)
        self.dtype = torch.float32
        self.mirrored = (
            record.mirrored if options.mirroring is True else tuple(options.mirroring or ())
        )
        self.networks = 1  # that took turns
        self.few_scores: NDArray[np.float32] | None = None  # of the slices that classify takes
        self.deviation: NDArray[np.float32] | None = None  # of the brain's box
        self.operations = 0.0
        self.passes: list[float] = []  # seconds
        self.most = math.inf  # voxels of a tile, or slices, at once, after memory was short
        self._tried = self._least = 1.0  # at once, the last time; where trying less ends
        self._free: int | None = None  # bytes, before the first pass: what is freed is kept
        torch.set_num_threads(options.threads or len(os.sched_getaffinity(0)))

    def fed(self, data: NDArray[np.float32], mask: NDArray[np.bool_]) -> Fed:
        """The brain as the network is fed: slices are without air around it."""
        return fed(data, mask, 0 if self.variant.slices else MARGIN)

    def run(self, here: Fed) -> NDArray[np.float32]:
        """Values (channels, X, Y, Z) of the brain's box, zero outside the mask.

        Channels are the scores of the classes and, where it is wanted, the image.  Raises
        MemoryLimitError when even the smallest part does not fit on the processor.
        """
        with freed_memory_kept():
            values = self._in_slices(here) if self.variant.slices else self._in_volumes(here)
        if not np.isfinite(values).all():
            raise ImageError(
                f"expected numbers from the network {self.record.name}, got some that are not "
                "finite; try --precision float32, and report it if that does not help"
            )
        return values

    def _in_volumes(self, here: Fed) -> NDArray[np.float32]:
        """The mean over the brain and its mirror images."""
        views = mirrorings(self.mirrored)
        total: NDArray[np.float32] | None = None
        for axes in views:
            seen = self._retrying(functools.partial(self._view, here, axes))
            total = seen.copy() if total is None else np.add(total, seen, out=total)
            del seen  # not held while the next one is made
        loaded = _network(self.record, self.device)
        self.networks = len({whose_turn(loaded, len(axes)) for axes in views})
        assert total is not None  # noqa: S101 - for mypy: there is one view at least
        total[~here.wanted] = 0
        total /= len(views)
        return here.image_of(total)

    def _in_slices(self, here: Fed) -> NDArray[np.float32]:
        """Slices of three directions for the tissues alone or without mirroring, else of six."""
        found = self._retrying(functools.partial(self._directions, here))
        self.deviation = found.deviation
        background = np.zeros_like(here.part)[np.newaxis]
        self.few_scores = np.concatenate([background, found.few_scores])
        if self.tissues_only:
            return self.few_scores
        image = (here.part + found.correction)[np.newaxis]
        return np.concatenate([background, found.scores, image])

    def _retrying(self, work: Callable[[], T]) -> T:
        """The result of one pass, with less at once each time that memory is short."""
        while True:
            begun = self.options.clock()
            try:
                result = work()
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                reason = reason_of(error)
            else:
                self.passes.append(self.options.clock() - begun)
                return result
            # outside of the handler: its traceback would keep the memory
            self._retreat(reason)

    def _directions(self, here: Fed) -> SliceResult:
        network = _network(self.record, self.device)
        self.dtype = precision_of(self.options.precision, self.variant, self.device)
        self._tried, self._least = min(self.most, BATCH), 1
        return run_slices(
            network,  # type: ignore[arg-type]
            here.part,
            here.inside,
            device=self.device,
            dtype=self.dtype,
            planes=PLANES if self.mirrored and not self.tissues_only else FEW_PLANES,
            batch=int(self._tried),
        )

    def _view(self, here: Fed, axes: tuple[int, ...]) -> NDArray[np.float32]:
        """The brain, flipped along some axes, through the network whose turn it is."""
        brain, wanted = np.flip(here.brain, axis=axes), np.flip(here.wanted, axis=axes)
        network = whose_turn(_network(self.record, self.device), len(axes))
        published = self.options.geometry == "reference"
        self.dtype = (
            torch.float32
            if published
            else precision_of(self.options.precision, self.variant, self.device)
        )
        one = Pass(network, self.variant, self.device, self.dtype, self.tissues_only)
        if published:
            self._tried, self._least = 1, 1  # nothing smaller
            return np.flip(one.in_patches(brain, wanted), axis=axes)
        if self._free is None:
            self._free = free_bytes(self.device, self.options.memory_mb)
        most = min(self.most, brain.size, max(self._free // one.voxel_bytes, SMALLEST**3))
        if self.options.tile is not None:
            most = min(most, self.options.tile**3)
        self._tried, self._least = most, SMALLEST**3 // 2
        values, operations = one.over(brain, wanted, max(int(most), 1), self.options.overlap)
        self.operations += operations
        return np.flip(values, axis=axes)

    def _retreat(self, reason: str) -> None:
        """Half of what was tried at once; after the least, the processor."""
        self._free = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        if self._tried / 2 >= self._least:
            less = "fewer slices at once" if self.variant.slices else "smaller tiles"
            LOGGER.warning("memory was short (%s); continuing with %s", reason, less)
            self.most = self._tried / 2
            return
        if self.device.type != "cpu":
            LOGGER.warning(
                "memory of %s was short (%s); continuing without it", self.device, reason
            )
            self.device, self.most = torch.device("cpu"), math.inf
            return
        least = "one slice" if self.variant.slices else f"tiles of {SMALLEST} voxels"
        raise MemoryLimitError(
            f"expected memory for {least}, and there was none ({reason}); give the run more "
            "memory, or fewer processes at once (--nprocs)"
        )


def _describe(device: torch.device) -> str:
    """``cpu``, or the name of the GPU."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return "cpu"

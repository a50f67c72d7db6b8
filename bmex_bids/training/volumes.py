# SPDX-License-Identifier: Apache-2.0
"""Endless rows of volumes, each a function of the seed and its number, a few of them remembered."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

Parts = tuple[Tensor, ...]
T = TypeVar("T")
S = TypeVar("S")


#: volumes that validate, and samples of each
ASIDE, SAMPLES = 12, 10_000


class VolumeRows(ABC, Generic[T]):
    """A row of volumes for each worker (``stream``), so that none makes what another has made.

    Parameters
    ----------
    seed : of all rows
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._volumes: dict[tuple[int, int], T] = {}

    @abstractmethod
    def make(self, number: int, rng: np.random.Generator) -> T:
        """A volume of a number, with its own source of randomness."""

    def volume(self, number: int, stream: int = 0) -> T:
        """The volume of a number in a row; made once while it is kept."""
        if (stream, number) not in self._volumes:
            row = [stream] if stream else []  # the first row is the one that a single worker has
            rng = np.random.default_rng([self.seed, 0, *row, number])
            self._volumes[stream, number] = self.make(number, rng)
        return self._volumes[stream, number]

    def kept(self, first: int, count: int, stream: int = 0) -> list[T]:
        """Volumes ``first … first + count − 1`` of a row; earlier ones are forgotten."""
        for old in [key for key in self._volumes if key[0] == stream and key[1] < first]:
            del self._volumes[old]
        return [self.volume(number, stream) for number in range(first, first + count)]


class Chunks(VolumeRows[T]):
    """Chunk ``i`` → samples of the volumes ``i … i + window − 1`` of a row, shuffled.

    Parameters
    ----------
    seed : of all rows
    chunks : how many there are
    window : volumes of a chunk; the next one exchanges one of them
    per_volume : samples that a chunk takes from a volume
    streams : rows; each worker has one of its own
    """

    def __init__(
        self, seed: int, *, chunks: int, window: int, per_volume: int, streams: int
    ) -> None:
        super().__init__(seed)
        self.chunks, self.window = chunks, window
        self.per_volume, self.streams = per_volume, streams

    def __len__(self) -> int:
        return self.chunks

    @property
    def samples(self) -> int:
        """Samples in a chunk."""
        return self.window * self.per_volume

    def shuffled(
        self, index: int, draw: Callable[[T, np.random.Generator], Sequence[S]]
    ) -> list[S]:
        """The samples of a chunk; ``draw`` takes those of one volume."""
        rng = np.random.default_rng([self.seed, 1, index])
        first, stream = divmod(index, self.streams)
        drawn = [
            sample
            for volume in self.kept(first, self.window, stream)
            for sample in draw(volume, rng)
        ]
        return [drawn[k] for k in rng.permutation(len(drawn))]

    def mixed(self, index: int, draw: Callable[[T, int, np.random.Generator], Parts]) -> Parts:
        """The samples of a chunk as stacked tensors; ``draw`` takes so many of one volume."""
        rng = np.random.default_rng([self.seed, 1, index])
        first, stream = divmod(index, self.streams)
        volumes = self.kept(first, self.window, stream)
        parts = [draw(volume, self.per_volume, rng) for volume in volumes]
        order = torch.from_numpy(rng.permutation(self.samples))
        return tuple(torch.cat(column)[order] for column in zip(*parts, strict=True))

    def left(
        self,
        draw: Callable[[T, int, np.random.Generator], Parts],
        loss_of: Callable[[nn.Module, Parts], Tensor],
        samples: int = SAMPLES,
    ) -> Callable[[nn.Module], dict[str, float]]:
        """A validation by samples of :data:`ASIDE` volumes: ``left`` is the mean of their losses."""
        rng = np.random.default_rng(self.seed)
        parts = [draw(self.volume(number), samples, rng) for number in range(ASIDE)]

        @torch.no_grad()
        def validate(model: nn.Module) -> dict[str, float]:
            device = next(model.parameters()).device
            losses = [float(loss_of(model, tuple(p.to(device) for p in part))) for part in parts]
            return {"left": float(np.mean(losses))}

        return validate

# SPDX-License-Identifier: Apache-2.0
"""Endless rows of volumes, each a function of the seed and its number, a few of them remembered."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Generic, TypeVar

import numpy as np

T = TypeVar("T")


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

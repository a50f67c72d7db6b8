# SPDX-License-Identifier: Apache-2.0
"""Record and apply a degradation.

A :class:`Recipe` is a list of steps, each an act of :mod:`bmex_bids.degrade.kinds` and its plain
numbers.  It can be written as JSON, read again, and gives the same degraded image each time: to the
last bit on one machine, with any number of threads; on another machine or with other versions of
numpy and scipy up to rounding.  ``VERSION`` counts changes of the JSON layout alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bmex_bids.degrade.checks import Step
from bmex_bids.degrade.kinds import ACTS, Array, Spacing

FORMAT = "bmex-degrade recipe"
VERSION = 1
#: where array axes 0, 1, 2 of the image point when a recipe is drawn and applied
AXES = "LPS"


@dataclass(frozen=True)
class Recipe:
    """Steps that degrade an image; the same recipe gives the same image."""

    steps: tuple[Step, ...]

    def apply(self, image: Array, spacing: Spacing, *, workers: int = 1) -> Array:
        """Degrade an (X, Y, Z) image; intensities keep their unit, spacing is in mm.

        The axes must be those the recipe was drawn for (``AXES``).  ``workers`` is a number of
        threads, on which the result does not depend.
        """
        result = np.asarray(image, dtype=np.float32)
        for step in self.steps:
            result = ACTS[step["kind"]].apply(result, spacing, step, workers)
        return result

    def apply_before_stripping(
        self, head: Array, mask: NDArray[np.bool_], spacing: Spacing, *, workers: int = 1
    ) -> Array:
        """Degrade a whole head, then take the skull away: what moves outside leaves its traces.

        Parameters
        ----------
        head, mask : (X, Y, Z), on one grid

        Returns
        -------
        (X, Y, Z) float32 array, never negative, zero outside the mask
        """
        degraded = np.clip(self.apply(head, spacing, workers=workers), 0, None)
        return np.where(mask, degraded, 0).astype(np.float32)

    def to_json(self) -> str:
        """The recipe as JSON text."""
        return json.dumps(self.as_dict(), indent=2)

    def as_dict(self) -> dict[str, Any]:
        """The recipe as what JSON can hold."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "axes": AXES,
            "steps": [dict(step) for step in self.steps],
        }

    @classmethod
    def from_json(cls, text: str) -> Recipe:
        """Read a recipe again; ValueError says what is wrong with it."""
        return cls.from_dict(json.loads(text))

    @classmethod
    def from_dict(cls, table: Any) -> Recipe:
        """Check and take a recipe read from JSON.

        Raises ValueError for a later version, other axes, an unknown kind of step, and a field
        that is missing, unknown or impossible.
        """
        if not isinstance(table, Mapping) or not isinstance(table.get("steps"), list):
            raise ValueError('expected a recipe with a list of "steps"')
        # the first recipes had neither version nor axes; they meant these
        version, axes = table.get("version", 1), table.get("axes", AXES)
        if version != VERSION:
            raise ValueError(
                f"expected a recipe of version {VERSION}, got {version!r}; a later bmex_bids may "
                "read it"
            )
        if axes != AXES:
            raise ValueError(f"expected a recipe for axes {AXES}, got {axes!r}")
        steps = table["steps"]
        kinds = [step.get("kind") if isinstance(step, Mapping) else step for step in steps]
        unknown = sorted({str(kind) for kind in kinds} - set(ACTS))
        if unknown:
            raise ValueError(f"expected steps of {sorted(ACTS)}, got {unknown}")
        for number, step in enumerate(steps, start=1):
            ACTS[step["kind"]].check(number, step)
        return cls(tuple(steps))

# SPDX-License-Identifier: Apache-2.0
"""The cells that weights are judged in: which fault, how much of it.

One table for the validation of training, ``bmex-evaluate quick`` and ``bmex-evaluate benchmark``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from bmex_bids.degrade.checks import Step
from bmex_bids.degrade.levels import severity
from bmex_bids.degrade.recipe import Recipe
from bmex_bids.degrade.steps import Scan


@dataclass(frozen=True)
class Cell:
    """One fault, or two together.

    Attributes
    ----------
    family : ``clean``, ``motion``, ``noise``, ``slices``, ``together`` or ``torchio``
    motion : a named severity, or None
    slices_mm : slice thickness, or None
    noise : standard deviation of Rician noise, % of the range, or None
    torchio : a transform of the second simulator (see ``evaluation.torchio_cells``), or None
    """

    family: str
    motion: str | None = None
    slices_mm: float | None = None
    noise: float | None = None
    torchio: str | None = None

    def recipe(self, seed: int, scan: Scan | None = None) -> Recipe:
        """The degradation, the same for the same seed; motion before slices before noise."""
        if self.torchio is not None:
            raise ValueError(f"expected a cell of our own simulator, got {self.torchio}")
        scan = scan or Scan()
        steps: list[Step] = []
        if self.motion is not None:
            rng = np.random.default_rng(seed)
            steps.extend(severity(self.motion, rng, phase_axis=scan.phase_axis).steps)
        if self.slices_mm is not None:
            thick = {"axis": scan.slice_axis, "thickness_mm": self.slices_mm, "degree": 3}
            steps.append({"kind": "low-resolution", **thick})  # as the application resamples
        if self.noise is not None:
            sigma = self.noise / 100 * scan.intensity_range
            steps.append({"kind": "rician-noise", "sigma": sigma, "seed": seed})
        return Recipe(tuple(steps))


#: name → cell, in the order of the tables
CELLS: Mapping[str, Cell] = {
    "clean": Cell("clean"),
    "minor": Cell("motion", motion="minor"),
    "moderate": Cell("motion", motion="moderate"),
    "severe": Cell("motion", motion="severe"),
    "severe++": Cell("motion", motion="severe++"),
    "noise 1%": Cell("noise", noise=1.0),
    "noise 2.5%": Cell("noise", noise=2.5),
    "noise 5%": Cell("noise", noise=5.0),
    "2.4 mm": Cell("slices", slices_mm=2.4),
    "4.8 mm": Cell("slices", slices_mm=4.8),
    "moderate, 2.4 mm": Cell("together", motion="moderate", slices_mm=2.4),
    "moderate, noise 2.5%": Cell("together", motion="moderate", noise=2.5),
    "torchio motion": Cell("torchio", torchio="motion"),
    "torchio ghosting": Cell("torchio", torchio="ghosting"),
    "torchio spikes": Cell("torchio", torchio="spikes"),
    "torchio anisotropy": Cell("torchio", torchio="anisotropy"),
}
#: of the validation during training and of ``bmex-evaluate quick``
QUICK = ("noise 1%", "noise 2.5%", "minor", "moderate", "severe", "2.4 mm", "clean")

# SPDX-License-Identifier: Apache-2.0
"""The benchmark's cells: which fault, how much of it, and with which seed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from bmex_bids.degrade.levels import severity
from bmex_bids.degrade.recipe import Recipe

#: through-plane axis (LPS: inferior-superior), and the phase-encoding axis (anterior-posterior)
SLICE_AXIS, PHASE_AXIS = 2, 1
NATIVE_MM = 0.8
SLICES_MM = (1.6, 2.4)
#: template units, 1, 2.5 and 5 % of the range of 1000
NOISE = {"1%": 10.0, "2.5%": 25.0, "5%": 50.0}
FWHM_MM = (1.2, 1.8, 2.4)


@dataclass(frozen=True)
class Cell:
    """One kind and degree of fault.

    Attributes
    ----------
    name : as in tables
    family : ``motion``, ``resolution``, ``noise``, ``smoothing`` or ``clean``
    motion : a named severity, or None
    slices_mm : slice thickness, or None
    noise : (kind of step, standard deviation in template units), or None
    fwhm_mm : of smoothing, or None
    """

    name: str
    family: str
    motion: str | None = None
    slices_mm: float | None = None
    noise: tuple[str, float] | None = None
    fwhm_mm: float | None = None

    @property
    def random(self) -> bool:
        """Whether another seed gives another image."""
        return self.motion is not None or self.noise is not None

    def recipe(self, seed: int) -> Recipe:
        """The degradation, the same for the same seed; motion comes before slices and noise."""
        steps: list[Mapping[str, Any]] = []
        if self.motion is not None:
            rng = np.random.default_rng(seed)
            steps.extend(severity(self.motion, rng, phase_axis=PHASE_AXIS).steps)
        if self.slices_mm is not None:
            steps.append(
                {"kind": "low-resolution", "axis": SLICE_AXIS, "thickness_mm": self.slices_mm}
            )
        if self.noise is not None:
            kind, sigma = self.noise
            steps.append({"kind": kind, "sigma": sigma, "seed": seed})
        if self.fwhm_mm is not None:
            steps.append({"kind": "smoothing", "fwhm_mm": self.fwhm_mm})
        return Recipe(tuple(steps))


def _table() -> dict[str, Cell]:
    cells = [Cell("clean", "clean")]
    for degree in ("minor", "moderate", "severe"):
        cells.append(Cell(degree, "motion", motion=degree))
        for mm in SLICES_MM:
            cells.append(Cell(f"{degree} {mm} mm", "motion", motion=degree, slices_mm=mm))
    cells.extend(Cell(degree, "motion", motion=degree) for degree in ("severe+", "severe++"))
    cells.extend(Cell(f"{mm} mm", "resolution", slices_mm=mm) for mm in SLICES_MM)
    for kind in ("gaussian", "rician"):
        for share, sigma in NOISE.items():
            cells.append(Cell(f"{kind} {share}", "noise", noise=(f"{kind}-noise", sigma)))
    cells.extend(Cell(f"smooth {mm} mm", "smoothing", fwhm_mm=mm) for mm in FWHM_MM)
    return {cell.name: cell for cell in cells}


#: name → cell, in the order of the tables
CELLS: Mapping[str, Cell] = _table()
MOTION = tuple(name for name, cell in CELLS.items() if cell.family == "motion")
RESOLUTION = tuple(name for name, cell in CELLS.items() if cell.family == "resolution")
NOISY = tuple(name for name, cell in CELLS.items() if cell.family == "noise")
#: the cells of an image that only samples the table
SAMPLE = ("clean", "moderate", "severe", "moderate 2.4 mm", "2.4 mm", "rician 2.5%")


def fingerprint(recipe: Recipe) -> str:
    """Twelve hexadecimal digits that change when a recipe, or what its steps do, changes.

    The recipe is applied to a small fixed volume, and the result, in steps of four units, counts
    with its text; so a mended simulation makes new images without anybody remembering to say so.
    """
    rng = np.random.default_rng(20261121)
    phantom = rng.uniform(100, 900, (16, 18, 20)).astype(np.float32)
    result = np.rint(recipe.apply(phantom, (0.8, 0.8, 0.8)) / 4).astype(np.int32)
    return hashlib.sha256(recipe.to_json().encode() + result.tobytes()).hexdigest()[:12]

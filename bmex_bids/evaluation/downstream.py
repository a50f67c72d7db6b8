# SPDX-License-Identifier: Apache-2.0
"""What follows from an enhanced image: registration of painted heads whose structures are known.

Both heads of a pair are damaged, as a study would find them, and registered before and after
enhancement.  The transform brings one head's label map to the other; labels are exact and are not
derived from intensities.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from bmex_bids.common.structures import STRUCTURES
from bmex_bids.degrade.cells import CELLS
from bmex_bids.evaluation.anatomy import OUTER, structures_of
from bmex_bids.evaluation.benchmark import (
    Settings,
    Unit,
    fault_version,
    kept,
    pass_cell,
    rows_of,
)
from bmex_bids.evaluation.pairs import Row
from bmex_bids.evaluation.pairs_page import agreement
from bmex_bids.evaluation.rows import Row as Figure
from bmex_bids.evaluation.rows import key_of
from bmex_bids.evaluation.subjects import PAINTED, require_data, subject_of
from bmex_bids.exceptions import UsageError
from bmex_bids.imaging.registration import bring, points_of, register
from bmex_bids.metrics.tissue import dice_by_structure
from bmex_bids.network.weights.registry import sha256

#: changes when the figures do
FIGURES_VERSION = "2"
TABLE, PASSES = "downstream.tsv", "passes"
#: a painted head of each label map: 12 ordered pairs
IMAGES = tuple(name for name in PAINTED if name.endswith("-1"))
CELLS_JUDGED = ("clean", "moderate", "severe")
BEFORE, AFTER = "damaged", "bmex"
BETWEEN = " → "
#: outer fluid is as thick as a mask makes it
JUDGED = tuple(part for part in STRUCTURES if part.number != OUTER)
MEASURES = {
    "dice": "Dice of structures, mean",
    **{f"dice_{part.name}": f"Dice of {part.name}" for part in JUDGED},
}
#: less is better
FAULTS = {"folded": "share of the brain that folds"}


def plan(settings: Settings) -> Iterator[Unit]:
    """Ordered pair × cell; UsageError for images that are not painted, or that there are not."""
    wrong = [name for name in settings.images if name not in PAINTED]
    if wrong or len(settings.images) < 2:
        raise UsageError(
            f"expected two or more painted heads of {', '.join(PAINTED)}; got "
            f"{', '.join(settings.images)}"
        )
    contents = {}
    for image in settings.images:
        subject = subject_of(image)
        path = settings.data / subject.path
        require_data(path)
        contents[image] = f"{sha256(path)[:12]} {settings.networks_for(subject).version}"
    for cell in settings.cells or CELLS_JUDGED:
        if cell not in CELLS:
            raise UsageError(f"expected cells of {', '.join(CELLS)}; got {cell}")
        for fixed, moving in itertools.permutations(settings.images, 2):
            faults = [
                f"{contents[name]} {fault_version(CELLS[cell], name)}" for name in (fixed, moving)
            ]
            key = key_of(FIGURES_VERSION, *faults)
            pair = f"{moving}{BETWEEN}{fixed}"
            yield Unit(pair, cell, {(pair, cell, method): key for method in (BEFORE, AFTER)})


def do_unit(settings: Settings, unit: Unit) -> list[Figure]:
    """Overlap of structures of one pair in one cell, registered before and after."""
    begun = time.monotonic()
    moving, fixed = unit.image.split(BETWEEN)
    seen = [passed(settings, name, unit.cell) for name in (fixed, moving)]
    labels = [
        _image(structures_of(settings.data / subject_of(name).path)) for name in (fixed, moving)
    ]
    figures = {method: registered(seen, labels, method) for method in (BEFORE, AFTER)}
    return rows_of(unit, figures, time.monotonic() - begun)


def passed(settings: Settings, image: str, cell: str) -> dict[str, NDArray[Any]]:
    """A head before and after the app, and its mask, on its own grid; kept for all its pairs."""
    subject = subject_of(image)
    digits = key_of(
        FIGURES_VERSION, sha256(settings.data / subject.path), fault_version(CELLS[cell], image),
        settings.networks_for(subject).version,
    )  # fmt: skip

    def make() -> dict[str, NDArray[Any]]:
        _, damaged, result = pass_cell(settings, image, cell)
        return {BEFORE: damaged, AFTER: result.preproc, "mask": result.mask}

    name = f"{image}_{cell}_{digits}.npz".replace(" ", "-").replace("%", "pc")
    return kept(settings.out / PASSES / name, make)


def _image(data: NDArray[Any]) -> nib.Nifti1Image:
    """On the grid of a painted head, axes LPS, 1 mm."""
    return nib.Nifti1Image(np.asarray(data), np.diag([-1.0, -1.0, 1.0, 1.0]))


def registered(
    seen: Sequence[dict[str, NDArray[Any]]], labels: Sequence[nib.Nifti1Image], method: str
) -> dict[str, float]:
    """Measure → value.

    Parameters
    ----------
    seen : fixed and moving head, see :func:`passed`
    labels : their structures
    method : which of the images is registered
    """
    pairs = [(_image(one[method]), _image(one["mask"].astype(np.uint8))) for one in seen]
    found = register(*pairs[0], *pairs[1])
    grid = labels[0]
    moved = bring(labels[1], grid, points_of(found.transform, grid), order=0)
    there = np.asarray(grid.dataobj)
    overlaps = {
        f"dice_{name}": value for name, value in dice_by_structure(moved, there, JUDGED).items()
    }
    return {"dice": float(np.mean(list(overlaps.values()))), "folded": found.folded, **overlaps}


# ---------------------------------------------------------------- the page
def table(figures: Sequence[Figure]) -> str:
    """A row a cell and measure: before and after enhancement, and a paired test over pairs."""
    values = {(r.image, r.cell, r.method, r.metric): r.value for r in figures}
    rows = [
        Row(pair, pair, cell, metric, value, values[pair, cell, AFTER, metric])
        for (pair, cell, method, metric), value in values.items()
        if method == BEFORE and metric in (MEASURES | FAULTS)
    ]
    cells = [cell for cell in CELLS if any(row.condition == cell for row in rows)]
    sides = ("damage", "pairs", "before", "after")
    return "\n\n".join(
        (
            agreement(rows, cells, MEASURES, sides=sides),
            agreement(rows, cells, FAULTS, sides=sides, less_is_better=True),
        )
    )


def markdown(figures: Sequence[Figure], weights: str) -> str:
    """The page; ``weights`` in words."""
    return (
        f"# Registration of painted heads, {weights}\n\n"
        "Both heads of a pair are damaged and go through the app. They are registered inside their "
        "brain masks (affine, then diffeomorphic demons, voxels of 2 mm) before and after "
        "enhancement, and the exact label map of one is brought to the other. Intervals are of the "
        "bootstrap over pairs (95 %), p of the paired t-test, d_z its effect. The pairs share heads, "
        "so they are not independent. This does not show how real brains of patients register.\n\n"
        f"{table(figures)}\n"
    )

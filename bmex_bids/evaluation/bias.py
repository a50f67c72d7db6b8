# SPDX-License-Identifier: Apache-2.0
"""Whether motion, and enhancement, shift volumes: still and moved images through the whole app.

Volumes are found in the image before the network and after it.  The still image before the network
is what a study without motion would measure.  Of a painted head the true volumes are known too.  A
dataset with still and moved scans gives the same figures (:mod:`bmex_bids.evaluation.pairs`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from bmex_bids.evaluation import anatomy, benchmark, judge
from bmex_bids.evaluation.app import Passed
from bmex_bids.evaluation.benchmark import (
    Settings,
    Truth,
    Unit,
    pass_cell,
    rows_of,
    units_of,
)
from bmex_bids.evaluation.pairs import NETWORK, Row, litres_of
from bmex_bids.evaluation.rows import Row as Figure
from bmex_bids.evaluation.segmentation import TISSUES
from bmex_bids.evaluation.subjects import PAINTED, subject_of
from bmex_bids.exceptions import UsageError
from bmex_bids.metrics.change import tissue_litres

#: changes when the figures do
FIGURES_VERSION = "2"
TABLE = "bias.tsv"
#: those that judge: painted heads, and two brains of infants
IMAGES = (*PAINTED, "sub-0003", "sub-0007")
#: the cell of still images, and how tables call it
STILL, STILL_WORD = "clean", "still"
CELLS_JUDGED = (STILL, "minor", "severe")
BEFORE, AFTER = "damaged", "bmex"
TRUTH = "truth"


def plan(settings: Settings) -> Iterator[Unit]:
    """Image × cell; the still one is always there."""
    cells = [STILL, *(c for c in settings.cells or CELLS_JUDGED if c != STILL)]
    wrong = [cell for cell in cells if cell not in benchmark.CELLS]
    if wrong:
        raise UsageError(f"expected cells of {', '.join(benchmark.CELLS)}; got {', '.join(wrong)}")
    versions = (FIGURES_VERSION, benchmark.FIGURES_VERSION)
    yield from units_of(settings, settings.images, cells, lambda cell: (BEFORE, AFTER), versions)


def do_unit(settings: Settings, unit: Unit) -> list[Figure]:
    """Litres of tissues and structures of one image in one cell."""
    begun = time.monotonic()
    subject = subject_of(unit.image)
    truth, _, result = pass_cell(settings, unit.image, unit.cell)
    known = truth if unit.cell == STILL else None
    figures = {
        BEFORE: volumes_of(result, result.matched, result.labels_before, subject.contrast, known),
        AFTER: volumes_of(result, result.enhanced, result.labels_after, subject.contrast),
    }
    figures[AFTER] |= {
        f"structure_{row['name']}": float(row["litres"]) for row in result.structures
    }
    if subject.kind == "map":
        litres = anatomy.true_litres(settings.data / subject.path, truth.mask)
        figures[BEFORE] |= {f"{TRUTH}_{name}": value for name, value in litres.items()}
    return rows_of(unit, figures, time.monotonic() - begun)


def volumes_of(
    result: Passed,
    image: NDArray[np.float32],
    labels: NDArray[np.uint8],
    contrast: str,
    known: Truth | None = None,
) -> dict[str, float]:
    """Litres of fluid, grey and white matter by each segmenter.

    Parameters
    ----------
    labels : tissues that the app found
    known : has the classes of this image already
    """
    voxel_ml = abs(float(np.linalg.det(result.affine[:3, :3]))) / 1000
    found = {
        f"{NETWORK}_{name}_litres": value
        for name, value in tissue_litres(labels, voxel_ml * 1000).items()
    }
    for name in judge.segmenters():
        classes = (
            judge.classes(name, image, result.mask_res) if known is None else known.classes[name]
        )
        found |= {
            f"{name}_{tissue}_litres": value
            for tissue, value in zip(TISSUES[contrast], litres_of(classes, voxel_ml), strict=True)
        }
    return found


def changes(figures: Sequence[Figure]) -> list[Row]:
    """Figures as pairs of a still and a moved image; the still one itself comes first.

    A structure that the app finds only in enhanced images is compared with the enhanced still one.
    """
    table = {(r.image, r.cell, r.method, r.metric): r.value for r in figures}

    def get(image: str, cell: str, method: str, metric: str) -> float:
        return table.get((image, cell, method, metric), math.nan)

    found = []
    for image, cell, measure in dict.fromkeys((r.image, r.cell, r.metric) for r in figures):
        if measure == "seconds" or measure.startswith(f"{TRUTH}_"):
            continue
        still = get(image, STILL, BEFORE, measure)
        if math.isnan(still):
            still = get(image, STILL, AFTER, measure)
        before, after = (get(image, cell, method, measure) for method in (BEFORE, AFTER))
        condition = STILL_WORD if cell == STILL else cell
        found.append(Row(image, f"{image}, {condition}", condition, measure, before, after, still))
    order = [STILL_WORD, *benchmark.CELLS]
    return sorted(found, key=lambda row: order.index(row.condition))


def truths(figures: Sequence[Figure]) -> dict[tuple[str, str], float]:
    """(image, tissue or structure) → litres, of painted heads."""
    return {
        (r.image, r.metric.partition("_")[2]): r.value
        for r in figures
        if r.metric.startswith(f"{TRUTH}_") and r.cell == STILL
    }

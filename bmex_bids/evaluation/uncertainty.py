# SPDX-License-Identifier: Apache-2.0
"""How good the map of the expected error is: a clean image is damaged, so the error is known.

Unseen images judge.  Images that trained, with damage drawn anew, give the factor that makes a 95 %
interval hold 95 %: no image that judges has a say in it.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

from bmex_bids.common.tissues import TISSUES
from bmex_bids.degrade.cells import CELLS
from bmex_bids.evaluation.benchmark import Settings, Unit, rows_of, run_units, units_of
from bmex_bids.evaluation.prepared import (
    PREPARED_VERSION,
    Prepared,
    damage,
    enhanced,
    prepare,
    refocused,
)
from bmex_bids.evaluation.rows import Row, key_of
from bmex_bids.evaluation.subjects import SUBJECTS, TRAINED, subject_of
from bmex_bids.evaluation.summary import Table, grid
from bmex_bids.exceptions import UsageError, WeightsError
from bmex_bids.metrics.change import tissue_litres
from bmex_bids.metrics.confidence import (
    coverage,
    entropy,
    gradient,
    rank_correlation,
    volume_spread,
    way_to_oracle,
    windows,
)
from bmex_bids.metrics.familiarity import FEATURES, distance, features, usual
from bmex_bids.network.inference.predict import Enhancement
from bmex_bids.network.variants import facts
from bmex_bids.network.weights.registry import WeightRecord, bundled, select
from bmex_bids.outputs.files import write_text

Array = NDArray[np.float32]
#: changes when the figures do
FIGURES_VERSION = "3"
TABLE = "uncertainty.tsv"
#: those that judge
IMAGES = (
    "adult-31", "adult-68", "head-14", "head-child10", "sub-0003", "sub-0007", "fetus-31w",
)  # fmt: skip
CELLS_JUDGED = ("clean", "minor", "moderate", "severe", "noise 2.5%", "2.4 mm", "4.8 mm")
#: the map of the network, and maps that cost nothing
SIGMA = "sigma"
FREE = ("change", "gradient", "entropy")
#: factors at which the coverage is written down
FACTORS = tuple(float(f) for f in np.geomspace(0.25, 8.0, 71))
COVERED = 0.95
#: months: no set of weights begins later
ANY_AGE = 1200.0
#: standard deviations about a volume that are to hold the truth
TWO = 2.0


def learnt_weights(weights: str | None = None, weights_dir: Path | None = None) -> WeightRecord:
    """The set of a name, else the bundled one that has learnt its error.

    A WeightsError where there is none.
    """
    if weights is not None:
        return select("enhance", weights=weights, weights_dir=weights_dir, age_months=ANY_AGE)
    for record in bundled():
        if facts(record.variant).learns_error:
            return record
    raise WeightsError(
        "expected bundled weights that have learnt their error, found none; name some with "
        "--weights"
    )


def plan(settings: Settings, images: Sequence[str], cells: Sequence[str]) -> Iterator[Unit]:
    """Image × cell, with the key of the figures; UsageError for an image that is not there."""
    if not facts(settings.networks.enhance.variant).learns_error:
        raise UsageError(
            f"expected weights that have learnt their error, got {settings.networks.enhance.name}"
        )
    versions = (FIGURES_VERSION, PREPARED_VERSION)
    yield from units_of(settings, images, cells, lambda cell: (SIGMA, *FREE), versions)


def served_by(record: WeightRecord, images: Iterable[str]) -> tuple[str, ...]:
    """Those of an age that the weights are for."""
    return tuple(name for name in images if subject_of(name).months >= record.from_months)


def run(
    settings: Settings, report: Callable[[str], None] = lambda line: None, *, compute: bool = True
) -> list[Row]:
    """Figures of the images that judge and of those that give the factor."""
    cells = settings.cells or CELLS_JUDGED
    record = settings.networks.enhance
    units = [
        *plan(settings, served_by(record, settings.images), cells),
        *plan(settings, served_by(record, TRAINED), cells),
    ]
    return run_units(settings, units, do_unit, TABLE, report, compute=compute)


def do_unit(settings: Settings, unit: Unit) -> list[Row]:
    """The figures of one image in one cell."""
    begun = time.monotonic()
    brain = prepare(settings.data, settings.out, unit.image, settings.networks)
    subject = subject_of(unit.image)
    bad = damage(brain, unit.cell, subject.seed)
    given = refocused(brain, bad, subject, settings.networks)
    result = enhanced(given, brain.mask, settings.networks)
    figures = figures_of(bad, brain.data, brain.mask, result)
    voxel_mm3 = float(np.prod(brain.spacing))
    figures[SIGMA] |= volumes_of(result, voxel_mm3)
    figures[SIGMA] |= {
        f"feature_{place}": float(value)
        for place, value in enumerate(_features(given, brain.mask, result))
    }
    truth = _clean_litres(settings, unit.image, brain, result if unit.cell == "clean" else None)
    figures[SIGMA] |= {f"truth_{name}": litres for name, litres in truth.items()}
    return rows_of(unit, figures, time.monotonic() - begun)


def _features(before: Array, mask: NDArray[np.bool_], result: Enhancement) -> NDArray[np.float64]:
    if result.deviation is None:
        raise ValueError("expected a network that has learnt its error, got one that has not")
    return features(before, result.image, result.deviation, result.labels, mask)


def figures_of(
    before: Array, truth: Array, mask: NDArray[np.bool_], result: Enhancement
) -> dict[str, dict[str, float]]:
    """Map → its figures; the error is that of the enhanced image."""
    if result.deviation is None:
        raise ValueError("expected a network that has learnt its error, got one that has not")
    maps: Mapping[str, Array] = {
        SIGMA: result.deviation,
        "change": np.abs(result.image - before),
        "gradient": gradient(before),
        "entropy": entropy(result.probabilities),
    }
    error = result.image - truth
    squared = error[mask] ** 2
    in_windows = windows(error**2, mask)
    figures = {
        name: {
            "spearman": rank_correlation(windows(values**2, mask), in_windows),
            "way": way_to_oracle(values[mask], squared),
            "way_windows": way_to_oracle(windows(values**2, mask), in_windows),
        }
        for name, values in maps.items()
    }
    covered = coverage(error[mask], result.deviation[mask], FACTORS)
    figures[SIGMA] |= {
        "rmse": float(np.sqrt(squared.mean())),
        "expected": float(np.sqrt((result.deviation[mask] ** 2).mean())),
        **{f"covered_{place}": float(share) for place, share in enumerate(covered)},
    }
    return figures


def volumes_of(result: Enhancement, voxel_mm3: float) -> dict[str, float]:
    """Litres of each tissue, and what its uncertainty is proportional to."""
    litres = tissue_litres(result.labels, voxel_mm3)
    spreads = {
        tissue.label: volume_spread(result.probabilities[tissue.number], voxel_mm3)
        for tissue in TISSUES
    }
    return {f"litres_{name}": value for name, value in litres.items()} | {
        f"spread_{name}": value for name, value in spreads.items()
    }


def _clean_litres(
    settings: Settings, image: str, brain: Prepared, result: Enhancement | None
) -> dict[str, float]:
    """Litres of the tissues that the network finds in the clean image, kept on disk.

    Parameters
    ----------
    result : of the clean image, where it is known already
    """
    digits = key_of(PREPARED_VERSION, settings.networks.version)
    path = settings.out / "litres" / f"{image}_{digits}.json"
    if not path.exists():
        labels = (result or enhanced(brain.data, brain.mask, settings.networks)).labels
        path.parent.mkdir(parents=True, exist_ok=True)
        litres = tissue_litres(labels, float(np.prod(brain.spacing)))
        write_text(path, json.dumps(litres))
    found: dict[str, float] = json.loads(path.read_text(encoding="utf-8"))
    return found


# ---------------------------------------------------------------- what is fitted, and the tables
@dataclass(frozen=True)
class Calibration:
    """What a weight record gets.

    Attributes
    ----------
    error_scale : factor on the expected error; a 95 % interval holds 95 % with it
    volume_scale : standard deviation of a tissue's volume over ``confidence.volume_spread``
    usual : see ``familiarity.usual``; None where too few images are known
    """

    error_scale: float
    volume_scale: float
    usual: Mapping[str, Any] | None = None


def calibrate(table: Table) -> Calibration:
    """Fit both numbers to the images that trained; NaN where there are no figures of them."""
    images = [name for name in TRAINED if any(key[0] == name for key in table.values)]
    cells = [cell for cell in CELLS if cell != "clean"]

    def missed(factor: float) -> float:
        shares = [covered(table, image, cell, factor) for image in images for cell in cells]
        return float(np.nanmean(shares)) - COVERED

    known = any(not math.isnan(covered(table, i, c, 1.0)) for i in images for c in cells)
    ratios = [
        abs(off) / spread
        for image in images
        for cell in cells
        for off, spread in volume_errors(table, image, cell)
        if spread > 0
    ]
    samples = [
        found
        for image in images
        for cell in CELLS
        if not np.isnan(found := _figures_of_image(table, image, cell)).any()
    ]
    return Calibration(
        usual=usual(samples) if len(samples) > 2 else None,
        error_scale=brentq(missed, FACTORS[0], FACTORS[-1], xtol=1e-4) if known else math.nan,
        volume_scale=float(np.quantile(ratios, COVERED)) / TWO if ratios else math.nan,
    )


def _figures_of_image(table: Table, image: str, cell: str) -> NDArray[np.float64]:
    return np.array(
        [table.get(image, cell, SIGMA, f"feature_{place}") for place in range(len(FEATURES))]
    )


def covered(table: Table, image: str, cell: str, factor: float) -> float:
    """Share of the voxels whose error lies in the interval; NaN where it was not computed."""
    shares = [table.get(image, cell, SIGMA, f"covered_{k}") for k in range(len(FACTORS))]
    return float(np.interp(math.log(factor), np.log(FACTORS), shares))


def volume_errors(table: Table, image: str, cell: str) -> list[tuple[float, float]]:
    """(found minus true litres, spread) of each tissue of which they are known."""
    found = []
    for tissue in TISSUES:
        litres, truth, spread = (
            table.get(image, cell, SIGMA, f"{what}_{tissue.label}")
            for what in ("litres", "truth", "spread")
        )
        if not math.isnan(litres):
            found.append((litres - truth, spread))
    return found


def store(path: Path, digest: str, fitted: Calibration) -> None:
    """Write both numbers into the entry of a file of weight records (``weights.json``).

    Raises UsageError where no entry has this checksum, or nothing was fitted.
    """
    if math.isnan(fitted.error_scale) or math.isnan(fitted.volume_scale):
        raise UsageError("expected figures of the images that trained, found none; compute them")
    content = json.loads(path.read_text(encoding="utf-8"))
    for entry in content["sets"]:
        if entry["sha256"] == digest:
            entry["error_scale"] = round(fitted.error_scale, 3)
            entry["volume_scale"] = float(f"{fitted.volume_scale:.3g}")
            if fitted.usual is not None:
                entry["usual"] = dict(fitted.usual)
            write_text(path, json.dumps(content, indent=2) + "\n")
            return
    raise UsageError(f"expected weights of SHA-256 {digest} in {path}, found none")


def markdown(rows: Sequence[Row], fitted: Calibration) -> str:
    """A row a cell: means over the images that judge."""
    table = Table(rows)
    lines = []
    for cell in table.cells:
        images = [i for i in IMAGES if not math.isnan(table.get(i, cell, SIGMA, "rmse"))]
        if not images:
            continue
        free = {
            metric: max((_mean(table, images, cell, name, metric), name) for name in FREE)
            for metric in ("spearman", "way")
        }
        inside = [
            abs(off) <= TWO * fitted.volume_scale * spread
            for image in images
            for off, spread in volume_errors(table, image, cell)
        ]
        far = [
            distance(_figures_of_image(table, image, cell), fitted.usual)
            for image in images
            if fitted.usual is not None
        ]
        shares = [
            np.mean([covered(table, image, cell, factor) for image in images])
            for factor in (1.0, fitted.error_scale)
        ]
        lines.append(
            [
                f"{cell} ({len(images)})",
                f"{_mean(table, images, cell, SIGMA, 'rmse'):.1f}",
                f"{_mean(table, images, cell, SIGMA, 'expected'):.1f}",
                f"{_mean(table, images, cell, SIGMA, 'spearman'):.2f}",
                f"{free['spearman'][0]:.2f} ({free['spearman'][1]})",
                f"{_mean(table, images, cell, SIGMA, 'way'):.0%}",
                f"{free['way'][0]:.0%} ({free['way'][1]})",
                f"{shares[0]:.1%}",
                "" if math.isnan(shares[1]) else f"{shares[1]:.1%}",
                "" if math.isnan(fitted.volume_scale) else f"{np.mean(inside):.0%}",
                f"{np.mean(far):.1f} ({max(far):.1f})" if far else "",
            ]
        )
    head = [
        "damage (images)", "error", "expected", "Spearman", "best free map",
        "way to the oracle", "best free map", "95 % interval holds", "with the factor",
        "volumes within 2 SD", "distance from training (largest)",
    ]  # fmt: skip
    return grid(head, lines)


def _mean(table: Table, images: Sequence[str], cell: str, method: str, metric: str) -> float:
    values = [table.get(image, cell, method, metric) for image in images]
    return float(np.nanmean(values)) if not np.isnan(values).all() else math.nan


def each_image(rows: Sequence[Row]) -> str:
    """A row an image, a column a cell: Spearman's correlation of the map."""
    table = Table(rows)
    lines = []
    for image in (name for name in SUBJECTS if name in table.images):
        values = [table.get(image, cell, SIGMA, "spearman") for cell in table.cells]
        lines.append([image, *("" if math.isnan(v) else f"{v:.2f}" for v in values)])
    return grid(["image", *table.cells], lines)

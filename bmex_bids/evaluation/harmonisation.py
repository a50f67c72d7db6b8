# SPDX-License-Identifier: Apache-2.0
"""One brain, several scanners: how far apart are the images, matched only and enhanced?

A synthetic scanner is a fixed recipe: its coil's bias, its contrast, its resolution, its noise.  Each
image is seen by all of them and goes through the whole app, which matches its histogram before the
network.  *Matched* is the app without its network.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from bmex_bids.degrade.recipe import Recipe
from bmex_bids.evaluation import benchmark, judge
from bmex_bids.evaluation.app import Passed
from bmex_bids.evaluation.benchmark import (
    SLICE_AXIS,
    Settings,
    Truth,
    Unit,
    rows_of,
    truth_of,
)
from bmex_bids.evaluation.pairs import Row, litres_of
from bmex_bids.evaluation.pairs_page import agreement
from bmex_bids.evaluation.rows import Row as Figure
from bmex_bids.evaluation.rows import key_of
from bmex_bids.evaluation.segmentation import TISSUES
from bmex_bids.evaluation.subjects import PAINTED, require_data, subject_of
from bmex_bids.exceptions import BmexError, StepError
from bmex_bids.metrics.reference import mse
from bmex_bids.metrics.statistics import histogram_distance
from bmex_bids.network.weights.registry import sha256

Array = NDArray[np.float32]
#: changes when the figures do
FIGURES_VERSION = "1"
TABLE = "harmonisation.tsv"
#: those that judge: two infants, and a painted head of each label map
IMAGES = ("sub-0003", "sub-0007", *(name for name in PAINTED if name.endswith("-1")))
MATCHED, ENHANCED = "matched", "enhanced"
#: name of the one unit of an image
ALL = "scanners"
#: template units of a histogram; bins of one that a classifier sees
SPAN, BINS = (0.0, judge.RANGE), 24
#: weak regularisation: shares of a histogram are small numbers
WEAK = 1e4
#: brains below which no classifier is tried
FEWEST = 3
CHANCE = "scanner found by a classifier, share (chance 0.25)"


def _field(seed: int, strength: float) -> list[list[list[float]]]:
    found: list[list[list[float]]] = np.round(
        np.random.default_rng(seed).normal(0, strength, (3, 3, 3)), 4
    ).tolist()
    return found


def scanners(top: float) -> Mapping[str, Recipe]:
    """Name → what a scanner does; ``top`` is the brightness of the brain, in the image's units."""
    half = {"kind": "gamma", "reference": top / 2}

    def noise(percent: float, seed: int) -> dict[str, object]:
        return {"kind": "rician-noise", "sigma": percent / 100 * top, "seed": seed}

    return {
        "A": Recipe((noise(0.8, 1),)),
        "B": Recipe(
            (
                {**half, "exponent": 1.25},
                {"kind": "bias-field", "control": _field(2, 0.1)},
                noise(2.0, 2),
            )
        ),
        "C": Recipe(
            (
                {**half, "exponent": 0.8},
                {"kind": "low-resolution", "axis": SLICE_AXIS, "thickness_mm": 1.6},
                noise(3.0, 3),
            )
        ),
        "D": Recipe(
            (
                {"kind": "smoothing", "fwhm_mm": 1.6},
                {"kind": "bias-field", "control": _field(4, 0.15)},
                noise(1.2, 4),
            )
        ),
    }


NAMES = tuple(scanners(judge.RANGE))


def plan(settings: Settings) -> Iterator[Unit]:
    """A unit an image; UsageError for one that is not there."""
    for image in settings.images:
        subject = subject_of(image)
        path = settings.data / subject.path
        require_data(path)
        recipes = [recipe.to_json() for recipe in scanners(judge.RANGE).values()]
        key = key_of(
            FIGURES_VERSION, benchmark.FIGURES_VERSION, sha256(path), str(subject.seed), *recipes,
            settings.networks_for(subject).version,
        )  # fmt: skip
        yield Unit(image, ALL, {(image, ALL, stage): key for stage in (MATCHED, ENHANCED)})


def do_unit(settings: Settings, unit: Unit) -> list[Figure]:
    """The figures of one image in all scanners."""
    begun = time.monotonic()
    seen: dict[str, Passed] = {}
    try:
        truth = truth_of(settings, unit.image)
        for name in NAMES:
            data = scanned(truth, name)
            seen[name] = benchmark.pass_through(settings, unit.image, truth.clean, data)
    except BmexError as error:
        raise StepError(f"{unit.image}: {error}", error.exit_code) from error
    contrast = subject_of(unit.image).contrast
    figures = {
        stage: figures_of(truth, seen, stage, TISSUES[contrast]) for stage in (MATCHED, ENHANCED)
    }
    return rows_of(unit, figures, time.monotonic() - begun)


def scanned(truth: Truth, name: str) -> Array:
    """The clean image as a scanner shows it, input grid, not negative."""
    clean = truth.clean
    recipe = scanners(judge.range_of(clean.data, truth.mask))[name]
    found = np.clip(recipe.apply(clean.data, clean.spacing), 0, None)
    return np.where(True if clean.mask is None else clean.mask, found, 0).astype(np.float32)


def figures_of(
    truth: Truth, seen: Mapping[str, Passed], stage: str, tissues: Sequence[str]
) -> dict[str, float]:
    """Measure → value of one stage, means over the pairs of scanners.

    Parameters
    ----------
    seen : scanner → what the app made of its image
    tissues : from dark to bright
    """
    images = {name: np.asarray(getattr(passed, stage)) for name, passed in seen.items()}
    common = truth.mask_res.copy()
    for passed in seen.values():
        common &= passed.mask_res
    couples = list(itertools.combinations(seen, 2))
    figures = {
        "rmse_between": float(
            np.mean([math.sqrt(mse(images[a], images[b], common)) for a, b in couples])
        ),
        "rmse_truth": float(
            np.mean([math.sqrt(mse(image, truth.matched, common)) for image in images.values()])
        ),
        "histograms": float(
            np.mean(
                [
                    histogram_distance(images[a][common], images[b][common], span=SPAN)
                    for a, b in couples
                ]
            )
        ),
    }
    for segmenter in judge.segmenters():
        litres = np.array(
            [
                litres_of(judge.classes(segmenter, images[name], passed.mask_res), 1.0)
                for name, passed in seen.items()
            ]
        )
        spread, mean = litres.std(axis=0, ddof=1), litres.mean(axis=0)
        for number, tissue in enumerate(tissues):
            figures[f"cv_{segmenter}_{tissue}"] = (
                100 * float(spread[number] / mean[number]) if mean[number] else math.nan
            )
    for name, image in images.items():
        shares = np.histogram(np.clip(image[common], *SPAN), BINS, SPAN)[0] / common.sum()
        figures |= {f"shares_{name}_{k}": float(share) for k, share in enumerate(shares)}
    return figures


def classified(figures: Sequence[Figure], stage: str) -> dict[str, float]:
    """Image → share of its scanners that a classifier finds, having seen the other images.

    Logistic regression on the histograms.  Empty for fewer than :data:`FEWEST` images.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import LeaveOneGroupOut, cross_val_predict

    table = {(r.image, r.metric): r.value for r in figures if r.method == stage}
    images = list(dict.fromkeys(image for image, _ in table))
    if len(images) < FEWEST:
        return {}
    sources = [(image, name) for image in images for name in NAMES]
    features = np.array(
        [[table[image, f"shares_{name}_{k}"] for k in range(BINS)] for image, name in sources]
    )
    found = cross_val_predict(
        LogisticRegression(C=WEAK, max_iter=10000),
        features,
        [name for _, name in sources],
        groups=[image for image, _ in sources],
        cv=LeaveOneGroupOut(),
    )
    right = dict.fromkeys(images, 0.0)
    for (image, name), guess in zip(sources, found, strict=True):
        right[image] += (name == guess) / len(NAMES)
    return right


# ---------------------------------------------------------------- the page
def measures(tissues: Sequence[str] = TISSUES["T1w"]) -> dict[str, str]:
    """Measure → its words; less is better for all."""
    return {
        "rmse_between": "RMSE between two scanners, template units",
        "rmse_truth": "RMSE to the image without a scanner",
        "histograms": "Jensen–Shannon distance of histograms",
        **{
            f"cv_{name}_{tissue}": f"spread of {tissue}, %, {words}"
            for name, words in judge.SEGMENTERS.items()
            for tissue in tissues
        },
        CHANCE: CHANCE,
    }


def table(figures: Sequence[Figure]) -> str:
    """A row a group of images and measure: matched only, enhanced, and a paired test."""
    values = {(r.image, r.method, r.metric): r.value for r in figures}
    for stage in (MATCHED, ENHANCED):
        for image, share in classified(figures, stage).items():
            values[image, stage, CHANCE] = share
    kinds = {
        image: "painted heads" if image in PAINTED else "real brains" for image, _, _ in values
    }
    groups = sorted(set(kinds.values()), reverse=True)
    if len(groups) > 1:
        groups.insert(0, "all")
    rows = [
        Row(image, image, group, metric, value, values[image, ENHANCED, metric])
        for (image, stage, metric), value in values.items()
        if stage == MATCHED and metric in measures()
        for group in groups
        if group in ("all", kinds[image])
    ]
    return agreement(
        rows,
        groups,
        measures(),
        sides=("brains", "images", MATCHED, ENHANCED),
        less_is_better=True,
    )


def markdown(figures: Sequence[Figure], weights: str) -> str:
    """The page; ``weights`` in words."""
    return (
        f"# Harmonisation of scanners, {weights}\n\n"
        f"Each brain as {len(NAMES)} synthetic scanners show it (contrast, bias, resolution, "
        "noise), through the app. *Matched* is bias correction and histogram matching without the "
        "network. Voxel-wise errors are inside the brain that all have; the image without a scanner "
        "was matched to the same histogram, which flatters matching. Spread is the standard "
        "deviation of a volume over scanners, % of its mean. Intervals are of the bootstrap over "
        f"images (95 %), p of the paired t-test, d_z its effect.\n\n{table(figures)}\n"
    )

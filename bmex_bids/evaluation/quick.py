# SPDX-License-Identifier: Apache-2.0
"""The short benchmark: PSNR of two unseen brains in six cells, and Dice of the stripping network.

Each clean brain (prepared as the app does) is degraded by a fixed recipe, matched to its age's
histogram again as the app does with any image, and enhanced.  PSNR is taken inside the brain, in
template units, range 1000.  The baseline is the degraded image as it is.  The clean cell compares
the output with the input.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bmex_bids.degrade.cells import CELLS, QUICK
from bmex_bids.exceptions import UsageError
from bmex_bids.imaging.intensity import load_histogram, match_histogram
from bmex_bids.metrics.reference import psnr
from bmex_bids.metrics.tissue import dice
from bmex_bids.network.inference.predict import enhance
from bmex_bids.network.inference.stripper import brain_probability
from bmex_bids.network.weights.registry import WeightRecord
from bmex_bids.training.images import VALIDATION_IMAGES, VALIDATION_MAPS, CleanImage, prepare
from bmex_bids.training.synthesis import load_head, scan

RANGE = 1000.0
Array = NDArray[np.float32]


@dataclass(frozen=True)
class Row:
    """One image in one cell; PSNR in dB (``before`` is infinite for the clean cell)."""

    image: str
    cell: str
    before: float
    after: float

    @property
    def gain(self) -> float:
        """After minus before, dB."""
        return self.after - self.before


def enhancement_rows(
    data_dir: Path, record: WeightRecord, *, device: str = "auto", threads: int | None = None
) -> Iterator[Row]:
    """One row for each validation image and cell."""
    for seed, (name, group, contrast) in enumerate(VALIDATION_IMAGES):
        _require(data_dir / name)
        clean = prepare(data_dir / name, group, contrast, with_labels=False)
        for cell in QUICK:
            yield evaluate_cell(clean, cell, seed, record, device=device, threads=threads)


def evaluate_cell(
    clean: CleanImage,
    cell: str,
    seed: int,
    record: WeightRecord,
    *,
    device: str = "auto",
    threads: int | None = None,
) -> Row:
    """Degrade, match, enhance, compare."""
    bad = degraded(clean, cell, seed)
    matched, _ = match_histogram(bad, load_histogram(clean.age_group, clean.contrast), clean.mask)
    result = enhance(matched, clean.mask, record, device=device, threads=threads)
    return Row(
        clean.name,
        cell,
        psnr(bad, clean.data, clean.mask, RANGE),
        psnr(result.image, clean.data, clean.mask, RANGE),
    )


def degraded(clean: CleanImage, cell: str, seed: int) -> Array:
    """A clean brain as a validation cell spoils it, masked."""
    bad = CELLS[cell].recipe(seed).apply(clean.data, clean.spacing)
    return np.where(clean.mask, np.clip(bad, 0, None), 0).astype(np.float32)


def stripping_rows(
    data_dir: Path,
    record: WeightRecord,
    *,
    contrasts: int = 10,
    seed: int = 2017,
    device: str = "auto",
    threads: int | None = None,
) -> Iterator[tuple[str, float]]:
    """(name, Dice) of heads synthesised from unseen label maps as scans, in random contrasts."""
    rng = np.random.default_rng(seed)
    for name in VALIDATION_MAPS:
        _require(data_dir / name)
        head = load_head(data_dir / name)
        for k in range(contrasts):
            image, brain, spacing_mm = scan(head, rng)
            spacing = (spacing_mm,) * 3
            found = brain_probability(image, spacing, record, device=device, threads=threads) > 0.5
            yield f"{head.name} #{k}", dice(found, brain > 0.5)


def _require(path: Path) -> None:
    if not path.exists():
        raise UsageError(
            f"expected the validation data at {path}, found none; give its folder with --data"
        )

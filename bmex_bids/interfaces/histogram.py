# SPDX-License-Identifier: Apache-2.0
"""The picture of the intensities in the brain, before and after."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
import nibabel as nib
import numpy as np
from matplotlib.figure import Figure

from bmex_bids.common.contrasts import CONTRASTS, taken_as
from bmex_bids.common.names import BidsName
from bmex_bids.common.tissues import TISSUES
from bmex_bids.imaging.intensity import load_histogram

#: of a histogram, in units of the reference
BIN = 5
#: of the reference in a histogram
REFERENCE = "#f4c58a"


def draw_histogram(inputs: Any, target: Path) -> None:
    """Histograms inside the brain, before and after, and the reference that they were matched to.

    The reference is the histogram of the age or of a template, or the levels of CSF, GM and WM at
    that age; FLAIR and PDw images have none.
    """
    inside = np.asarray(nib.load(inputs.mask_res).dataobj) > 0  # type: ignore[attr-defined]
    group, contrast = (
        inputs.planned["age_group"],
        taken_as(BidsName.of(inputs.planned["name"]).suffix),
    )
    chain = json.loads(Path(inputs.intensity_json).read_text())
    levels, counts = chain.get("reference_levels"), chain.get("reference_counts")
    bins = np.arange(0, 1005, BIN)
    middle = bins[:-1] + BIN / 2
    with mpl.rc_context({"svg.fonttype": "none", "font.size": 10, "font.family": "sans-serif"}):
        figure = Figure(figsize=(4.6, 2.9), layout="constrained")
        axes = figure.add_subplot()
        brightest = 0.0
        if levels is not None:
            for tissue, level in zip(TISSUES, levels, strict=True):
                axes.axvline(level, color=REFERENCE, lw=4, zorder=0)
                axes.annotate(
                    tissue.label,
                    (level, 1),
                    xycoords=("data", "axes fraction"),
                    ha="center",
                    va="bottom",
                )
            axes.plot([], [], color=REFERENCE, lw=4, label="levels for the age")
            brightest = max(levels)
        elif counts or CONTRASTS[contrast].reference:
            group = "template" if counts else group
            reference = np.array(counts or load_histogram(group, contrast), dtype=float)
            reference[0] = 0
            density, _ = np.histogram(
                np.arange(reference.size), bins, weights=reference, density=True
            )
            axes.fill_between(middle, density, color=REFERENCE, lw=0, label=f"reference ({group})")
            brightest = np.flatnonzero(np.cumsum(density) >= 0.999 * density.sum())[0] * BIN
        for path, label, colour in (
            (inputs.matched, "before", "#767676"),
            (inputs.enhanced_res, "after", "#0072b2"),
        ):
            values = np.asarray(nib.load(path).dataobj)[inside]  # type: ignore[attr-defined]
            density, _ = np.histogram(values, bins, density=True)
            axes.plot(middle, density, label=label, color=colour, lw=1.6)
            brightest = max(brightest, float(np.percentile(values, 99.9)))
        axes.set(xlabel="intensity (units of the reference)", yticks=[])
        axes.set_ylabel("share of the brain")
        axes.set_xlim(0, min(brightest * 1.05, 1000.0))
        axes.set_ylim(bottom=0)
        axes.spines[["left", "top", "right"]].set_visible(False)
        figure.legend(loc="outside lower center", ncols=3, frameon=False)
        figure.savefig(target, format="svg", metadata={"Date": None}, transparent=True)

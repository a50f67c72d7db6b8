# SPDX-License-Identifier: Apache-2.0
"""One picture of every kind of degradation at every level."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray

from bmex_bids.common.boxes import bounding_box
from bmex_bids.degrade.kinds import KINDS
from bmex_bids.degrade.levels import draw_level
from bmex_bids.degrade.steps import SEVERITIES, Scan

Array = NDArray[np.float32]

PANEL_INCHES, DOTS_PER_INCH = 1.5, 100
GREYS = 64  # fewer than a screen has; noise would otherwise make the file several times as large
MARGIN_MM = 16.0  # of background around the head
#: a slice beside the midline cuts both cortex and ventricles
BESIDE_MIDLINE_MM = 12.0


def gallery(
    image: Array,
    spacing: tuple[float, float, float],
    scan: Scan,
    seed: int,
    *,
    workers: int = 1,
) -> bytes:
    """A PNG file with a row for each kind and a column for each level.

    Each panel is one sagittal slice, front to the left, head up; within a row the dice fall alike.

    Parameters
    ----------
    image : (X, Y, Z), axes LPS
    spacing : mm
    scan : what drawing must know of the image
    seed : of the dice, the same for each panel
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    image = image[_head_box(image, spacing)]
    number = min(image.shape[0] // 2 + round(BESIDE_MIDLINE_MM / spacing[0]), image.shape[0] - 1)
    columns = ["clean", *SEVERITIES]
    height, width = image.shape[2] * spacing[2], image.shape[1] * spacing[1]
    figure = Figure(
        figsize=(
            0.55 + PANEL_INCHES * len(columns),
            0.25 + PANEL_INCHES * height / width * len(KINDS),
        ),
        dpi=DOTS_PER_INCH,
        facecolor="black",
    )
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(KINDS), len(columns))
    figure.subplots_adjust(
        left=0.55 / figure.get_figwidth(), right=1, bottom=0,
        top=1 - 0.25 / figure.get_figheight(), wspace=0.02, hspace=0.02,
    )  # fmt: skip
    for row, (name, kind) in zip(axes, KINDS.items(), strict=True):
        for panel, column in zip(row, columns, strict=True):
            shown = image
            if column != "clean":
                recipe = draw_level(name, column, np.random.default_rng(seed), scan)
                shown = recipe.apply(image, spacing, workers=workers)
                panel.text(
                    0.02, 0.02, f"{kind.levels[column]:g}", color="white", fontsize=8,
                    transform=panel.transAxes,
                )  # fmt: skip
            panel.imshow(
                shown[number].T, cmap="gray", origin="lower", vmin=0,
                vmax=scan.intensity_range, aspect=spacing[2] / spacing[1],
                interpolation="antialiased",
            )  # fmt: skip
            panel.set_axis_off()
        label = f"{name}\n({kind.unit})"
        row[0].text(
            -0.06, 0.5, label, color="white", fontsize=8, rotation=90, ha="right", va="center",
            ma="center", transform=row[0].transAxes,
        )  # fmt: skip
    for panel, column in zip(axes[0], columns, strict=True):
        panel.set_title(column, color="white", fontsize=9, pad=3)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor="black")
    return _fewer_greys(buffer)


def _head_box(image: Array, spacing: tuple[float, float, float]) -> tuple[slice, slice, slice]:
    """The head and a margin."""
    head = image > 0.05 * np.percentile(image, 99.5)
    return bounding_box(head, [round(MARGIN_MM / size) for size in spacing])


def _fewer_greys(png: io.BytesIO) -> bytes:
    from PIL import Image

    png.seek(0)
    grey = np.asarray(Image.open(png).convert("L"))
    step = np.uint8(256 // GREYS)
    palette = [
        value for grey_level in np.linspace(0, 255, GREYS) for value in [int(grey_level)] * 3
    ]
    picture = Image.fromarray(grey // step, mode="P")
    picture.putpalette(palette)
    out = io.BytesIO()
    picture.save(out, format="png", optimize=True, bits=6)
    return out.getvalue()

# SPDX-License-Identifier: Apache-2.0
"""The benchmark's pictures: before, after, truth and difference of each image in a few cells."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bmex_bids.evaluation.benchmark import PICTURED, slice_file
from bmex_bids.evaluation.rows import Row
from bmex_bids.evaluation.summary import Table
from bmex_bids.outputs.files import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: template units: largest error shown
ERROR = 120.0
COLUMNS = ("before", "after", "truth", "error before", "error after")


def write_figures(rows: Sequence[Row], out: Path, images: Sequence[str]) -> list[Path]:
    """Draw what the slices allow; returns the PNG files."""
    table = Table(rows)
    drawn = {f"picture_{image}.png": picture(table, out, image) for image in images}
    return [save(out / name, figure) for name, figure in drawn.items() if figure is not None]


def save(path: Path, figure: Figure) -> Path:
    """Write a drawing as a PNG file, whole."""

    def fill(temporary: Path) -> None:
        figure.savefig(temporary, format="png", dpi=100, facecolor="white")

    return write_whole(path, fill)


def picture(table: Table, out: Path, image: str) -> Figure | None:
    """Rows are cells; None where nothing was kept."""
    from matplotlib.figure import Figure

    cells = [
        cell for cell in PICTURED
        if (image, cell, "bmex", "psnr") in table.values and slice_file(out, image, cell).exists()
    ]  # fmt: skip
    if not cells:
        return None
    figure = Figure(figsize=(2.2 * len(COLUMNS), 2.6 * len(cells) + 0.4), layout="constrained")
    axes = figure.subplots(len(cells), len(COLUMNS), squeeze=False)
    for row, cell in enumerate(cells):
        with np.load(slice_file(out, image, cell)) as kept:
            planes = {name: kept[name] for name in ("before", "after", "truth")}
        top = float(np.percentile(planes["truth"], 99.9)) or 1.0
        for column, name in enumerate(COLUMNS):
            axis = axes[row, column]
            axis.set_xticks([])
            axis.set_yticks([])
            if row == 0:
                axis.set_title(name, fontsize=9)
            if name.startswith("error"):
                show(axis, np.abs(planes[name.split()[1]] - planes["truth"]), ERROR, "magma")
            else:
                show(axis, planes[name], top, "gray")
            if name in ("before", "after"):
                method = "damaged" if name == "before" else "bmex"
                value = table.get(image, cell, method, "psnr")
                axis.set_xlabel(f"{value:.1f} dB", fontsize=8)
        axes[row, 0].set_ylabel(cell, fontsize=9)
    figure.suptitle(f"{image}: axial slice, template units", fontsize=10)
    return figure


def show(axis: Any, plane: NDArray[Any], top: float, colours: str) -> None:
    """An axial slice of an LPS array: right on the left, front at the top."""
    axis.imshow(plane.T, cmap=colours, vmin=0, vmax=top, interpolation="nearest")

# SPDX-License-Identifier: Apache-2.0
"""The benchmark's pictures: a grid of slices, box plots of gains, tissue contrast.

Drawn from the table and from the slices that the run kept; nothing is computed again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bmex_bids.evaluation.benchmark import slice_file
from bmex_bids.evaluation.cells import CELLS
from bmex_bids.evaluation.rows import Row
from bmex_bids.evaluation.summary import BASELINES, Table
from bmex_bids.outputs.files import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GRID_CELLS = ("moderate", "severe 2.4 mm", "2.4 mm", "rician 2.5%")
GRID_METHODS = ("degraded", "nlm", "tv", "cubic", "ablation", "bmex")
#: grey values of the slices, and of the errors beside them, template units
WINDOW, ERROR_WINDOW = (0.0, 700.0), (0.0, 120.0)
COLOURS = {
    "matched": "#bbbbbb", "nlm": "#4477aa", "tv": "#66ccee", "bm4d": "#aa3377", "n4": "#ccbb44",
    "cubic": "#228833", "lanczos": "#8fce8f", "ablation": "#ff9f80", "bmex": "#ee3322",
}  # fmt: skip


def write_figures(rows: Sequence[Row], out: Path, images: Sequence[str]) -> list[Path]:
    """Draw what the rows and slices allow; returns the PNG files."""
    table = Table(rows)
    drawn = {f"grid_{image}.png": grid(table, out, image) for image in images}
    drawn |= {"gains.png": gains(table), "contrast.png": contrast(table)}
    return [_save(out / name, figure) for name, figure in drawn.items() if figure is not None]


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _save(path: Path, figure: Figure) -> Path:
    def fill(temporary: Path) -> None:
        figure.savefig(temporary, format="png", dpi=100, facecolor="white")

    return write_whole(path, fill)


def grid(table: Table, out: Path, image: str) -> Figure | None:
    """Rows are cells; columns the clean slice, each method's, and two maps of absolute error."""
    truth_file = slice_file(out, image, "clean", "degraded")

    def there(cell: str, method: str) -> bool:
        """Also in the table: a slice may be of a method that this run was not asked for."""
        known = (image, cell, method, "psnr") in table.values
        return known and slice_file(out, image, cell, method).exists()

    cells = [cell for cell in GRID_CELLS if there(cell, "bmex")]
    if not cells or not truth_file.exists():
        return None
    truth = np.load(truth_file)
    methods = [m for m in GRID_METHODS if any(there(cell, m) for cell in cells)]
    columns = ["clean", *methods, "error, degraded", "error, bmex"]
    aspect = truth.shape[1] / truth.shape[0]
    figure = _figure(1.2 * len(columns), 1.2 * aspect * len(cells) + 0.4)
    axes = figure.subplots(len(cells), len(columns), squeeze=False)
    for row, cell in enumerate(cells):
        slices = {m: np.load(slice_file(out, image, cell, m)) for m in methods if there(cell, m)}
        for column, name in enumerate(columns):
            axis = axes[row, column]
            axis.set_axis_off()
            if row == 0:
                axis.set_title(name, fontsize=8)
            if name == "clean":
                _show(axis, truth, WINDOW)
                axis.text(
                    -0.08, 0.5, cell, rotation=90, va="center", ha="right", fontsize=8,
                    transform=axis.transAxes,
                )  # fmt: skip
            elif name.startswith("error"):
                _show(axis, np.abs(slices[name.split(" ")[1]] - truth), ERROR_WINDOW, "magma")
            elif name in slices:
                _show(axis, slices[name], WINDOW)
                value = table.get(image, cell, name, "psnr")
                axis.text(
                    0.5, -0.02, f"{value:.1f} dB", ha="center", va="top", fontsize=7,
                    transform=axis.transAxes,
                )  # fmt: skip
    figure.suptitle(f"{image}: axial slice; PSNR of the whole brain", fontsize=9)
    return figure


def _show(
    axis: Any, plane: NDArray[Any], window: tuple[float, float], colours: str = "gray"
) -> None:
    """An axial slice of an LPS array: right on the left, front at the top."""
    axis.imshow(plane.T, cmap=colours, vmin=window[0], vmax=window[1], interpolation="nearest")


def gains(table: Table) -> Figure | None:
    """Box plots of gains over the degraded image, a family of cells and a measure a panel."""
    families = [
        family
        for family in ("motion", "resolution", "noise", "smoothing")
        if table.places([n for n, c in CELLS.items() if c.family == family], "bmex", "psnr")
    ]
    if not families:
        return None
    measures = {"psnr": "PSNR gain, dB", "ssim": "SSIM gain", "dice": "Dice gain"}
    figure = _figure(2.6 * len(families) + 0.6, 2.3 * len(measures))
    axes = figure.subplots(len(measures), len(families), squeeze=False)
    for column, family in enumerate(families):
        cells = [name for name, cell in CELLS.items() if cell.family == family]
        for row, (metric, label) in enumerate(measures.items()):
            axis = axes[row, column]
            names, boxes = [], []
            for method in (*BASELINES[1:], "ablation", "bmex"):
                pairs = table.pairs(cells, "degraded", method, metric)
                found = [own - bad for _, bad, own in pairs if math.isfinite(own - bad)]
                if found:
                    names.append(method)
                    boxes.append(found)
            axis.axhline(0, color="#444444", linewidth=0.8)
            parts = axis.boxplot(
                boxes, patch_artist=True, widths=0.65,
                medianprops={"color": "black"}, flierprops={"markersize": 3},
            )  # fmt: skip
            for box, name in zip(parts["boxes"], names, strict=True):
                box.set_facecolor(COLOURS[name])
            axis.set_xticks(range(1, len(names) + 1), names, rotation=60, fontsize=7)
            axis.tick_params(axis="y", labelsize=7)
            if column == 0:
                axis.set_ylabel(label, fontsize=8)
            if row == 0:
                axis.set_title(f"{family} ({len(boxes[-1])})", fontsize=9)
    figure.suptitle("Gain over the degraded image (images × cells)", fontsize=9)
    return figure


def contrast(table: Table) -> Figure | None:
    """Tissue contrast of each real image as it is, before and after."""
    places = table.places(["as it is"], "bmex", "tct_before")
    if not places:
        return None
    figure = _figure(6.4, 0.32 * len(places) + 1.2)
    axis = figure.subplots()
    for row, (image, cell) in enumerate(places):
        before, after = (table.get(image, cell, "bmex", f"tct_{w}") for w in ("before", "after"))
        axis.annotate(
            "", xy=(after, row), xytext=(before, row),
            arrowprops={"arrowstyle": "->", "color": COLOURS["bmex"] if after > before else "#4477aa"},
        )  # fmt: skip
        axis.plot([before, after], [row, row], "|", color="black", markersize=7)
    axis.set_yticks(range(len(places)), [image for image, _ in places], fontsize=8)
    axis.invert_yaxis()
    axis.set_xlabel("tissue contrast t, before → after", fontsize=8)
    return figure

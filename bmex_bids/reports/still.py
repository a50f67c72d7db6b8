# SPDX-License-Identifier: Apache-2.0
"""A picture of one enhancement that does not move, for notebooks."""

from __future__ import annotations

import io
from typing import Any

import nibabel as nib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

#: of a panel, in inches
PANEL = 2.4


def before_after(before: Any, after: Any, mask: Any) -> bytes:
    """Two images on one grid, one above the other, as PNG.

    Parameters
    ----------
    before, after : (X, Y, Z); shown from zero to a little above the brightest of the brain
    mask : of the brain; the three planes go through its middle
    """
    first, second, inside = (
        np.asarray(nib.as_closest_canonical(nib.squeeze_image(image)).dataobj, np.float32)
        for image in (before, after, mask)
    )
    brain = np.argwhere(inside > 0)
    middle = brain.mean(0).astype(int) if brain.size else np.array(inside.shape) // 2
    sizes = nib.as_closest_canonical(mask).header.get_zooms()
    within = first[inside > 0] if brain.size else first
    limits = {"vmin": 0.0, "vmax": float(np.percentile(within, 99.5)) * 1.05}
    figure = Figure(figsize=(3 * PANEL, 2 * PANEL), facecolor="k", layout="constrained")
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02)  # type: ignore[union-attr]
    panels = figure.subplots(2, 3)
    for row, image in zip(panels, (first, second), strict=True):
        for panel, axis in zip(row, (2, 0, 1), strict=True):
            across, up = (other for other in range(3) if other != axis)
            cut = np.take(image, middle[axis], axis).T
            panel.imshow(
                cut, cmap="gray", origin="lower", aspect=float(sizes[up] / sizes[across]), **limits
            )
            panel.set_axis_off()
    stream = io.BytesIO()
    FigureCanvasAgg(figure).print_png(stream)
    return stream.getvalue()

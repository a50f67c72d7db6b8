# SPDX-License-Identifier: Apache-2.0
"""A picture of one enhancement that does not move, for notebooks."""

from __future__ import annotations

import io
from typing import Any

import nibabel as nib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from bmex_bids.common.boxes import bounding_box

#: of a panel, in inches, and around the brain, in voxels
PANEL, MARGIN = 2.6, 12


def before_after(before: Any, after: Any, mask: Any) -> bytes:
    """Two images on one grid, one above the other, as PNG.

    Parameters
    ----------
    before, after : (X, Y, Z); shown from zero to a little above the brightest of the brain
    mask : of the brain; the three planes go through its middle
    """
    upright = [
        nib.as_closest_canonical(nib.squeeze_image(image)) for image in (before, after, mask)
    ]
    first, second, inside = (np.asarray(image.dataobj, np.float32) for image in upright)
    box = bounding_box(inside > 0, MARGIN)
    first, second, inside = (values[box] for values in (first, second, inside))
    sizes = upright[2].header.get_zooms()
    brain = first[inside > 0]
    limits = {
        "vmin": 0.0,
        "vmax": 1.05 * float(np.percentile(brain if brain.size else first, 99.5)),
    }
    figure = Figure(figsize=(3 * PANEL, 2 * PANEL), facecolor="k")
    figure.subplots_adjust(0, 0, 1, 1, wspace=0, hspace=0)
    for row, image in zip(figure.subplots(2, 3), (first, second), strict=True):
        for panel, axis in zip(row, (2, 0, 1), strict=True):
            across, up = (other for other in range(3) if other != axis)
            cut = np.take(image, image.shape[axis] // 2, axis).T
            aspect = float(sizes[up] / sizes[across])
            panel.imshow(cut, cmap="gray", origin="lower", aspect=aspect, **limits)
            panel.set_axis_off()
    stream = io.BytesIO()
    FigureCanvasAgg(figure).print_png(stream)
    return stream.getvalue()

# SPDX-License-Identifier: Apache-2.0
"""The close-up of the report: voxels of the network's grid, and of half their edge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import scipy.ndimage
from matplotlib.figure import Figure
from nipype.interfaces.base import isdefined
from numpy.typing import NDArray

from bmex_bids.common.boxes import Box, bounding_box
from bmex_bids.imaging.orientation import voxel_sizes

#: mm: edge of what is shown, and between places that are looked at
SHOWN_MM, STRIDE_MM = 44.0, 8.0
#: voxels around it that a spline looks at
ROOM = 6
#: in inches
WIDTH = 11.0


def draw_closeup(inputs: Any, target: Path) -> None:
    """A part of an axial plane thrice: as it is, cubic splines, super-resolved.

    No picture where the edges of voxels were not halved.
    """
    if not isdefined(inputs.enhanced_half):
        return
    image: Any = nib.load(inputs.enhanced_res)
    fine: Any = nib.load(inputs.enhanced_half)
    mask: Any = nib.load(inputs.mask_res)
    coarse = np.asarray(image.dataobj, dtype=np.float32)
    inside = np.asarray(mask.dataobj) > 0
    edge = voxel_sizes(image.affine)[0]
    box = busiest(coarse, inside, edge)
    halves = tuple(slice(2 * side.start, 2 * side.stop) for side in box)
    panels = {
        f"{edge:g} mm": coarse[box][..., 0],
        f"{edge / 2:g} mm, cubic splines": cubic_halves(coarse, inside, box)[..., 0],
        f"{edge / 2:g} mm, super-resolved": np.asarray(fine.dataobj[halves])[..., 0],
    }
    highest = 1.05 * max(float(np.percentile(plane, 99.5)) for plane in panels.values())
    figure = Figure(figsize=(WIDTH, WIDTH / 3 + 0.3), facecolor="k")
    for axis, (name, plane) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        # LPS: the person's left is drawn on the left, the front above
        axis.imshow(plane[::-1].T, cmap="gray", vmin=0, vmax=highest, interpolation="nearest")
        axis.set_title(name, color="w", fontsize=12)
        axis.set_axis_off()
    figure.subplots_adjust(0.005, 0.005, 0.995, 0.92, 0.01)
    figure.savefig(target, format="svg", metadata={"Date": None}, facecolor="k")


def busiest(image: NDArray[np.float32], inside: NDArray[np.bool_], edge: float) -> Box:
    """Of the axial plane in the middle of a brain, the square in which voxels differ most.

    Parameters
    ----------
    edge : of a voxel, mm
    """
    whole = bounding_box(inside)
    middle = (whole[2].start + whole[2].stop) // 2
    shown, stride = round(SHOWN_MM / edge), max(round(STRIDE_MM / edge), 1)
    along_x, along_y = (
        [
            slice(low, min(low + shown, side.stop))
            for low in range(side.start, max(side.stop - shown, side.start) + 1, stride)
        ]
        for side in whole[:2]
    )
    plane = np.where(inside, image, 0)[..., middle]
    change = sum(np.abs(part) for part in np.gradient(plane))
    kept = scipy.ndimage.binary_erosion(inside[..., middle], iterations=2)
    x, y = max(
        ((x, y) for x in along_x for y in along_y),
        key=lambda place: float((change * kept)[place].sum()),
    )
    return x, y, slice(middle, middle + 1)


def cubic_halves(
    image: NDArray[np.float32], inside: NDArray[np.bool_], box: Box
) -> NDArray[np.float32]:
    """Voxels of half the edge in a box, (2X, 2Y, 2Z), by cubic splines; zero outside the mask."""
    whole = tuple(
        slice(max(side.start - ROOM, 0), min(side.stop + ROOM, n))
        for side, n in zip(box, image.shape, strict=True)
    )
    first = [2 * (side.start - around.start) for side, around in zip(box, whole, strict=True)]
    fine = scipy.ndimage.affine_transform(
        image[whole],
        [0.5] * 3,
        offset=[start / 2 - 0.25 for start in first],
        output_shape=[2 * (side.stop - side.start) for side in box],
        order=3,
        mode="nearest",
    )
    inside = inside[box].repeat(2, 0).repeat(2, 1).repeat(2, 2)
    return np.asarray(np.where(inside, fine, 0), dtype=np.float32)

# SPDX-License-Identifier: Apache-2.0
"""The bounding box of a mask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.ndimage
from numpy.typing import NDArray

Box = tuple[slice, slice, slice]


def bounding_box(mask: NDArray[Any], margin: int | Sequence[int] = 0) -> Box:
    """The smallest box that holds a mask, with a margin, inside the array.

    Parameters
    ----------
    mask : (X, Y, Z); true, or not zero, in at least one voxel
    margin : voxels on each side, one number or one an axis; cut off at the array's border

    Raises
    ------
    ValueError
        The mask is empty.

    >>> bounding_box(np.eye(4)[1:3, :, None], margin=1)
    (slice(0, 2, None), slice(0, 4, None), slice(0, 1, None))
    """
    found = scipy.ndimage.find_objects((mask != 0).view(np.int8), max_label=1)[0]
    if found is None:
        raise ValueError("expected a mask with voxels in it, got an empty one")
    margins = (margin,) * 3 if isinstance(margin, int) else margin
    x, y, z = (
        slice(max(side.start - room, 0), min(side.stop + room, length))
        for side, length, room in zip(found, mask.shape, margins, strict=True)
    )
    return x, y, z

# SPDX-License-Identifier: Apache-2.0
"""The histogram template that lies beside LifespanStrip's weights."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from bmex_bids.exceptions import WeightsError


def template_values(path: Path) -> NDArray[np.float32]:
    """The voxels of LifespanStrip's template; WeightsError where it cannot be read."""
    try:
        values = np.asarray(nib.load(path).dataobj, dtype=np.float32)  # type: ignore[attr-defined]
    except Exception as error:  # nibabel raises many kinds
        raise WeightsError(
            f"expected LifespanStrip's template in {path}, got: {error}; fetch template.hdr and "
            "template.img again, or remove them"
        ) from error
    if not np.isfinite(values).all() or values.min() == values.max():
        raise WeightsError(
            f"expected LifespanStrip's template in {path}, got an image of one value or with "
            "numbers that are not finite; fetch template.hdr and template.img again, or remove them"
        )
    return values

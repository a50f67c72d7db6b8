# SPDX-License-Identifier: Apache-2.0
"""What is known exactly of a head painted from a label map: its tissues and structures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bmex_bids.common.structures import STRUCTURES, structure_labels
from bmex_bids.common.tissues import TISSUES
from bmex_bids.training.synthesis import read_labels

OUTER = next(part.number for part in STRUCTURES if part.name == "outer_fluid")


def structures_of(path: Path) -> NDArray[np.uint8]:
    """A label map on the grid of its painted head: 0, then the numbers of ``common.structures``."""
    return structure_labels(read_labels(path))


def true_litres(path: Path, mask: NDArray[np.bool_]) -> dict[str, float]:
    """Litres of the tissues and structures of a painted head, whose voxels are 1 mm.

    Parameters
    ----------
    mask : (X, Y, Z), the brain: outer fluid counts inside it alone
    """
    labels = structures_of(path)
    labels[(labels == OUTER) & ~mask] = 0
    counts = np.bincount(labels.ravel(), minlength=len(STRUCTURES) + 1)
    litres = {part.name: float(counts[part.number]) / 1e6 for part in STRUCTURES}
    for tissue in TISSUES:
        litres[tissue.label] = sum(
            litres[part.name] for part in STRUCTURES if part.tissue == tissue.number
        )
    return litres

# SPDX-License-Identifier: Apache-2.0
"""What is known exactly of a head painted from a label map: its tissues and structures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bmex_bids.metrics.change import tissue_litres
from bmex_bids.training.painting import FREESURFER, TISSUE, grouped
from bmex_bids.training.synthesis import read_labels

#: structure → FreeSurfer numbers, both sides
STRUCTURES: Mapping[str, tuple[int, ...]] = {
    "ventricles": (4, 43, 5, 44, 14, 15),
    "cortex": (3, 42),
    "cerebral white matter": (2, 41),
    "thalamus": (10, 49),
    "caudate": (11, 50),
    "putamen": (12, 51),
    "pallidum": (13, 52),
    "hippocampus": (17, 53),
    "amygdala": (18, 54),
    "cerebellar cortex": (8, 47),
    "cerebellar white matter": (7, 46),
    "brain stem": (16,),
}


def structures_of(path: Path) -> NDArray[np.uint8]:
    """A label map on the grid of its painted head: 0, then the order of :data:`STRUCTURES`."""
    labels = read_labels(path)
    found = np.zeros(labels.shape, dtype=np.uint8)
    for number, members in enumerate(STRUCTURES.values(), start=1):
        found[np.isin(labels, members)] = number
    return found


def true_litres(path: Path, mask: NDArray[np.bool_]) -> dict[str, float]:
    """Litres of the tissues and structures of a painted head, whose voxels are 1 mm.

    Parameters
    ----------
    mask : (X, Y, Z), the brain: fluid counts inside it alone
    """
    tissue = np.array([0] + [TISSUE[name] for name in FREESURFER], dtype=np.uint8)
    labels = tissue[grouped(read_labels(path))]
    labels[(labels == 1) & ~mask] = 0
    litres = tissue_litres(labels, 1.0)
    counts = np.bincount(structures_of(path).ravel(), minlength=len(STRUCTURES) + 1)[1:]
    return litres | {
        name: float(count) / 1e6 for name, count in zip(STRUCTURES, counts, strict=True)
    }

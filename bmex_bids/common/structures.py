# SPDX-License-Identifier: Apache-2.0
"""The structures that the segmentation network labels: numbers, names and tissues."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Structure:
    """A structure; left and right are one.

    Attributes
    ----------
    number : label, in the network and in the files
    name : lower case, with underscores; of columns and tables
    tissue : the network's number of its tissue (see :mod:`bmex_bids.common.tissues`)
    freesurfer : FreeSurfer's numbers of it
    """

    number: int
    name: str
    tissue: int
    freesurfer: tuple[int, ...]


#: in the order of the labels; accumbens counts as caudate, ventral diencephalon as brain stem
STRUCTURES = (
    Structure(1, "outer_fluid", 1, (24,)),
    Structure(2, "ventricles", 1, (4, 43, 5, 44, 14, 15, 31, 63)),
    Structure(3, "cortex", 2, (3, 42)),
    Structure(4, "white_matter", 3, (2, 41, 77, 78, 79, 80, 85, 251, 252, 253, 254, 255)),
    Structure(5, "thalamus", 2, (10, 49, 9, 48)),
    Structure(6, "caudate", 2, (11, 50, 26, 58)),
    Structure(7, "putamen", 2, (12, 51)),
    Structure(8, "pallidum", 2, (13, 52)),
    Structure(9, "hippocampus", 2, (17, 53)),
    Structure(10, "amygdala", 2, (18, 54)),
    Structure(11, "cerebellar_cortex", 2, (8, 47)),
    Structure(12, "cerebellar_white", 3, (7, 46)),
    Structure(13, "brain_stem", 3, (16, 28, 60)),
)
#: tissue of each label; 0 none
TISSUE_OF = np.array([0] + [structure.tissue for structure in STRUCTURES], dtype=np.uint8)


def structure_labels(labels: NDArray[np.integer[Any]]) -> NDArray[np.uint8]:
    """The structures of a label map of FreeSurfer's numbers: their numbers, 0 elsewhere."""
    found = np.zeros(labels.shape, dtype=np.uint8)
    for structure in STRUCTURES:
        found[np.isin(labels, structure.freesurfer)] = structure.number
    return found

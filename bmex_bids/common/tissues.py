# SPDX-License-Identifier: Apache-2.0
"""The tissues: their order and numbers in the network, and in the files.

The network's number is the place in each list of probability maps, counted from 1; 0 is the
background.  The files use the numbers of BIDS derivatives.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Tissue:
    """A tissue.

    Attributes
    ----------
    number : the network's label
    bids : label in ``dseg`` files
    label : BIDS abbreviation
    name : in words
    """

    number: int
    bids: int
    label: str
    name: str


#: in the order of the network's labels and of every list of probability maps
TISSUES = (
    Tissue(1, 3, "CSF", "cerebrospinal fluid"),
    Tissue(2, 1, "GM", "grey matter"),
    Tissue(3, 2, "WM", "white matter"),
)

# SPDX-License-Identifier: Apache-2.0
"""The contrasts that are enhanced: one table, by BIDS suffix."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Contrast:
    """What is true of all images of a contrast.

    Attributes
    ----------
    suffix : in BIDS names
    word : in the methods text
    fluid : -1 where fluid is darker than tissue, 1 where it is brighter, 0 where neither is sure
    reference : whether there are histogram references of it; without one its mean is scaled
    default : whether it is taken without being asked for
    like : the contrast whose weights, references and limits are used; of most, its own
    ratio : a ratio of two images: noise around the head, and no motion that k-space could show
    """

    suffix: str
    word: str
    fluid: int
    reference: bool = True
    default: bool = True
    like: str = ""
    ratio: bool = False


CONTRASTS: Mapping[str, Contrast] = {
    contrast.suffix: contrast
    for contrast in (
        Contrast("T1w", "T1-weighted", -1),
        Contrast("T2w", "T2-weighted", 1),
        Contrast("FLAIR", "FLAIR", -1, reference=False, default=False),
        Contrast("PDw", "proton-density-weighted", 0, reference=False, default=False),
        Contrast("UNIT1", "MP2RAGE UNI", -1, default=False, like="T1w", ratio=True),
    )
}
#: template units: mean of a brain whose contrast has no reference, and of what networks over slices get
MEAN = 400.0
SUFFIXES = tuple(CONTRASTS)
DEFAULT = tuple(name for name, contrast in CONTRASTS.items() if contrast.default)


def taken_as(suffix: str) -> str:
    """The contrast whose weights, references and limits an image gets.

    >>> taken_as("UNIT1"), taken_as("FLAIR")
    ('T1w', 'FLAIR')
    """
    return CONTRASTS[suffix].like or suffix

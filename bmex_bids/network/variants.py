# SPDX-License-Identifier: Apache-2.0
"""The kinds of network, a record each: what is true of all weights of a kind.

A new kind is one record here and one module with its ``build`` function; nothing else needs to
know it.  This module loads no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

_MODELS = "bmex_bids.network.models"


@dataclass(frozen=True)
class Variant:
    """Facts of a kind of network.

    Attributes
    ----------
    name : as weight records have it
    build : ``module:function``; makes the empty network from a state dict, whose shapes say its
        sizes (classes, width)
    rename : ``module:function``; the network's name of a tensor of the file; None: the same
    mirrored : axes of LPS along which it was trained with mirrored brains
    bytes_per_voxel : of the brain's box, at the peak, about
    cost : seconds of one pass over a million voxels of brain, in one thread of an idle server core
        that multiplies bfloat16 (AVX-512, no AMX); for planning
    histogram_method, order : how the input was matched and resampled in training; see
        ``imaging.intensity.match_histogram``
    bfloat16_on_processor : whether ``auto`` precision takes bfloat16 where a processor has it
    slices : takes slices, and is run over those of six directions; others take volumes
    learns_error : predicts the variance of its own error, so ``desc-uncertainty`` can be written
    """

    name: str
    build: str
    rename: str | None = None
    mirrored: tuple[str, ...] = ()
    bytes_per_voxel: int = 1270
    cost: float = 10.0
    histogram_method: str = "brain"
    order: int = 3
    bfloat16_on_processor: bool = True
    slices: bool = False
    learns_error: bool = False


VARIANTS: Mapping[str, Variant] = {
    variant.name: variant
    for variant in (
        Variant(
            "bmex-compact",
            f"{_MODELS}.compact:build_enhancer",
            mirrored=("x", "y"),
            bytes_per_voxel=300,
            cost=2.4,
            bfloat16_on_processor=False,  # so every processor gives the same numbers
        ),
        Variant(
            "bmex-pytorch",
            f"{_MODELS}.bmex:build_pytorch",
            f"{_MODELS}.bmex:from_published",
            cost=66.0,
            histogram_method="published",
            order=1,
        ),
        Variant(
            "bmex-caffe",
            f"{_MODELS}.bmex:build_caffe",
            cost=30.0,
            histogram_method="published",
            order=1,
        ),
        Variant(
            "bmex-slices",
            f"{_MODELS}.slices:build",
            mirrored=("x",),
            bytes_per_voxel=160,
            cost=4.0,
            histogram_method="levels",
            slices=True,
            learns_error=True,
        ),
        Variant("bmex-strip", f"{_MODELS}.compact:build_stripper"),
        Variant("lifespanstrip", f"{_MODELS}.lifespanstrip:build"),
        Variant("bmex-score", f"{_MODELS}.score:build"),
        Variant("bmex-within", f"{_MODELS}.within:build"),
        Variant("bmex-denoise", f"{_MODELS}.denoise:build"),
        Variant("bmex-super", f"{_MODELS}.halve:build"),
        Variant("lfmri", "bmex_bids.recon.unrolled:build"),
        Variant("bmex-segment", f"{_MODELS}.segment:build"),
    )
}
#: of a name in no record
UNKNOWN = Variant("", "")


def facts(name: str) -> Variant:
    """The record of a kind; that of an unknown one has cautious values."""
    return VARIANTS.get(name, UNKNOWN)

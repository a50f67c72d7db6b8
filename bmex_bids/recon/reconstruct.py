# SPDX-License-Identifier: Apache-2.0
"""From raw data to an image, by LF-MRI or by a classical method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import nibabel as nib
import numpy as np
import torch
from numpy.typing import NDArray

from bmex_bids.exceptions import WeightsError
from bmex_bids.recon.classical import METHODS
from bmex_bids.recon.coils import Complex, estimated
from bmex_bids.recon.operators import Encoding
from bmex_bids.recon.rawdata import RawData
from bmex_bids.recon.unrolled import Cascade

Array = NDArray[np.float32]
Mask = NDArray[np.bool_]
#: name of the network among the methods
NETWORK = "lfmri"
#: what the images' brightest part is scaled to, and its quantile
BRIGHT, BRIGHT_QUANTILE = 1000.0, 0.999


@dataclass(frozen=True)
class Reconstructed:
    """An image and how it came about.

    Attributes
    ----------
    image : (rows, columns, slices), float32
    attention : the same grid, 0…1, where the network looked for lesions; None for other methods
    coil_maps : method of the coil sensitivity maps
    factor : on the raw data's unit
    lesion_score : highest probability of a lesion of a slice; None for other methods, and for a
        network whose classifier did not learn from labels
    """

    image: nib.Nifti1Image
    attention: nib.Nifti1Image | None
    coil_maps: str
    factor: float
    lesion_score: float | None = None


def slice_by_network(
    network: Cascade, kspace: Complex, maps: Complex, guide: Mask | None = None
) -> tuple[Array, Array, float]:
    """Magnitude (H, W), attention (H, W) and probability of a lesion of one slice.

    Parameters
    ----------
    kspace, maps : (R, H, W)
    guide : (H, W), the true lesions, for a network that is trained with them
    """
    mask = (np.abs(kspace).sum((0, 1)) > 0).astype(np.float32)
    encoding = Encoding(torch.from_numpy(maps)[None], torch.from_numpy(mask)[None, None, None])
    with torch.no_grad():
        done = network(
            encoding.adjoint(torch.from_numpy(kspace)[None]),
            encoding,
            None if guide is None else torch.from_numpy(guide)[None, None].float(),
        )
    score = float(torch.sigmoid(done.scores[-1])[0])
    return done.images[-1][0].abs().numpy(), done.attention[0, 0].numpy(), score


def reconstruct(
    raw: RawData,
    method: str,
    network: Cascade | None = None,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> Reconstructed:
    """Reconstruct all slices.

    Parameters
    ----------
    raw : see :func:`bmex_bids.recon.rawdata.read`
    method : ``"lfmri"``, which needs ``network``, or one of
        :data:`bmex_bids.recon.classical.METHODS`
    progress : is told how many slices are done, of how many
    """
    images, attentions, scores, how = [], [], [], "none"
    for number, kspace in enumerate(raw.kspace):
        maps = kspace
        if method != "zero-filled":
            maps, how = estimated(kspace, raw.mask)
        if method == NETWORK:
            if network is None:
                raise ValueError("expected a network for the method lfmri")
            if network.attention == "oracle":
                raise WeightsError(
                    "expected weights that need no true lesions, got some trained with them; "
                    "they are for bmex-evaluate recon only"
                )
            image, attention, score = slice_by_network(network, kspace, maps)
            attentions.append(_cropped(attention, raw.shape))
            if network.attention == "learnt":
                scores.append(score)
        else:
            image = METHODS[method](kspace, maps)
        images.append(_cropped(image, raw.shape))
        progress(number + 1, len(raw.kspace))
    volume = np.stack(images, axis=-1)
    factor = BRIGHT / float(np.quantile(volume, BRIGHT_QUANTILE) or 1)
    return Reconstructed(
        nib.Nifti1Image((volume * factor).astype(np.float32), raw.affine),
        nib.Nifti1Image(np.stack(attentions, axis=-1), raw.affine) if attentions else None,
        how,
        factor,
        max(scores, default=None),
    )


def _cropped(image: Array, shape: tuple[int, int]) -> Array:
    """The middle of an image: its voxel n // 2 stays the middle."""
    first = [n // 2 - size // 2 for n, size in zip(image.shape, shape, strict=True)]
    rows, columns = (slice(f, f + size) for f, size in zip(first, shape, strict=True))
    return image[rows, columns]

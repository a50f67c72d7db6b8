# SPDX-License-Identifier: Apache-2.0
"""Reconstruction of one slice without a network: zero-filled, CG-SENSE, L1-wavelet.

The last two are sigpy's: Pruessmann et al., Magn. Reson. Med. 46:638-651 (2001); Lustig et al.,
Magn. Reson. Med. 58:1182-1195 (2007).  They scale k-space so that their weight means the same for
every scanner.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from bmex_bids.recon.coils import centred_inverse, library

Complex = NDArray[np.complex64]
Array = NDArray[np.float32]

#: weight of the penalty, for data whose zero-filled image has a maximum of 1
SENSE_WEIGHT, WAVELET_WEIGHT = 0.01, 0.003
SENSE_STEPS, WAVELET_STEPS = 30, 50


def root_sum_of_squares(kspace: Complex) -> Array:
    """Magnitude (H, W) of k-space (R, H, W); of undersampled data it is the zero-filled image."""
    result: Array = np.sqrt((np.abs(centred_inverse(kspace)) ** 2).sum(0)).astype(np.float32)
    return result


def zero_filled(kspace: Complex, maps: Complex, weight: float = 0.0) -> Array:
    """Root sum of squares; needs neither maps nor a weight."""
    return root_sum_of_squares(kspace)


def sense(kspace: Complex, maps: Complex, weight: float = SENSE_WEIGHT) -> Array:
    """argmin ½‖A X − Y‖² + ½ weight ‖X‖² by conjugate gradients."""
    scale = _scale(kspace)
    app = library("sigpy.mri.app").SenseRecon(
        kspace / scale, maps, lamda=weight, max_iter=SENSE_STEPS, show_pbar=False
    )
    return _magnitude(app.run(), scale)


def wavelet(kspace: Complex, maps: Complex, weight: float = WAVELET_WEIGHT) -> Array:
    """argmin ½‖A X − Y‖² + weight ‖Ψ X‖₁ with Daubechies-4 wavelets, by FISTA."""
    scale = _scale(kspace)
    app = library("sigpy.mri.app").L1WaveletRecon(
        kspace / scale, maps, weight, max_iter=WAVELET_STEPS, alpha=1, show_pbar=False
    )
    return _magnitude(app.run(), scale)


#: name of a method → its function of k-space (R, H, W), maps (R, H, W) and the weight
METHODS: Mapping[str, Callable[..., Array]] = {
    "zero-filled": zero_filled,
    "sense": sense,
    "wavelet": wavelet,
}


def _scale(kspace: Complex) -> np.float32:
    """Maximum of the zero-filled image; 1 for no signal."""
    return np.float32(root_sum_of_squares(kspace).max() or 1)


def _magnitude(image: Complex, scale: np.float32) -> Array:
    return np.asarray(np.abs(image) * scale, dtype=np.float32)

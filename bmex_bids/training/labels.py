# SPDX-License-Identifier: Apache-2.0
"""Tissue labels of real brains for training, where contrast alone can tell them.

Expectation maximisation of three Gaussians over the brain's intensities, with a spatial prior: in
each round the class probabilities, smoothed, weigh the likelihoods (a mean-field form of a Markov
random field).  One variance serves all classes: with one each, a wide class swallows both tails.
Classes are ordered by their means as the age's contrast orders the tissues.  In the first half
year grey and white matter overlap or swap, so no labels are made there; heads synthesised from
label maps teach those contrasts.
"""

from __future__ import annotations

import numpy as np
import scipy.ndimage
from numpy.typing import NDArray

#: dark to bright tissues (1 CSF, 2 GM, 3 WM) by contrast, and the groups where the order is sure
ORDER = {"T1w": (1, 2, 3), "T2w": (3, 2, 1)}
SURE_GROUPS = {
    "T1w": ("month9", "month12", "month18", "month24"),
    "T2w": (),  # too little fluid for a class of its own
}


def contrast_is_sure(age_group: str, contrast: str) -> bool:
    """Whether intensity order tells the three tissues at this age and contrast."""
    return age_group in SURE_GROUPS[contrast]


def tissue_labels(
    image: NDArray[np.float32],
    mask: NDArray[np.bool_],
    contrast: str,
    *,
    rounds: int = 15,
    smoothing: float = 0.8,
) -> NDArray[np.uint8]:
    """Labels 0 background, 1 CSF, 2 GM, 3 WM of a masked brain.

    Parameters
    ----------
    image : (X, Y, Z), any unit, free of bias
    mask : (X, Y, Z) brain
    contrast : ``"T1w"`` or ``"T2w"``, which says the order of the tissues
    rounds : iterations of expectation maximisation
    smoothing : standard deviation of the spatial prior, voxels
    """
    values = image[mask]
    mean = np.quantile(values, [0.06, 0.4, 0.8]).astype(np.float32)
    deviation = np.float32(values.std() / 3)
    share = np.array([0.15, 0.5, 0.35], dtype=np.float32)
    prior = np.broadcast_to(share[:, None], (3, values.size)).copy()
    weight = scipy.ndimage.gaussian_filter(mask.astype(np.float32), smoothing)[mask]
    for _ in range(rounds):
        likelihood = np.exp(-0.5 * ((values - mean[:, None]) / deviation) ** 2)
        posterior = prior * likelihood + 1e-12
        posterior /= posterior.sum(axis=0)
        total = posterior.sum(axis=1)
        mean = (posterior @ values) / total
        spread = (posterior * (values - mean[:, None]) ** 2).sum() / values.size
        deviation = np.sqrt(spread) + np.float32(1e-3)
        for k in range(3):
            field = np.zeros(mask.shape, dtype=np.float32)
            field[mask] = posterior[k]
            smooth = scipy.ndimage.gaussian_filter(field, smoothing)[mask] / weight
            prior[k] = np.clip(smooth, 0.02, None)
    labels = np.zeros(mask.shape, dtype=np.uint8)
    rank = np.argsort(np.argsort(mean))
    tissue = np.array([ORDER[contrast][r] for r in rank], dtype=np.uint8)
    labels[mask] = tissue[posterior.argmax(axis=0)]
    return labels

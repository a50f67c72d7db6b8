# SPDX-License-Identifier: Apache-2.0
"""A segmenter that knows nothing of the network: what a study's own software would see.

The brain's histogram is cut in three by Otsu's criterion (the best three means in the sense of
k-means; Otsu 1979, Liao et al. 2001).  Each class is a Gaussian about its mean with the spread that
all share; a voxel takes the class that is likely for its intensity and common around it: a Potts
prior over the six neighbours, solved by iterated conditional modes (Besag, J. R. Stat. Soc. B
1986).  (Expectation maximisation with a variance and a share for each class was tried first: in a
brain of four months one class shrank to nothing on the clean image, and its volume on a degraded
one was 80 times as large.)  Classes go from
dark to bright.  There is no atlas, so at ages at which grey and white matter look alike (3 to 9
months) the classes are intensities rather than tissues.  The same fit is applied to clean, degraded
and enhanced images, and only their agreement is judged.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.uint8]
#: dark, middle, bright
CLASSES = 3
BINS = 256
SWEEPS = 4
#: weight of one agreeing neighbour against the log-likelihood
AGREEMENT = 0.4
TISSUES = {"T1w": ("CSF", "GM", "WM"), "T2w": ("WM", "GM", "CSF")}


def segment(image: NDArray[np.floating[Any]], mask: NDArray[np.bool_]) -> Labels:
    """Classes 1 (darkest) to 3 (brightest) inside the mask, 0 outside; same shape as the image.

    A brain of one brightness cannot be parted and is all class 1.
    """
    labels = np.zeros(image.shape, dtype=np.uint8)
    values = image[mask].astype(np.float32)
    if not values.size or np.ptp(values) == 0:
        labels[mask] = 1
        return labels
    mean, deviation = fit(values)
    # (classes, voxels of the mask): what each class costs
    cost = np.stack([0.5 * ((values - m) / deviation) ** 2 for m in mean])
    labels[mask] = cost.argmin(axis=0) + 1
    for _ in range(SWEEPS):
        padded = np.pad(labels, 1)
        agree = np.stack([_neighbours(padded == k)[mask] for k in range(1, CLASSES + 1)])
        labels[mask] = (cost - AGREEMENT * agree).argmin(axis=0) + 1
    return labels


def fit(values: NDArray[np.float32]) -> tuple[NDArray[np.float64], float]:
    """Means of the three classes (rising), and the spread within classes."""
    from skimage.filters import threshold_multiotsu

    low, high = (float(v) for v in np.quantile(values, [0.001, 0.999]))
    count, edges = np.histogram(np.clip(values, low, high), bins=BINS, range=(low, high))
    x = (edges[:-1] + edges[1:]) / 2
    cuts = threshold_multiotsu(hist=(count.astype(np.float64), x), classes=CLASSES)  # type: ignore[no-untyped-call]
    member = np.digitize(x, cuts, right=True)
    mean = np.array(
        [np.average(x[member == k], weights=count[member == k]) for k in range(CLASSES)]
    )
    spread = float(np.sqrt((count * (x - mean[member]) ** 2).sum() / count.sum()))
    return mean, spread + (high - low) / BINS


def _neighbours(padded: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """How many of the six neighbours are true; the padding of one voxel is taken off."""
    inner = tuple(slice(1, -1) for _ in range(3))
    total = np.zeros(tuple(n - 2 for n in padded.shape), dtype=np.uint8)
    for axis in range(3):
        for shift in (slice(0, -2), slice(2, None)):
            box = list(inner)
            box[axis] = shift
            total += padded[tuple(box)]
    return total

# SPDX-License-Identifier: Apache-2.0
"""A network's classes joined with the brightness of this one image.

A Gaussian for each class is fitted by expectation maximisation, with the network's probabilities as
the place-dependent prior, as in Van Leemput et al., IEEE Trans. Med. Imaging 1999, and Ashburner &
Friston, NeuroImage 2005, where an atlas is the prior.  Where the classes look alike, the prior decides.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

#: exponent of the network's probabilities: neighbouring voxels are no independent evidence
TRUST = 0.5
ROUNDS = 12
#: as many voxels of the whole brain's brightness are added to each class
FEW = 50.0
#: of the brain's standard deviation, the least of a class
NARROWEST = 0.045
#: of the brain's mean, the least of its standard deviation: less is the rounding of 32 bits
FLAT = 1e-3
#: voxels that the Gaussians are fitted to, and those that are classified at once
FITTED, AT_ONCE = 400_000, 500_000


@dataclass(frozen=True)
class Gaussians:
    """Brightness of the classes: means and standard deviations, (classes,)."""

    means: Array
    deviations: Array

    def posterior(self, values: Array, prior: Array) -> Array:
        """Probabilities (classes, N) of voxels (N,) with logarithms of a prior (classes, N)."""
        away = (values - self.means[:, None]) / self.deviations[:, None]
        logs = TRUST * prior - away**2 / 2 - np.log(self.deviations)[:, None]
        logs -= logs.max(axis=0)
        found = np.exp(logs)
        return np.asarray(found / found.sum(axis=0), dtype=np.float32)


def fitted(values: Array, prior: Array) -> Gaussians:
    """Gaussians of the classes.

    Parameters
    ----------
    values : (N,) brightness, any unit
    prior : (classes, N) logarithms of probabilities
    """
    mean = float(values.mean())
    deviation = max(float(values.std()), abs(mean) * FLAT) or 1.0
    step = max(1, len(values) // FITTED)
    values, prior = values[::step], prior[:, ::step].astype(np.float32)
    share = np.exp(prior - prior.max(axis=0))
    share /= share.sum(axis=0)
    for _ in range(ROUNDS):
        weight = share.sum(axis=1) + FEW
        means = (share @ values + FEW * mean) / weight
        spread = np.stack([s @ (values - m) ** 2 for s, m in zip(share, means, strict=True)])
        deviations = np.sqrt((spread + FEW * deviation**2) / weight)
        now = Gaussians(means, np.maximum(deviations, NARROWEST * deviation))
        share = now.posterior(values, prior)
    return now


def refined(values: Array, prior: Array, groups: NDArray[np.uint8]) -> Array:
    """Probabilities (groups, N) of groups of classes, by prior and brightness.

    Parameters
    ----------
    values : (N,) brightness, any unit
    prior : (classes, N) logarithms of the network's probabilities
    groups : (classes,) the group of each class, counted from 1
    """
    found = np.empty((int(groups.max()), len(values)), np.float32)
    for part, each in _posteriors(values, prior):
        for group in range(len(found)):
            found[group, part] = each[groups == group + 1].sum(axis=0)
    return found


def most_probable_class(values: Array, prior: Array) -> NDArray[np.uint8]:
    """The class of each voxel (N,), counted from 1, by prior and brightness, as in :func:`refined`."""
    found = np.empty(len(values), np.uint8)
    for part, each in _posteriors(values, prior):
        found[part] = each.argmax(axis=0) + 1
    return found


def _posteriors(values: Array, prior: Array) -> Iterator[tuple[slice, Array]]:
    """Probabilities (classes, n) of AT_ONCE voxels after the other, and which these are."""
    gaussians = fitted(values, prior)
    for begin in range(0, len(values), AT_ONCE):
        part = slice(begin, begin + AT_ONCE)
        yield part, gaussians.posterior(values[part], prior[:, part].astype(np.float32))

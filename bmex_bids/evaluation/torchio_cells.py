# SPDX-License-Identifier: Apache-2.0
"""A second simulator, which never makes training data: TorchIO's transforms.

Pérez-García et al., Comput. Methods Programs Biomed. 2021.  The package comes with the extra
``benchmark``.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bmex_bids.exceptions import UsageError

Array = NDArray[np.float32]
#: cell → transform of a module ``torchio``, given an axis
TRANSFORMS: Mapping[str, Callable[[Any, int], Any]] = {
    "motion": lambda tio, axis: tio.RandomMotion(degrees=3, translation=3, num_transforms=3),
    "ghosting": lambda tio, axis: tio.RandomGhosting(num_ghosts=(4, 8), axes=(axis,), intensity=(0.6, 0.6)),
    "spikes": lambda tio, axis: tio.RandomSpike(num_spikes=(1, 1), intensity=(0.5, 0.5)),
    "anisotropy": lambda tio, axis: tio.RandomAnisotropy(axes=(2,), downsampling=(3, 3)),
}  # fmt: skip


def available() -> bool:
    """Whether TorchIO is installed."""
    return importlib.util.find_spec("torchio") is not None


def version() -> str:
    """Of TorchIO."""
    from importlib.metadata import version as installed

    return installed("torchio")


def damage(name: str, data: Array, affine: NDArray[np.float64], seed: int, axis: int) -> Array:
    """Degrade an image by one transform of :data:`TRANSFORMS`; the same for the same seed.

    Parameters
    ----------
    data : (X, Y, Z)
    affine : 4 × 4
    axis : phase-encoding axis, for ghosts
    """
    if not available():
        raise UsageError(
            "expected TorchIO for the cells of the second simulator, found none; install "
            "bmex_bids[benchmark], or leave those cells out with --cells"
        )
    import torch
    import torchio

    transform = TRANSFORMS[name](torchio, axis)
    state = torch.random.get_rng_state()
    try:
        torch.manual_seed(seed)
        image = torchio.ScalarImage(tensor=torch.from_numpy(data.copy())[None], affine=affine)
        result = transform(image).numpy()[0]
    finally:
        torch.random.set_rng_state(state)
    return np.clip(np.asarray(result, dtype=np.float32), 0, None)

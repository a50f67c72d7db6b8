# SPDX-License-Identifier: Apache-2.0
"""deepbet (Fisch et al., Comput. Biol. Med. 2024): an independent brain extraction of T1w heads.

Its package, the extra ``deepbet`` of ours, brings its weights.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import warnings
from importlib import metadata
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from numpy.typing import NDArray

from bmex_bids.exceptions import MaskError, WeightsError
from bmex_bids.network.devices import resolve_device
from bmex_bids.network.weights.registry import WeightRecord, sha256

VARIANT = "deepbet"


@functools.cache
def deepbet_record() -> WeightRecord:
    """The weights of the installed deepbet; WeightsError where it is not installed."""
    found = importlib.util.find_spec("deepbet")
    if found is None or found.origin is None:
        raise WeightsError(
            "expected the package deepbet for --brain-extraction deepbet, found none; install "
            "'bmex_bids[deepbet]', or leave the option out"
        )
    path = Path(found.origin).parents[1] / "data" / "models" / "model.pt"
    if not path.is_file():
        raise WeightsError(f"expected deepbet's weights at {path}, found none; install it again")
    version = metadata.version("deepbet")
    return WeightRecord(
        name=f"deepbet-{version}",
        kind="strip",
        path=path,
        sha256=sha256(path),
        licence="MIT",
        source="https://github.com/wwu-mmll/deepbet",
        description="brain extraction of T1w heads of adults, trained on real heads",
        variant=VARIANT,
        input_units="any",
        age_groups=(),
        contrasts=("T1w",),
        version=version,
    )


def deepbet_mask(
    data: NDArray[np.float32],
    affine: NDArray[np.float64],
    *,
    device: str = "auto",
    threads: int | None = None,
) -> NDArray[np.bool_]:
    """Where deepbet finds brain, (X, Y, Z).

    Parameters
    ----------
    data : (X, Y, Z), a T1w head in any unit
    affine : voxel → RAS+ mm
    device, threads : as for :func:`bmex_bids.network.inference.predict.enhance`

    Raises
    ------
    MaskError
        It finds no brain.
    """
    import deepbet

    torch.set_num_threads(threads or len(os.sched_getaffinity(0)))
    with warnings.catch_warnings():  # torch: its format of files is an old one
        warnings.simplefilter("ignore", DeprecationWarning)
        extraction = deepbet.BrainExtraction(no_gpu=resolve_device(device).type == "cpu")
    try:
        _, mask, _ = extraction.run(nib.Nifti1Image(data, affine))
    except (AssertionError, ValueError) as error:  # its only words for an empty mask
        raise MaskError(
            "expected a head in which deepbet finds a brain, got none; look at the image, give a "
            "mask of your own with --derivatives, or leave out --brain-extraction"
        ) from error
    return np.asarray(mask.dataobj) > 0

# SPDX-License-Identifier: Apache-2.0
"""Clean images as the app brings them to its network, damaged there, and refocused as in the app.

The bias field and the mask are those of the clean image.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from bmex_bids.common.boxes import bounding_box
from bmex_bids.degrade.cells import CELLS
from bmex_bids.degrade.steps import Scan
from bmex_bids.evaluation.app import Networks, prepared_by_app, refocused_by_app
from bmex_bids.evaluation.judge import range_of
from bmex_bids.evaluation.rows import key_of
from bmex_bids.evaluation.subjects import Clean, Subject, load_clean, subject_of
from bmex_bids.imaging.orientation import voxel_sizes
from bmex_bids.interfaces.files import data_of
from bmex_bids.network.inference.predict import Enhancement, enhance
from bmex_bids.network.variants import facts
from bmex_bids.network.weights.registry import sha256
from bmex_bids.outputs.files import write_whole

Array = NDArray[np.float32]

#: changes when what is prepared does
PREPARED_VERSION = "1"
PREPARED = "prepared"
#: voxels of air on each side, so that what moves does not come back on the other side
AIR = 16


@dataclass(frozen=True)
class Prepared:
    """A brain on the network's grid, template units, axes LPS.

    Attributes
    ----------
    data : (X, Y, Z), zero outside the mask
    mask : (X, Y, Z)
    affine : 4 × 4
    """

    data: Array
    mask: NDArray[np.bool_]
    affine: NDArray[np.float64]

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel sizes, mm."""
        return voxel_sizes(self.affine)


def prepare(data: Path, keep: Path, name: str, networks: Networks) -> Prepared:
    """A clean image by the app's first stage, kept on disk.

    Parameters
    ----------
    data : folder of the images
    keep : folder for what was prepared
    """
    subject = subject_of(name)
    variant = facts(networks.enhance.variant)
    digits = key_of(
        PREPARED_VERSION,
        sha256(data / subject.path),
        networks.strip.sha256,
        f"{variant.histogram_method} {variant.order} {subject.seed}",
    )
    target = keep / PREPARED / f"{name}_{digits}.npz"
    if not target.exists():
        clean = load_clean(data, subject)
        with tempfile.TemporaryDirectory(prefix="bmex-evaluate-") as folder:
            found = _through_app(clean, subject, networks, Path(folder))

        def fill(path: Path) -> None:
            with path.open("wb") as stream:
                np.savez_compressed(stream, data=found.data, mask=found.mask, affine=found.affine)

        target.parent.mkdir(parents=True, exist_ok=True)
        write_whole(target, fill)
    with np.load(target) as kept:
        return Prepared(kept["data"], kept["mask"], kept["affine"])


def _through_app(clean: Clean, subject: Subject, networks: Networks, work: Path) -> Prepared:
    path = work / f"sub-benchmark_{subject.contrast}.nii"
    nib.save(clean.image(clean.data), path)
    mask_path = None
    if clean.mask is not None:
        mask_path = work / "mask.nii"
        nib.save(clean.image(clean.mask.astype(np.uint8)), mask_path)
    image, mask = prepared_by_app(path, subject, networks, work, mask_path)
    data = np.where(mask, np.asarray(image.dataobj), 0).astype(np.float32)
    return padded(Prepared(data, mask, image.affine))


def padded(brain: Prepared) -> Prepared:
    """The brain's box with :data:`AIR` on each side."""
    cut = bounding_box(brain.mask)
    affine = brain.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ [side.start - AIR for side in cut]
    return Prepared(np.pad(brain.data[cut], AIR), np.pad(brain.mask[cut], AIR), affine)


def damage(brain: Prepared, cell: str, seed: int) -> Array:
    """A brain as a cell spoils it, not negative, zero outside the mask."""
    scan = Scan(range_of(brain.data, brain.mask))
    bad = CELLS[cell].recipe(seed, scan).apply(brain.data, brain.spacing)
    return np.where(brain.mask, np.clip(bad, 0, None), 0).astype(np.float32)


def refocused(brain: Prepared, bad: Array, subject: Subject, networks: Networks) -> Array:
    """A damaged brain after the app's motion correction, zero outside the mask."""
    with tempfile.TemporaryDirectory(prefix="bmex-evaluate-") as folder:
        path = Path(folder) / f"sub-benchmark_{subject.contrast}.nii"
        nib.save(nib.Nifti1Image(bad, brain.affine), path)
        found = data_of(refocused_by_app(path, subject, networks, Path(folder)))
    return np.where(brain.mask, np.clip(found, 0, None), 0).astype(np.float32)


def enhanced(image: Array, mask: NDArray[np.bool_], networks: Networks) -> Enhancement:
    """What the network that enhances makes of a prepared image."""
    return enhance(
        image, mask, networks.enhance, device=networks.device, threads=networks.threads,
        mirroring=networks.mirroring,
    )  # fmt: skip

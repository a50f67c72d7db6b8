# SPDX-License-Identifier: Apache-2.0
"""What the network is compared with: each method takes a degraded brain and returns a mended one.

All get the same input, the degraded and masked brain in template units.  None is told the fault,
except up-sampling, which is told the slice thickness (as a header would tell it).  No method is
given the truth, nor the noise's standard deviation.

==========  ==================================================================================
degraded    nothing
matched     the histogram matched to the age's, as the application does before its network
nlm         non-local means, strength from the estimated noise
tv          total variation, strength from the estimated noise
bm4d        BM4D with the estimated noise; only where the package ``bm4d`` is installed (its
            licence is for non-commercial use, so this project does not depend on it)
n4          bias correction alone
cubic       slices put back together by a cubic spline (low resolution only)
lanczos     the same by a Lanczos kernel of three lobes
bmex        this project's weights, as the application runs them (cubic spline, then matched)
ablation    weights without the tissue module, run likewise
==========  ==================================================================================
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bmex_bids.degrade.blur import slab_centres, spline_weights
from bmex_bids.evaluation.cells import CELLS, SLICE_AXIS, Cell
from bmex_bids.exceptions import WeightsError
from bmex_bids.imaging.intensity import load_histogram, match_histogram
from bmex_bids.imaging.noise import PATCH, noise_sigma, non_local_means
from bmex_bids.network.weights.registry import WeightRecord, sha256
from bmex_bids.training.images import CleanImage

Array = NDArray[np.float32]
Mask = NDArray[np.bool_]

#: half the width of the search for similar patches, voxels
NLM_SEARCH = 2
#: filter strength over estimated noise; of 0.3 … 0.8, the best in the noise cells of sub-0007
NLM_STRENGTH = 0.5
#: weight of total variation over estimated noise; of 0.2 … 1.2, the best all round there
TV_STRENGTH = 0.5
TV_ROUNDS = 40
LOBES = 3


@dataclass(frozen=True)
class Job:
    """What a method is given.

    Attributes
    ----------
    image : (X, Y, Z) degraded, zero outside the mask, template units
    unmasked : the same with what lies around the brain
    mask : the brain
    clean : for grid, age and contrast; methods do not look at its data
    cell : for the slice thickness
    head_length, offset : voxels of the head along the slice axis, and where the box begins there
    """

    image: Array
    unmasked: Array
    mask: Mask
    clean: CleanImage
    cell: Cell
    head_length: int
    offset: int


@dataclass(frozen=True)
class Method:
    """One way of mending.

    Attributes
    ----------
    name : as in the tables
    version : changes whenever the results may, for example the checksum of weights
    run : the work; the result is masked by the caller
    cells : those it makes sense in
    """

    name: str
    version: str
    run: Callable[[Job], Array]
    serves: Callable[[Cell], bool] = lambda cell: True


def nothing(job: Job) -> Array:
    """The degraded image as it is."""
    return job.image


def matched(job: Job) -> Array:
    """Histogram matched to the age's reference."""
    reference = load_histogram(job.clean.age_group, job.clean.contrast)
    return match_histogram(job.image, reference, job.mask)[0]


def nlm(job: Job) -> Array:
    """Non-local means (Coupé et al., IEEE Trans. Med. Imaging 2008) by scikit-image.

    The noise is estimated, and its square taken off the patch distances.
    """
    sigma = noise_sigma(job.image, job.mask)
    if sigma <= 0:
        return job.image
    return non_local_means(job.image, sigma, strength=NLM_STRENGTH, search=NLM_SEARCH)


def total_variation(job: Job) -> Array:
    """Total variation (Rudin et al. 1992; Chambolle 2004) by scikit-image."""
    from skimage.restoration import denoise_tv_chambolle

    sigma = noise_sigma(job.image, job.mask)
    if sigma <= 0:
        return job.image
    result = denoise_tv_chambolle(  # type: ignore[no-untyped-call]
        job.image, weight=TV_STRENGTH * sigma, max_num_iter=TV_ROUNDS
    )
    return np.asarray(result, dtype=np.float32)


def bm4d(job: Job) -> Array:
    """BM4D (Maggioni et al., IEEE Trans. Image Process. 2013) by its authors' package."""
    from bm4d import bm4d as run

    sigma = noise_sigma(job.image, job.mask)
    return job.image if sigma <= 0 else np.asarray(run(job.image, sigma), dtype=np.float32)


def n4_alone(job: Job) -> Array:
    """N4 inside the mask."""
    import nibabel as nib

    from bmex_bids.imaging.intensity import n4

    affine = np.diag([*job.clean.spacing, 1.0])
    corrected, _ = n4(
        nib.Nifti1Image(job.image, affine), nib.Nifti1Image(job.mask.astype(np.uint8), affine)
    )
    return np.asarray(corrected.dataobj, dtype=np.float32)


def slabs(image: Array, centres: NDArray[np.float64], axis: int = SLICE_AXIS) -> Array:
    """The slices that an image of thick slices was interpolated from, as a scanner stored them.

    :func:`~bmex_bids.degrade.blur.thick_slices` interpolates linearly between slab centres; with
    the centres known that is a small linear system, solved in least squares.

    Parameters
    ----------
    image : (X, Y, Z)
    centres : equidistant, in voxels along the axis
    """
    n = image.shape[axis]
    weights = interpolation(n, centres, _linear)
    moved = np.moveaxis(image, axis, 0)
    solved = np.linalg.lstsq(weights, moved.reshape(n, -1).astype(np.float64), rcond=None)[0]
    whole = solved.reshape(-1, *moved.shape[1:])
    return np.asarray(np.moveaxis(whole, 0, axis), dtype=np.float32)


def interpolation(
    n: int, centres: NDArray[np.float64], kernel: Callable[[NDArray[np.float64]], Any]
) -> NDArray[np.float64]:
    """(n, slabs): weights of the slabs in n voxels; the outermost slabs repeat for ever.

    ``kernel`` takes distances in slabs and is zero from :data:`LOBES` on; weights sum to 1.
    """
    place = (np.arange(n) - centres[0]) / float(centres[1] - centres[0])
    table = np.zeros((n, len(centres)))
    first = np.floor(place).astype(int)
    for offset in range(1 - LOBES, LOBES + 1):
        slab = first + offset
        np.add.at(table, (np.arange(n), np.clip(slab, 0, len(centres) - 1)), kernel(place - slab))
    return np.asarray(table / table.sum(axis=1, keepdims=True))


def _linear(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.clip(1 - np.abs(distance), 0, None))


def _lanczos(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    inside = np.abs(distance) < LOBES
    return np.where(inside, np.sinc(distance) * np.sinc(distance / LOBES), 0)


def cubic(job: Job) -> Array:
    """The slices interpolated by a cubic spline."""
    centres = _centres(job)
    weights = spline_weights(job.image.shape[SLICE_AXIS], centres, 3)
    return _resampled(job, centres, weights)


def lanczos(job: Job) -> Array:
    """The slices interpolated by a Lanczos kernel (Duchon 1979) of three lobes."""
    n, centres = job.image.shape[SLICE_AXIS], _centres(job)
    return _resampled(job, centres, interpolation(n, centres, _lanczos))


def _centres(job: Job) -> NDArray[np.float64]:
    """Slab centres along the slice axis, in voxels of the box; those that touch it."""
    thickness = job.cell.slices_mm
    if thickness is None:
        raise ValueError(f"expected a cell of thick slices, got {job.cell.name!r}")
    factor = thickness / job.clean.spacing[SLICE_AXIS]
    centres = slab_centres(job.head_length, factor) - job.offset
    near = (centres > -factor) & (centres < job.image.shape[SLICE_AXIS] - 1 + factor)
    return np.asarray(centres[near], dtype=np.float64)


def _resampled(job: Job, centres: NDArray[np.float64], weights: NDArray[np.float64]) -> Array:
    thick = np.moveaxis(slabs(job.unmasked, centres), SLICE_AXIS, 0)
    moved = np.tensordot(weights.astype(np.float32), thick, axes=1)
    return np.ascontiguousarray(np.moveaxis(moved, 0, SLICE_AXIS), dtype=np.float32)


def network_version(record: WeightRecord, mirroring: bool) -> str:
    """What a result of a network hangs on besides its input."""
    return f"{record.sha256} {''.join(record.mirrored) if mirroring else ''}"


def network(
    record: WeightRecord, device: str, threads: int, mirroring: bool = True
) -> Callable[[Job], Array]:
    """A method that brings an image to the network and runs it, as the application does.

    The application resamples with cubic splines, so thick slices come to the network that way (the
    degraded image itself is interpolated linearly), then the histogram is matched.
    """

    def run(job: Job) -> Array:
        from bmex_bids.network.inference.predict import enhance

        if job.cell.slices_mm is not None:
            fine = np.where(job.mask, np.clip(cubic(job), 0, None), 0).astype(np.float32)
            job = replace(job, image=fine)
        return enhance(
            matched(job), job.mask, record, device=device, threads=threads, mirroring=mirroring
        ).image

    return run


def weight_record(path: Path) -> WeightRecord:
    """A record of a weight file of the compact network that is in no registry.

    An absent file is a WeightsError.
    """
    if not path.exists():
        raise WeightsError(f"expected a weight file at {path}, found none")
    return WeightRecord(
        name=path.stem, kind="enhance", path=path, sha256=sha256(path), licence="", source="",
        description="in no registry", variant="bmex-compact", input_units="template units",
        age_groups=(), contrasts=(), version="",
    )  # fmt: skip


def has_bm4d() -> bool:
    """Whether the comparison run with BM4D is possible here."""
    return importlib.util.find_spec("bm4d") is not None


def methods(
    record: WeightRecord | None,
    ablation: WeightRecord | None = None,
    *,
    device: str = "auto",
    threads: int = 1,
    mirroring: bool = True,
) -> Mapping[str, Method]:
    """The methods of a run, by name; networks are left out where there are no weights for them."""
    sliced = {name for name, cell in CELLS.items() if cell.slices_mm is not None}

    def low_resolution(cell: Cell) -> bool:
        return cell.name in sliced

    table = [
        Method("degraded", "1", nothing),
        Method("matched", "1", matched),
        Method("nlm", f"1 {NLM_SEARCH} {PATCH} {NLM_STRENGTH}", nlm),
        Method("tv", f"1 {TV_STRENGTH} {TV_ROUNDS}", total_variation),
        Method("n4", "1", n4_alone),
        Method("cubic", "1", cubic, low_resolution),
        Method("lanczos", "1", lanczos, low_resolution),
    ]
    if has_bm4d():
        table.append(Method("bm4d", "1", bm4d))
    for name, weights in (("bmex", record), ("ablation", ablation)):
        if weights is not None:
            version = f"3 {network_version(weights, mirroring)}"
            table.append(Method(name, version, network(weights, device, threads, mirroring)))
    return {method.name: method for method in table}

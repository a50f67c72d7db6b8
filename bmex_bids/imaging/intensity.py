# SPDX-License-Identifier: Apache-2.0
"""Intensities: robust scaling, bias correction, and matching to the histogram of an age."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from bmex_bids.exceptions import ImageError
from bmex_bids.imaging.orientation import voxel_sizes

Array = NDArray[np.float32]
Counts = NDArray[np.int64]

TOP = 1000.0  # upper end of the working range
LEVELS = 1024  # histogram bins of the matching
MATCH_POINTS = 7
LOWEST_SHARE = 0.25  # of the working range, by which it may be extended downwards
SMALLEST_RANGE = 1e-34  # 1000 over it is still a number of 32 bits
ROBUST_SHARE = 0.999  # of the brain's voxels lie below the top of a robust match


# ------------------------------------------------------------------ scaling
@dataclass(frozen=True)
class IntensityScale:
    """The linear map to 0…1000: ``(x − lower) / (upper − lower) · 1000``."""

    lower: float
    upper: float

    @property
    def factor(self) -> float:
        """Working units in one unit of the input."""
        return TOP / (self.upper - self.lower)

    def apply(self, data: Array) -> Array:
        """Input intensities → 0…1000, not clipped."""
        return np.asarray(
            (data - self.lower) * (TOP / (self.upper - self.lower)), dtype=np.float32
        )

    def invert(self, data: Array) -> Array:
        """0…1000 → input intensities."""
        return np.asarray(data * ((self.upper - self.lower) / TOP) + self.lower, dtype=np.float32)


def rescale_robust(
    data: Array, mask: NDArray[np.bool_] | None = None
) -> tuple[Array, IntensityScale]:
    """Clip to robust percentiles and scale to 0…1000.

    The lower end is the 0.5th percentile of all voxels (background), the upper the 99.9th of the
    voxels above it, or of the mask when one is given.  Raises ImageError when they coincide.
    """
    lower = float(np.percentile(data, 0.5))
    chosen = data[mask] if mask is not None else data[data > lower]
    if chosen.size == 0:
        raise ImageError("expected voxels above the background, found none; is the image empty?")
    upper = float(np.percentile(chosen, 99.9))
    if not upper > lower:
        raise ImageError(
            f"expected a range of intensities, got {lower:g} to {upper:g}; look at the image, it "
            "may show nothing"
        )
    if upper - lower < SMALLEST_RANGE:
        raise ImageError(
            f"expected intensities that 32 bits can hold, got {lower:g} to {upper:g}; multiply the "
            "image, or correct the slope in its header (scl_slope)"
        )
    scale = IntensityScale(lower, upper)
    return np.clip(scale.apply(data), 0, TOP), scale


def shares_at_ends(data: Array, mask: NDArray[np.bool_]) -> tuple[float, float]:
    """Shares of the brain's voxels that have its lowest and its highest value, 0…1.

    A scan has next to none there; an image that was clipped to a window has many.

    Parameters
    ----------
    data : (X, Y, Z), as stored: neither resampled nor corrected
    mask : the brain; (0, 0) where it is empty
    """
    inside = data[mask]
    if inside.size == 0:
        return 0.0, 0.0
    return float((inside == inside.min()).mean()), float((inside == inside.max()).mean())


def from_zero(
    data: Array, mask: NDArray[np.bool_], scale: IntensityScale
) -> tuple[Array, IntensityScale]:
    """Shift the working range so that no voxel of the brain lies below it.

    Parameters
    ----------
    data : (X, Y, Z), 0…1000; some may be below
    mask : the brain
    scale : of ``data``

    Returns
    -------
    data, scale : as given where no voxel of the brain is below zero.  A voxel further below than a
        quarter of the range is a fault of the image, and makes no room for itself
    """
    lowest = float(data[mask].min(initial=0.0))
    if lowest >= 0:
        return data, scale
    lower = max(lowest, -LOWEST_SHARE * TOP) * ((scale.upper - scale.lower) / TOP) + scale.lower
    wider = IntensityScale(lower, scale.upper)
    return wider.apply(scale.invert(data)), wider


def within(change: Array, percent: float | None) -> Array:
    """A change of template units, cut off at a percentage of their range of :data:`TOP`.

    >>> within(np.array([-80, 20, 50], np.float32), 5.0).tolist()
    [-50.0, 20.0, 50.0]
    """
    if percent is None:
        return change
    most = np.float32(percent / 100 * TOP)
    return np.asarray(np.clip(change, -most, most), dtype=np.float32)


# ------------------------------------------------------------------ bias field
def head_region(scaled: Array) -> NDArray[np.uint8]:
    """Voxels that a bias fit over the head uses: brighter than half the mean of what is not air.

    ``scaled`` is 0…1000; returns uint8 of its shape.
    """
    tissue = scaled[scaled > scaled.mean()]
    threshold = 0.5 * float(tissue.mean()) if tissue.size else 0.0
    return (scaled > threshold).astype(np.uint8)


def n4(
    image: nib.Nifti1Image,
    mask: nib.Nifti1Image,
    *,
    shrink_mm: float = 4.0,
    iterations: tuple[int, ...] = (50, 50, 30, 20),
) -> tuple[nib.Nifti1Image, nib.Nifti1Image]:
    """N4 bias correction (Tustison et al., IEEE Trans. Med. Imaging 2010) on a coarse grid.

    Parameters
    ----------
    image : any positive unit, kept: the field's mean inside the mask is 1
    mask : voxels that the fit uses
    shrink_mm : the fit is made on voxels of about this size; the field is smooth, so nothing is
        lost
    iterations : at most, for each level

    Returns
    -------
    corrected, field : ``image / field`` and the field on the full grid
    """
    import SimpleITK as sitk

    data = np.asarray(image.dataobj, dtype=np.float32)
    inside = np.asarray(mask.dataobj) > 0
    if not inside.any():
        raise ImageError("expected a mask with voxels for the bias correction, got an empty one")
    spacing = voxel_sizes(image.affine)
    factors = [
        max(1, min(round(shrink_mm / step), n // 4))
        for step, n in zip(spacing, data.shape, strict=True)
    ]
    whole = _to_sitk(np.clip(data, 0, None) + 1.0, spacing)  # a logarithm wants positive numbers
    region = _to_sitk(inside.astype(np.uint8), spacing)
    corrector = sitk.N4BiasFieldCorrectionImageFilter()
    corrector.SetMaximumNumberOfIterations(list(iterations))
    small_mask = sitk.Shrink(region, factors)
    if not sitk.GetArrayViewFromImage(small_mask).any():
        small_mask = sitk.Cast(
            sitk.Shrink(sitk.Cast(region, sitk.sitkFloat32), factors) >= 0, sitk.sitkUInt8
        )
    corrector.Execute(sitk.Shrink(whole, factors), small_mask)
    log_field = sitk.GetArrayFromImage(corrector.GetLogBiasFieldAsImage(whole)).transpose(2, 1, 0)
    field = np.exp(np.clip(log_field, -2, 2)).astype(np.float32)
    field /= np.float32(field[inside].mean())
    return (
        nib.Nifti1Image(data / field, image.affine),
        nib.Nifti1Image(field, image.affine),
    )


def _to_sitk(data: NDArray[np.generic], spacing: tuple[float, float, float]) -> object:
    """An ITK image of an (X, Y, Z) array; only the spacing matters to the filters used here."""
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(np.ascontiguousarray(data.transpose(2, 1, 0)))
    image.SetSpacing(spacing)
    return image


# ------------------------------------------------------------------ histogram matching
@functools.cache
def _tables() -> dict[str, Counts]:
    with resources.files("bmex_bids.data").joinpath("histograms.npz").open("rb") as stream:
        archive = np.load(stream, allow_pickle=False)
        return {name: archive[name].astype(np.int64) for name in archive.files}


def count_template(data: NDArray[np.generic]) -> Counts:
    """How often each whole number 0…1000 occurs in a template (1,001 counts)."""
    values = np.asarray(data)
    whole = np.rint(values).astype(np.int64)
    if np.abs(values - whole).max() > 1e-3 or whole.min() < 0 or whole.max() > TOP:
        raise ImageError("expected a template of whole numbers 0…1000")
    return np.bincount(whole.ravel(), minlength=int(TOP) + 1).astype(np.int64)


def load_histogram(age_group: str, contrast: str) -> Counts:
    """The histogram reference of an age group and contrast: counts of the intensities 0…1000.

    Measured on the published BME-X templates (DBC-Lab/Brain_MRI_Enhancement, MIT).
    """
    key = f"{age_group}_{contrast}"
    if key not in _tables():
        raise ImageError(f"expected a histogram reference of {sorted(_tables())}, got {key!r}")
    return _tables()[key].copy()


@dataclass(frozen=True)
class HistogramMatch:
    """A monotone, piecewise linear map; beyond the last knot the last slope goes on."""

    source: tuple[float, ...]
    reference: tuple[float, ...]

    def apply(self, data: Array) -> Array:
        """Source intensities → template units."""
        return _piecewise(data, np.array(self.source), np.array(self.reference))

    def invert(self, data: Array) -> Array:
        """Template units → source intensities; exact where the map rises."""
        return _piecewise(data, np.array(self.reference), np.array(self.source))

    @classmethod
    def of(cls, table: Mapping[str, Sequence[float]]) -> HistogramMatch:
        """From a table of its fields, as JSON has them."""
        return cls(tuple(table["source"]), tuple(table["reference"]))


def _piecewise(data: Array, knots: NDArray[np.float64], values: NDArray[np.float64]) -> Array:
    keep = np.concatenate([[True], np.diff(knots) > 1e-9])
    knots, values = knots[keep], values[keep]
    result = np.interp(data, knots, values)
    slope = (values[-1] - values[-2]) / (knots[-1] - knots[-2])
    beyond = data > knots[-1]
    result[beyond] = values[-1] + slope * (data[beyond] - knots[-1])
    return np.asarray(result, dtype=np.float32)


def match_histogram(
    data: Array,
    reference: Counts,
    mask: NDArray[np.bool_] | None = None,
    *,
    method: str = "brain",
) -> tuple[Array, HistogramMatch]:
    """Match a brain's histogram to a reference.

    Parameters
    ----------
    data : (X, Y, Z), zero outside the brain
    reference : counts of the intensities 0…1000 (see :func:`load_histogram`)
    mask : the brain; without it, the voxels above zero
    method : ``"published"`` is what the published code does, and its weights expect: ITK's filter
        over the whole array with 1024 levels, 7 match points and the threshold at the mean, zeros
        included.  The result depends on how much background there is, and the top eighth of the
        brain is stretched to the brightest voxel of the template.  ``"brain"``, the default, takes
        the same quantiles inside the brain only and ends at the 99.9th percentile, so that neither
        background nor one bright vessel decides the contrast.

    Returns
    -------
    matched, match : the array in template units (zero outside the brain), and the map that made it
    """
    inside = data > 0 if mask is None else np.asarray(mask, dtype=bool)
    if not inside.any():
        raise ImageError("expected brain voxels for the histogram matching, got none")
    values = np.arange(reference.size, dtype=np.float64)
    if method == "published":
        flat = data.ravel().astype(np.float64)
        source = _knots(flat, np.ones(flat.size), flat.mean())
        target = _knots(values, reference, float((values * reference).sum() / reference.sum()))
    elif method == "brain":
        brain = data[inside].astype(np.float64)
        counts = reference.astype(np.float64).copy()
        counts[0] = 0
        source = _knots(
            np.minimum(brain, np.quantile(brain, ROBUST_SHARE)), np.ones(brain.size), 0.0
        )
        top = int(np.searchsorted(np.cumsum(counts), ROBUST_SHARE * counts.sum()))
        target = _knots(np.minimum(values, top), counts, 0.0)
        source[:2] = target[:2] = 0.0  # zero stays zero, whatever the darkest voxel
    else:
        raise ValueError(f"expected a method of 'brain' or 'published', got {method!r}")
    match = HistogramMatch(tuple(source.tolist()), tuple(target.tolist()))
    return np.where(inside, match.apply(data), 0).astype(np.float32), match


def match_whole(data: Array, template: Array) -> Array:
    """Match an image to another one as ITK does: all voxels of both, thresholds at their means.

    1024 levels and 7 match points, as the published code matches a head to LifespanStrip's
    template.

    Parameters
    ----------
    data, template : of any shapes and units; the result has the shape of ``data`` and the units of
        ``template``
    """
    knots = [
        _knots(flat, np.ones(flat.size), float(flat.mean()))
        for flat in (image.ravel().astype(np.float64) for image in (data, template))
    ]
    match = HistogramMatch(tuple(knots[0].tolist()), tuple(knots[1].tolist()))
    return match.apply(data)


def _knots(
    values: NDArray[np.float64], weights: NDArray[Any], threshold: float
) -> NDArray[np.float64]:
    """Minimum, threshold, 7 quantiles above the threshold, and maximum, as ITK finds them.

    ITK bins the values from threshold to maximum and interpolates inside a bin; quantiles below
    one half are counted from the left, the others from the right (itkHistogram::Quantile).
    """
    present = weights > 0
    low, high = float(values[present].min()), float(values[present].max())
    used = present & (values >= threshold)
    frequency, edges = np.histogram(
        values[used],
        bins=LEVELS,
        range=(threshold, high),
        weights=weights[used].astype(np.float64),
    )
    share = frequency / frequency.sum()
    left = np.concatenate([[0.0], np.cumsum(share)])
    width = (high - threshold) / LEVELS
    knots = [low, threshold]
    for j in range(1, MATCH_POINTS + 1):
        p = j / (MATCH_POINTS + 1)
        if p < 0.5:  # first bin whose cumulated share reaches p
            n = int(np.searchsorted(left[1:], p, side="left"))
        else:  # last bin whose left cumulated share is at most p
            n = int(np.searchsorted(left[:-1], p, side="right")) - 1
        knots.append(float(edges[n] + (p - left[n]) / max(share[n], 1e-300) * width))
    return np.maximum.accumulate(np.array([*knots, high]))

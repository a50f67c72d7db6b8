# SPDX-License-Identifier: Apache-2.0
"""Demons registration of one subject to another, judged by the overlap of their tissues."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bmex_bids.metrics.tissue import dice

#: the working grid is coarser than the images by this factor: the deformation is smooth
SHRINK = 2
ITERATIONS = 40
SMOOTHING_VOXELS = 1.5
#: of the affine on the working grid, coarse to fine; it converges before the last iteration
AFFINE_SHRINK, AFFINE_ITERATIONS = (4, 2), 100
#: changes when the figures do
VERSION = "2"


def registered_dice(
    moving: NDArray[np.float32],
    moving_labels: NDArray[np.uint8],
    fixed: NDArray[np.float32],
    fixed_labels: NDArray[np.uint8],
    spacing: tuple[float, float, float],
) -> float:
    """Mean Dice over the fixed image's classes after registration.

    An affine by mutual information, then diffeomorphic Demons (Vercauteren et al., NeuroImage
    2009) after histogram matching, both SimpleITK.  The images decide the transform; the labels
    (of the clean images, whatever the quality of ``moving``) are carried by it and compared.

    The affine's metric takes every voxel.  ITK moves the points of its "regular" sample at random,
    by the clock unless it is told a seed: with a tenth of the voxels the same two images gave 0.524 to
    0.534, which is more than any method gains.

    Parameters
    ----------
    moving, moving_labels : (X, Y, Z), zero outside the brain
    fixed, fixed_labels : (X', Y', Z'), likewise
    spacing : mm, of both
    """
    import SimpleITK as sitk

    target, source = (_coarse(image, spacing) for image in (fixed, moving))
    source = sitk.HistogramMatching(
        source, target, numberOfHistogramLevels=256, numberOfMatchPoints=12
    )
    start = sitk.CenteredTransformInitializer(
        target, source, sitk.AffineTransform(3), sitk.CenteredTransformInitializerFilter.MOMENTS
    )
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(32)
    method.SetMetricSamplingStrategy(method.NONE)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(1.0, 1e-3, AFFINE_ITERATIONS)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel(AFFINE_SHRINK)
    method.SetSmoothingSigmasPerLevel([shrink / 2 for shrink in AFFINE_SHRINK])
    method.SetInitialTransform(start, inPlace=False)
    affine = method.Execute(target, source)
    near = sitk.Resample(source, target, affine, sitk.sitkLinear, 0.0)
    demons = sitk.DiffeomorphicDemonsRegistrationFilter()
    demons.SetNumberOfIterations(ITERATIONS)
    demons.SetSmoothDisplacementField(True)
    demons.SetStandardDeviations(SMOOTHING_VOXELS)
    field = sitk.DisplacementFieldTransform(demons.Execute(target, near))
    whole = sitk.CompositeTransform([affine, field])  # the last is applied first
    there = _to_sitk(fixed_labels, spacing)
    carried = sitk.Resample(
        _to_sitk(moving_labels, spacing), there, whole, sitk.sitkNearestNeighbor, 0
    )
    result = sitk.GetArrayFromImage(carried).transpose(2, 1, 0)
    classes = [k for k in np.unique(fixed_labels).tolist() if k]
    return float(np.mean([dice(result == k, fixed_labels == k) for k in classes]))


def _to_sitk(data: NDArray[Any], spacing: tuple[float, float, float]) -> Any:
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(np.ascontiguousarray(data.transpose(2, 1, 0)))
    image.SetSpacing(spacing)
    return image


def _coarse(data: NDArray[np.float32], spacing: tuple[float, float, float]) -> Any:
    """Smoothed a little and shrunk."""
    import SimpleITK as sitk

    image = _to_sitk(data, spacing)
    smooth = sitk.SmoothingRecursiveGaussian(image, [0.5 * SHRINK * s for s in spacing])
    return sitk.Shrink(smooth, [SHRINK] * 3)

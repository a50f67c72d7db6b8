# SPDX-License-Identifier: Apache-2.0
"""Two scans of one head on one grid: a rigid registration by SimpleITK."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from bmex_bids.imaging.orientation import voxel_sizes
from bmex_bids.imaging.registration import as_itk
from bmex_bids.imaging.resampling import orthonormal_axes

#: mm around the brain that the metric sees
AROUND_MM = 5.0
#: grids of the registration, coarse to fine: edge of a voxel, and the blur before, in mm
GRIDS_MM, SMOOTH_MM = (4.0, 2.0), (2.0, 1.0)
#: of the metric's histogram; of the optimiser: first and last step in mm, how a step shrinks
BINS, FIRST_MM, LAST_MM, RELAXATION = 32, 1.0, 1e-3, 0.75
ITERATIONS = 200


def to_itk(image: nib.Nifti1Image) -> sitk.Image:
    """The same image for ITK, sheared axes made orthonormal."""
    return as_itk(image, orthonormal_axes(image.affine))


def rigid(
    fixed: nib.Nifti1Image,
    moving: nib.Nifti1Image,
    fixed_mask: nib.Nifti1Image,
    moving_mask: nib.Nifti1Image,
) -> sitk.Transform:
    """The rotation and shift from the world of one scan to that of another of the same head.

    Mattes mutual information around the brain, from the masks' moments on, in two steps of
    resolution.  The same images give the same result.

    Parameters
    ----------
    fixed, moving : (X, Y, Z), any unit
    fixed_mask, moving_mask : brains, each on the grid of its image
    """
    where, brain, other = to_itk(fixed), to_itk(fixed_mask), to_itk(moving_mask)
    start = sitk.CenteredTransformInitializer(
        brain, other, sitk.Euler3DTransform(), sitk.CenteredTransformInitializerFilter.MOMENTS
    )
    around = sitk.BinaryThreshold(
        sitk.SignedMaurerDistanceMap(
            sitk.Cast(brain, sitk.sitkUInt8), insideIsPositive=False, useImageSpacing=True
        ),
        -1e6,
        AROUND_MM,
    )
    method = sitk.ImageRegistrationMethod()
    method.SetNumberOfThreads(1)
    method.SetMetricAsMattesMutualInformation(BINS)
    method.SetMetricFixedMask(around)
    method.SetMetricSamplingStrategy(method.NONE)  # all voxels: the same result each time
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(FIRST_MM, LAST_MM, ITERATIONS, RELAXATION)
    method.SetOptimizerScalesFromPhysicalShift()
    size = min(voxel_sizes(fixed.affine))
    method.SetShrinkFactorsPerLevel([max(1, round(edge / size)) for edge in GRIDS_MM])
    method.SetSmoothingSigmasPerLevel(list(SMOOTH_MM))
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
    method.SetInitialTransform(start, inPlace=False)
    return method.Execute(where, to_itk(moving))


def on_grid_of(
    image: nib.Nifti1Image,
    like: nib.Nifti1Image,
    transform: sitk.Transform,
    *,
    nearest: bool = False,
) -> NDArray[np.float32]:
    """An image on the grid of another; zero beyond its field of view.

    Parameters
    ----------
    transform : from the world of ``like`` to that of ``image``
    nearest : take the nearest voxel, as masks want it, instead of a cubic spline
    """
    how = sitk.sitkNearestNeighbor if nearest else sitk.sitkBSpline
    found = sitk.Resample(to_itk(image), to_itk(like), transform, how, 0.0)
    return np.asarray(sitk.GetArrayFromImage(found).transpose(2, 1, 0), dtype=np.float32)

# SPDX-License-Identifier: Apache-2.0
"""Registration of a brain to a template, with SimpleITK, and images brought there.

An affine transform (mutual information, Mattes et al., IEEE Trans. Med. Imaging 2003), then, between
images of one contrast, a displacement field (diffeomorphic demons, Vercauteren et al., NeuroImage
2009).  A transform maps a point of the template to the point of the subject, in ITK's coordinates
(LPS, mm), as ANTs reads it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import scipy.ndimage
import SimpleITK as sitk
from numpy.typing import NDArray

from bmex_bids.exceptions import ImageError
from bmex_bids.imaging.orientation import voxel_sizes
from bmex_bids.imaging.resampling import resample_to_spacing

#: RAS of nibabel to LPS of ITK
FLIP = np.diag([-1.0, -1.0, 1.0, 1.0])
#: voxels of the registration, mm: the transform is smooth, so nothing is lost
SPACING_MM = 2.0
#: shrink factors of the two parts, iterations of the demons at each
AFFINE_LEVELS = (4, 2)
DEMONS_LEVELS = ((4, 30), (2, 20), (1, 8))
#: of the demons' displacement and update fields, in voxels of a level
FIELD_SIGMA, UPDATE_SIGMA = 2.0, 1.0
INVERSE_ITERATIONS = 30
#: a grid whose voxels are so many times those of an image is coarser than it
FINER = 1.3
#: of the masks: below it the brains do not lie on each other
LEAST_OVERLAP = 0.85


@dataclass(frozen=True)
class Registration:
    """A transform and how well it fits.

    Attributes
    ----------
    transform : of ITK, from points of the template to points of the subject
    overlap : Dice coefficient of the two brain masks
    folded : share of the template's brain where the field folds; 0 for an affine transform
    """

    transform: Any
    overlap: float
    folded: float


def to_itk(image: nib.Nifti1Image) -> Any:
    """The same image for ITK; ImageError for axes that are not at right angles."""
    axes = image.affine[:3, :3] / np.array(voxel_sizes(image.affine))
    if np.abs(axes.T @ axes - np.eye(3)).max() > 1e-3:
        raise ImageError("expected axes at right angles for a registration, got sheared ones")
    return as_itk(image, axes)


def as_itk(image: nib.Nifti1Image, axes: NDArray[np.float64]) -> Any:
    """An image (X, Y, Z) as ITK has it, with these axes.

    Parameters
    ----------
    axes : (3, 3), orthonormal; a column is the direction of a voxel axis, RAS
    """
    data = np.asarray(image.dataobj, dtype=np.float32)
    result = sitk.GetImageFromArray(np.ascontiguousarray(data.transpose(2, 1, 0)))
    result.SetSpacing([float(size) for size in voxel_sizes(image.affine)])
    result.SetDirection((FLIP[:3, :3] @ axes).ravel().tolist())
    result.SetOrigin((FLIP @ image.affine)[:3, 3].tolist())
    return result


def register(
    fixed: nib.Nifti1Image,
    fixed_mask: nib.Nifti1Image,
    moving: nib.Nifti1Image,
    moving_mask: nib.Nifti1Image,
    *,
    same_contrast: bool = True,
) -> Registration:
    """Register a brain to a template's.

    Parameters
    ----------
    fixed, moving : (X, Y, Z) each, any units
    fixed_mask, moving_mask : of the brain, on the same grids
    same_contrast : whether intensities can be compared; else the transform is affine
    """
    brains = []
    for image, mask in ((fixed, fixed_mask), (moving, moving_mask)):
        region = sitk.Cast(to_itk(mask) > 0.5, sitk.sitkFloat32)
        brain = sitk.Mask(to_itk(image), sitk.Cast(region, sitk.sitkUInt8))
        brains.append((_coarse(brain), _coarse(region)))
    (template, template_mask), (subject, subject_mask) = brains
    affine = _affine(template, template_mask, subject, subject_mask)
    transform, folded = sitk.CompositeTransform([affine]), 0.0
    if same_contrast:
        field = _demons(template, template_mask, subject, affine)
        inside = sitk.GetArrayViewFromImage(template_mask) > 0.5
        jacobian = sitk.DisplacementFieldJacobianDeterminant(field)
        folded = float((sitk.GetArrayViewFromImage(jacobian)[inside] <= 0).mean())
        transform.AddTransform(sitk.DisplacementFieldTransform(field))
    there = sitk.Resample(subject_mask, template_mask, transform, sitk.sitkLinear)
    first, second = (sitk.GetArrayViewFromImage(m) > 0.5 for m in (there, template_mask))
    overlap = 2.0 * float((first & second).sum()) / max(float(first.sum() + second.sum()), 1.0)
    return Registration(transform, overlap, folded)


def _coarse(image: Any) -> Any:
    """On voxels of :data:`SPACING_MM` where it has smaller ones; smoothed before."""
    spacing = np.array(image.GetSpacing())
    if (spacing >= SPACING_MM).all():
        return image
    new = np.maximum(spacing, SPACING_MM)
    size = np.maximum(np.ceil(np.array(image.GetSize()) * spacing / new), 1).astype(int)
    smooth = sitk.SmoothingRecursiveGaussian(image, (new / 2).tolist())
    shift = np.array(image.GetDirection()).reshape(3, 3) @ ((new - spacing) / 2)
    origin = (np.array(image.GetOrigin()) + shift).tolist()
    grid = (size.tolist(), sitk.Transform(), sitk.sitkLinear, origin, new.tolist())
    return sitk.Resample(smooth, *grid, image.GetDirection())


def _affine(template: Any, template_mask: Any, subject: Any, subject_mask: Any) -> Any:
    """From the centres and volumes of the masks to twelve parameters."""
    litres = [
        float(sitk.GetArrayViewFromImage(mask).sum()) * float(np.prod(mask.GetSpacing())) / 1e6
        for mask in (template_mask, subject_mask)
    ]
    if min(litres) <= 0:
        raise ImageError("expected two brains to register, got an empty mask")
    start = sitk.CenteredTransformInitializer(
        template_mask,
        subject_mask,
        sitk.AffineTransform(3),
        sitk.CenteredTransformInitializerFilter.MOMENTS,
    )
    affine = sitk.AffineTransform(start)
    affine.SetMatrix((np.eye(3) * (litres[1] / litres[0]) ** (1 / 3)).ravel().tolist())
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(32)
    method.SetMetricSamplingStrategy(method.REGULAR)
    method.SetMetricSamplingPercentage(0.3)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(1.0, 1e-3, 100, relaxationFactor=0.6)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel(AFFINE_LEVELS)
    method.SetSmoothingSigmasPerLevel(AFFINE_LEVELS)
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
    method.SetInitialTransform(affine, True)
    method.Execute(template, subject)
    return affine


def _demons(template: Any, template_mask: Any, subject: Any, affine: Any) -> Any:
    """The displacement field on the grid of the template, beyond the affine transform."""
    inside = sitk.Cast(template_mask > 0.5, sitk.sitkUInt8)
    template = sitk.Mask(template, inside)
    subject = sitk.Resample(subject, template, affine, sitk.sitkLinear)
    subject = sitk.HistogramMatching(subject, template, 256, 9, True)
    field = sitk.Image(template.GetSize(), sitk.sitkVectorFloat64, 3)
    field.CopyInformation(template)
    demons = sitk.DiffeomorphicDemonsRegistrationFilter()
    demons.SetSmoothDisplacementField(True)
    demons.SetStandardDeviations(FIELD_SIGMA)
    demons.SetSmoothUpdateField(True)
    demons.SetUpdateFieldStandardDeviations(UPDATE_SIGMA)
    demons.SetMaximumUpdateStepLength(1.0)
    for shrink, iterations in DEMONS_LEVELS:
        factors = [max(1, min(shrink, n // 8)) for n in template.GetSize()]
        fixed, moving = (
            sitk.Shrink(sitk.SmoothingRecursiveGaussian(image, float(shrink)), factors)
            if max(factors) > 1
            else image
            for image in (template, subject)
        )
        demons.SetNumberOfIterations(iterations)
        field = demons.Execute(fixed, moving, sitk.Resample(field, fixed))
    return sitk.Cast(field, sitk.sitkVectorFloat64)


def inverse_of(transform: Any) -> Any:
    """From points of the subject to points of the template.

    Parameters
    ----------
    transform : of a :class:`Registration`; its field is inverted by fixed-point iteration, to a
        tenth of its voxels, on its own grid
    """
    found = sitk.CompositeTransform(3)
    for number in reversed(range(transform.GetNumberOfTransforms())):
        part = transform.GetNthTransform(number)
        if part.GetTransformEnum() == sitk.sitkDisplacementField:
            field = sitk.DisplacementFieldTransform(part).GetDisplacementField()
            back = sitk.InvertDisplacementField(
                sitk.Cast(field, sitk.sitkVectorFloat64),
                maximumNumberOfIterations=INVERSE_ITERATIONS,
                maxErrorToleranceThreshold=0.1,
                meanErrorToleranceThreshold=0.001,
                enforceBoundaryCondition=False,
            )
            found.AddTransform(sitk.DisplacementFieldTransform(back))
        else:
            found.AddTransform(part.GetInverse())
    return found


def write_transform(transform: Any, path: str | Path) -> str:
    """Save a transform as ITK's HDF5 (``.h5``); returns the path."""
    sitk.WriteTransform(transform, str(path))
    return str(path)


def bring(
    image: nib.Nifti1Image, grid: nib.Nifti1Image, points: NDArray[np.float32], *, order: int
) -> NDArray[np.float32]:
    """Values of an image at the points of a grid.

    Parameters
    ----------
    image : any grid, sheared ones included
    grid : (X, Y, Z), of the template
    points : (3, X, Y, Z), from :func:`points_of`
    order : of the spline; 0 for labels, 1 for shares, 3 for intensities; zero outside the image
    """
    coarser = min(voxel_sizes(grid.affine))
    if order > 0 and coarser > FINER * max(voxel_sizes(image.affine)):
        image = resample_to_spacing(image, coarser)  # smoothed before, so that nothing aliases
    to_voxel = np.linalg.inv(image.affine)
    voxels = np.tensordot(to_voxel[:3, :3].astype(np.float32), points, axes=1)
    voxels += to_voxel[:3, 3].astype(np.float32)[:, None, None, None] + 1
    # a grid's edge voxels reach half a voxel beyond their centres: repeat them there, then zero
    data = np.pad(np.asarray(image.dataobj, dtype=np.float32), 1, mode="edge")
    result = scipy.ndimage.map_coordinates(data, voxels, order=order, mode="constant", cval=0)
    return np.asarray(result.reshape(grid.shape[:3]), dtype=np.float32)


def points_of(transform: Any, grid: nib.Nifti1Image) -> NDArray[np.float32]:
    """Where the voxels of a template's grid lie in the subject: (3, X, Y, Z), RAS, mm."""
    like = to_itk(grid)
    field = sitk.TransformToDisplacementField(
        transform,
        sitk.sitkVectorFloat32,
        like.GetSize(),
        like.GetOrigin(),
        like.GetSpacing(),
        like.GetDirection(),
    )
    moved = sitk.GetArrayViewFromImage(field).transpose(3, 2, 1, 0)
    index = np.indices(grid.shape[:3], dtype=np.float32)
    lps = np.tensordot((FLIP @ grid.affine)[:3, :3].astype(np.float32), index, axes=1)
    lps += (FLIP @ grid.affine)[:3, 3].astype(np.float32)[:, None, None, None]
    lps += moved
    lps[:2] *= -1
    return np.asarray(lps, dtype=np.float32)

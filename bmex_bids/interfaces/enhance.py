# SPDX-License-Identifier: Apache-2.0
"""Nodes of the stage *enhance*: the network, and the way back to the input's grid."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import scipy.ndimage
from nibabel.affines import from_matvec
from nibabel.orientations import apply_orientation
from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    OutputMultiObject,
    TraitedSpec,
    isdefined,
    traits,
)

from bmex_bids.common.boxes import bounding_box
from bmex_bids.common.tissues import TISSUES
from bmex_bids.imaging.intensity import HistogramMatch, IntensityScale, within
from bmex_bids.imaging.mask import blend_into_head
from bmex_bids.imaging.orientation import voxel_sizes
from bmex_bids.imaging.resampling import resample_like
from bmex_bids.interfaces.files import (
    data_of,
    on_original_grid,
    read,
    with_codes_of,
    with_data,
    write,
)
from bmex_bids.interfaces.step import Step
from bmex_bids.interfaces.weights import provenance_of, weight_record
from bmex_bids.metrics.confidence import volume_spread
from bmex_bids.metrics.familiarity import distance, features
from bmex_bids.network.inference.options import GEOMETRIES, PRECISIONS
from bmex_bids.network.inference.predict import Enhancement, Tissues, classify, enhance
from bmex_bids.network.inference.segment import tissues_of

#: voxels around the brain that interpolation may look at
MARGIN = 4


class EnhanceInput(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True, desc="matched image, template units")
    before = File(exists=True, desc="the image as it came; in_file where it is not given")
    mask = File(exists=True, mandatory=True, desc="network grid")
    original = File(exists=True, desc="raw image, whose form code the enhanced one gets")
    weights = traits.Dict(mandatory=True, desc="record of the enhancement network")
    yardstick = traits.Dict(
        desc="record of the network that finds the tissues which the gate compares; the "
        "enhancement network itself when it is not given"
    )
    tissue_weights = traits.Dict(
        desc="record of the network that finds all tissues by the image alone; the enhancement "
        "network itself when it is not given"
    )
    device = traits.Str("auto", usedefault=True)
    use_gpu = traits.Bool(False, usedefault=True, nohash=True)
    num_threads = traits.Int(1, usedefault=True, nohash=True)
    tile = traits.Int(desc="largest edge in voxels, a multiple of 8")
    geometry = traits.Enum(*GEOMETRIES, usedefault=True)
    mirroring = traits.Bool(True, usedefault=True, desc="average over mirror images of the brain")
    precision = traits.Enum(*PRECISIONS, usedefault=True)
    memory_mb = traits.Float(nohash=True, desc="what this process may take")
    max_change = traits.Either(
        None, traits.Float, usedefault=True, desc="of a voxel, % of the range; None: no limit"
    )


class EnhanceOutput(TraitedSpec):
    out_file = File(exists=True, desc="enhanced, template units, zero outside the mask")
    labels = File(exists=True, desc="0 background, 1 CSF, 2 GM, 3 WM")
    labels_before = File(exists=True, desc="the same by the yardstick, in the network's input")
    labels_after = File(exists=True, desc="the same by the yardstick, in the enhanced image")
    probabilities = OutputMultiObject(File(exists=True), desc="CSF, GM, WM")
    probabilities_before = OutputMultiObject(
        File(exists=True), desc="the same in the image as it came"
    )
    deviation = File(
        exists=True,
        desc="expected error, template units, calibrated; none where it has not been learnt",
    )
    litres_sd = traits.Dict(
        desc="tissue → standard deviation of its volume; empty where the weights do not know it"
    )
    training_distance = traits.Either(
        None, traits.Float, desc="from images that trained, usual: 1; None: not known"
    )
    provenance = traits.Dict(desc="weights, device, precision, seconds")


class Enhance(Step):
    """Run the network; then find the tissues of what it made, for the gate.

    The tissues that are written are those of the network's input.  Those of the enhanced image say
    whether it still shows them.  To find them with published weights would cost half as much as
    the enhancement, minutes on a processor; a small yardstick finds those before and those after.
    """

    input_spec = EnhanceInput
    output_spec = EnhanceOutput

    def work(self, folder: str) -> None:
        image = read(self.inputs.in_file)
        moved = isdefined(self.inputs.before) and self.inputs.before != self.inputs.in_file
        given = data_of(image)
        came = data_of(read(self.inputs.before)) if moved else given
        record = weight_record(self.inputs.weights)
        mask = data_of(read(self.inputs.mask, "uint8")) > 0
        where: dict[str, Any] = {
            "device": self.inputs.device,
            "threads": self.inputs.num_threads,
            "geometry": self.inputs.geometry,
            "mirroring": self.inputs.mirroring,
            "precision": self.inputs.precision,
        }
        if isdefined(self.inputs.memory_mb):
            where["memory_mb"] = self.inputs.memory_mb
        if isdefined(self.inputs.tile):
            where["tile"] = self.inputs.tile
        made = shared(enhance(given, mask, record, **where), given, record.share)
        result = limited(calibrated(made, record.error_scale), came, self.inputs.max_change)
        finder = None
        if isdefined(self.inputs.tissue_weights):
            finder = weight_record(self.inputs.tissue_weights)
            how = {"device": self.inputs.device, "threads": self.inputs.num_threads}
            probabilities = tissues_of(data_of(image), mask, finder, **how)
            found = Tissues.of(probabilities, mask)
            result = dataclasses.replace(
                result, probabilities=probabilities, labels=found.labels, classified=found
            )

        def find(data: Any) -> Tissues:
            if finder is not None:
                return Tissues.of(tissues_of(data, mask, finder, **how), mask)
            return classify(data, mask, record, **where)

        first = find(came) if moved else result.classified
        if isdefined(self.inputs.yardstick):
            small = weight_record(self.inputs.yardstick)
            before = classify(data_of(image), mask, small, **where)
            after = classify(result.image, mask, small, **where)
        else:
            before, after = result.classified, find(result.image)
        maps = {
            "labels": result.labels,
            "labels_before": before.labels,
            "labels_after": after.labels,
        }
        enhanced = with_data(result.image, image)
        if isdefined(self.inputs.original):
            enhanced = with_codes_of(enhanced, self.inputs.original)
        self._results["out_file"] = write(enhanced, folder, "enhanced.nii.gz")
        for name, labels in maps.items():
            self._results[name] = write(with_data(labels, image), folder, f"{name}.nii.gz")
        if result.deviation is not None:
            deviation = with_data(result.deviation, image)
            self._results["deviation"] = write(deviation, folder, "deviation.nii.gz")
        self._results["probabilities"] = [
            write(
                with_data(result.probabilities[tissue.number], image),
                folder,
                f"{tissue.label}.nii.gz",
            )
            for tissue in TISSUES
        ]
        self._results["probabilities_before"] = (
            [
                write(
                    with_data(share / np.float32(255), image),
                    folder,
                    f"{tissue.label}_before.nii.gz",
                )
                for tissue, share in zip(TISSUES, first.shares, strict=True)
            ]
            if moved
            else self._results["probabilities"]
        )
        self._results["litres_sd"] = {}
        if record.volume_scale is not None and finder is None:
            voxel_mm3 = float(np.prod(voxel_sizes(image.affine)))
            self._results["litres_sd"] = {
                tissue.label: record.volume_scale
                * volume_spread(result.probabilities[tissue.number], voxel_mm3)
                for tissue in TISSUES
            }
        self._results["training_distance"] = None
        if record.usual is not None and made.deviation is not None:
            figures = features(data_of(image), made.image, made.deviation, made.labels, mask)
            self._results["training_distance"] = distance(figures, record.usual)
        self._results["provenance"] = {
            **provenance_of(record),
            "weights_version": record.version,
            "error_scale": record.error_scale,
            "share": record.share,
            "variant": record.variant,
            "tissues": {} if finder is None else provenance_of(finder),
            "device": result.device,
            "precision": result.precision,
            "mirrored": list(result.mirrored),
            "networks": result.networks,
            "max_change": self.inputs.max_change,
            "seconds": round(float(result.seconds), 2),
        }


def shared(result: Enhancement, given: Any, share: float) -> Enhancement:
    """The enhancement with a share of its correction.

    Parameters
    ----------
    given : (X, Y, Z), what the network was given, template units
    share : 0…1
    """
    if share == 1:
        return result
    image = _in_brain(result, given + np.float32(share) * (result.image - given))
    return dataclasses.replace(result, image=image)


def _in_brain(result: Enhancement, image: Any) -> Any:
    """An image where the network sees a brain, the enhanced one elsewhere; float32."""
    return np.where(result.probabilities[0] < 1, image, result.image).astype(np.float32)


def calibrated(result: Enhancement, factor: float) -> Enhancement:
    """The enhancement with its expected error times the factor of the weights."""
    if result.deviation is None:
        return result
    return dataclasses.replace(result, deviation=result.deviation * np.float32(factor))


def limited(result: Enhancement, before: Any, percent: float | None) -> Enhancement:
    """The enhancement with no voxel further from the image as it came than a limit.

    What was cut off adds to the expected error: the network holds it for a fault.

    Parameters
    ----------
    before : (X, Y, Z), the image as it came, template units
    percent : of the range of the reference; None: no limit
    """
    if percent is None:
        return result
    image = _in_brain(result, before + within(result.image - before, percent))
    deviation = result.deviation
    if deviation is not None:
        deviation = np.hypot(deviation, result.image - image)
    return dataclasses.replace(result, image=image, deviation=deviation)


class RestoreInput(BaseInterfaceInputSpec):
    original = File(exists=True, mandatory=True, desc="raw image")
    conformed = File(exists=True, mandatory=True, desc="LPS native grid, input intensities")
    native = File(exists=True, mandatory=True, desc="LPS native grid, 0…1000, corrected")
    before = File(
        exists=True, desc="the same of the image as it came; native where it is not given"
    )
    field = File(exists=True, mandatory=True, desc="LPS native grid, the bias field")
    mask = File(exists=True, mandatory=True, desc="LPS native grid")
    mask_res = File(exists=True, mandatory=True, desc="network grid")
    matched = File(exists=True, mandatory=True, desc="network grid, template units, before")
    enhanced = File(exists=True, mandatory=True, desc="network grid, template units, after")
    probabilities = traits.List(File(exists=True), mandatory=True, desc="CSF, GM, WM")
    probabilities_before = traits.List(
        File(exists=True), mandatory=True, desc="the same of the image as it came"
    )
    deviation = File(exists=True, desc="network grid, template units; or none")
    max_change = traits.Either(
        None, traits.Float, usedefault=True, desc="of a voxel, % of the range; None: no limit"
    )
    intensity_json = File(exists=True, mandatory=True)


class RestoreOutput(TraitedSpec):
    enhanced_native = File(exists=True, desc="template units, zero outside the mask")
    preproc_native = File(exists=True, desc="the head, input intensities")
    mask_native = File(exists=True, desc="uint8")
    dseg_native = File(exists=True, desc="0 none, 1 GM, 2 WM, 3 CSF")
    dseg_before = File(exists=True, desc="the same of the image as it came")
    probseg_native = OutputMultiObject(File(exists=True), desc="CSF, GM, WM")
    uncertainty_native = File(exists=True, desc="template units; none without deviation")


class Restore(Step):
    """Back to the input's grid, its axes and its intensities.

    What is resampled is the correction, not the image: where the network changes nothing, the
    result is the input.
    """

    input_spec = RestoreInput
    output_spec = RestoreOutput

    def work(self, folder: str) -> None:
        raw: Any = nib.load(self.inputs.original)
        grid = (tuple(raw.shape[:3]), raw.affine)
        mask = to_axes_of(read(self.inputs.mask, "uint8"), grid) > 0
        head, native, field = (
            to_axes_of(read(path), grid)
            for path in (self.inputs.conformed, self.inputs.native, self.inputs.field)
        )
        after = read(self.inputs.enhanced)
        change = with_data(data_of(after) - data_of(read(self.inputs.matched)), after)
        paths = list(self.inputs.probabilities)
        moved = self.inputs.probabilities_before != self.inputs.probabilities
        if moved:
            paths += self.inputs.probabilities_before
        if isdefined(self.inputs.deviation):
            paths.append(self.inputs.deviation)
        correction, *maps = resampled_inside(
            [change, *(read(path) for path in paths)],
            read(self.inputs.mask_res),
            grid,
            mask,
            orders=(3, *(1 for _ in paths)),
        )
        maps = [np.clip(part, 0, None) for part in maps]
        count = len(TISSUES)
        before, deviation = (
            (maps[count : 2 * count], maps[2 * count :]) if moved else ([], maps[count:])
        )
        maps = maps[:count]
        total = np.maximum(np.sum(maps, axis=0), np.float32(1e-6))
        chain = json.loads(Path(self.inputs.intensity_json).read_text())
        undone = self._undone(native, grid, chain)
        # a spline may overshoot
        correction = within(correction + undone, self.inputs.max_change) - undone
        enhanced = add_correction(native, correction, mask, chain)
        preproc = into_head(enhanced, native, field, head, mask, chain, raw.affine)

        def save(data: Any, name: str, dtype: Any = np.float32) -> str:
            image = on_original_grid(data, self.inputs.original, dtype)
            return write(image, folder, f"{name}.nii.gz")

        self._results["mask_native"] = save(mask, "mask_native", np.uint8)
        self._results["enhanced_native"] = save(enhanced, "enhanced_native")
        self._results["preproc_native"] = save(preproc, "preproc_native")
        self._results["dseg_native"] = save(most_probable(maps, mask), "dseg_native", np.uint8)
        self._results["dseg_before"] = self._results["dseg_native"]
        if moved:
            labels = most_probable(before, mask)
            self._results["dseg_before"] = save(labels, "dseg_before", np.uint8)
        self._results["probseg_native"] = [
            save(part / total * mask, f"{tissue.label}_native")
            for tissue, part in zip(TISSUES, maps, strict=True)
        ]
        for part in deviation:
            self._results["uncertainty_native"] = save(part, "uncertainty_native")

    def _undone(self, native: Any, grid: Any, chain: dict[str, Any]) -> Any:
        """What the motion correction changed, template units: the limit counts it."""
        before = self.inputs.before
        if self.inputs.max_change is None or not isdefined(before) or before == self.inputs.native:
            return np.float32(0)
        match = HistogramMatch.of(chain["match"])
        return match.apply(native) - match.apply(to_axes_of(read(before), grid))


def most_probable(maps: Sequence[Any], mask: Any) -> Any:
    """Labels as in files (1 GM, 2 WM, 3 CSF) from the maps of the tissues; 0 outside the mask."""
    lookup = np.array([0, *(tissue.bids for tissue in TISSUES)], dtype=np.uint8)
    return lookup[np.where(mask, np.argmax(maps, axis=0) + 1, 0)]


def to_axes_of(image: Any, grid: Any) -> Any:
    """Voxels of an image whose grid is ``grid`` but for the order and direction of its axes.

    What was turned how is seen from the two affines: of a grid that lies at 45 degrees, the axis
    nearest to a direction is a toss-up, and asking twice may give two answers.
    """
    step = np.rint(np.linalg.inv(image.affine)[:3, :3] @ grid[1][:3, :3])
    if not np.array_equal(step @ step.T, np.eye(3)):
        raise ValueError(f"expected the same grid with other axes, got steps of {step.tolist()}")
    target = np.abs(step).argmax(axis=1)
    data = apply_orientation(data_of(image), np.column_stack([target, step[range(3), target]]))
    if data.shape != grid[0]:
        raise ValueError(f"expected shape {grid[0]} after reorientation, got {data.shape}")
    return data


def resampled_inside(
    images: Sequence[Any], support: Any, grid: Any, mask: Any, *, orders: Sequence[int]
) -> list[Any]:
    """Images resampled to a grid, zero outside ``mask``.

    At the brain's border interpolation would mix in the zeros outside, so these first take the
    value of the nearest voxel inside.  A cubic spline (order 3) is what keeps an image sharp: a
    head of 0.88 mm that goes to 0.8 mm and back differs from itself by 28 dB with linear
    interpolation both ways and by 39 dB with cubic.

    Parameters
    ----------
    images : on one grid
    support : on the same grid, 1 where the images have values, 0 outside
    grid : (shape, affine)
    mask : bool, on that grid
    orders : of interpolation, one for each image
    """
    shape, affine = grid
    source = bounding_box(data_of(support) > 0, margin=MARGIN)
    target = bounding_box(mask)  # outside this box nothing is wanted
    nearest = scipy.ndimage.distance_transform_edt(
        data_of(support)[source] == 0, return_distances=False, return_indices=True
    )
    part = (mask[target].shape, corner_at(affine, target))
    start = corner_at(support.affine, source)
    results = []
    for image, order in zip(images, orders, strict=True):
        filled = nib.Nifti1Image(data_of(image)[source][tuple(nearest)], start)
        used = 0 if voxels_coincide(start, part[1]) else order
        values = data_of(resample_like(filled, part, order=used))
        whole = np.zeros(shape, np.float32)
        whole[target] = np.where(mask[target], values, 0)
        results.append(whole)
    return results


def corner_at(affine: Any, box: tuple[slice, slice, slice]) -> Any:
    """The affine of a part of an array."""
    return affine @ from_matvec(np.eye(3), [side.start for side in box])


def voxels_coincide(source: Any, target: Any) -> bool:
    """Whether each voxel of one grid lies on a voxel of the other, so nothing is interpolated."""
    step = np.linalg.inv(source) @ target
    return bool(
        np.allclose(step, np.rint(step), atol=1e-3)
        and np.allclose(np.abs(np.rint(step[:3, :3])).sum(axis=0), 1)
    )


def add_correction(native: Any, correction: Any, mask: Any, chain: dict[str, Any]) -> Any:
    """The enhanced brain in template units: the input, matched, plus the network's correction.

    Parameters
    ----------
    native : (X, Y, Z) the input, 0…1000, corrected for its bias field
    correction : (X, Y, Z) template units
    mask : (X, Y, Z) the brain; the result is zero outside
    chain : what maps intensities, as the node of the histogram matching writes it
    """
    enhanced = HistogramMatch.of(chain["match"]).apply(native) + correction
    return np.where(mask, np.clip(enhanced, 0, None), 0).astype(np.float32)


def into_head(
    enhanced: Any,
    native: Any,
    field: Any,
    head: Any,
    mask: Any,
    chain: dict[str, Any],
    affine: Any,
) -> Any:
    """The head in input intensities, with the change that the enhancement made to its brain.

    Template units go back through the inverse of the histogram matching, of the scaling and of
    the bias field.  Where nothing was changed, the result is ``head`` to rounding.

    Parameters
    ----------
    enhanced : (X, Y, Z) template units
    native, field : (X, Y, Z) the corrected input, 0…1000, and what the input was divided by
    head : (X, Y, Z) input intensities
    mask : (X, Y, Z) the brain
    chain : as for :func:`add_correction`
    affine : of the grid
    """
    match = HistogramMatch.of(chain["match"])
    before = np.clip(match.apply(native), 0, None)
    change = (match.invert(enhanced) - match.invert(before)) * field
    change = np.where(mask, change, 0) / np.float32(IntensityScale(**chain["scale"]).factor)
    return blend_into_head(head, head + change, mask, voxel_sizes(affine))

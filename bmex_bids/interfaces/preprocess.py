# SPDX-License-Identifier: Apache-2.0
"""Nodes of the stage *preprocess*: from a raw image to what the network is fed."""

from __future__ import annotations

import dataclasses
import json
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    TraitedSpec,
    isdefined,
    traits,
)
from numpy.typing import NDArray

from bmex_bids.common.contrasts import CONTRASTS, SUFFIXES
from bmex_bids.exceptions import ImageError, MaskError
from bmex_bids.imaging.background import without_noise
from bmex_bids.imaging.intensity import (
    TOP,
    HistogramMatch,
    IntensityScale,
    count_template,
    from_zero,
    head_region,
    load_histogram,
    match_histogram,
    n4,
    rescale_robust,
    shares_at_ends,
)
from bmex_bids.imaging.levels import match_levels
from bmex_bids.imaging.likeness import Likeness, describe_turn
from bmex_bids.imaging.mask import check_mask, clean_mask, left_out
from bmex_bids.imaging.orientation import check_levels, conform, load_image, voxel_sizes
from bmex_bids.imaging.resampling import resample_like, resample_to_spacing
from bmex_bids.imaging.stripped import (
    brain_voxels,
    is_all_brain,
    is_stripped,
    without_lost_slices,
    without_offset,
)
from bmex_bids.interfaces.files import data_of, read, with_data, write
from bmex_bids.interfaces.grid import on_network_grid, slices_to_split
from bmex_bids.interfaces.step import Step
from bmex_bids.interfaces.stripping import (
    NETWORK_SHORT_MM,
    OWN,
    compare,
    held_otherwise,
    network_mask,
)
from bmex_bids.interfaces.weights import weight_record
from bmex_bids.metrics.contrast import CLIPPED
from bmex_bids.outputs.records import MaskMethod

LOST = "{} slice(s) in the middle of the brain have no signal; look at the image"
CLIPPING = (
    "{:.0f} % of the brain's voxels have its highest value: the image was clipped there, so that "
    "tissues may look alike; export it again with a wider window"
)
REORIENTED = (
    "the axes of the header were corrected (--reorient): {}; left and right cannot be told, so "
    "check them"
)


class ConformInput(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True, desc="raw image")
    noisy_background = traits.Bool(
        False, usedefault=True, desc="a ratio of images: noise around the head is taken away"
    )


class ConformOutput(TraitedSpec):
    out_file = File(exists=True, desc="float32, axes closest to LPS+, input intensities")
    original = File(exists=True, desc="the raw image, unchanged")


class Conform(Step):
    """Check a raw image and bring its axes into the working order."""

    input_spec = ConformInput
    output_spec = ConformOutput

    def work(self, folder: str) -> None:
        raw = load_image(self.inputs.in_file)
        check_levels(raw, Path(self.inputs.in_file).name)
        image = conform(raw)
        if self.inputs.noisy_background:
            image = without_noise(image)
        self._results["out_file"] = write(image, folder, "conformed.nii.gz")
        self._results["original"] = str(Path(self.inputs.in_file).absolute())


class CorrectHeadInput(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True, desc="conformed image")
    num_threads = traits.Int(1, usedefault=True, nohash=True, desc="for ITK")


class CorrectHeadOutput(TraitedSpec):
    corrected = File(exists=True, desc="0…1000 and, where something is brighter, above; N4")
    field = File(exists=True, desc="what the image was divided by")
    scale_file = File(exists=True, desc="JSON: lower and upper input intensity of 0…1000")


class CorrectHead(Step):
    """Robust intensities 0…1000, then bias correction over the head."""

    input_spec = CorrectHeadInput
    output_spec = CorrectHeadOutput

    def work(self, folder: str) -> None:
        limit_itk_threads(self.inputs.num_threads)
        image = read(self.inputs.in_file)
        corrected, field, scale = correct_head(image)
        self._results["corrected"] = write(corrected, folder, "corrected.nii.gz")
        self._results["field"] = write(field, folder, "field.nii.gz")
        self._results["scale_file"] = write_json(dataclasses.asdict(scale), folder, "scale.json")


def correct_head(
    image: nib.Nifti1Image,
) -> tuple[nib.Nifti1Image, nib.Nifti1Image, IntensityScale]:
    """Robust intensities, then N4 over the head.

    The fit of the field sees intensities that are clipped at robust percentiles; the image that is
    divided by the field is not clipped.  A constant background far from the head is brought near.

    Parameters
    ----------
    image : conformed, input intensities

    Returns
    -------
    corrected, field, scale : robust percentiles are 0 and 1000; what the image was divided by;
        what maps input intensities to 0…1000
    """
    image = without_offset(image)
    data = data_of(image)
    clipped, scale = rescale_robust(data)
    region = with_data(head_region(clipped), image)
    _, field = n4(with_data(clipped, image), region)
    return with_data(scale.apply(data) / data_of(field), image), field, scale


class BrainInput(BaseInterfaceInputSpec):
    """What decides how a brain is found in a head."""

    skull_strip = traits.Enum("auto", "skip", "force", usedefault=True)
    weights = traits.Dict(
        desc="record of the stripping network; not needed for skip or a given mask"
    )
    given_mask = File(exists=True, desc="a brain mask made elsewhere, on any grid of that space")
    given_source = traits.Str("", usedefault=True, desc="whose mask that is")
    device = traits.Str("auto", usedefault=True)
    use_gpu = traits.Bool(False, usedefault=True, nohash=True)
    num_threads = traits.Int(1, usedefault=True, nohash=True)


class MaskBrainInput(BrainInput):
    in_file = File(exists=True, mandatory=True, desc="conformed image")
    corrected = File(exists=True, mandatory=True, desc="0…1000, N4 over the head")
    age_months = traits.Either(None, traits.Float(), usedefault=True, desc="None: not known")
    fetal = traits.Bool(False, usedefault=True)
    reoriented = traits.Str("", usedefault=True, desc="turn that corrected the header, or none")


class MaskBrainOutput(TraitedSpec):
    out_file = File(exists=True, desc="uint8 mask")
    stripped = traits.Bool(desc="the image came without a skull")
    mask_info = traits.Dict(
        desc="volume_litres, components, border_contact, turn, at_lowest, at_highest, warnings, …"
    )


class MaskBrain(Step):
    """Find the brain in a head, and judge its mask."""

    input_spec = MaskBrainInput
    output_spec = MaskBrainOutput

    def work(self, folder: str) -> None:
        raw = read(self.inputs.in_file)
        found = find_brain(raw, read(self.inputs.corrected), self.inputs)
        info = found.info
        if found.like is not None:
            info |= {"turn": found.like.turn, "turn_margin": found.like.margin}
        given = self.inputs.given_mask
        check = check_mask(
            found.mask,
            age_months=self.inputs.age_months,
            fetal=self.inputs.fetal,
            within_mm=found.within_mm,
            given=given if isdefined(given) else "",
        )
        info |= dataclasses.asdict(check)
        info["warnings"] = [*info.pop("notes", []), *check.warnings]
        ends = shares_at_ends(data_of(raw), data_of(found.mask) > 0)
        info["at_lowest"], info["at_highest"] = ends
        if info["at_highest"] > CLIPPED:
            info["warnings"].append(CLIPPING.format(100 * info["at_highest"]))
        if self.inputs.reoriented:
            info["reoriented"] = self.inputs.reoriented
            info["warnings"].append(REORIENTED.format(describe_turn(self.inputs.reoriented)))
        self._results["out_file"] = write(found.mask, folder, "mask.nii.gz")
        self._results["stripped"] = found.stripped
        self._results["mask_info"] = info


@dataclasses.dataclass(frozen=True)
class Brain:
    """The brain in a head.

    Attributes
    ----------
    mask : uint8, on the head's grid
    stripped : the head came without a skull
    info : ``method`` …, and ``notes``, a list
    like : how much it looks like a brain, and which way up; None where that is not known
    within_mm : as for :func:`bmex_bids.imaging.mask.cut_sides`
    """

    mask: nib.Nifti1Image
    stripped: bool
    info: dict[str, Any]
    like: Likeness | None
    within_mm: float


def find_brain(image: nib.Nifti1Image, corrected: nib.Nifti1Image, inputs: Any) -> Brain:
    """A given mask, the image's own zeros, or what the stripping network finds.

    A given mask is used as it is, whatever ``skull_strip`` says; ours are cleaned first.

    Parameters
    ----------
    image : conformed
    corrected : the same, 0…1000, N4 over the head
    inputs : a node's, with the fields of :class:`BrainInput`

    Raises
    ------
    MaskError
        There is no brain, or the given mask is no mask of this image.
    """
    mode = inputs.skull_strip
    stripped = came_stripped(image, mode)
    given = inputs.given_mask if isdefined(inputs.given_mask) else None
    info: dict[str, Any]
    look_again = None
    if given is not None:
        mask = given_mask_like(given, image)
        info = {
            "method": MaskMethod.GIVEN.value,
            "source": inputs.given_source or Path(given).name,
        }
    elif stripped:
        mask, info = stripped_mask(image)
    else:
        record = weight_record(inputs.weights)
        machine = {"device": inputs.device, "threads": inputs.num_threads}
        mask, info = network_mask(corrected, record, **machine)
        stripped = mode == "auto" and is_all_brain(image, data_of(mask) > 0)
        if stripped:
            mask, info = stripped_mask(image)
        elif record.variant == OWN:
            look_again = partial(held_otherwise, corrected=corrected, record=record, **machine)
    within_mm = NETWORK_SHORT_MM if info["method"] == MaskMethod.NETWORK.value else 0.0
    like = compare(
        corrected,
        mask,
        found_here=given is None and mode != "skip",
        within_mm=within_mm,
        look_again=look_again,
    )
    return Brain(mask, bool(stripped), info, like, within_mm)


def stripped_mask(image: nib.Nifti1Image) -> tuple[nib.Nifti1Image, dict[str, Any]]:
    """The brain that an image shows without its head, as uint8, and how it was found."""
    voxels, lost = without_lost_slices(brain_voxels(image))
    found = with_data(voxels.astype(np.uint8), image)
    mask = clean_mask(found)
    notes = [left_out(found, mask), LOST.format(lost) if lost else None]
    return mask, {
        "method": MaskMethod.STRIPPED.value,
        "notes": [note for note in notes if note],
    }


def came_stripped(image: nib.Nifti1Image, skull_strip: str) -> bool:
    """Whether an image counts as one without a skull; ``skull_strip`` is auto, skip or force."""
    return skull_strip == "skip" or (skull_strip == "auto" and is_stripped(image))


def given_mask_like(path: str | Path, image: nib.Nifti1Image) -> nib.Nifti1Image:
    """A mask made elsewhere, on the grid of an image.

    Parameters
    ----------
    path : brain is what is above 0.5; another grid is resampled linearly and cut at a half
    image : conformed, (X, Y, Z)

    Returns
    -------
    uint8 mask, (X, Y, Z)

    Raises
    ------
    MaskError
        The mask cannot be read, is not three-dimensional or empty, or more than a tenth of it lies
        outside the image.
    """
    advice = "give another mask, or leave out --derivatives (bmex-enhance: leave out --mask)"
    try:
        given = load_image(path)
    except ImageError as error:
        raise MaskError(
            f"expected a brain mask in {path}, got one that cannot be used; {advice} ({error})"
        ) from error
    brain = with_data((data_of(given) > 0.5).astype(np.float32), given)
    there = data_of(resample_like(brain, image, order=1)) > 0.5
    before, after = (
        float(array.sum()) * float(np.prod(voxel_sizes(grid.affine))) / 1e6
        for array, grid in ((data_of(brain), given), (there, image))
    )
    if before == 0 or after < 0.9 * before:
        raise MaskError(
            f"expected a brain mask that lies in its image in {path}, got one of {before:.3f} "
            f"litres, of which {after:.3f} lie there; {advice}"
        )
    return with_data(there.astype(np.uint8), image)


class CorrectBrainInput(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True, desc="0…1000 and above, N4 over the head")
    mask = File(exists=True, mandatory=True)
    spacing_mm = traits.Float(mandatory=True, desc="of the network's grid")
    order = traits.Enum(3, 1, usedefault=True, desc="of interpolation")
    within_weights = traits.Dict(desc="WeightRecord as a dict, for thick slices; absent: none")
    scale_file = File(exists=True, mandatory=True, desc="input intensities → those of in_file")
    field = File(exists=True, mandatory=True, desc="what the head was divided by")
    num_threads = traits.Int(1, usedefault=True, nohash=True)


class CorrectBrainOutput(TraitedSpec):
    out_file = File(exists=True, desc="network grid, 0…1000 and above, N4 within the brain")
    scale_file = File(exists=True, desc="input intensities → those of out_file")
    mask_res = File(exists=True, desc="network grid, uint8")
    native = File(exists=True, desc="grid of in_file, the intensities of out_file")
    field = File(exists=True, desc="grid of in_file, what the raw image was divided by in all")
    split_slices = traits.Dict(desc="Axis, Thickness, Parts; empty where no slices were split")


class CorrectBrain(Step):
    """Bias correction within the brain, then the network's grid."""

    input_spec = CorrectBrainInput
    output_spec = CorrectBrainOutput

    def work(self, folder: str) -> None:
        limit_itk_threads(self.inputs.num_threads)
        mask = read(self.inputs.mask)
        scale = IntensityScale(**json.loads(Path(self.inputs.scale_file).read_text()))
        head = read(self.inputs.in_file)
        data, scale = from_zero(data_of(head), data_of(mask) > 0, scale)
        _, field = n4(with_data(np.minimum(data, TOP), head), mask)
        corrected = with_data(data / data_of(field), head)
        image = on_network_grid(
            corrected, self.inputs.spacing_mm, self.inputs.order, self.inputs.within_weights
        )
        self._results["split_slices"] = slices_to_split(
            head, self.inputs.spacing_mm, self.inputs.order
        )
        inside = resample_to_spacing(mask, self.inputs.spacing_mm)
        brain = with_data((data_of(inside) > 0.5).astype(np.uint8), inside)
        whole = with_data(data_of(field) * data_of(read(self.inputs.field)), head)
        self._results["native"] = write(corrected, folder, "native.nii.gz")
        self._results["field"] = write(whole, folder, "field.nii.gz")
        self._results["out_file"] = write(image, folder, "brain.nii.gz")
        self._results["scale_file"] = write_json(dataclasses.asdict(scale), folder, "scale.json")
        self._results["mask_res"] = write(brain, folder, "mask_res.nii.gz")


class MatchHistogramInput(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True, desc="network grid, 0…1000 and above")
    mask = File(exists=True, mandatory=True, desc="network grid")
    scale_file = File(exists=True, mandatory=True)
    age_group = traits.Str(mandatory=True)
    contrast = traits.Enum(*SUFFIXES, mandatory=True)
    method = traits.Enum("brain", "published", "levels", usedefault=True)
    age_months = traits.Either(None, traits.Float(), usedefault=True, desc="None: not known")
    template = traits.List(
        File(exists=True), desc="image, and mask of its brain, to match instead"
    )


class MatchHistogramOutput(TraitedSpec):
    out_file = File(exists=True, desc="template units, zero outside the mask")
    intensity_json = File(exists=True, desc="input intensities → 0…1000 → template units")


class MatchHistogram(Step):
    """Match the brain's histogram to its age's reference."""

    input_spec = MatchHistogramInput
    output_spec = MatchHistogramOutput

    def work(self, folder: str) -> None:
        image = read(self.inputs.in_file)
        mask = data_of(read(self.inputs.mask, "uint8")) > 0
        data = data_of(image)
        data[~mask] = 0
        choice = {"age_group": self.inputs.age_group, "contrast": self.inputs.contrast}
        # what is brighter than the robust range does not choose the map, and is not clipped by it
        robust = np.minimum(data, TOP)
        method, levels, counts = self.inputs.method, None, None
        if self.inputs.template:
            method, counts = "template", template_counts(*self.inputs.template)
            _, match = match_histogram(robust, counts, mask)
        elif method == "levels":
            match, levels = match_levels(robust, mask, age_months=self.inputs.age_months, **choice)
            if levels is None:
                method = "quantiles" if CONTRASTS[choice["contrast"]].reference else "mean"
        else:
            reference = load_histogram(**choice)
            _, match = match_histogram(robust, reference, mask, method=self.inputs.method)
        matched = with_histogram(match, data, mask)
        chain = {
            "scale": json.loads(Path(self.inputs.scale_file).read_text()),
            "match": dataclasses.asdict(match),
            "method": method,
            "reference_levels": levels,
            "reference_counts": None if counts is None else counts.tolist(),
            **choice,
        }
        self._results["out_file"] = write(with_data(matched, image), folder, "matched.nii.gz")
        self._results["intensity_json"] = write_json(chain, folder, "intensity.json")


def with_histogram(
    match: HistogramMatch, data: NDArray[Any], mask: NDArray[np.bool_]
) -> NDArray[Any]:
    """A brain, 0…1000, in template units; (X, Y, Z), zero outside the mask."""
    return np.where(mask, match.apply(np.where(mask, data, 0)), 0)


def template_counts(image: str, mask: str | None = None) -> NDArray[np.int64]:
    """The histogram reference that a template's brain gives: counts of the intensities 0…1000."""
    data = data_of(read(image))
    inside = data > 0 if mask is None else data_of(read(mask)) > 0.5
    scaled, _ = rescale_robust(data, inside)
    return count_template(np.rint(np.where(inside, scaled, 0)))


def limit_itk_threads(threads: int) -> None:
    """Let ITK use so many threads in this process."""
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(int(threads))


def write_json(table: Any, folder: str | Path, name: str) -> str:
    """Save a table as ``folder/name`` and return its absolute path."""
    path = Path(folder).absolute() / name
    path.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
    return str(path)

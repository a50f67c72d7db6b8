# SPDX-License-Identifier: Apache-2.0
"""What the command line makes of each image: the plan, its weights, and whether it is done."""

from __future__ import annotations

import functools
import uuid
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from bmex_bids.config import Config
from bmex_bids.exceptions import TemplateError, UsageError, WeightsError
from bmex_bids.network.weights.registry import PUBLISHED, tissue_finder, weight_names
from bmex_bids.running import choosing, preflight
from bmex_bids.running.plan_view import Task
from bmex_bids.running.resources import available_memory_gb, refuse_too_little, too_little
from bmex_bids.settings import absolute

if TYPE_CHECKING:
    from bmex_bids.inputs.not_taken import NotTaken
    from bmex_bids.inputs.plan import PlannedImage
    from bmex_bids.inputs.templates import Space
    from bmex_bids.network.weights.registry import WeightRecord


NO_STRUCTURES = (
    "structures are not labelled: the weights for them are not for images of this age and contrast"
)


def plan(config: Config) -> list[PlannedImage]:
    """The chosen images, each with its age and model, or the reason why it is skipped."""
    return survey(config)[0]


def survey(config: Config) -> tuple[list[PlannedImage], tuple[NotTaken, ...]]:
    """The plan of the chosen images, and what looks like an image and is not taken.

    UsageError for memory (``--mem-mb``) that is enough for none of them.
    """
    from bmex_bids.inputs import collect
    from bmex_bids.inputs import plan as decisions
    from bmex_bids.inputs.derivatives import parse_derivatives
    from bmex_bids.inputs.filters import read_filters
    from bmex_bids.inputs.templates import parse_spaces

    refuse_too_little(config.resources)
    bids_dir, chosen = config.paths.bids_dir, config.selection
    found = collect.survey(
        bids_dir,
        participants=chosen.participants,
        sessions=chosen.sessions,
        suffixes=chosen.modalities,
        runs=chosen.runs,
        filters=None if chosen.filter_file is None else read_filters(chosen.filter_file),
        database_dir=chosen.database_dir,
    )
    images, left = choosing.choose(found.images, config)
    planned = decisions.plan(
        images,
        bids_dir,
        override_months=config.age.months,
        fetal=config.age.fetal,
        age_file=config.age.file,
        strict_ages=config.age.strict,
        derivatives=parse_derivatives(config.processing.derivatives),
    )
    # where a plugin runs the steps elsewhere, or a cluster the run, this machine's memory says nothing
    elsewhere = config.execution.plugin_file is not None or config.cluster.submit
    limits = [] if elsewhere else [available_memory_gb()]
    if config.resources.mem_gb is not None:
        limits.append(config.resources.mem_gb)
    memory = min(limits, default=None)
    planned = [replace(item, layout=config.processing.output_layout) for item in planned]
    spaces = parse_spaces(config.processing.output_spaces)
    if spaces:
        planned = _with_templates(planned, spaces, config.processing.templateflow_home)
    if config.processing.histogram_reference is not None:
        spaces = parse_spaces([config.processing.histogram_reference])
        planned = [
            _with_histogram(image, matched)
            for image, matched in zip(
                planned,
                _with_templates(planned, spaces, config.processing.templateflow_home),
                strict=True,
            )
        ]
    looked_at = list(
        preflight.look_at(planned, memory, config.paths.output_dir, config.paths.work_dir)
    )
    _refuse_memory_for_none(config, planned, looked_at)
    return looked_at, (*found.not_taken, *left)


def _with_templates(
    planned: Sequence[PlannedImage], spaces: Sequence[Space], root: Path | None
) -> list[PlannedImage]:
    """The same images with their templates; TemplateError names all files that are missing."""
    from bmex_bids.inputs.templates import templates_for

    found: list[PlannedImage] = []
    missing: dict[str, None] = {}
    for item in planned:
        if item.runnable and item.age is not None:
            months = None if item.age.fetal else item.age.months
            try:
                templates, notes = templates_for(
                    spaces, contrast=item.contrast, months=months, root=root
                )
            except TemplateError as error:
                missing |= dict.fromkeys(str(error).splitlines())
                continue
            item = replace(item, templates=tuple(templates), warnings=(*item.warnings, *notes))
        found.append(item)
    if missing:
        raise TemplateError("\n".join(missing))
    return found


def _with_histogram(image: PlannedImage, matched: PlannedImage) -> PlannedImage:
    """An image with the template that its intensities are matched to; UsageError for another contrast."""
    if not matched.templates:  # none for its age, as the notes say
        return replace(image, warnings=matched.warnings)
    (template,) = matched.templates
    if template.contrast != image.contrast:
        raise UsageError(
            f"expected a template with a {image.contrast} image for --histogram-reference, got "
            f"{template.label}, which has {template.contrast}; leave the flag out, or choose the "
            "images with --modalities"
        )
    note = (
        f"intensities are matched to the template {template.label}, not to the reference of the age "
        "that the weights have learnt: compare some images without --histogram-reference"
    )
    return replace(image, histogram=template, warnings=(*image.warnings, note))


def _refuse_memory_for_none(
    config: Config, planned: Sequence[PlannedImage], looked_at: Sequence[PlannedImage]
) -> None:
    """UsageError where no image is left, and ``--mem-mb`` is the reason."""
    given = config.resources.mem_gb
    if given is None or any(item.runnable for item in looked_at):
        return
    needs = [preflight.memory_needed(item) for item in planned if item.runnable]
    if needs and min(needs) > given:
        raise UsageError(too_little(given, min(needs), "the smallest image"))


def task(config: Config, image: PlannedImage, *, quick: bool = False) -> Task:
    """What the command line decides about an image, and whether it is done already.

    ``quick`` looks at dates and names instead of reading the image and its products.
    """
    from bmex_bids import __version__
    from bmex_bids.network.variants import facts
    from bmex_bids.outputs import resume
    from bmex_bids.outputs.pictures import picture_paths
    from bmex_bids.outputs.sidecar import (
        chosen_products,
        distinct_space,
        product_name,
        template_names,
    )

    if not image.runnable:
        return Task(image)
    processing = config.processing
    weights = weights_of(config, image)
    uncertainty = processing.uncertainty if facts(weights.variant).learns_error else "off"
    segmenting = segment_weights_of(config, image)
    segment = processing.segment
    if segment == "rois" and segmenting is None:
        segment = "tissues"
        image = replace(image, warnings=(*image.warnings, NO_STRUCTURES))
    halving = super_weights_of(config)
    products = chosen_products(processing.output_res, processing.qc_only, uncertainty, segment)
    space = distinct_space(image.image.path, image.image.bids_name, image.layout)
    names = [
        product_name(
            product,
            image.image.bids_name,
            image.resolution or "",
            ".nii.gz" if product.field else ".json",
            space=space,
        )
        for product in products
    ]
    record = config.paths.output_dir / image.output_dir / names[0].replace(".nii.gz", ".json")
    if not processing.qc_only:
        names += [image.image.path.name] if image.layout == "bme-x" else []
        beside_another = bool(distinct_space(image.image.path, image.image.bids_name))
        for template in image.templates:
            names += template_names(
                image.image.bids_name,
                template.label,
                [grid.resolution for grid in template.grids],
                beside_another=beside_another,
                tissues=segment != "off",
            )
    settings = {
        "version": __version__,
        "age": image.age,
        "model": image.age_group,
        "spacing_mm": image.spacing_mm,
        "metadata": dict(image.image.metadata),
        "mask": image.mask_source,
        **config.fingerprint(),
        # weights that know no mirror images give the same with and without
        "mirroring": processing.mirroring and bool(weights.mirrored),
        "scales": [weights.error_scale, weights.volume_scale, weights.usual, weights.share],
        "outputs": names,
    }
    if image.histogram is not None:
        settings["histogram"] = [_checksum_of_template(path) for path in image.histogram.files]
    if image.templates:
        settings["templates"] = [
            _checksum_of_template(path) for each in image.templates for path in each.files
        ]
    strip = strip_weights_of(config, image)
    inputs = [image.image.path, *([image.mask] if image.mask else [])]
    sums = [weights.sha256, *_checksums(strip)]
    finding = tissue_finder(weights, image.age_group, image.contrast)
    sums += [record.sha256 for record in (segmenting, halving, finding) if record is not None]
    pictures = picture_paths(config.paths.output_dir, image.image.bids_name)
    if quick:
        expected = resume.settings_fingerprint(settings, sums)
        done = resume.seems_finished(record, expected, inputs, pictures)
        return Task(image, weights, strip, segmenting, record=record, unchanged=done)
    fingerprint = resume.fingerprint(inputs, settings, sums)
    return Task(
        planned=image,
        weights=weights,
        strip_weights=strip,
        segment_weights=segmenting,
        super_weights=halving,
        fingerprint=fingerprint,
        record=record,
        mirroring=processing.mirroring,
        motion_correction=processing.motion_correction != "off",
        unchanged=fingerprint is not None and resume.finished(record, fingerprint, pictures),
        outputs=tuple(f"{image.output_dir}/{name}" for name in names),
    )


def weights_of(config: Config, image: PlannedImage) -> WeightRecord:
    """Of the enhancing network (WeightsError where there are none)."""
    from bmex_bids.network.weights.registry import select

    return select(
        "enhance",
        age_group=image.age_group,
        contrast=image.contrast,
        age_months=image.age.months if image.age else None,
        weights=config.processing.weights,
        weights_dir=config.processing.weights_dir,
    )


def strip_weights_of(config: Config, image: PlannedImage) -> WeightRecord | None:
    """Of the stripping network; None where it will not be asked."""
    from bmex_bids.network.inference.deepbet import deepbet_record
    from bmex_bids.network.weights.registry import select

    needless = config.processing.skull_strip == "skip" or image.mask is not None
    if needless:
        return None
    processing = config.processing
    if processing.brain_extraction == "deepbet" and image.contrast == "T1w":
        return deepbet_record()
    return select("strip", weights=processing.weights, weights_dir=processing.weights_dir)


def segment_weights_of(config: Config, image: PlannedImage) -> WeightRecord | None:
    """Of the network that labels structures; None where it is not asked, or not for this image.

    WeightsError where none is installed.
    """
    from bmex_bids.network.weights.registry import bundled, select

    if config.processing.segment != "rois":
        return None
    installed = [record for record in bundled() if record.kind == "segment"]
    if not installed:
        raise WeightsError(
            "expected weights of a network that labels structures for --segment rois, but none "
            "are installed; use --segment tissues"
        )
    group, contrast = image.age_group, image.contrast
    if not any(record.serves("segment", group, contrast) for record in installed):
        return None
    return select("segment", age_group=group, contrast=contrast, weights="bundled")


def super_weights_of(config: Config) -> WeightRecord | None:
    """Of the network that halves the edges of voxels; None where it is not asked.

    WeightsError where none is installed.
    """
    from bmex_bids.network.weights.registry import bundled_of

    if "0p4" not in config.processing.output_res or config.processing.qc_only:
        return None
    record = bundled_of("super")
    if record is None:
        raise WeightsError(
            "expected weights of a network that super-resolves for --output-res 0p4, but none are "
            "installed; leave 0p4 out"
        )
    return record


@functools.cache
def _checksum_of_template(path: Path) -> str:
    """One checksum for all images of a run."""
    from bmex_bids.outputs.resume import checksum

    return checksum(path)


def _checksums(strip: WeightRecord | None) -> list[str]:
    """Of the stripping network and of the template that its input is matched to."""
    from bmex_bids.network.weights.registry import sha256

    if strip is None:
        return []
    return [strip.sha256, *map(sha256, strip.companions)]


def try_weights(tasks: Sequence[Task]) -> None:
    """Load each network once before anything is written (WeightsError)."""
    from bmex_bids.network.inference.deepbet import VARIANT as DEEPBET
    from bmex_bids.network.weights.checkpoints import load_network

    records = [
        record
        for task in tasks
        if task.to_run
        for record in (
            task.weights,
            task.strip_weights,
            task.segment_weights,
            task.super_weights,
        )
    ]
    for path, variant in sorted({(r.path, r.variant) for r in records if r is not None}):
        if variant != DEEPBET:  # its package loads it
            load_network(path, variant)


def new_run_id() -> str:
    """Time and a random part: ``20251121-080534_1f0c9a7e``; sorts by time, never collides."""
    return f"{datetime.now().astimezone():%Y%m%d-%H%M%S}_{uuid.uuid4().hex[:8]}"


def given_weights(name: str, folder: Path | None) -> tuple[str, Path | None]:
    """``--weights DIR`` means: the published files of this folder and no others."""
    folder = None if folder is None else absolute(folder)
    if folder is None and is_weights_folder(name):
        return PUBLISHED, absolute(Path(name))
    if folder is not None and not folder.is_dir():
        raise UsageError(f"expected a folder of weights at {folder}, found none; check the path")
    return name, folder


def is_weights_folder(name: str) -> bool:
    """Whether ``--weights`` names a folder; one with the name of a set needs ``./`` before it."""
    return name not in weight_names() and Path(name).expanduser().is_dir()

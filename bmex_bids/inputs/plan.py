# SPDX-License-Identifier: Apache-2.0
"""What will be done with each image, or why nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bmex_bids.common.contrasts import taken_as
from bmex_bids.common.names import subject_folder
from bmex_bids.exceptions import AgeError
from bmex_bids.inputs.age import Age, age_group, near_boundary
from bmex_bids.inputs.collect import SourceImage
from bmex_bids.inputs.derivatives import choose_mask, mask_files_of
from bmex_bids.inputs.find_age import check_age_file, find_age
from bmex_bids.inputs.sidecars import applicable_sidecars, not_fetched
from bmex_bids.inputs.sources import age_tables
from bmex_bids.inputs.templates import Template

#: edge of a voxel of the network's grid, mm, and its name in the ``res`` entity
SPACING = (0.8, "0p8")
FETAL_SPACING = (0.75, "0p75")


#: entities of derivatives: products would have them twice, and could not be told from each other
OF_DERIVATIVES = ("desc", "space", "res", "den", "label")


@dataclass(frozen=True)
class PlannedImage:
    """An image with all that was decided before anything runs.

    ``skip_reason`` is None for an image that can be processed; then age, age group, spacing (mm)
    and resolution are set.  ``output_dir`` is relative to the output folder.  ``mask`` is a brain
    mask made elsewhere, which is used instead of ours, and ``mask_source`` says whose it is.
    ``layout`` names the files: ``"bids"``, or ``"bme-x"`` as the published container does.
    ``templates`` are the standard spaces that the image is brought to, and ``histogram`` is the
    template whose intensities it is matched to (None: the reference of its age).
    """

    image: SourceImage
    age: Age | None
    age_group: str | None
    spacing_mm: float | None
    resolution: str | None
    output_dir: str
    warnings: tuple[str, ...] = ()
    skip_reason: str | None = None
    mask: Path | None = None
    mask_source: str = ""
    layout: str = "bids"
    templates: tuple[Template, ...] = ()
    histogram: Template | None = None

    @property
    def contrast(self) -> str:
        """Whose weights, references and limits it gets: T1w of a UNIT1 image."""
        return taken_as(self.image.suffix)

    @property
    def name(self) -> str:
        """Of the image: ``sub-0001_ses-V01_T1w``."""
        return self.image.name

    @property
    def runnable(self) -> bool:
        """Whether nothing stands in the way."""
        return self.skip_reason is None


def plan(
    images: Sequence[SourceImage],
    bids_dir: Path,
    *,
    override_months: float | None = None,
    fetal: bool = False,
    age_file: Path | None = None,
    strict_ages: bool = False,
    derivatives: Mapping[str, Path] | None = None,
) -> list[PlannedImage]:
    """Join each image with its age, its model and, where there is one, its given brain mask.

    An image without a usable age, or for whose age and contrast there is no model (a fetal T1w), or
    that is no magnitude image (``part-phase``) or no raw one (``desc-…``), or of which a file is a link to
    content that was not fetched (DataLad), is planned with the reason for skipping it.

    Parameters
    ----------
    images : of the dataset
    bids_dir : the dataset's folder
    override_months, fetal, age_file, strict_ages : see :func:`bmex_bids.inputs.find_age.find_age`
    derivatives : name → folder, see :func:`bmex_bids.inputs.derivatives.find_masks`

    Raises
    ------
    UsageError
        The age file is missing or holds no ages.
    """
    if age_file is not None:
        check_age_file(age_file)
    planned = []
    for image in images:

        def age_of(image: SourceImage = image) -> Age:
            return find_age(
                image,
                Path(bids_dir),
                override_months=override_months,
                fetal=fetal,
                age_file=age_file,
                strict=strict_ages,
            )

        tables = () if override_months is not None else age_tables(image, Path(bids_dir))
        item = _plan_one(image, Path(bids_dir), tables, age_of)
        planned.append(_with_mask(item, derivatives) if derivatives and item.runnable else item)
    return planned


def _with_mask(item: PlannedImage, derivatives: Mapping[str, Path]) -> PlannedImage:
    absent = not_fetched(mask_files_of(item.image, derivatives))
    if absent:
        return replace(item, skip_reason=absent)
    mask, notes = choose_mask(item.image, derivatives)
    return replace(
        item,
        mask=mask.path if mask else None,
        mask_source=mask.source if mask else "",
        warnings=(*item.warnings, *notes),
    )


def _plan_one(
    image: SourceImage, bids_dir: Path, tables: Sequence[Path], age_of: Callable[[], Age]
) -> PlannedImage:
    output_dir = f"{subject_folder(image.subject, image.session)}/anat"
    part = image.entities.get("part", "mag")
    if part != "mag":
        not_ours = f"expected a magnitude image, got part-{part}; only those are enhanced"
        return PlannedImage(image, None, None, None, None, output_dir, (), not_ours)
    derived = [f"{key}-{image.entities[key]}" for key in OF_DERIVATIVES if key in image.entities]
    if derived:
        not_raw = (
            f"expected a raw image, got {', '.join(derived)} in its name, which BIDS keeps for what is "
            "derived from one; rename it (a reconstruction is rec-…)"
        )
        return PlannedImage(image, None, None, None, None, output_dir, (), not_raw)
    absent = not_fetched([image.path, *applicable_sidecars(image.path, bids_dir), *tables])
    if absent:
        return PlannedImage(image, None, None, None, None, output_dir, (), absent)
    try:
        age = age_of()
    except AgeError as error:
        return PlannedImage(image, None, None, None, None, output_dir, (), str(error))
    group = age_group(age)
    spacing, resolution = FETAL_SPACING if age.fetal else SPACING
    notes = near_boundary(age)
    warnings = (*age.warnings, *((notes,) if notes else ()))
    reason = None
    if age.fetal and image.suffix != "T2w":
        reason = "there is a fetal model for T2w images only; a fetal T1w cannot be enhanced"
    return PlannedImage(image, age, group, spacing, resolution, output_dir, warnings, reason)

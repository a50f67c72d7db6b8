# SPDX-License-Identifier: Apache-2.0
"""The pictures of a report: one table of their names, files and captions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bmex_bids.common.names import BidsName


@dataclass(frozen=True)
class Picture:
    """A picture of an image's report.

    Attributes
    ----------
    extension : of its file
    title : above it on the page
    caption : HTML
    if_undone : added to the caption of an image with corrected read-out faults, HTML
    animated : it reacts to the pointer, for which an ``object`` is needed instead of an ``img``
    always : every run makes it; not all weights know what the others show
    """

    extension: str
    title: str
    caption: str = ""
    if_undone: str = ""
    animated: bool = False
    always: bool = True


#: ``desc`` of the file → the picture, in the order of the page; drawn in ``interfaces.reportlets``
PICTURES: Mapping[str, Picture] = {
    "summary": Picture(".html", "Summary"),
    "histogram": Picture(
        ".svg",
        "Intensities",
        "Intensities inside the brain mask before and after. The input was matched to the histogram "
        "reference of this age group (FLAIR and PDw: to a mean of 400). Narrower peaks after "
        "enhancement mean that the tissues are easier to tell apart.",
    ),
    "enhancement": Picture(
        ".svg",
        "Before and after",
        "Move the pointer over the picture to alternate between the matched input and the "
        "enhanced image, or hold one of them with the buttons. Both have the same display range. "
        "Noise and blur should decrease; anatomy must not change.",
        animated=True,
    ),
    "difference": Picture(
        ".svg",
        "Difference",
        "The enhanced image minus the matched input. It should look like noise. Outlines of anatomy "
        "mean that edges were changed.",
        if_undone="Read-out faults were corrected in this image (see the summary), so the picture "
        "also shows what that removed, such as ghosts.",
    ),
    "uncertainty": Picture(
        ".svg",
        "Expected error",
        "Standard deviation of the error that the network expects in the enhanced image. The scale "
        "is the same in all reports.",
        always=False,
    ),
    "brainmask": Picture(
        ".svg",
        "Brain mask",
        "The outline of the brain mask on the input. It should follow the surface of the brain "
        "and leave out eyes and skull.",
    ),
    "tissues": Picture(
        ".svg",
        "Tissues",
        "The network's tissue classification on the enhanced image. "
        '<span class="key yellow"></span> outline of white matter. '
        '<span class="key green"></span> border between grey matter and fluid.',
    ),
    "structures": Picture(
        ".svg",
        "Structures",
        "Outlines of the structures on the enhanced image, one colour each: ventricles, thalamus, "
        "caudate, putamen, pallidum, hippocampus, amygdala, cortex, white matter, cerebellum, brain "
        "stem. Each should follow the image.",
        always=False,
    ),
    "superres": Picture(
        ".svg",
        "Super-resolution",
        "Close-up of the enhanced image: on the network's grid (left), interpolated by cubic splines, "
        "and super-resolved. Edges should be sharper than with splines. Detail finer than the voxels "
        "on the left is an estimate.",
        always=False,
    ),
    "registration": Picture(
        ".svg",
        "Standard spaces",
        "The enhanced image in each space of --output-spaces, with outlines of the template: "
        '<span class="key red"></span> its brain, <span class="key yellow"></span> its brightest '
        "tissue. Both should match the image. Three rows for each space.",
        always=False,
    ),
}


def picture_name(source: BidsName, desc: str) -> str:
    """File name of a picture.

    >>> picture_name(BidsName({"sub": "01"}, "T1w"), "tissues")
    'sub-01_desc-tissues_T1w.svg'
    """
    return str(source.derived({"desc": desc}, extension=PICTURES[desc].extension))


def figures_folder(output_dir: Path, subject: str) -> Path:
    """Where the pictures of a participant are."""
    return output_dir / f"sub-{subject}" / "figures"


def picture_paths(output_dir: Path, source: BidsName) -> list[Path]:
    """Where the pictures of an image are that every run makes."""
    folder = figures_folder(output_dir, source.subject)
    return [
        folder / picture_name(source, desc) for desc, picture in PICTURES.items() if picture.always
    ]

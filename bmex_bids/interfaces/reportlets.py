# SPDX-License-Identifier: Apache-2.0
"""Node of the stage *report*: the pictures and the summary of one image."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import nibabel as nib
import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from nilearn.plotting import plot_anat
from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    TraitedSpec,
    isdefined,
    traits,
)
from nireports.reportlets.mosaic import (
    fromstring,  # of svgutils, vendored in newer releases
    plot_registration,
)
from nireports.reportlets.utils import compose_view, cuts_from_bbox, extract_svg
from nireports.tools.ndimage import rotate_affine, rotation2canonical
from skimage.filters import threshold_multiotsu

from bmex_bids.common.boxes import bounding_box
from bmex_bids.common.names import BidsName
from bmex_bids.common.structures import STRUCTURES
from bmex_bids.interfaces.closeup import draw_closeup
from bmex_bids.interfaces.histogram import draw_histogram
from bmex_bids.interfaces.outputs import record_of
from bmex_bids.interfaces.step import Step
from bmex_bids.interfaces.templates import brain_of
from bmex_bids.outputs.files import copy_whole
from bmex_bids.outputs.pictures import figures_folder, picture_name
from bmex_bids.outputs.summary import summary_html

#: panels along each axis of a mosaic
CUTS = 5
#: rows of a mosaic, from above
AXES = ("z", "x", "y")
#: of a mosaic, in inches; the page scales it
WIDTH = 11.0
#: of a row, beyond the height of the cuts, for what is written below them
ROOM = 1.06
#: of outlines, in points
LINE_WIDTH = 1.2
#: height of the bar above a picture, in its units
BAR = 24
#: of a difference: darker, the same, brighter; on black
CHANGE_COLOURS = ("#8ecae6", "#1f6fb2", "#000000", "#c2410c", "#ffd166")
#: end of its scale at least, in units of the reference: rounding is not to look like a change
LEAST_CHANGE = 10.0
#: from no expected error to :data:`MOST_ERROR` units of the reference and more
ERROR_COLOURS = ("#000000", "#5b1a6e", "#c8385a", "#fb9a3c", "#fcf6b8")
MOST_ERROR = 120.0
ERROR = LinearSegmentedColormap.from_list("bmex-error", ERROR_COLOURS)
CHANGE = LinearSegmentedColormap.from_list("bmex-change", CHANGE_COLOURS)
#: of the outlines of structures, in the order of the table; the outer fluid's is the mask's
STRUCTURE_COLOURS = (
    None, "#4cc9f0", "#06d6a0", "#f1f1f1", "#ef476f", "#ffd166", "#f78c3b", "#9d4edd",
    "#ffef5c", "#2ec4b6", "#ff99c8", "#bdb2ff", "#7bd389",
)  # fmt: skip


class ReportletsInput(BaseInterfaceInputSpec):
    output_dir = traits.Str(mandatory=True)
    planned = traits.Dict(mandatory=True)
    conformed = File(exists=True, mandatory=True, desc="as it came, LPS, input intensities")
    mask = File(exists=True, mandatory=True, desc="on the grid of conformed")
    matched = File(exists=True, mandatory=True, desc="the same, network grid, template units")
    intensity_json = File(exists=True, mandatory=True, desc="how it was matched")
    mask_res = File(exists=True, mandatory=True, desc="network grid")
    enhanced_res = File(exists=True, mandatory=True, desc="network grid, template units")
    dseg_res = File(exists=True, mandatory=True, desc="network grid; 1 CSF, 2 GM, 3 WM")
    mask_info = traits.Dict(mandatory=True)
    quality = traits.Dict(mandatory=True)
    gate = traits.Dict(mandatory=True, desc="verdict and rules")
    provenance = traits.Dict(mandatory=True)
    deviation = File(exists=True, desc="network grid, template units; or none")
    structures_res = File(exists=True, desc="network grid, common.structures; or none")
    enhanced_half = File(exists=True, desc="half the edge of the network grid; or none")
    in_templates = traits.List(traits.Dict(), desc="results of interfaces.templates.ToTemplate")
    stripped = traits.Bool(mandatory=True)
    refocus = traits.Dict(desc="what the motion correction did; or none")
    split_slices = traits.Dict(desc="as SaveDerivatives has it")


class ReportletsOutput(TraitedSpec):
    out_files = traits.List(File(exists=True), desc="pictures and the summary")


class Reportlets(Step):
    """Draw before and after, the mask, the tissues and the histograms; write the summary."""

    input_spec = ReportletsInput
    output_spec = ReportletsOutput
    _always_run = True

    def work(self, folder: str) -> None:
        source = BidsName.of(self.inputs.planned["name"])
        figures = figures_folder(Path(self.inputs.output_dir), source.subject)
        written = []
        for desc, draw in drawings().items():
            picture = Path(folder) / picture_name(source, desc)
            picture.unlink(missing_ok=True)
            draw(self.inputs, picture)
            if picture.exists():
                written.append(str(copy_whole(picture, figures / picture.name)))
            else:  # of an earlier run with other weights
                (figures / picture.name).unlink(missing_ok=True)
        self._results["out_files"] = written


def drawings() -> dict[str, Callable[[Any, Path], None]]:
    """How each of ``outputs.pictures.PICTURES`` is made."""
    return {
        "summary": write_summary,
        "enhancement": draw_before_after,
        "difference": draw_difference,
        "uncertainty": draw_uncertainty,
        "brainmask": draw_mask,
        "tissues": draw_tissues,
        "structures": draw_structures,
        "superres": draw_closeup,
        "registration": draw_registration,
        "histogram": draw_histogram,
    }


def cropped(path: str, support: str, margin: int = 6) -> Any:
    """An image cut to the box of a mask, so that the pictures show the brain."""
    image: Any = nib.load(path)
    inside = np.asarray(nib.load(support).dataobj) > 0  # type: ignore[attr-defined]
    box = bounding_box(inside, margin)
    # read whole and cut afterwards: to slice in a compressed file takes nibabel longer
    return nib.Nifti1Image(np.asarray(image.dataobj)[box], image.slicer.slice_affine(box))


def upright(image: Any) -> Any:
    """The same voxels as if the grid lay along the world's axes.

    An oblique grid is drawn as it is stored, not cut anew: the panels stay as large as the brain
    and show voxels, not interpolation.
    """
    return rotate_affine(image, rot=rotation2canonical(image))


@contextmanager
def canvas(image: Any, axis: str) -> Iterator[Any]:
    """A figure as high as a row of :data:`CUTS` cuts needs, so that no black bands lie between.

    Parameters
    ----------
    image : upright
    axis : x, y or z, of the cuts
    """
    turned: Any = nib.as_closest_canonical(image)
    extent = dict(
        zip("xyz", turned.shape * np.asarray(turned.header.get_zooms()[:3]), strict=True)
    )
    across, up = (extent[other] for other in "xyz" if other != axis)
    height = WIDTH / CUTS * up / across * ROOM
    figure = plt.figure(figsize=(WIDTH, height), facecolor="k")
    try:
        yield figure
    finally:
        plt.close(figure)


def window(*images: Any) -> dict[str, float]:
    """Display limits that suit all images: zero to a little above the brightest of the brain.

    Where there are negative numbers, zero means nothing: from the darkest, then.
    """
    arrays = [np.asarray(image.dataobj) for image in images]
    lowest = min(float(np.percentile(values, 0.5)) for values in arrays)
    if lowest < 0:
        highest = max(float(np.percentile(values, 99.9)) for values in arrays)
        return {"vmin": lowest, "vmax": highest + 0.05 * max(highest - lowest, 1e-6 * -lowest)}
    brightest = max(float(np.percentile(values[values > 0], 99.5)) for values in arrays)
    return {"vmin": 0.0, "vmax": brightest * 1.05}


def draw_before_after(inputs: Any, target: Path) -> None:
    """Flicker between the matched input and the enhanced image, in one window of intensities.

    One window for both: else a change of brightness would pass for an enhancement.
    """
    before, after, box = (
        upright(cropped(path, inputs.mask_res))
        for path in (inputs.matched, inputs.enhanced_res, inputs.mask_res)
    )
    cuts = cuts_from_bbox(box, cuts=CUTS)
    limits = window(before, after)

    def panel(image: Any, name: str) -> list[Any]:
        rows = []
        for axis in AXES:
            with canvas(image, axis) as figure:
                rows += plot_registration(
                    image,
                    name,
                    order=(axis,),  # type: ignore[arg-type] # a row has its own figure
                    cuts=cuts,
                    label=None,  # it would lie on the picture: the bar says it
                    estimate_brightness=False,
                    compress=False,
                    plot_params={**limits, "figure": figure},
                )
        return rows

    compose_view(
        panel(before, "fixed-image"),
        panel(after, "moving-image"),
        out_file=str(target),
    )
    svg = settled_flicker(target.read_text(encoding="utf-8"), picture_id(target.stem))
    target.write_text(svg, encoding="utf-8")


def settled_flicker(svg: str, name: str = "hold") -> str:
    """The flicker of nireports, but one that rests at both ends and stops at *after*.

    Theirs is a steady fade that halts wherever it is when the pointer leaves, so that a mixture
    of both images stays on the page.  A bar above says which image is seen, and has two buttons
    that hold one; nothing else of the picture is changed.

    Parameters
    ----------
    name : of the buttons, which are one group on a page
    """
    style = """<style type="text/css">
@keyframes bmex-flicker { 0%, 35% {opacity: 1;} 65%, 100% {opacity: 0;} }
.foreground-svg:hover { animation: bmex-flicker 0.9s linear infinite alternate; }
svg:has(.bmex-hold [value=before]:checked) .foreground-svg { opacity: 0; animation: none; }
.bmex-word { font: 600 13px sans-serif; fill: #1f2328; }
.bmex-hold { display: flex; justify-content: flex-end; gap: 6px; margin: 0; padding: 1px 4px; }
.bmex-hold label { font: 12px/18px sans-serif; padding: 0 9px; border-radius: 4px; cursor: pointer;
  border: 1px solid #0969da; color: #0969da; background: #fff; }
.bmex-hold label:has(:checked) { background: #0969da; color: #fff; }
.bmex-hold label:focus-within { outline: 2px solid #1f2328; }
.bmex-hold input { appearance: none; width: 0; height: 0; margin: 0; outline: 0; }
</style>"""
    svg = re.sub(
        r"<style[^>]*>\s*@keyframes flickerAnimation.*?</style>", style, svg, count=1, flags=re.S
    )
    for part, word in (("background", "before"), ("foreground", "after")):
        svg = svg.replace(
            f'<g class="{part}-svg">',
            f'<g class="{part}-svg"><rect y="-{BAR}" width="100" height="{BAR}" fill="#fff"/>'
            f'<text class="bmex-word" x="2" y="-7">{word}</text>',
            1,
        )
    buttons = "".join(
        f'<label><input type="radio" name="{name}" value="{word}"{checked}/>{word}</label>'
        for word, checked in (("before", ""), ("after", ' checked="checked"'))
    )
    form = f'<form xmlns="http://www.w3.org/1999/xhtml" class="bmex-hold">{buttons}</form>'
    return with_bar(
        svg,
        f'<foreignObject x="100" y="-{BAR}" width="$rest" height="{BAR}">{form}</foreignObject>',
    )


def with_bar(svg: str, content: str) -> str:
    """A picture with a bar above it, :data:`BAR` high; a picture without a size is left as it is.

    Parameters
    ----------
    content : what the bar holds, as SVG; ``$rest`` stands for the picture's width less 100
    """
    found = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)
    if found is None:
        return svg
    width, height = float(found[1]), float(found[2])
    svg = svg.replace(found[0], f'viewBox="0 -{BAR} {width:g} {height + BAR:g}"', 1)
    end = svg.rindex("</svg>")
    return svg[:end] + content.replace("$rest", f"{width - 100:g}") + svg[end:]


def draw_difference(inputs: Any, target: Path) -> None:
    """The enhanced image minus the matched input, in the brain; darker is blue, brighter orange."""
    before, after, box = (
        cropped(path, inputs.mask_res)
        for path in (inputs.matched, inputs.enhanced_res, inputs.mask_res)
    )
    inside = np.asarray(box.dataobj) > 0
    change = np.asarray(after.dataobj, np.float32) - np.asarray(before.dataobj, np.float32)
    change[~inside] = 0
    reach = max(float(np.percentile(np.abs(change[inside]), 99.5)), LEAST_CHANGE)
    image = nib.Nifti1Image(change, after.affine)
    limits = {"vmin": -reach, "vmax": reach, "cmap": CHANGE, "black_bg": True}
    _contours(image, [], box, target, colors=[], limits=limits)
    _add_scale(target, CHANGE_COLOURS, f"−{reach:.0f}", f"+{reach:.0f}")


def draw_uncertainty(inputs: Any, target: Path) -> None:
    """The expected error in the brain; no picture where the network has not learnt it."""
    if not isdefined(inputs.deviation):
        return
    image, box = (cropped(path, inputs.mask_res) for path in (inputs.deviation, inputs.mask_res))
    limits = {"vmin": 0, "vmax": MOST_ERROR, "cmap": ERROR, "black_bg": True}
    _contours(image, [], box, target, colors=[], limits=limits)
    _add_scale(target, ERROR_COLOURS, "0", f"{MOST_ERROR:.0f}")


def _add_scale(picture: Path, colours: Sequence[str], low: str, high: str) -> None:
    """Put a scale of colours above a picture; ``low`` and ``high`` are its ends."""
    stops = "".join(
        f'<stop offset="{place:g}" stop-color="{colour}"/>'
        for place, colour in zip(np.linspace(0, 1, len(colours)), colours, strict=True)
    )
    scale = picture_id(f"{picture.stem}-scale")
    key = (
        f'<linearGradient id="{scale}">{stops}</linearGradient>'
        f'<g font-family="sans-serif" font-size="12" fill="#1f2328">'
        f'<text x="52" y="-7" text-anchor="end">{low}</text>'
        f'<rect x="58" y="-18" width="160" height="12" fill="url(#{scale})"/>'
        f'<text x="224" y="-7">{high} units of the reference</text></g>'
    )
    picture.write_text(with_bar(picture.read_text(encoding="utf-8"), key), encoding="utf-8")


def draw_mask(inputs: Any, target: Path) -> None:
    """The mask's outline on the input."""
    image = cropped(inputs.conformed, inputs.mask, margin=18)
    mask = cropped(inputs.mask, inputs.mask, margin=18)
    _contours(image, [mask], mask, target, colors=["r"])


def draw_tissues(inputs: Any, target: Path) -> None:
    """Outlines of white matter and of everything but fluid on the enhanced image."""
    image = cropped(inputs.enhanced_res, inputs.mask_res)
    labels = cropped(inputs.dseg_res, inputs.mask_res)
    values = np.asarray(labels.dataobj)
    mask = cropped(inputs.mask_res, inputs.mask_res)
    parts = [
        nib.Nifti1Image((values > threshold).astype(np.uint8), labels.affine)
        for threshold in (2, 1)
    ]
    _contours(image, parts, mask, target, colors=["#ffd166", "#06d6a0"])


def draw_structures(inputs: Any, target: Path) -> None:
    """Outlines of the structures on the enhanced image; no picture where they were not labelled."""
    if not isdefined(inputs.structures_res):
        return
    image, labels, mask = (
        cropped(path, inputs.mask_res)
        for path in (inputs.enhanced_res, inputs.structures_res, inputs.mask_res)
    )
    values = np.asarray(labels.dataobj)
    # cortex and white matter first: they surround the others, and would hide their outlines
    coloured = sorted(
        zip(STRUCTURES, STRUCTURE_COLOURS, strict=True),
        key=lambda each: each[0].name not in ("cortex", "white_matter"),
    )
    shown = [
        (nib.Nifti1Image((values == structure.number).astype(np.uint8), labels.affine), colour)
        for structure, colour in coloured
        if colour is not None and (values == structure.number).any()
    ]
    parts, colors = [list(each) for each in zip(*shown, strict=True)] if shown else [[], []]
    _contours(image, parts, mask, target, colors=colors)


def draw_registration(inputs: Any, target: Path) -> None:
    """The template's brain and its brightest tissue as outlines on the image that was brought there.

    Three rows for each template; no picture where there is none.
    """
    rows = []
    for number, result in enumerate(inputs.in_templates or []):
        grid = result["grids"][0]
        mask = grid["files"]["mask_native"]
        image = cropped(grid["files"]["enhanced_native"], mask, margin=10)
        box = cropped(mask, mask, margin=10)
        there, brain = brain_of(grid)
        values, inside = np.asarray(there.dataobj), np.asarray(brain.dataobj) > 0.5
        bright = inside & (values > threshold_multiotsu(values[inside], 3)[-1])
        parts = [nib.Nifti1Image(m.astype(np.uint8), there.affine) for m in (inside, bright)]
        rows += _rows(image, parts, box, f"{target.stem}-{number}", colors=["#ef4444", "#ffd166"])
    if rows:
        compose_view(rows, fg_svgs=None, out_file=str(target))  # type: ignore[arg-type]


def _contours(
    image: Any,
    parts: list[Any],
    box: Any,
    target: Path,
    *,
    colors: list[str],
    limits: Mapping[str, Any] | None = None,
) -> None:
    """Save :func:`_rows` as a picture."""
    rows = _rows(image, parts, box, target.stem, colors=colors, limits=limits)
    compose_view(rows, fg_svgs=None, out_file=str(target))  # type: ignore[arg-type]


def _rows(
    image: Any,
    parts: list[Any],
    box: Any,
    name: str,
    *,
    colors: list[str],
    limits: Mapping[str, Any] | None = None,
) -> list[Any]:
    """Outlines of masks on an image, cut along three axes.

    nireports' ``plot_segs`` has lines of half a point, which are lost on a page of this width.

    Parameters
    ----------
    limits : how the image is drawn; None is :func:`window`
    """
    image, box, *parts = (upright(part) for part in (image, box, *parts))
    cuts = cuts_from_bbox(box, cuts=CUTS)
    limits = window(image) if limits is None else limits
    rows = []
    for axis in AXES:
        with canvas(image, axis) as figure:
            display = plot_anat(
                image,
                display_mode=axis,
                cut_coords=cuts[axis],
                colorbar=False,
                figure=figure,
                **limits,
            )
            for part, color in zip(parts, colors, strict=True):
                display.add_contours(part, levels=[0.5], colors=[color], linewidths=LINE_WIDTH)
            # every row has its own name on the page, as the mosaics of nireports have
            own = picture_id(f"{name}-{axis}")
            svg = extract_svg(display, compress=False).replace("figure_1", own, 1)
        rows.append(fromstring(svg))
    return rows


def picture_id(name: str) -> str:
    """An identifier for SVG: a label may hold markup, and is put into an attribute.

    >>> picture_id('sub-<a b="c">_T1w-x')
    'sub-_a_b__c___T1w-x'
    """
    return re.sub(r"[^0-9A-Za-z_-]", "_", name)


def write_summary(inputs: Any, target: Path) -> None:
    """What was done with the image, as an HTML fragment."""
    record = record_of(inputs)
    text = summary_html(record, contrast=BidsName.of(inputs.planned["name"]).suffix)
    target.write_text(text, encoding="utf-8")

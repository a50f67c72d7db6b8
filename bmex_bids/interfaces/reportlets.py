# SPDX-License-Identifier: Apache-2.0
"""Node of the stage *report*: the pictures and the summary of one image."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    SimpleInterface,
    TraitedSpec,
    traits,
)

#: panels along each axis of a mosaic
CUTS = 5
#: of outlines, in points
LINE_WIDTH = 1.2


class ReportletsInput(BaseInterfaceInputSpec):
    output_dir = traits.Str(mandatory=True)
    planned = traits.Dict(mandatory=True)
    conformed = File(exists=True, mandatory=True, desc="LPS, input intensities")
    mask = File(exists=True, mandatory=True, desc="on the grid of conformed")
    matched = File(exists=True, mandatory=True, desc="network grid, template units")
    mask_res = File(exists=True, mandatory=True, desc="network grid")
    enhanced_res = File(exists=True, mandatory=True, desc="network grid, template units")
    dseg_res = File(exists=True, mandatory=True, desc="network grid; 1 CSF, 2 GM, 3 WM")
    mask_info = traits.Dict(mandatory=True)
    quality = traits.Dict(mandatory=True)
    gate = traits.Dict(mandatory=True, desc="verdict and rules")
    provenance = traits.Dict(mandatory=True)
    stripped = traits.Bool(mandatory=True)


class ReportletsOutput(TraitedSpec):
    out_files = traits.List(File(exists=True), desc="pictures and the summary")


class Reportlets(SimpleInterface):
    """Draw before and after, the mask, the tissues and the histograms; write the summary."""

    input_spec = ReportletsInput
    output_spec = ReportletsOutput
    _always_run = True

    def _run_interface(self, runtime: Any) -> Any:
        from bmex_bids.outputs.files import copy_whole

        planned = self.inputs.planned
        figures = Path(self.inputs.output_dir) / f"sub-{planned['subject']}" / "figures"
        written = []
        for name, draw in drawings().items():
            extension = "html" if name == "summary" else "svg"
            target = f"{planned['stem']}_desc-{name}_{planned['suffix']}.{extension}"
            picture = Path(runtime.cwd) / target
            draw(self.inputs, picture)
            written.append(str(copy_whole(picture, figures / target)))
        self._results["out_files"] = written
        return runtime


def drawings() -> dict[str, Callable[[Any, Path], None]]:
    """The one table of what a report shows of an image: name → how it is drawn."""
    return {
        "summary": write_summary,
        "enhancement": draw_before_after,
        "brainmask": draw_mask,
        "tissues": draw_tissues,
        "histogram": draw_histogram,
    }


def cropped(path: str, support: str, margin: int = 6) -> Any:
    """An image cut to the box of a mask, so that the pictures show the brain."""
    import nibabel as nib
    import numpy as np

    image: Any = nib.load(path)
    inside = np.asarray(nib.load(support).dataobj) > 0  # type: ignore[attr-defined]
    box = []
    for axis in range(3):
        where = np.flatnonzero(inside.any(axis=tuple(k for k in range(3) if k != axis)))
        box.append(slice(max(int(where[0]) - margin, 0), int(where[-1]) + 1 + margin))
    return image.slicer[tuple(box)]


def upright(image: Any) -> Any:
    """The same voxels as if the grid lay along the world's axes.

    An oblique grid is drawn as it is stored, not cut anew: the panels stay as large as the brain
    and show voxels, not interpolation.
    """
    from nireports.tools.ndimage import rotate_affine, rotation2canonical

    return rotate_affine(image, rot=rotation2canonical(image))


def window(*images: Any) -> dict[str, float]:
    """Display limits that suit all images: zero to a little above the brightest of the brain."""
    import numpy as np

    brains = (np.asarray(image.dataobj) for image in images)
    brightest = max(float(np.percentile(brain[brain > 0], 99.5)) for brain in brains)
    return {"vmin": 0.0, "vmax": brightest * 1.05}


def draw_before_after(inputs: Any, target: Path) -> None:
    """Flicker between the matched input and the enhanced image, in one window of intensities.

    One window for both: else a change of brightness would pass for an enhancement.
    """
    from nireports.reportlets.mosaic import plot_registration
    from nireports.reportlets.utils import compose_view, cuts_from_bbox

    before, after, box = (
        upright(cropped(path, inputs.mask_res))
        for path in (inputs.matched, inputs.enhanced_res, inputs.mask_res)
    )
    cuts = cuts_from_bbox(box, cuts=CUTS)
    limits = window(before, after)

    def panel(image: Any, name: str, label: str) -> Any:
        return plot_registration(
            image,
            name,
            cuts=cuts,
            label=label,
            estimate_brightness=False,
            compress=False,
            plot_params=dict(limits),
        )

    compose_view(
        panel(before, "fixed-image", "before"),
        panel(after, "moving-image", "after"),
        out_file=str(target),
    )


def draw_mask(inputs: Any, target: Path) -> None:
    """The mask's outline on the input."""
    image = cropped(inputs.conformed, inputs.mask, margin=18)
    mask = cropped(inputs.mask, inputs.mask, margin=18)
    _contours(image, [mask], mask, target, colors=["r"])


def draw_tissues(inputs: Any, target: Path) -> None:
    """Outlines of white matter and of everything but fluid on the enhanced image."""
    import nibabel as nib
    import numpy as np

    image = cropped(inputs.enhanced_res, inputs.mask_res)
    labels = cropped(inputs.dseg_res, inputs.mask_res)
    values = np.asarray(labels.dataobj)
    mask = cropped(inputs.mask_res, inputs.mask_res)
    parts = [
        nib.Nifti1Image((values > threshold).astype(np.uint8), labels.affine)
        for threshold in (2, 1)
    ]
    _contours(image, parts, mask, target, colors=["#ffd166", "#06d6a0"])


def _contours(image: Any, parts: list[Any], box: Any, target: Path, *, colors: list[str]) -> None:
    """Outlines of masks on an image, cut along three axes.

    nireports' ``plot_segs`` has lines of half a point, which are lost on a page of this width.
    """
    from nilearn.plotting import plot_anat
    from nireports.reportlets.mosaic import fromstring  # of svgutils, vendored in newer releases
    from nireports.reportlets.utils import compose_view, cuts_from_bbox, extract_svg

    image, box, *parts = (upright(part) for part in (image, box, *parts))
    cuts = cuts_from_bbox(box, cuts=CUTS)
    rows = []
    for axis in "zxy":
        display = plot_anat(
            image, display_mode=axis, cut_coords=cuts[axis], colorbar=False, **window(image)
        )
        for part, color in zip(parts, colors, strict=True):
            display.add_contours(part, levels=[0.5], colors=[color], linewidths=LINE_WIDTH)
        # every row has its own name on the page, as the mosaics of nireports have
        svg = extract_svg(display, compress=False).replace("figure_1", f"{target.stem}-{axis}", 1)
        display.close()
        rows.append(fromstring(svg))
    compose_view(rows, fg_svgs=None, out_file=str(target))  # type: ignore[arg-type]


def draw_histogram(inputs: Any, target: Path) -> None:
    """Histograms inside the brain: before, after, and the reference of the age."""
    import matplotlib as mpl
    import nibabel as nib
    import numpy as np
    from matplotlib.figure import Figure

    from bmex_bids.imaging.intensity import load_histogram

    inside = np.asarray(nib.load(inputs.mask_res).dataobj) > 0  # type: ignore[attr-defined]
    reference = load_histogram(inputs.planned["age_group"], inputs.planned["suffix"]).astype(float)
    reference[0] = 0
    bins = np.arange(0, 1005, 5)
    with mpl.rc_context({"svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(8, 2.6), layout="constrained")
        axes = figure.add_subplot()
        for path, label, colour in (
            (inputs.matched, "before", "#888888"),
            (inputs.enhanced_res, "after", "#0072b2"),
        ):
            values = np.asarray(nib.load(path).dataobj)[inside]  # type: ignore[attr-defined]
            density, _ = np.histogram(values, bins, density=True)
            axes.plot(bins[:-1] + 2.5, density, label=label, color=colour)
        density, _ = np.histogram(np.arange(reference.size), bins, weights=reference, density=True)
        axes.plot(
            bins[:-1] + 2.5, density, "--", label="reference of the age", color="#d55e00", lw=1
        )
        axes.set(xlabel="intensity (template units)", ylabel="share of the brain", yticks=[])
        axes.set_xlim(0, float(np.percentile(values, 99.9)) * 1.15)
        axes.legend(frameon=False)
        figure.savefig(target, format="svg", metadata={"Date": None})


def write_summary(inputs: Any, target: Path) -> None:
    """What was done with the image, as an HTML fragment."""
    from html import escape

    planned, provenance, quality = inputs.planned, inputs.provenance, inputs.quality
    age = planned["age"]
    rows = {
        "Age": f"{age['value']} {age['unit']} = {age['months']:.2f} months"
        f"{' of gestation' if age['fetal'] else ''} (from {age['source']}, {age['column']})",
        "Model": f"{planned['age_group']}, {planned['suffix']}",
        "Weights": f"{provenance['weights']} (SHA-256 {provenance['weights_sha256'][:12]}…, "
        f"{provenance['weights_licence']}; {provenance['weights_source']})",
        "Computed on": f"{provenance['device']}, {provenance['precision']}, network "
        f"{provenance['seconds']:.0f} s",
        "Brain mask": f"{inputs.mask_info['volume_litres']:.2f} litres, "
        f"{inputs.mask_info['components']} piece(s); {inputs.mask_info['method']}",
        "Tissue contrast (TCT)": f"{_figure(quality['tct_before'])} before, "
        f"{_figure(quality['tct_after'])} after",
        "Quality index (QI)": _figure(quality["qi"]),
        "Quality gate": gate_text(inputs.gate),
    }
    warnings = [*planned["warnings"], *inputs.mask_info.get("warnings", [])]
    lines = ["<table class='summary'>"]
    lines += [f"<tr><th>{escape(k)}</th><td>{escape(v)}</td></tr>" for k, v in rows.items()]
    lines.append("</table>")
    lines += [f"<p class='warning'>{escape(text)}</p>" for text in warnings]
    target.write_text("\n".join(lines) + "\n", encoding="utf-8")


def gate_text(gate: dict[str, Any]) -> str:
    """The gate's verdict and, the worst first, the reasons why it is no pass.

    >>> gate_text({"Verdict": "pass", "Rules": [{"Verdict": "pass", "Reason": "All is well."}]})
    'pass (1 of 1 rules passed)'
    """
    rules = gate["Rules"]
    passed = sum(rule["Verdict"] == "pass" for rule in rules)
    text = f"{gate['Verdict']} ({passed} of {len(rules)} rules passed)"
    reasons = [
        f"{verdict}: {rule['Reason']}"
        for verdict in ("fail", "warn")
        for rule in rules
        if rule["Verdict"] == verdict
    ]
    return f"{text}; {' '.join(reasons)}" if reasons else text


def _figure(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.2f}"

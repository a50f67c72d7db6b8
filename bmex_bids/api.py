# SPDX-License-Identifier: Apache-2.0
"""``from bmex_bids import enhance``: one image in Python, as ``bmex-enhance`` does it."""

from __future__ import annotations

import base64
import gzip
import html
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib

from bmex_bids import values
from bmex_bids.common.contrasts import SUFFIXES
from bmex_bids.common.names import stem_without
from bmex_bids.common.scoring import in_words
from bmex_bids.common.tissues import TISSUES
from bmex_bids.exceptions import UsageError
from bmex_bids.running import single

#: name of an image of :class:`Enhanced` → field of ``outputs.sidecar.PRODUCTS``; the probabilities
#: of the tissues, one file each, are ``p`` and the tissue's label
IMAGES: Mapping[str, str] = {
    "enhanced": "enhanced_native",
    "enhanced_res": "enhanced_res",
    "enhanced_half": "enhanced_half",
    "head": "preproc_native",
    "mask": "mask_native",
    "tissues": "dseg_native",
    "structures": "structures_native",
    "uncertainty": "uncertainty_native",
}


@dataclass(frozen=True)
class Saved:
    """A file of a result: its name after that of the source, and what it holds.

    Attributes
    ----------
    ending : ``_desc-enhanced_T1w``
    image : a NIfTI file, packed
    sidecar : its JSON
    """

    ending: str
    image: bytes = field(repr=False)
    sidecar: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True)
class Enhanced:
    """What :func:`enhance` returns; a notebook shows it as a picture with the main figures.

    Attributes
    ----------
    name : of the source, without its contrast; files are named after it
    source : the image as it was given
    files : name of an image (see :attr:`images`) → its file
    page : the report as HTML; None where it was not asked for
    """

    name: str
    source: Any = field(repr=False)
    files: Mapping[str, Saved] = field(repr=False)
    page: str | None = field(default=None, repr=False)

    @property
    def images(self) -> dict[str, Any]:
        """Name → NIfTI image, (X, Y, Z).

        ``enhanced``: the brain on the grid of the source, in harmonised intensities (0 to about
        1000), 0 outside the mask; ``enhanced_res``: the same at 0.8 mm (fetus: 0.75 mm);
        ``head``: the enhanced brain in its head, in the intensities of the source; ``mask``;
        ``tissues`` and the probabilities ``pCSF``, ``pGM``, ``pWM``, on the grid of the source;
        ``uncertainty``: the expected error of ``enhanced`` (standard deviation), in its units,
        only where the weights have learnt it.  With ``segment="rois"`` also ``structures``, labels
        as ``common.structures`` numbers them; with ``"0p4"`` in ``output_res`` also
        ``enhanced_half``, super-resolved to half the edge of ``enhanced_res``.
        """
        return {name: self._image(name) for name in self.files}

    @property
    def tissues(self) -> Any:
        """Labels, (X, Y, Z): 1 grey matter, 2 white matter, 3 fluid; None where none were found."""
        return self._image("tissues") if "tissues" in self.files else None

    @property
    def quality(self) -> dict[str, Any]:
        """The ``Score`` and other measures before and after, such as ``tct_before``."""
        return dict(self._record["Quality"])

    @property
    def gate(self) -> dict[str, Any]:
        """``Verdict`` of the quality gate (``pass``, ``warn``, ``fail``) and its ``Rules``."""
        return dict(self._record["Gate"])

    @property
    def warnings(self) -> list[str]:
        """What was odd about the image."""
        return list(self._record["Warnings"])

    @property
    def provenance(self) -> dict[str, Any]:
        """Age, weights, device, versions and sources: the sidecar of ``enhanced`` without figures."""
        sidecar = dict(self.files["enhanced"].sidecar)
        record = sidecar.pop("BMEX")
        left_out = {"Quality", "Gate", "Warnings"}
        return sidecar | {key: value for key, value in record.items() if key not in left_out}

    def save(self, folder: str | Path) -> list[Path]:
        """Write all images with their sidecars, and the page if there is one; return their paths.

        The folder is made.  All files appear together, or OutputError and none.
        """
        from bmex_bids.outputs.files import as_json, write_together

        folder = Path(folder).expanduser()
        contents: dict[str, bytes] = {}
        for saved in self.files.values():
            stem = f"{self.name}{saved.ending}"
            contents[f"{stem}.nii.gz"] = saved.image
            contents[f"{stem}.json"] = as_json(saved.sidecar).encode()
        if self.page is not None:
            contents[f"{self.name}.html"] = self.page.encode()
        paths = {folder / name: content for name, content in contents.items()}
        write_together({path: partial(_write, content=data) for path, data in paths.items()})
        return list(paths)

    def picture(self) -> bytes:
        """The source above the enhanced head, three planes, in one display range: PNG."""
        from bmex_bids.reports.still import before_after

        return before_after(self.source, self._image("head"), self._image("mask"))

    def _repr_html_(self) -> str:
        scored = self.quality.get("Score") or {}
        rows = {
            "Age": f"{self._record['Age']['months']:g} months",
            "Weights": self._record["Weights"]["Name"],
            "Quality": in_words(scored["before"], scored.get("after"))
            if scored.get("before")
            else "not measured",
            "Quality gate": self.gate["Verdict"],
            "Warnings": "; ".join(self.warnings) or "none",
        }
        cells = "".join(
            f"<tr><th style='text-align:left'>{name}</th><td style='text-align:left'>"
            f"{html.escape(str(text))}</td></tr>"
            for name, text in rows.items()
        )
        picture = base64.b64encode(self.picture()).decode()
        return (
            f"<p><b>{html.escape(self.name)}</b>: before (above) and after (below)</p>"
            f"<img alt='before and after' src='data:image/png;base64,{picture}'>"
            f"<table>{cells}</table>"
        )

    @property
    def _record(self) -> dict[str, Any]:
        return dict(self.files["enhanced"].sidecar["BMEX"])

    def _image(self, name: str) -> Any:
        return nib.Nifti1Image.from_bytes(gzip.decompress(self.files[name].image))


def enhance(
    image: Any,
    *,
    age_months: float,
    contrast: str | None = None,
    fetal: bool = False,
    mask: Any = None,
    report: bool = False,
    progress: Callable[[str], None] | None = None,
    **settings: Any,
) -> Enhanced:
    """Enhance one brain image: less motion, less noise, finer slices.

    Parameters
    ----------
    image : path of a NIfTI file, or an image of nibabel (X, Y, Z); neither is changed
    age_months : at the scan; counted from conception where ``fetal``
    contrast : of T1w, T2w, FLAIR, PDw, UNIT1; not given: what the file's name ends in, else T1w
    fetal : the image is of a fetus
    mask : a brain mask made elsewhere, path or image; voxels above 0.5 are brain
    report : make the report page too, which takes some seconds
    progress : takes the lines that tell what is done, for instance ``print``
    settings : those of ``bmex`` by their names: skull_strip, brain_extraction, reorient,
        motion_correction, device, weights, weights_dir, geometry, mirroring, precision, max_change,
        omp_nthreads; segment (``"rois"``), output_res (``["0p8", "0p4"]``; ``enhanced`` is always
        made)

    Raises
    ------
    UsageError
        There is no such file, or an age, a contrast or a setting is none.
    ImageError, StepError
        The image cannot be read or processed; the message says in which step.
    WeightsError, DeviceError, OutputError
        The machine stands in the way.
    """
    if settings.get("output_res") is not None:
        given = settings["output_res"]
        settings["output_res"] = ["native", *([given] if isinstance(given, str) else given)]
    with single.temporary_folder("bmex-enhance") as name:
        folder = Path(name)
        source = _on_disk("image", image, folder / "source")
        request = single.Request(
            source=source,
            contrast=_contrast(contrast) or single.contrast_in(source) or "T1w",
            age_months=_age(age_months),
            fetal=fetal,
            mask=None if mask is None else _on_disk("mask", mask, folder / "mask"),
            report=report,
            settings=settings,
        )
        result = single.run(request, folder, say=progress or (lambda _: None))
        prefix = f"sub-{result.planned.image.subject}"
        return Enhanced(
            name=stem_without(SUFFIXES, source),
            source=nib.Nifti1Image.from_bytes(_bytes(source)),
            files={
                _name(product): Saved(
                    ending=path.name.removesuffix(".nii.gz").removeprefix(prefix),
                    image=path.read_bytes(),
                    sidecar=single.read_sidecar(sidecar),
                )
                for product, path, sidecar in result.files()
            },
            page=result.page() if report else None,
        )


def _name(product: Any) -> str:
    """The name in :data:`IMAGES` of a product."""
    named = next((name for name, its in IMAGES.items() if its == product.field), None)
    return named or f"p{TISSUES[product.place].label}"


def _on_disk(what: str, image: Any, folder: Path) -> Path:
    """The file of an image; one in memory is written to a folder for intermediate files."""
    if isinstance(image, str | Path):
        path = Path(image).expanduser().absolute()
        single.check_source(what, path)
        return path
    if not isinstance(image, nib.spatialimages.SpatialImage):
        raise TypeError(f"expected a path or an image of nibabel for {what}, got {type(image)}")
    given = Path(str(image.get_filename() or what)).name
    folder.mkdir()
    path = folder / f"{given.partition('.')[0] or what}.nii.gz"
    if not isinstance(image, nib.Nifti1Image):
        image = nib.Nifti1Image(image.dataobj, image.affine)
    nib.Nifti1Image(image.dataobj, image.affine, image.header).to_filename(path)
    return path


def _age(months: Any) -> float:
    try:
        return float(values.number(float, at_least=0)(str(months)))
    except ValueError as error:
        raise UsageError(f"age_months: {error}") from error


def _contrast(name: Any) -> str | None:
    if name is not None and name not in SUFFIXES:
        raise UsageError(f"contrast: expected one of {', '.join(SUFFIXES)}, got {name!r}")
    return None if name is None else str(name)


def _bytes(path: Path) -> bytes:
    content = path.read_bytes()
    return gzip.decompress(content) if content.startswith(b"\x1f\x8b") else content


def _write(path: Path, *, content: bytes) -> None:
    path.write_bytes(content)

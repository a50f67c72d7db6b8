# SPDX-License-Identifier: Apache-2.0
"""Names and JSON sidecars of the derivatives of one image."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bmex_bids.common.contrasts import SUFFIXES
from bmex_bids.common.names import BidsName
from bmex_bids.common.structures import STRUCTURES
from bmex_bids.common.tissues import TISSUES
from bmex_bids.outputs.records import HALVED, KEY

#: metadata of the raw image that would be wrong, or is said otherwise, of a derivative
NOT_CARRIED = frozenset(
    {
        "Description",
        "Digest",
        "GeneratedBy",
        "IntendedFor",
        "RawSources",
        "SidecarGeneratedBy",
        "SkullStripped",
        "Sources",
        "Units",
        "SpatialReference",
        "Resolution",
        "Type",
        "Age",
        KEY,
        "IsotropicVoxelSize",
    }
)
#: stands for the label of the network's grid in :data:`PRODUCTS`
GRID = "{resolution}"
#: the same for the grid of half its edge
HALF_GRID = "{half}"
#: column of the table of structures
VOLUME = "volume_mm3"


@dataclass(frozen=True)
class Product:
    """One output image: which file of the workflow becomes it, its name, and what it is.

    Attributes
    ----------
    field : of the workflow
    place : in the field's list, where it holds one file a tissue, or a file that not all weights
        make
    entities : that its name has beside the source's
    suffix : None takes the source's
    grid : ``"native"``, ``"res"`` or ``"half"``
    kind : decides the sidecar
    """

    field: str
    entities: Mapping[str, str]
    suffix: str | None
    grid: str
    kind: str
    description: str
    place: int | None = None


PRODUCTS: tuple[Product, ...] = (
    Product(
        "enhanced_native", {"desc": "enhanced"}, None, "native", "image",
        "Enhanced brain on the input's grid, in the units of its histogram reference "
        "(0 to about 1000; without a reference, its mean is 400); zero outside the brain mask",
    ),
    Product(
        "enhanced_res", {"res": GRID, "desc": "enhanced"}, None, "res", "image",
        "Enhanced brain on the network's grid, in the units of its histogram reference "
        "(0 to about 1000; without a reference, its mean is 400); zero outside the brain mask",
    ),
    Product(
        "enhanced_half", {"res": HALF_GRID, "desc": "enhanced"}, None, "half", "image",
        "Enhanced brain, super-resolved by a second network to half the edge of the enhancement's "
        "grid: an estimate, whose means over 2 x 2 x 2 voxels are the enhanced brain on that grid; "
        "its units; zero outside the brain mask",
    ),
    Product(
        "preproc_native", {"desc": "preproc"}, None, "native", "preproc",
        "Bias-corrected image in the input's intensities with the enhanced brain in place, the "
        "seam blended",
    ),
    Product(
        "mask_native", {"desc": "brain"}, "mask", "native", "mask", "Brain mask",
    ),
    Product(
        "dseg_native", {"desc": "enhanced"}, "dseg", "native", "dseg",
        "Tissues as the network classified them: "
        + ", ".join(f"{t.bids} {t.label}" for t in sorted(TISSUES, key=lambda t: t.bids)),
    ),
    *(
        Product(
            "probseg_native", {"label": tissue.label, "desc": "enhanced"}, "probseg",
            "native", "probseg",
            f"Probability of {tissue.name} as the network classified it", place,
        )
        for place, tissue in enumerate(TISSUES)
    ),
    Product(
        "structures_native", {"seg": "subcortical", "desc": "enhanced"}, "dseg", "native",
        "structures",
        "Structures as the network labelled them in the enhanced image, left and right together; "
        "the table beside it has their names, and their volumes on the network's grid",
    ),
    Product(
        "uncertainty_native", {"desc": "uncertainty"}, None, "native", "uncertainty",
        "Standard deviation of the error that the network expects in desc-enhanced, in its units; "
        "±1.96 times it should contain the truth in 95 % of the voxels; zero outside the brain mask",
    ),
)  # fmt: skip

#: the fields of what :func:`chosen_products` leaves out with ``"off"``
TISSUE_FIELDS = {"dseg_native", "probseg_native"}
#: the fields of what is written in a standard space too
IN_TEMPLATES = (
    "enhanced_native", "preproc_native", "mask_native", "dseg_native", "probseg_native"
)  # fmt: skip

#: the fields of the workflow that become files
IMAGE_FIELDS = tuple(dict.fromkeys(product.field for product in PRODUCTS))

#: of a run that only measures: a sidecar without an image, which BIDS allows for this one
QUALITY = Product(
    "", {"desc": "quality"}, None, "native", "quality",
    "Quality measures of the raw image and of what enhancement would make of it; no image was "
    "written (--qc-only)",
)  # fmt: skip


#: with the layout ``"bme-x"``: the published container keeps the raw image beside its results
RAW_COPY = Product(
    "", {}, None, "native", "preproc", "The raw image, unchanged (--output-layout bme-x)"
)  # fmt: skip


def chosen_products(
    output_res: Sequence[str],
    qc_only: bool = False,
    uncertainty: str = "learnt",
    segment: str = "tissues",
) -> tuple[Product, ...]:
    """What is written of an image; the first one's sidecar is the image's record.

    Parameters
    ----------
    output_res : ``"native"``, ``"0p8"`` and ``"0p4"``: grids of the enhanced image; masks and
        tissues are on the input's grid in any case
    qc_only : the quality measures and nothing else
    uncertainty : ``"learnt"``, or ``"off"``: no map of it
    segment : ``"tissues"``; ``"rois"``: structures too; ``"off"``: neither

    >>> [product.field for product in chosen_products(["0p8"])][:2]
    ['enhanced_res', 'mask_native']
    """
    if qc_only:
        return (QUALITY,)
    left_out = set()
    if "native" not in output_res:
        left_out |= {"enhanced_native", "preproc_native"}
    if "0p8" not in output_res:
        left_out.add("enhanced_res")
    if "0p4" not in output_res:
        left_out.add("enhanced_half")
    if uncertainty == "off":
        left_out.add("uncertainty_native")
    if segment == "off":
        left_out |= TISSUE_FIELDS
    if segment != "rois":
        left_out.add("structures_native")
    return tuple(product for product in PRODUCTS if product.field not in left_out)


def template_products(
    label: str, resolution: str, contrast: str = "", *, tissues: bool = True
) -> Iterator[tuple[Product, Product]]:
    """What is written of an image on one grid of a template, each after what it is made from.

    Parameters
    ----------
    label, resolution : of the entities ``space`` and ``res``; without a resolution no entity
    contrast : in ``desc`` of what has no contrast in its suffix, where an image of another contrast
        would give files of the same name
    tissues : whether their maps are among it

    >>> [str(new.entities) for _, new in template_products("MNIInfant+2", "2", "T2w")][2]
    "{'desc': 'brainT2w', 'space': 'MNIInfant+2', 'res': '2'}"
    """
    for product in PRODUCTS:
        if product.field in IN_TEMPLATES and (tissues or product.field not in TISSUE_FIELDS):
            entities = {**product.entities, "space": label}
            if resolution:
                entities["res"] = resolution
            if contrast and product.suffix is not None:
                entities["desc"] += contrast
            text = product.description.partition(" on the input's grid")
            yield (
                product,
                replace(
                    product,
                    entities=entities,
                    description=f"{text[0]}{text[2]}, resampled to the space {label}",
                ),
            )


def transform_names(source: BidsName, label: str) -> tuple[str, str]:
    """File names of the transform to a template, and of that back.

    >>> transform_names(BidsName({"sub": "01"}, "T1w"), "MNIInfant+2")[1]
    'sub-01_from-MNIInfant+2_to-T1w_mode-image_xfm.h5'
    """
    there, back = (source.suffix, label), (label, source.suffix)
    first, second = (
        f"{source.stem}_from-{start}_to-{end}_mode-image_xfm.h5" for start, end in (there, back)
    )
    return first, second


def template_names(
    source: BidsName,
    label: str,
    resolutions: Sequence[str],
    *,
    beside_another: bool,
    tissues: bool = True,
) -> list[str]:
    """Names of all files of an image in a standard space, without their sidecars."""
    contrast = source.suffix if beside_another else ""
    return [
        *(
            product_name(product, source, "", ".nii.gz")
            for resolution in resolutions
            for _, product in template_products(label, resolution, contrast, tissues=tissues)
        ),
        *transform_names(source, label),
    ]


def product_name(
    product: Product, source: BidsName, resolution: str, extension: str, *, space: str = ""
) -> str:
    """File name of a product.

    Parameters
    ----------
    source : name of the raw image; all its entities are kept
    resolution : label of the network's grid
    space : of a product whose name does not say the contrast, where the source has a sibling of
        another contrast (see :func:`distinct_space`)

    >>> product_name(PRODUCTS[1], BidsName({"sub": "01", "run": "2"}, "T1w"), "0p8", ".nii.gz")
    'sub-01_run-2_res-0p8_desc-enhanced_T1w.nii.gz'
    >>> product_name(PRODUCTS[2], BidsName({"sub": "01"}, "T2w"), "0p75", ".json")
    'sub-01_res-0p375_desc-enhanced_T2w.json'
    >>> product_name(PRODUCTS[4], BidsName({"sub": "01"}, "T2w"), "0p8", ".json", space="T2w")
    'sub-01_space-T2w_desc-brain_mask.json'
    """
    grids = {GRID: resolution, HALF_GRID: HALVED.get(resolution, "")}
    entities = {key: grids.get(label, label) for key, label in product.entities.items()}
    if space and product.suffix is not None:
        entities["space"] = space
    return str(source.derived(entities, product.suffix or "", extension))


def distinct_space(image: Path, source: BidsName, layout: str = "bids") -> str:
    """``"T2w"`` for a T2w image beside a T1w image with the same entities, else nothing.

    So for every contrast beside one that stands before it in
    :data:`~bmex_bids.common.contrasts.CONTRASTS`.  The masks and tissues of both would have one
    name, and the last to finish would win.  What decides is what the raw dataset holds, not what is
    chosen for a run, so that names stay.

    Parameters
    ----------
    layout : with ``"bme-x"`` the name always says the contrast, as in the published container
    """
    if layout == "bme-x":
        return source.suffix
    earlier = SUFFIXES[: SUFFIXES.index(source.suffix)]
    siblings = (
        replace(source, suffix=suffix, extension=end)
        for suffix in earlier
        for end in (".nii.gz", ".nii")
    )
    there = any(image.with_name(str(sibling)).exists() for sibling in siblings)
    return source.suffix if there else ""


def sidecar(
    product: Product,
    *,
    source: str,
    spacing_mm: float,
    metadata: Mapping[str, Any],
    processing: Mapping[str, Any],
    stripped_input: bool,
    further_sources: Sequence[str] = (),
) -> dict[str, Any]:
    """The JSON sidecar of a product.

    Parameters
    ----------
    source : the raw image, relative to the raw dataset
    spacing_mm : of the network's grid
    metadata : of the raw image; carried over where it holds for the product
    processing : age, weights, figures …, kept under the key ``records.KEY``
    stripped_input : whether the raw image came without a skull
    further_sources : BIDS URIs of what else went in
    """
    result: dict[str, Any] = {"Description": product.description}
    if product.kind in {"image", "preproc"}:
        result.update(finite({k: v for k, v in metadata.items() if k not in NOT_CARRIED}))
        result["SkullStripped"] = product.kind == "image" or stripped_input
    if product.kind == "uncertainty":
        result["SkullStripped"] = True
    if product.kind == "mask":
        result["Type"] = "Brain"
    if product.kind in {"dseg", "structures"}:
        result["Manual"] = False
    if product.kind == "structures":
        result[VOLUME] = {"Description": "Volume of the structure", "Units": "mm^3"}
    if product.grid == "res":
        result["Resolution"] = (
            f"{spacing_mm:g} mm isotropic, the network's grid; axes in the order LPS"
        )
    if product.grid == "half":
        result["Resolution"] = (
            f"{spacing_mm / 2:g} mm isotropic, super-resolved from the network's {spacing_mm:g} mm "
            "grid; axes in the order LPS"
        )
    result["Sources"] = [f"bids:raw:{source}", *further_sources]
    result["SpatialReference"] = f"bids:raw:{source}" if product.grid == "native" else "orig"
    result[KEY] = finite(processing)
    return result


def structures_table(volumes: Mapping[str, Any]) -> str:
    """The table beside the labels of structures, TSV; ``n/a`` for a volume that is not known.

    Parameters
    ----------
    volumes : the key ``Structures`` of the quality measures
    """
    lines = [f"index\tname\t{VOLUME}"]
    for structure in STRUCTURES:
        millilitres = volumes.get(f"{structure.name}_ml")
        cell = "n/a" if millilitres is None else f"{1000 * millilitres:.1f}"
        lines.append(f"{structure.number}\t{structure.name}\t{cell}")
    return "\n".join(lines) + "\n"


def finite(value: Any) -> Any:
    """The same value with numbers that JSON does not have (NaN, infinity) as None."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [finite(part) for part in value]
    return value

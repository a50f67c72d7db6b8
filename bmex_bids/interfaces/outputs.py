# SPDX-License-Identifier: Apache-2.0
"""Node of the stage *outputs*: one image's derivatives.

niworkflows' DerivativesDataSink is not used here: it replaces the ``Resolution`` of a ``res-0p8``
image by "Unknown", puts added entities behind ``desc``, and copies in place, so that a killed run
leaves half a file, or an image without its sidecar, which BIDS does not allow.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    TraitedSpec,
    isdefined,
    traits,
)

from bmex_bids import __version__
from bmex_bids.common.names import BidsName
from bmex_bids.interfaces.files import geometry_of
from bmex_bids.interfaces.step import Step
from bmex_bids.metrics.gate import contrast_is_wrong
from bmex_bids.outputs.container import container
from bmex_bids.outputs.dataset import write_dataset
from bmex_bids.outputs.files import as_json, clear_temporaries, write_together
from bmex_bids.outputs.lock import alone
from bmex_bids.outputs.provenance import MADE_BY, activity_id, environment
from bmex_bids.outputs.records import (
    CORRECTION_SHARE,
    KEY,
    MOTION,
    NOISE,
    SPIKES,
    SPLIT,
    SUPER,
    TEMPLATE_MATCH,
    THICK,
    TISSUE_MAPS,
    UNEVEN,
)
from bmex_bids.outputs.resume import checksum, text_checksum
from bmex_bids.outputs.sidecar import (
    IMAGE_FIELDS,
    RAW_COPY,
    Product,
    chosen_products,
    product_name,
    sidecar,
    structures_table,
    template_products,
    transform_names,
)

#: kinds of products that are made from a classification of tissues
TISSUE_KINDS = ("dseg", "probseg", "structures")
#: fields of images that are not always made
OPTIONAL = ("uncertainty_native", "structures_native", "enhanced_half")


class Common(BaseInterfaceInputSpec):
    """The inputs besides the images."""

    bids_dir = traits.Str(mandatory=True)
    output_dir = traits.Str(mandatory=True)
    planned = traits.Dict(mandatory=True, desc="name, source, folder, spacing, resolution, age …")
    mask_info = traits.Dict(mandatory=True)
    quality = traits.Dict(mandatory=True)
    gate = traits.Dict(mandatory=True, desc="verdict and rules")
    provenance = traits.Dict(mandatory=True)
    stripped = traits.Bool(mandatory=True)
    refocus = traits.Dict(desc="what the motion correction did; or none")
    split_slices = traits.Dict(desc="Axis, Thickness, Parts; empty where none were split")
    output_res = traits.List(traits.Str(), ["native", "0p8"], usedefault=True)
    qc_only = traits.Bool(False, usedefault=True)
    uncertainty = traits.Str("learnt", usedefault=True)
    segment = traits.Str("tissues", usedefault=True)
    in_templates = traits.List(traits.Dict(), desc="results of interfaces.templates.ToTemplate")
    fingerprint = traits.Dict(desc="what the products are made from; see outputs.resume")


def image_input(field: str) -> Any:
    """An input for an image, or for one image a tissue; not all weights make all of them."""
    either = File(exists=True), traits.List(File(exists=True))
    return traits.Either(*either, mandatory=field not in OPTIONAL)


#: the images are inputs too, one a field of the table of products
SaveDerivativesInput = type(
    "SaveDerivativesInput",
    (Common,),
    {"__module__": __name__, **{field: image_input(field) for field in IMAGE_FIELDS}},
)


class SaveDerivativesOutput(TraitedSpec):
    out_files = traits.List(File(exists=True), desc="all images that were written")


class SaveDerivatives(Step):
    """Write one image's derivatives and their sidecars, all of them or none."""

    input_spec = SaveDerivativesInput
    output_spec = SaveDerivativesOutput
    _always_run = True

    def work(self, folder: str) -> None:
        planned = self.inputs.planned
        output_dir = Path(self.inputs.output_dir)
        given = planned.get("given_mask")
        links = {given["name"]: Path(given["folder"])} if given else {}
        write_dataset(Path(self.inputs.bids_dir), output_dir, links)
        folder_of_image = output_dir / planned["folder"]
        images, tables = self._products(folder_of_image, given)
        for result in [] if self.inputs.qc_only else self.inputs.in_templates or []:
            more_images, more_tables = self._in_template(folder_of_image, result, given)
            images |= more_images
            tables |= more_tables
        sums = {path: checksum(source) for path, source in images.items()}
        made_by = activity_id(planned["name"], next(iter(tables.values()))[KEY])
        for path, table in tables.items():
            table[MADE_BY] = made_by
            image = path.with_name(path.name.replace(".json", ".nii.gz"))
            if image in sums:
                table["Digest"] = {"sha256": sums[image]}
        main, *others = tables
        texts = {path: as_json(tables[path]) for path in others} | self._lookups(images)
        tables[main][KEY] |= {
            "Fingerprint": dict(self.inputs.fingerprint or {}),
            "Outputs": {path.name: text for path, text in sums.items()}
            | {path.name: text_checksum(text) for path, text in texts.items()},
        }
        texts[main] = as_json(tables[main])  # last: it says that all the others are there
        fills: dict[Path, Callable[[Path], object]] = {
            path: partial(shutil.copyfile, source) for path, source in images.items()
        }
        for path, text in texts.items():
            fills[path] = partial(Path.write_text, data=text, encoding="utf-8")
        with alone(output_dir, main.stem):  # the same image may be under way elsewhere
            clear_temporaries(fills)
            write_together(fills)
        self._results["out_files"] = [str(path) for path in images]

    def _lookups(self, images: Mapping[Path, Path]) -> dict[Path, str]:
        """The table of names and volumes beside the labels of structures."""
        labels = self.inputs.structures_native
        return {
            path.with_name(path.name.replace(".nii.gz", ".tsv")): structures_table(
                self.inputs.quality.get("Structures", {})
            )
            for path, source in images.items()
            if isdefined(labels) and source == Path(labels)
        }

    def _in_template(
        self, folder: Path, result: Mapping[str, Any], given: Mapping[str, str] | None
    ) -> tuple[dict[Path, Path], dict[Path, dict[str, Any]]]:
        """The same of one standard space; the transforms are images without a sidecar."""
        inputs, planned = self.inputs, self.inputs.planned
        source = BidsName.of(planned["name"])
        record = self._record()
        record["Warnings"] = [*record["Warnings"], *result["warnings"]]
        contrast = source.suffix if planned.get("beside_another") else ""
        names = transform_names(source, result["label"])
        images = {
            folder / name: Path(result[field])
            for name, field in zip(names, ("transform", "inverse"), strict=True)
        }
        tables = {}
        for grid in result["grids"]:
            record["Template"] = {
                "Label": result["label"],
                "Contrast": result["contrast"],
                "File": Path(grid["image"]).name,
                "SHA256": grid["sha256"],
                "Overlap": result["overlap"],
                "Folded": result["folded"],
            }
            zooms = " × ".join(f"{zoom:g}" for zoom in grid["zooms"])
            for product, new in template_products(
                result["label"],
                grid["resolution"],
                contrast,
                tissues=inputs.segment != "off",
            ):
                if product.kind in TISSUE_KINDS and contrast_is_wrong(inputs.gate):
                    continue
                value = grid["files"][product.field]
                table_path, image_path = (
                    folder / product_name(new, source, "", extension)
                    for extension in (".json", ".nii.gz")
                )
                images[image_path] = Path(value if product.place is None else value[product.place])
                tables[table_path] = {
                    **self._sidecar(new, record, given),
                    "SpatialReference": result["reference"],
                    "Resolution": f"that of {Path(grid['image']).name}, {zooms} mm",
                }
        return images, tables

    def _record(self) -> dict[str, Any]:
        record = record_of(self.inputs)
        source = Path(self.inputs.bids_dir) / self.inputs.planned["source"]
        record["Input"] = geometry_of(source)
        return record

    def _sidecar(
        self, product: Product, record: Mapping[str, Any], given: Mapping[str, str] | None
    ) -> dict[str, Any]:
        planned = self.inputs.planned
        return sidecar(
            product,
            source=planned["source"],
            spacing_mm=planned["spacing_mm"],
            metadata=planned["metadata"],
            processing=record,
            stripped_input=self.inputs.stripped,
            further_sources=[f"bids:{given['name']}:{given['path']}"] if given else [],
        )

    def _products(
        self, folder: Path, given: Mapping[str, str] | None
    ) -> tuple[dict[Path, Path], dict[Path, dict[str, Any]]]:
        """What is to be written: images → file of the workflow, and sidecars → content."""
        inputs = self.inputs
        planned = inputs.planned
        record = self._record()
        images, tables = {}, {}
        for product in chosen_products(
            inputs.output_res, inputs.qc_only, inputs.uncertainty, inputs.segment
        ):
            if product.field in OPTIONAL and not isdefined(getattr(inputs, product.field)):
                continue  # these weights do not make it
            if product.kind in TISSUE_KINDS and contrast_is_wrong(inputs.gate):
                continue  # grey and white matter would be interchanged
            table_path, image_path = (
                folder
                / product_name(
                    product,
                    BidsName.of(planned["name"]),
                    planned["resolution"],
                    extension,
                    space=planned.get("space", ""),
                )
                for extension in (".json", ".nii.gz")
            )
            tables[table_path] = self._sidecar(product, record, given)
            if product.field:
                images[image_path] = Path(field_value(inputs, product))
        if planned.get("layout") == "bme-x" and not inputs.qc_only:
            raw = Path(inputs.bids_dir) / planned["source"]
            images[folder / raw.name] = raw
            tables[folder / f"{planned['name']}.json"] = self._sidecar(RAW_COPY, record, given)
        return images, tables


def field_value(inputs: Any, product: Product) -> str:
    """The workflow's file of a product."""
    value = getattr(inputs, product.field)
    return str(value if product.place is None else value[product.place])


def record_of(inputs: Any) -> dict[str, Any]:
    """What goes under the key ``BMEX``, from a node's inputs of the names of ``FINDINGS``."""
    record = processing_record(
        inputs.planned, inputs.provenance, inputs.mask_info, inputs.quality, inputs.gate
    ) | motion_record(inputs.refocus)
    if isdefined(inputs.split_slices) and inputs.split_slices:
        record[SPLIT] = dict(inputs.split_slices)
    return record


def motion_record(refocus: Any) -> dict[str, Any]:
    """What the motion correction did, as it goes under the key ``BMEX``; empty without the step."""
    if not isdefined(refocus):
        return {}
    entropy = {
        f"Entropy{when.capitalize()}": refocus[f"entropy_{when}"]
        for when in ("before", "after")
        if f"entropy_{when}" in refocus
    }
    said = {"Applied": refocus["applied"], "Reason": refocus["reason"]}
    if refocus.get("lines"):
        said[UNEVEN] = refocus["lines"]
    if refocus.get("slices"):
        said[THICK] = refocus["slices"]
    if refocus.get("spikes"):
        said[SPIKES] = refocus["spikes"]
    if refocus.get("noise"):
        said[NOISE] = refocus["noise"]
    return {MOTION: said | refocus["motion"] | entropy}


def processing_record(
    planned: dict[str, Any],
    provenance: dict[str, Any],
    mask_info: dict[str, Any],
    quality: dict[str, Any],
    gate: dict[str, Any],
) -> dict[str, Any]:
    """What goes under the key ``BMEX`` of each sidecar."""
    image = container()
    mask = {key: value for key, value in mask_info.items() if key != "warnings"}
    return {
        "Version": __version__,
        **({"Container": image} if image else {}),
        "Environment": environment(),
        "Age": planned["age"],
        "Model": planned["age_group"],
        **({TEMPLATE_MATCH: label} if (label := planned.get("histogram")) else {}),
        "Weights": weights_told(provenance)
        | {
            "ErrorScale": provenance.get("error_scale", 1.0),
            CORRECTION_SHARE: provenance.get("share", 1.0),
        },
        "Device": provenance["device"],
        "Precision": provenance["precision"],
        "MirroredAxes": provenance["mirrored"],
        "Networks": provenance.get("networks", 1),
        "MaxChange": provenance.get("max_change"),
        "NetworkSeconds": provenance["seconds"],
        **super_record(provenance),
        **tissue_record(provenance),
        "Mask": mask,
        "Quality": quality,
        "Gate": gate,
        "Warnings": [*planned["warnings"], *mask_info.get("warnings", [])],
    }


def weights_told(table: Mapping[str, Any]) -> dict[str, Any]:
    """The weights that ``interfaces.weights.provenance_of`` told, as they go into a sidecar."""
    return {
        "Name": table["weights"],
        "SHA256": table["weights_sha256"],
        "License": table["weights_licence"],
        "Source": table["weights_source"],
    }


def tissue_record(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """What found the tissues, as it goes under the key ``BMEX``; empty where the enhancement did."""
    table = provenance.get("tissues")
    return {TISSUE_MAPS: {"Weights": weights_told(table)}} if table else {}


def super_record(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """What halved the edges of voxels, as it goes under the key ``BMEX``; empty where nothing did."""
    table = provenance.get("super")
    if not table:
        return {}
    return {
        SUPER: {
            "Weights": weights_told(table),
            "VoxelSize": table["spacing_mm"],
            "NetworkSeconds": table["seconds"],
        }
    }

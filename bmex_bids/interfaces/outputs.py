# SPDX-License-Identifier: Apache-2.0
"""Node of the stage *outputs*: one image's derivatives.

niworkflows' DerivativesDataSink is not used here: it replaces the ``Resolution`` of a ``res-0p8``
image by "Unknown", puts added entities behind ``desc``, and copies in place, so that a killed run
leaves half a file, or an image without its sidecar, which BIDS does not allow.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    SimpleInterface,
    TraitedSpec,
    traits,
)


class SaveDerivativesInput(BaseInterfaceInputSpec):
    bids_dir = traits.Str(mandatory=True)
    output_dir = traits.Str(mandatory=True)
    planned = traits.Dict(
        mandatory=True, desc="stem, suffix, source, folder, spacing, resolution, age …"
    )
    enhanced_res = File(exists=True, mandatory=True)
    enhanced_native = File(exists=True, mandatory=True)
    preproc_native = File(exists=True, mandatory=True)
    mask_native = File(exists=True, mandatory=True)
    dseg_native = File(exists=True, mandatory=True)
    probseg_native = traits.List(File(exists=True), mandatory=True, desc="CSF, GM, WM")
    mask_info = traits.Dict(mandatory=True)
    quality = traits.Dict(mandatory=True)
    gate = traits.Dict(mandatory=True, desc="verdict and rules")
    provenance = traits.Dict(mandatory=True)
    stripped = traits.Bool(mandatory=True)
    output_res = traits.List(traits.Str(), ["native", "0p8"], usedefault=True)
    qc_only = traits.Bool(False, usedefault=True)
    fingerprint = traits.Dict(desc="what the products are made from; see outputs.resume")


class SaveDerivativesOutput(TraitedSpec):
    out_files = traits.List(File(exists=True), desc="all images that were written")


class SaveDerivatives(SimpleInterface):
    """Write one image's derivatives and their sidecars, all of them or none."""

    input_spec = SaveDerivativesInput
    output_spec = SaveDerivativesOutput
    _always_run = True

    def _run_interface(self, runtime: Any) -> Any:
        from bmex_bids.outputs.dataset import write_dataset
        from bmex_bids.outputs.files import as_json, clear_temporaries, write_together
        from bmex_bids.outputs.lock import alone
        from bmex_bids.outputs.resume import checksum, text_checksum
        from bmex_bids.outputs.sidecar import chosen_products, product_name, sidecar

        planned = self.inputs.planned
        output_dir = Path(self.inputs.output_dir)
        folder = output_dir / planned["folder"]
        record = processing_record(
            planned,
            self.inputs.provenance,
            self.inputs.mask_info,
            self.inputs.quality,
            self.inputs.gate,
        )
        given = planned.get("given_mask")
        links = {given["name"]: Path(given["folder"])} if given else {}
        write_dataset(Path(self.inputs.bids_dir), output_dir, links)
        fills: dict[Path, Callable[[Path], object]] = {}
        images, tables = [], {}
        for product in chosen_products(self.inputs.output_res, self.inputs.qc_only):
            sidecar_name, image_name = (
                product_name(
                    product,
                    planned["stem"],
                    planned["suffix"],
                    planned["resolution"],
                    extension,
                    space=planned.get("space", ""),
                )
                for extension in (".json", ".nii.gz")
            )
            tables[folder / sidecar_name] = sidecar(
                product,
                source=planned["source"],
                spacing_mm=planned["spacing_mm"],
                metadata=planned["metadata"],
                processing=record,
                stripped_input=self.inputs.stripped,
                further_sources=[f"bids:{given['name']}:{given['path']}"] if given else [],
            )
            if product.field:
                source = field_value(self.inputs, product.field)
                fills[folder / image_name] = partial(shutil.copyfile, source)
                images.append((folder / image_name, Path(source)))
        main, *others = tables
        texts = {path: as_json(tables[path]) for path in others}
        tables[main]["BMEX"] |= {
            "Fingerprint": dict(self.inputs.fingerprint or {}),
            "Outputs": {path.name: checksum(source) for path, source in images}
            | {path.name: text_checksum(text) for path, text in texts.items()},
        }
        texts[main] = as_json(tables[main])  # last: it says that all the others are there
        for path, text in texts.items():
            fills[path] = partial(Path.write_text, data=text, encoding="utf-8")
        with alone(output_dir, main.stem):  # the same image may be under way elsewhere
            clear_temporaries(fills)
            write_together(fills)
        self._results["out_files"] = [str(path) for path, _ in images]
        return runtime


def field_value(inputs: Any, field: str) -> str:
    """An input by its name; ``name[1]`` is the second of a list."""
    match = re.fullmatch(r"(\w+)(?:\[(\d+)\])?", field)
    if match is None:
        raise ValueError(f"expected the name of an input, got {field!r}")
    value = getattr(inputs, match[1])
    return str(value[int(match[2])] if match[2] else value)


def processing_record(
    planned: dict[str, Any],
    provenance: dict[str, Any],
    mask_info: dict[str, Any],
    quality: dict[str, Any],
    gate: dict[str, Any],
) -> dict[str, Any]:
    """What goes under the key ``BMEX`` of each sidecar."""
    from bmex_bids import __version__
    from bmex_bids.outputs.container import container

    image = container()
    mask = {key: value for key, value in mask_info.items() if key != "warnings"}
    return {
        "Version": __version__,
        **({"Container": image} if image else {}),
        "Age": planned["age"],
        "Model": planned["age_group"],
        "Weights": {
            "Name": provenance["weights"],
            "SHA256": provenance["weights_sha256"],
            "License": provenance["weights_licence"],
            "Source": provenance["weights_source"],
        },
        "Device": provenance["device"],
        "Precision": provenance["precision"],
        "MirroredAxes": provenance["mirrored"],
        "Networks": provenance.get("networks", 1),
        "NetworkSeconds": provenance["seconds"],
        "Mask": mask,
        "Quality": quality,
        "Gate": gate,
        "Warnings": [*planned["warnings"], *mask_info.get("warnings", [])],
    }

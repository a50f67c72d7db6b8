# SPDX-License-Identifier: Apache-2.0
"""The stage *outputs*: one image's derivatives into the output dataset."""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING, Any

from nipype.interfaces.utility import IdentityInterface
from nipype.pipeline.engine import Node, Workflow

from bmex_bids.interfaces.outputs import SaveDerivatives
from bmex_bids.outputs.sidecar import IMAGE_FIELDS, distinct_space
from bmex_bids.workflows.request import Target

if TYPE_CHECKING:
    from bmex_bids.inputs.age import Age
    from bmex_bids.inputs.plan import PlannedImage

#: what is found out about an image
FINDINGS = ["mask_info", "quality", "gate", "provenance", "stripped", "refocus", "split_slices"]
INPUTS = [*IMAGE_FIELDS, *FINDINGS, "in_templates"]


def age_table(age: Age) -> dict[str, Any]:
    """An age as plain values; its warnings are among the image's."""
    table = dataclasses.asdict(age)
    del table["warnings"]
    return table


def plan_table(planned: PlannedImage) -> dict[str, Any]:
    """A planned image as plain values, for nodes to hash and store."""
    return {
        "name": planned.name,
        "source": planned.image.relative_path,
        "folder": planned.output_dir,
        "spacing_mm": planned.spacing_mm,
        "resolution": planned.resolution,
        "space": distinct_space(planned.image.path, planned.image.bids_name, planned.layout),
        "layout": planned.layout,
        "beside_another": bool(distinct_space(planned.image.path, planned.image.bids_name)),
        "age": None if planned.age is None else age_table(planned.age),
        "age_group": planned.age_group,
        "histogram": planned.histogram.label if planned.histogram else None,
        "metadata": dict(planned.image.metadata),
        "warnings": list(planned.warnings),
        "given_mask": given_mask(planned),
    }


def given_mask(planned: PlannedImage) -> dict[str, str] | None:
    """Name and folder of the derivatives that a brain mask comes from, and its path there; None without."""
    name, _, path = planned.mask_source.partition(": ")
    if planned.mask is None or not path:
        return None
    folder = planned.mask.parents[path.count("/")]
    return {"name": re.sub(r"[^\w.-]", "-", name), "folder": str(folder), "path": path}


def init_outputs_wf(planned: PlannedImage, target: Target) -> Workflow:
    """Write the derivatives of one image.

    Inputs
    ------
    the fields of :data:`INPUTS`, as ``init_preprocess_wf`` and ``init_enhance_wf`` give them
    """
    workflow = Workflow(name="outputs_wf")
    inputnode = Node(IdentityInterface(fields=INPUTS), name="inputnode")
    save = Node(
        SaveDerivatives(
            bids_dir=str(target.bids_dir),
            output_dir=str(target.output_dir),
            planned=plan_table(planned),
            output_res=list(target.output_res),
            qc_only=target.qc_only,
            uncertainty=target.uncertainty,
            segment=target.segment,
            fingerprint=dict(target.fingerprint or {}),
        ),
        name="save",
    )
    workflow.connect([(inputnode, save, [(field, field) for field in INPUTS])])
    return workflow

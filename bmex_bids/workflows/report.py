# SPDX-License-Identifier: Apache-2.0
"""The stage *report*: the pictures of one image; the page is put together after the run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from nipype.interfaces.utility import IdentityInterface
from nipype.pipeline.engine import Node, Workflow

from bmex_bids.interfaces.reportlets import Reportlets
from bmex_bids.workflows.outputs import FINDINGS, plan_table

if TYPE_CHECKING:
    from bmex_bids.inputs.plan import PlannedImage

#: the image as it came, with which all pictures compare → input of the node
BEFORE = {"conformed_before": "conformed", "matched_before": "matched"}
INPUTS = [
    *BEFORE,
    "mask",
    "intensity_json",
    "mask_res",
    "enhanced_res",
    "dseg_res",
    "deviation",
    "structures_res",
    "enhanced_half",
    "in_templates",
    *FINDINGS,
]


def init_report_wf(
    planned: PlannedImage, *, output_dir: Path, name: str = "report_wf"
) -> Workflow:
    """Pictures and summary of one image into ``sub-*/figures`` of the output.

    Inputs
    ------
    the fields of :data:`INPUTS`, as ``init_preprocess_wf`` and ``init_enhance_wf`` give them
    """
    workflow = Workflow(name=name)
    inputnode = Node(IdentityInterface(fields=INPUTS), name="inputnode")
    pictures = Node(
        Reportlets(output_dir=str(output_dir), planned=plan_table(planned)), name="pictures"
    )
    workflow.connect(
        [(inputnode, pictures, [(field, BEFORE.get(field, field)) for field in INPUTS])]
    )
    return workflow

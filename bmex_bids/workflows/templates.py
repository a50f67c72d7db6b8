# SPDX-License-Identifier: Apache-2.0
"""The stage *templates*: an enhanced image in the standard spaces that are asked for."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nipype.interfaces.utility import IdentityInterface, Merge
from nipype.pipeline.engine import Node, Workflow

from bmex_bids.interfaces.templates import ToTemplate
from bmex_bids.workflows.request import Machine

if TYPE_CHECKING:
    from bmex_bids.inputs.plan import PlannedImage
    from bmex_bids.inputs.templates import Template

INPUTS = [
    "enhanced_res",
    "mask_res",
    "preproc_native",
    "mask_native",
    "dseg_native",
    "probseg_native",
]
OUTPUTS = ["in_templates"]
#: a template of 1 mm: its grid, the points of its voxels in the subject, what splines hold
MEM_GB = 1.5


def init_templates_wf(planned: PlannedImage, machine: Machine) -> Workflow:
    """Register to each template, side by side.

    Inputs
    ------
    the fields of :data:`INPUTS`, as ``init_preprocess_wf`` and ``init_enhance_wf`` give them

    Outputs
    -------
    in_templates : a result of ``interfaces.templates.ToTemplate`` for each
    """
    workflow = Workflow(name="templates_wf")
    inputnode = Node(IdentityInterface(fields=INPUTS), name="inputnode")
    outputnode = Node(IdentityInterface(fields=OUTPUTS), name="outputnode")
    merge = Node(Merge(len(planned.templates)), name="merge", run_without_submitting=True)
    for number, template in enumerate(planned.templates, 1):
        to_template = Node(
            ToTemplate(
                template=template_table(template),
                contrast=planned.contrast,
                num_threads=machine.omp_nthreads,
            ),
            name=f"to_{re.sub(r'[^0-9A-Za-z]', '_', template.label)}",
            n_procs=machine.omp_nthreads,
            mem_gb=MEM_GB,
        )
        workflow.connect(
            [
                (inputnode, to_template, [(field, field) for field in INPUTS]),
                (to_template, merge, [("result", f"in{number}")]),
            ]
        )
    workflow.connect([(merge, outputnode, [("out", "in_templates")])])
    return workflow


def template_table(template: Template) -> dict[str, Any]:
    """A template as plain values, for nodes to hash and store."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(part) for key, part in value.items()}
        if isinstance(value, list | tuple):
            return [plain(part) for part in value]
        return str(value) if isinstance(value, Path) else value

    states = [path.stat() for path in template.files]
    table: dict[str, Any] = plain(dataclasses.asdict(template))
    return {**table, "state": [[state.st_size, state.st_mtime_ns] for state in states]}

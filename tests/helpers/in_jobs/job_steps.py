# SPDX-License-Identifier: Apache-2.0
"""Small workflows whose nodes a job can import."""

from __future__ import annotations

import os
import signal
import subprocess
import time

from nipype.interfaces.base import BaseInterfaceInputSpec, TraitedSpec, traits
from nipype.pipeline.engine import Node, Workflow

from bmex_bids.interfaces import step


class StepInput(BaseInterfaceInputSpec):
    value = traits.Int(0, usedefault=True)
    act = traits.Str("", usedefault=True)


class StepOutput(TraitedSpec):
    value = traits.Int()


class Step(step.Step):
    """Add one, or end in the way asked for."""

    input_spec = StepInput
    output_spec = StepOutput

    def work(self, folder):
        if self.inputs.act == "raise":
            raise ValueError("a walnut is no brain")
        if self.inputs.act == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.inputs.act == "cancel":
            subprocess.run(["scancel", os.environ["SLURM_JOB_ID"]], check=True)
            time.sleep(60)
        self._results["value"] = self.inputs.value + 1


def chain(name: str, act: str = "") -> Workflow:
    """Two steps one after the other; the first may end badly."""
    workflow = Workflow(name=name)
    first = Node(Step(act=act), name="conform", mem_gb=0.1)
    second = Node(Step(), name="find_brain", mem_gb=0.1)
    workflow.connect(first, "value", second, "value")
    return workflow

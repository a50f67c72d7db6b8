# SPDX-License-Identifier: Apache-2.0
"""What happens to the steps of a workflow while it runs, told in words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from nipype.pipeline.engine.nodes import NodeExecutionError

from bmex_bids.common.failure import UNKNOWN, Failure

TRIED_AGAIN = "its worker process died (was the memory full?); the step is repeated once, alone"
#: what a step is called in progress lines, by the name of its node (or of its workflow)
STEPS: Mapping[str, str] = {
    "reorient": "preprocess: correct the header's axes",
    "conform": "preprocess: read, check, conform",
    "refocus": "preprocess: motion correction from the image",
    "correct_head": "preprocess: intensities and bias field",
    "find_brain": "preprocess: brain mask",
    "correct_brain": "preprocess: bias field in the brain, network grid",
    "match_histogram": "preprocess: match the age's histogram",
    "before": "preprocess: the raw image, for comparison",
    "network": "enhance: tissues and image",
    "segment": "enhance: structures",
    "halve": "enhance: super-resolution to half the edge",
    "quality": "quality: tissue contrast before and after",
    "mriqc": "quality: MRIQC's measures",
    "restore": "enhance: back to the input's grid and intensities",
    "templates_wf": "templates: registration and standard spaces",
    "outputs_wf": "outputs: derivatives and sidecars",
    "report_wf": "report: pictures",
}


@dataclass(frozen=True)
class Event:
    """Something that happened to a node.

    Attributes
    ----------
    workflow : name of the image's workflow
    node : full name of the node
    step : in words
    status : ``"start"``, ``"end"``, ``"exception"``, or ``"again"`` where a step is done once more
    reason : of doing it again, in one line; else None
    failure : of an exception; else None
    """

    workflow: str
    node: str
    step: str
    status: str
    reason: str | None = None
    failure: Failure | None = None


Listener = Callable[[Event], None]


def tell(listener: Listener, node: Any, status: str) -> None:
    """Translate Nipype's call into an event."""
    parts = node.fullname.split(".")
    named = next((part for part in reversed(parts) if part in STEPS), None)
    listener(
        Event(
            workflow=parts[1] if len(parts) > 2 else parts[0],
            node=node.fullname,
            step=STEPS[named] if named else ".".join(parts[2:]),
            status=status,
            reason=TRIED_AGAIN if status == "again" else None,
            failure=failure_of(node) if status == "exception" else None,
        )
    )


def failure_of(node: Any, error: BaseException | None = None) -> Failure:
    """Why a node failed: what was noted of it, else what its interface noted, else the error.

    Parameters
    ----------
    node : its attribute ``failure``, where a plugin has set it, comes first
    error : that running it raised; Nipype raises its own for what an interface raises
    """
    noted = getattr(node, "failure", None)
    if isinstance(noted, Failure):
        return noted
    if error is None or isinstance(error, NodeExecutionError):
        try:
            noted = getattr(node.result.runtime, "failure", None)
        except Exception:  # noqa: BLE001 - a result that cannot be read says nothing
            noted = None
        if isinstance(noted, Failure):
            return noted
    if error is None:
        return UNKNOWN
    if isinstance(error, NodeExecutionError):  # of an interface that is not ours
        return last_line(str(error))
    return Failure.of(error)


def last_line(traceback: str) -> Failure:
    """What is known of an error of which there is only the text."""
    lines = traceback.strip().splitlines()
    return Failure("", lines[-1].strip()) if lines else UNKNOWN

# SPDX-License-Identifier: Apache-2.0
"""What happens to the steps of a workflow while it runs, told in words."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

TRIED_AGAIN = "its worker process died (was the memory full?); the step is tried once more, alone"
#: what a step is called in progress lines, by the name of its node (or of its workflow)
STEPS: Mapping[str, str] = {
    "conform": "preprocess: read, check, conform",
    "correct_head": "preprocess: intensities and bias field",
    "find_brain": "preprocess: brain mask",
    "correct_brain": "preprocess: bias field in the brain, network grid",
    "match_histogram": "preprocess: match the age's histogram",
    "network": "enhance: tissues and image",
    "quality": "quality: tissue contrast before and after",
    "restore": "enhance: back to the input's grid and intensities",
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
    reason : of an exception or of doing it again, in one line; else None
    """

    workflow: str
    node: str
    step: str
    status: str
    reason: str | None = None


Listener = Callable[[Event], None]


def tell(listener: Listener, node: Any, status: str) -> None:
    """Translate Nipype's call into an event."""
    parts = node.fullname.split(".")
    named = next((part for part in reversed(parts) if part in STEPS), None)
    reason = None
    if status == "exception":
        reason = reason_of(getattr(node, "_traceback", None) or "")
    elif status == "again":
        reason = TRIED_AGAIN
    listener(
        Event(
            workflow=parts[1] if len(parts) > 2 else parts[0],
            node=node.fullname,
            step=STEPS[named] if named else ".".join(parts[2:]),
            status=status,
            reason=reason,
        )
    )


def reason_of(traceback: str | Sequence[str]) -> str:
    """The message at the end of a traceback; the type too, unless the error is one of ours.

    >>> reason_of("Traceback ...\\nbmex_bids.exceptions.MaskError: expected a mask, got none")
    'expected a mask, got none'
    >>> reason_of("ValueError: math domain error")
    'ValueError: math domain error'
    """
    text = traceback if isinstance(traceback, str) else "".join(traceback)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    for line in reversed(lines):
        found = re.match(r"(?:([\w.]+)\.)?(\w+(?:Error|Exception|Problem|Died)): (.*)", line)
        if found:
            home, name, message = found.groups()
            return message if (home or "").startswith("bmex_bids.") else f"{name}: {message}"
    return lines[-1] if lines else "no reason was given; see the crash file"

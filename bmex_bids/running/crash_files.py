# SPDX-License-Identifier: Apache-2.0
"""Nipype's crash files, with the record of the failure before the traceback."""

from __future__ import annotations

import logging
from typing import Any

from nipype.pipeline.plugins.tools import report_crash

from bmex_bids.running.events import failure_of

LOGGER = logging.getLogger(__name__)


def write(node: Any) -> str | None:
    """Put down what is known of a node that failed; its path, or None where that cannot be done.

    The image has failed either way, and its reason is told: a folder that is full, or that somebody
    removes at this moment, must not take the other images with it.
    """
    try:
        lines = ["\n", failure_of(node).as_line() + "\n", *(node._traceback or ())]
        return str(report_crash(node, traceback=lines))
    except OSError as error:
        LOGGER.warning("no crash file of %s: %s", node.fullname, error)
        return None

# SPDX-License-Identifier: Apache-2.0
"""A worker process ends with the one that started it, also when that is killed."""

from __future__ import annotations

import multiprocessing
import os
import threading


def end_with_parent() -> None:
    """Watch the process that started this one; end when it is gone, whatever is under way.

    A pool's workers wait for work for ever, each with its memory, when nobody ends them.
    """
    threading.Thread(target=_watch, daemon=True).start()


def _watch() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)

# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C and SIGTERM (``docker stop``, SLURM) end a run, wherever they strike.

Nipype catches whatever is raised while an interface works, an interrupt too, and calls it the
node's failure; the next image would then begin.  So the interrupt is remembered and raised again
as soon as our own code is called.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

EXIT_INTERRUPTED, EXIT_TERMINATED = 130, 143


class Terminated(KeyboardInterrupt):
    """A SIGTERM came."""


_pending: list[KeyboardInterrupt] = []


@contextmanager
def handled() -> Iterator[None]:
    """Both signals raise; the handlers before are put back in the end."""
    _pending.clear()
    if threading.current_thread() is not threading.main_thread():
        yield  # Python allows handlers nowhere else
        return

    def stop(number: int, _: object) -> None:
        error = Terminated() if number == signal.SIGTERM else KeyboardInterrupt()
        _pending.append(error)
        raise error

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _pending.clear()


def raise_pending() -> None:
    """Raise the interrupt that somebody swallowed."""
    if _pending:
        raise _pending[0]


def exit_code(stop: KeyboardInterrupt) -> int:
    """130 after Ctrl-C, 143 after SIGTERM, as shells have it."""
    return EXIT_TERMINATED if isinstance(stop, Terminated) else EXIT_INTERRUPTED

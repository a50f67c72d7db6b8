# SPDX-License-Identifier: Apache-2.0
"""How a program ends: what it says of an error, and its exit code."""

from __future__ import annotations

import sys
from collections.abc import Callable

from bmex_bids.common.failure import Failure, chain, is_disk_full
from bmex_bids.exceptions import BmexError
from bmex_bids.running.interrupts import exit_code


def ended(program: str, work: Callable[[], int], *, interrupted: str = "interrupted") -> int:
    """Do the work and return its exit code, or that of the error that ended it.

    Parameters
    ----------
    program : that the messages name
    interrupted : what is said after Ctrl-C or SIGTERM
    """
    try:
        return work()
    except (BmexError, OSError) as error:
        if not isinstance(error, BmexError) and not any(map(is_disk_full, chain(error))):
            raise
        failure = Failure.of(error)
        print(f"{program}: {error if isinstance(error, BmexError) else failure}", file=sys.stderr)
        return failure.exit_code
    except KeyboardInterrupt as stop:
        print(f"{program}: {interrupted}", file=sys.stderr)
        return exit_code(stop)

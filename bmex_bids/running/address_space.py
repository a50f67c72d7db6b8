# SPDX-License-Identifier: Apache-2.0
"""A limit of address space (``ulimit -v``, ``h_vmem`` of Grid Engine): refused in time, or prepared for.

Linear algebra libraries (OpenBLAS, which comes with numpy and again with scipy) ask for their work
arrays while they are loaded, and ask again without end where the system has none to give.  So they
are loaded first, as long as there is room.
"""

from __future__ import annotations

import importlib
import resource

from bmex_bids.exceptions import EnvironmentProblem

#: bytes that the libraries of a run take of the address space, and a small brain
LEAST = 2 * 2**30
LIBRARIES = ("numpy", "scipy.linalg", "scipy.special", "torch", "SimpleITK")


def limit() -> int | None:
    """Bytes of address space that this process may take; None where there is no limit."""
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    return None if soft == resource.RLIM_INFINITY else soft


def check() -> None:
    """Refuse a limit below which not even the libraries have room (EnvironmentProblem)."""
    size = limit()
    if size is not None and size < LEAST:
        raise EnvironmentProblem(
            f"expected at least {LEAST / 2**30:.0f} GiB of address space, got a limit of "
            f"{size / 2**30:.2f} GiB (ulimit -v; h_vmem on some clusters); ask for more"
        )


def prepare() -> None:
    """What the first process does before anything heavy is loaded: :func:`check`, then load."""
    check()
    load_libraries()


def load_libraries() -> None:
    """Where there is a limit, load what would hang if it were loaded when there is no room left."""
    if limit() is not None:
        for name in LIBRARIES:
            importlib.import_module(name)

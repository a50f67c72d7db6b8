# SPDX-License-Identifier: Apache-2.0
"""``bmex-evaluate benchmark``: its flags, and the way from them to the tables and figures."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags and work of ``bmex-evaluate benchmark``."""
    parser.add_argument(
        "--data", type=Path, default=Path("../shared/data"), metavar="DIR",
        help="folder with lifespan-bids and label-maps (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR",
        help="where tables, figures and the cache of degraded images go; rows that are there "
        "already are not computed again",
    )  # fmt: skip
    parser.set_defaults(work=_work)


def _work(options: argparse.Namespace) -> int:
    from bmex_bids.exceptions import UsageError

    raise UsageError("the benchmark is being written")

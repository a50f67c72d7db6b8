# SPDX-License-Identifier: Apache-2.0
"""``bmex-evaluate score``: its flags, and its table."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags and work of ``bmex-evaluate score``."""
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR",
        help="folder for the table of figures; a stopped run continues from it",
    )  # fmt: skip
    data = Path("../shared/data")
    parser.add_argument(
        "--data", type=Path, default=data, metavar="DIR",
        help=f"folder with the validation images (default: {data})",
    )  # fmt: skip
    parser.add_argument("--draws", type=int, default=3, help="draws of each damage (default: 3)")
    parser.add_argument(
        "--images", nargs="+", default=[], metavar="NAME", help="only these (default: all)"
    )
    parser.add_argument(
        "--threads", type=int, default=1, help="threads of the processor (default: 1)"
    )
    parser.set_defaults(work=_work)


def _work(options: argparse.Namespace) -> int:
    import torch

    from bmex_bids.evaluation import score, torchio_cells
    from bmex_bids.network.weights.registry import select

    torch.set_num_threads(options.threads)
    record = select("score")
    print(f"weights {record.name} ({record.sha256[:12]})\n")
    second = torchio_cells.available()
    if not second:
        print("TorchIO is not installed: its cell is left out (install bmex_bids[benchmark])\n")
    units = list(score.plan(options.draws, images=options.images, second=second))
    rows = score.run(
        options.data, options.out, units, record, lambda line: print(line, flush=True)
    )
    print(f"\n{'figure':<58}{'value':>8}   goal")
    for line in score.lines(rows):
        verdict = {True: "reached", False: "NOT reached", None: ""}[line.reached]
        print(f"{line.what:<58}{line.value:>8.3f}   {line.goal} {verdict}".rstrip())
    return 0

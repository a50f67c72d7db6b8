# SPDX-License-Identifier: Apache-2.0
"""``bmex-evaluate strip``: its flags, and its table."""

from __future__ import annotations

import argparse
from pathlib import Path

from bmex_bids.cli import arguments

DICE_GOAL, LOST_GOAL_ML = 0.97, 1.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags and work of ``bmex-evaluate strip``."""
    parser.add_argument(
        "--heads", type=Path, default=Path("../shared/data/heads-open"), metavar="DIR",
        help="folder with NIfTI images of whole heads (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--masks", type=Path, metavar="DIR",
        help="folder with masks of another program, NAME_*.nii.gz (default: deepbet makes them for "
        "the T1w heads; install bmex_bids[deepbet])",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR",
        help="folder for the masks, and a picture of each head with both outlines",
    )  # fmt: skip
    arguments.add_networks(parser)
    parser.add_argument(
        "--threads", type=int, default=1, help="threads of the processor (default: 1)"
    )
    parser.set_defaults(work=_work)


def _work(options: argparse.Namespace) -> int:
    from bmex_bids.evaluation.stripping import head_rows
    from bmex_bids.exceptions import UsageError
    from bmex_bids.network.weights.registry import select

    heads = sorted(options.heads.glob("*.nii.gz"))
    if not heads:
        raise UsageError(
            f"expected images of heads in {options.heads}, found none; name their folder with "
            "--heads"
        )
    record = select("strip", weights=options.weights, weights_dir=options.weights_dir)
    print(f"weights {record.name} ({record.sha256[:12]})\n")
    print(
        f"{'head':<28}{'Dice':>8}{'litres':>8}{'other':>8}{'lost ml':>9}{'tissue':>8}{'added ml':>9}"
        f"{'mm':>6}{'95 %':>6}{'inside':>8}"
    )
    for name, found in head_rows(
        heads,
        record,
        masks=options.masks,
        out=options.out,
        device=options.device,
        threads=options.threads,
    ):
        if found is None:
            print(f"{name:<28}   no other mask; see its picture", flush=True)
            continue
        reached = found.dice >= DICE_GOAL and found.lost_tissue_ml <= LOST_GOAL_ML
        print(
            f"{name:<28}{found.dice:>8.4f}{found.litres:>8.3f}{found.other_litres:>8.3f}"
            f"{found.lost_ml:>9.1f}{found.lost_tissue_ml:>8.1f}{found.added_ml:>9.1f}{found.distance_mm:>6.2f}"
            f"{found.distance_95_mm:>6.2f}{found.inside_mm:>8.2f}"
            f"{'' if reached else '   goal NOT reached'}",
            flush=True,
        )
    print(f"\ngoal: Dice ≥ {DICE_GOAL:g}, tissue lost ≤ {LOST_GOAL_ML:g} ml")
    return 0

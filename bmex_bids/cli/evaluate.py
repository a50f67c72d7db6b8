# SPDX-License-Identifier: Apache-2.0
"""``bmex-evaluate``: figures of the weights on data that never trained them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bmex_bids.exceptions import BmexError

GOALS = {"noise 2.5%": 1.5, "minor": 0.0, "moderate": 0.0, "severe": 0.0, "2.4 mm": 0.0}
CLEAN_GOAL, DICE_GOAL = 34.0, 0.93


def build_parser() -> argparse.ArgumentParser:
    """The command line of ``bmex-evaluate``."""
    parser = argparse.ArgumentParser(
        prog="bmex-evaluate",
        description="Measure what the weights mend: PSNR inside the brain on two unseen images that "
        "are degraded by simulation, and the overlap of the stripping network on synthetic heads.",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="the short benchmark (the only one so far; the default)",
    )
    parser.add_argument(
        "--data", type=Path, default=Path("../shared/data"), metavar="DIR",
        help="folder with lifespan-bids and label-maps (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--weights", default="bundled", help="weight set (default: %(default)s)")
    parser.add_argument(
        "--weights-dir", type=Path, metavar="DIR", help="folder with published weights"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--threads", type=int, help="of the processor (default: all)")
    parser.add_argument("--only", choices=["enhance", "strip"], help="half of it")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``bmex-evaluate`` with a command line and return its exit code."""
    options = build_parser().parse_args(argv)
    try:
        if options.only != "strip":
            _enhancement(options)
        if options.only != "enhance":
            _stripping(options)
    except BmexError as error:
        print(f"bmex-evaluate: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _enhancement(options: argparse.Namespace) -> None:
    from bmex_bids.evaluation.quick import enhancement_rows
    from bmex_bids.network.registry import select

    record = select("enhance", weights=options.weights, weights_dir=options.weights_dir)
    print(f"weights {record.name} ({record.sha256[:12]})\n")
    print(f"{'image':<24}{'cell':<12}{'degraded':>10}{'enhanced':>10}{'gain':>8}   goal")
    for row in enhancement_rows(
        options.data, record, device=options.device, threads=options.threads
    ):
        if row.cell == "clean":
            met, goal, before, gain = row.after >= CLEAN_GOAL, f"≥ {CLEAN_GOAL:g} dB", "–", "–"
        else:
            wanted = GOALS[row.cell]
            met, goal = row.gain > 0 and row.gain >= wanted, f"gain ≥ {wanted:g} dB"
            before, gain = f"{row.before:.2f}", f"{row.gain:+.2f}"
        print(
            f"{row.image:<24}{row.cell:<12}{before:>10}{row.after:>10.2f}{gain:>8}   {goal} "
            f"{'reached' if met else 'NOT reached'}",
            flush=True,
        )


def _stripping(options: argparse.Namespace) -> None:
    from bmex_bids.evaluation.quick import stripping_rows
    from bmex_bids.network.registry import select

    record = select("strip", weights="bundled")
    print(f"\nweights {record.name} ({record.sha256[:12]})\n\n{'synthetic head':<24}{'Dice':>8}")
    figures = []
    for name, value in stripping_rows(
        options.data, record, device=options.device, threads=options.threads
    ):
        figures.append(value)
        print(f"{name:<24}{value:>8.4f}", flush=True)
    mean = sum(figures) / len(figures)
    verdict = "reached" if mean >= DICE_GOAL else "NOT reached"
    print(f"{'mean':<24}{mean:>8.4f}   goal ≥ {DICE_GOAL:g} {verdict}")
    print(f"{'worst':<24}{min(figures):>8.4f}")


if __name__ == "__main__":
    sys.exit(main())

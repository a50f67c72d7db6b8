# SPDX-License-Identifier: Apache-2.0
"""``bmex-evaluate``: figures of the weights on data that never trained them.

One subcommand a question: ``quick`` (is anything broken?), ``benchmark`` (where do the weights
help, and where do they harm?), and what other modules of this package add to :data:`COMMANDS`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from bmex_bids.cli import (
    arguments,
    evaluate_benchmark,
    evaluate_bias,
    evaluate_gate,
    evaluate_lesions,
    evaluate_pages,
    evaluate_pairs,
    evaluate_ratings,
    evaluate_recon,
    evaluate_score,
    evaluate_speed,
    evaluate_strip,
    evaluate_super,
    evaluate_uncertainty,
)
from bmex_bids.cli.ending import ended

#: gain in dB that each of training's validation cells but "clean" is to have
GOALS = {
    "noise 1%": 0.0,
    "noise 2.5%": 1.5,
    "minor": 0.0,
    "moderate": 0.0,
    "severe": 0.0,
    "2.4 mm": 0.0,
}
CLEAN_GOAL, DICE_GOAL, WORST_DICE_GOAL = 34.0, 0.96, 0.93


def add_quick(parser: argparse.ArgumentParser) -> None:
    """Flags and work of ``bmex-evaluate quick``."""
    parser.add_argument("--quick", action="store_true", help=argparse.SUPPRESS)  # as it was called
    parser.add_argument(
        "--data", type=Path, default=Path("../shared/data"), metavar="DIR",
        help="folder with lifespan-bids and label-maps (default: %(default)s)",
    )  # fmt: skip
    arguments.add_networks(parser)
    parser.add_argument("--threads", type=int, help="threads of the processor (default: all)")
    parser.add_argument("--only", choices=["enhance", "strip"], help="only this half")
    parser.set_defaults(work=_quick)


#: subcommand → (one line of help, what adds its flags and sets ``work``: options → exit code)
COMMANDS: Mapping[str, tuple[str, Callable[[argparse.ArgumentParser], None]]] = {
    "quick": (
        "PSNR of two unseen brains, clean and with six kinds of damage, and Dice of brain extraction (minutes)",
        add_quick,
    ),
    "benchmark": (
        "damaged validation images through the whole app, with tables and pictures (hours)",
        evaluate_benchmark.add_arguments,
    ),
    "uncertainty": (
        "expected error against the true error of damaged images, and the factor on it (hours)",
        evaluate_uncertainty.add_arguments,
    ),
    "lesions": (
        "contrast of synthetic and real lesions before and after enhancement (hours)",
        evaluate_lesions.add_arguments,
    ),
    "bias": (
        "volumes of still and moved images, before and after, against the true ones (hours)",
        evaluate_bias.add_arguments,
    ),
    "harmonisation": (
        "distance of the same brains in synthetic scanners, matched only and enhanced (hours)",
        partial(evaluate_pages.add_arguments, name="harmonisation"),
    ),
    "downstream": (
        "registration of damaged synthetic heads with known structures, before and after (hours)",
        partial(evaluate_pages.add_arguments, name="downstream"),
    ),
    "low-field": (
        "simulated scans of 64 mT: bmex against splines and non-local means, with pictures (hours)",
        partial(evaluate_pages.add_arguments, name="low-field"),
    ),
    "strip": (
        "brain masks of real heads against those of another program, with pictures (minutes)",
        evaluate_strip.add_arguments,
    ),
    "super": (
        "super-resolution against cubic splines and Lanczos, on averaged and synthetic images (minutes)",
        evaluate_super.add_arguments,
    ),
    "score": (
        "estimates of the score against known damage, beside other measures (hours)",
        evaluate_score.add_arguments,
    ),
    "gate": (
        "how often each rule of the quality gate fires on good and on broken outputs (minutes)",
        evaluate_gate.add_arguments,
    ),
    "pairs": (
        "scans with real motion against a still scan of the same person, before and after",
        evaluate_pairs.add_arguments,
    ),
    "ratings": (
        "experts' ratings before and after, and their correlation with scores, by site",
        evaluate_ratings.add_arguments,
    ),
    "recon": (
        "LF-MRI and classical reconstructions of unseen k-space, 4 and 8 times faster (an hour)",
        evaluate_recon.add_arguments,
    ),
    "speed": (
        "time, memory and agreement of the ways to run the network, and N4, on this machine (minutes)",
        evaluate_speed.add_arguments,
    ),
}


def build_parser() -> argparse.ArgumentParser:
    """The command line of ``bmex-evaluate``."""
    parser = argparse.ArgumentParser(
        prog="bmex-evaluate",
        description="Measure what the weights improve and what they harm, on data that is not in "
        "their training.",
        epilog="Without a subcommand, quick is run.",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (line, add) in COMMANDS.items():
        add(commands.add_parser(name, help=line, description=f"{line[0].upper()}{line[1:]}."))
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``bmex-evaluate`` with a command line and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] not in {*COMMANDS, "-h", "--help"}:
        words.insert(0, "quick")  # the only one there was, before it had a name
    options = build_parser().parse_args(words)
    return ended("bmex-evaluate", lambda: int(options.work(options)))


def _quick(options: argparse.Namespace) -> int:
    if options.only != "strip":
        _enhancement(options)
    if options.only != "enhance":
        _stripping(options)
    return 0


def _enhancement(options: argparse.Namespace) -> None:
    from bmex_bids.evaluation.quick import enhancement_rows
    from bmex_bids.network.weights.registry import select

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
    from bmex_bids.network.weights.registry import select

    record = select("strip", weights="bundled")
    print(f"\nweights {record.name} ({record.sha256[:12]})\n\n{'synthetic head':<24}{'Dice':>8}")
    figures = []
    for name, value in stripping_rows(
        options.data, record, device=options.device, threads=options.threads
    ):
        figures.append(value)
        print(f"{name:<24}{value:>8.4f}", flush=True)
    for name, value, goal in (
        ("mean", sum(figures) / len(figures), DICE_GOAL),
        ("worst", min(figures), WORST_DICE_GOAL),
    ):
        verdict = "reached" if value >= goal else "NOT reached"
        print(f"{name:<24}{value:>8.4f}   goal ≥ {goal:g} {verdict}")


if __name__ == "__main__":
    sys.exit(main())

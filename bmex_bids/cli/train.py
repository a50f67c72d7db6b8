# SPDX-License-Identifier: Apache-2.0
"""``bmex-train``: make the weights that the package bundles, or better ones."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from bmex_bids.exceptions import BmexError


def build_parser() -> argparse.ArgumentParser:
    """The command line of ``bmex-train``."""
    parser = argparse.ArgumentParser(
        prog="bmex-train",
        description="Train the enhancement or the stripping network. A run that was stopped goes on "
        "from its last checkpoint when the same command is given again.",
    )
    parser.add_argument("network", choices=["enhance", "strip"], help="which of the two")
    parser.add_argument(
        "--data", type=Path, required=True, metavar="DIR",
        help="folder with lifespan-bids, histogram-templates and label-maps",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="checkpoints, log and weights"
    )
    parser.add_argument(
        "--steps", type=int, help="optimiser steps (the schedule's default when not given)"
    )
    parser.add_argument("--batch", type=int, help="samples in a step")
    parser.add_argument("--rate", type=float, help="highest learning rate")
    parser.add_argument(
        "--minutes", type=float, default=math.inf, help="stop after so long (default: never)"
    )
    parser.add_argument(
        "--validate-every", type=int, metavar="STEPS", help="steps between validations"
    )
    parser.add_argument("--seed", type=int, help="of everything that is drawn")
    parser.add_argument(
        "--threads", type=int, default=2, help="of the processor (default: %(default)s)"
    )
    parser.add_argument(
        "--device", default="cpu", help="cpu, cuda or cuda:N (default: %(default)s)"
    )
    parser.add_argument(
        "--fresh", action="store_true", help="do not go on from a checkpoint in --out"
    )
    parser.add_argument(
        "--without-tissues", action="store_true",
        help="enhance only: leave the tissue network out (the ablation)",
    )  # fmt: skip
    parser.add_argument(
        "--blocks", type=int, help="strip only: residual blocks a level (default: 2)"
    )
    parser.add_argument(
        "--start-from", type=Path, metavar="FILE",
        help="strip only: safetensors to begin with; blocks it does not have begin as the identity",
    )  # fmt: skip
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``bmex-train`` with a command line and return its exit code."""
    options = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    given = {
        name: value
        for name in ("steps", "batch", "rate", "validate_every", "seed")
        if (value := getattr(options, name)) is not None
    }
    given |= {"minutes": options.minutes, "threads": options.threads, "device": options.device}
    try:
        if options.network == "enhance":
            from bmex_bids.training import enhance

            config = enhance.EnhanceConfig(tissue_width=0 if options.without_tissues else 12)
            config = dataclasses.replace(
                config, schedule=dataclasses.replace(config.schedule, **given)
            )
            weights = enhance.train(options.data, options.out, config, resume=not options.fresh)
        else:
            from bmex_bids.training import strip

            plan = strip.StripConfig(start_from=options.start_from)
            if options.blocks is not None:
                plan = dataclasses.replace(plan, blocks=options.blocks)
            plan = dataclasses.replace(plan, schedule=dataclasses.replace(plan.schedule, **given))
            weights = strip.train(options.data, options.out, plan, resume=not options.fresh)
    except BmexError as error:
        print(f"bmex-train: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("bmex-train: interrupted; give the same command again to go on", file=sys.stderr)
        return 130
    print(f"weights: {weights}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

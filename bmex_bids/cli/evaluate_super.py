# SPDX-License-Identifier: Apache-2.0
"""``bmex-evaluate super``: its flags, and its tables."""

from __future__ import annotations

import argparse
from pathlib import Path

#: change of the error against cubic splines and Lanczos, %; gain of Dice against cubic splines
CUBIC_GOAL, LANCZOS_GOAL, DICE_GOAL = -15.0, -10.0, 0.03


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags and work of ``bmex-evaluate super``."""
    parser.add_argument(
        "images", type=Path, nargs="*", metavar="IMAGE",
        help="NIfTI images of brains or heads (default: four of --data that do not train)",
    )  # fmt: skip
    parser.add_argument(
        "--data", type=Path, default=Path("../shared/data"), metavar="DIR",
        help="folder with adult-brains, heads-open and label-maps (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--threads", type=int, default=1, help="threads of the processor (default: 1)"
    )
    parser.set_defaults(work=_work)


def _work(options: argparse.Namespace) -> int:
    from bmex_bids.evaluation.halving import IMAGES, fluid_rows, image_rows
    from bmex_bids.exceptions import WeightsError
    from bmex_bids.network.weights.registry import bundled_of
    from bmex_bids.training.images import VALIDATION_MAPS, require

    record = bundled_of("super")
    if record is None:
        raise WeightsError("expected bundled weights of a network that super-resolves, found none")
    images = options.images
    if not images:
        require(options.data, [*IMAGES, *VALIDATION_MAPS])
        images = [options.data / name for name in IMAGES]
    print(f"weights {record.name} ({record.sha256[:12]})\n")
    print(f"{'error (RMSE)':<24}{'cubic':>8}{'Lanczos':>9}{'network':>9}{'':>9}")
    for name, error in image_rows(images, record, options.threads):
        cubic, lanczos = (100 * (error["network"] / error[w] - 1) for w in ("cubic", "lanczos"))
        reached = cubic <= CUBIC_GOAL and lanczos <= LANCZOS_GOAL
        print(
            f"{name:<24}{error['cubic']:>8.2f}{error['lanczos']:>9.2f}{error['network']:>9.2f}"
            f"   {cubic:+.1f} %, {lanczos:+.1f} %{'' if reached else '   goal NOT reached'}",
            flush=True,
        )
    if options.images:
        return 0
    print(f"\n{'fluid (Dice)':<24}{'cubic':>8}{'Lanczos':>9}{'network':>9}")
    maps = [options.data / name for name in VALIDATION_MAPS]
    for name, dice in fluid_rows(maps, record, options.threads):
        gain = dice["network"] - dice["cubic"]
        print(
            f"{name:<24}{dice['cubic']:>8.3f}{dice['lanczos']:>9.3f}{dice['network']:>9.3f}"
            f"   {gain:+.3f}{'' if gain >= DICE_GOAL else '   goal NOT reached'}",
            flush=True,
        )
    return 0

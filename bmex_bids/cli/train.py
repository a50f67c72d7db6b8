# SPDX-License-Identifier: Apache-2.0
"""``bmex-train``: make the weights that the package bundles, or better ones."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bmex_bids.cli.ending import ended
from bmex_bids.exceptions import UsageError
from bmex_bids.outputs.files import write_text
from bmex_bids.settings import dumps, loads

SCHEDULE = (
    "steps", "batch", "rate", "minutes", "validate_every", "seed", "threads", "workers", "device",
    "precision",
)  # fmt: skip


#: network → module in ``bmex_bids.training``, class of its settings
MAKERS = {
    "enhance": ("enhance", "EnhanceConfig"),
    "strip": ("strip", "StripConfig"),
    "campaign": ("campaign", "CampaignConfig"),
    "score": ("score", "ScoreConfig"),
    "within": ("within", "WithinConfig"),
    "denoise": ("denoise", "DenoiseConfig"),
    "super": ("halve", "HalveConfig"),
    "recon": ("recon", "ReconConfig"),
    "segment": ("segment", "SegmentConfig"),
}


def build_parser() -> argparse.ArgumentParser:
    """The command line of ``bmex-train``."""
    parser = argparse.ArgumentParser(
        prog="bmex-train",
        description="Train a network. The same command continues a stopped run from its last "
        "checkpoint.",
    )
    parser.add_argument(
        "network",
        choices=list(MAKERS),
        help="enhance: enhancement of infants and T2w images; strip: brain extraction; campaign: "
        "enhancement over slices; score: quality without reference; within: thick slices; denoise: "
        "noise; super: super-resolution; recon: LF-MRI for bmex-recon; segment: structures",
    )
    parser.add_argument(
        "--data", type=Path, required=True, metavar="DIR",
        help="folder with lifespan-bids, histogram-templates and label-maps; super: or any images "
        "NAME_T1w.nii.gz (T2w …), such as 7 T images of 0.4 mm",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR",
        help="checkpoints, log, weights, and the settings (config.toml) that --config reads",
    )  # fmt: skip
    parser.add_argument(
        "--config", type=Path, metavar="FILE",
        help="settings as TOML; flags overrule them",
    )  # fmt: skip
    parser.add_argument("--fresh", action="store_true", help="ignore a checkpoint in --out")

    schedule = parser.add_argument_group("schedule (defaults differ by network)")
    schedule.add_argument("--steps", type=int, help="optimiser steps")
    schedule.add_argument("--batch", type=int, help="samples of a step")
    schedule.add_argument("--rate", type=float, help="highest learning rate")
    schedule.add_argument(
        "--minutes", type=float, help="stop after this time; campaign: sum over all its runs"
    )
    schedule.add_argument(
        "--validate-every", type=int, metavar="STEPS", help="steps between validations"
    )
    schedule.add_argument("--seed", type=int, help="random seed")
    schedule.add_argument("--threads", type=int, help="threads of the processor")
    schedule.add_argument("--workers", type=int, help="processes that make training data")
    schedule.add_argument("--device", help="cpu, cuda or cuda:N")
    schedule.add_argument(
        "--precision",
        choices=["float32", "bfloat16"],
        help="bfloat16: mixed precision, for GPUs and processors with AMX",
    )

    network = parser.add_argument_group("network")
    network.add_argument(
        "--without-tissues", action="store_true",
        help="enhance: leave the tissue network out, for comparison",
    )  # fmt: skip
    network.add_argument("--blocks", type=int, help="residual blocks of each level")
    network.add_argument("--width", type=int, help="channels of the finest level")
    network.add_argument(
        "--start-from", type=Path, metavar="FILE",
        help="weights to start from (safetensors); the network may have more blocks and channels",
    )  # fmt: skip
    network.add_argument(
        "--heads", type=Path, metavar="DIR",
        help="strip: real heads NAME.nii.gz with a mask in --masks, as further training data",
    )  # fmt: skip
    network.add_argument(
        "--masks", type=Path, metavar="DIR", help="strip: brain masks of --heads, NAME_*.nii.gz"
    )
    return parser


def settings(options: argparse.Namespace, default: Any) -> Any:
    """The default settings, overruled by the file, overruled by the flags."""
    config = default
    if options.config is not None:
        try:
            text = options.config.read_text(encoding="utf-8")
        except OSError as error:
            raise UsageError(f"expected settings in {options.config}: {error.strerror}") from error
        config = loads(type(default), text, str(options.config), default)
    given = {name: getattr(options, name) for name in SCHEDULE}
    schedule = {name: value for name, value in given.items() if value is not None}
    network = {
        name: value
        for name in ("blocks", "width", "start_from", "heads", "masks")
        if (value := getattr(options, name)) is not None
    }
    if options.without_tissues:
        network["tissue_width"] = 0
    unknown = sorted(set(network) - {item.name for item in dataclasses.fields(config)})
    if unknown:
        raise UsageError(
            f"{', '.join(unknown)} is not for 'bmex-train {options.network}'; leave it out"
        )
    return dataclasses.replace(
        config, schedule=dataclasses.replace(config.schedule, **schedule), **network
    )


def train(options: argparse.Namespace) -> Path:
    """Train what the command line asks for; returns the file of weights."""
    module, config_class = MAKERS[options.network]
    maker = importlib.import_module(f"bmex_bids.training.{module}")
    config = settings(options, getattr(maker, config_class)())
    options.out.mkdir(parents=True, exist_ok=True)
    write_text(options.out / "config.toml", dumps(config))
    return Path(maker.train(options.data, options.out, config, resume=not options.fresh))


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``bmex-train`` with a command line and return its exit code."""
    options = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)

    def work() -> int:
        print(f"weights: {train(options)}")
        return 0

    again = "interrupted; give the same command again to go on"
    return ended("bmex-train", work, interrupted=again)


if __name__ == "__main__":
    sys.exit(main())

# SPDX-License-Identifier: Apache-2.0
"""Flags → :class:`~bmex_bids.config.Config`.  Loads nothing heavy, touches no file."""

from __future__ import annotations

import argparse
import math
import re
import uuid
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

from bmex_bids import __version__
from bmex_bids.cli.resources import available_cpus
from bmex_bids.config import (
    AgeOverride,
    Config,
    Execution,
    Paths,
    Processing,
    Resources,
    Selection,
)
from bmex_bids.exceptions import UsageError
from bmex_bids.network.registry import PUBLISHED

#: threads beyond this number bring a step nothing
MOST_THREADS = 8
MEMORY_UNITS = {"K": 2**-20, "M": 2**-10, "G": 1.0, "T": 2.0**10}  # in 2^30 bytes


def parse(argv: Sequence[str] | None = None) -> Config:
    """The configuration of a command line.

    ``--help``, ``--version`` and what argparse itself refuses end the program (exit code 0 or 2).

    Raises
    ------
    UsageError
        A path does not exist or lies where it must not.
    """
    options = build_parser().parse_args(argv)
    nprocs = options.nprocs or available_cpus()
    threads = options.omp_nthreads or min(nprocs, MOST_THREADS)
    weights, weights_dir = _weights(options.weights, options.weights_dir)
    config = Config(
        run_id=new_run_id(),
        version=__version__,
        paths=Paths(
            bids_dir=_absolute(options.bids_dir),
            output_dir=_absolute(options.output_dir),
            work_dir=_absolute(options.work_dir),
        ),
        analysis_levels=tuple(dict.fromkeys(options.analysis_level)),
        selection=Selection(
            participants=_labels(options.participant_label, "sub-"),
            sessions=_labels(options.session_label, "ses-"),
            runs=_labels(options.run_label, "run-"),
            modalities=tuple(sorted(set(options.modalities))),
        ),
        age=AgeOverride(months=options.age_months, fetal=options.fetal),
        processing=Processing(
            skull_strip=options.skull_strip,
            device=options.device,
            weights=weights,
            weights_dir=weights_dir,
        ),
        resources=Resources(
            nprocs=nprocs, omp_nthreads=min(threads, nprocs), mem_gb=options.mem_mb
        ),
        execution=Execution(
            skip_bids_validation=options.skip_bids_validation,
            dry_run=options.dry_run,
            stop_on_first_crash=options.stop_on_first_crash,
            verbosity=options.verbose,
        ),
    )
    check_paths(config.paths)
    return config


def build_parser() -> argparse.ArgumentParser:
    """The parser of ``bmex``."""
    parser = argparse.ArgumentParser(
        prog="bmex",
        description="Enhance the T1w and T2w images of a BIDS dataset: less motion, less noise, "
        "finer slices, with tissue maps and a report.",
        epilog="Exit codes: 0 all done; 1 something failed; 2 the command line is wrong; 3 some "
        "images are done and some failed; 4 no usable input; 5 the machine stands in the way "
        "(weights, device, permission).",
        allow_abbrev=False,
    )
    parser.add_argument("bids_dir", type=Path, help="the dataset; it stays untouched")
    parser.add_argument(
        "output_dir", type=Path, help="where results go; is made; not inside bids_dir"
    )
    parser.add_argument(
        "analysis_level", nargs="+", choices=["participant"], help="what to do: each image"
    )
    parser.add_argument("--version", action="version", version=f"bmex {__version__}")
    parser.add_argument(
        "-v", "--verbose", action="count", default=0, help="say more; -vv: say everything"
    )
    _add_selection(parser.add_argument_group("which images"))
    _add_processing(parser.add_argument_group("what is done to them"))
    _add_execution(parser.add_argument_group("how"))
    return parser


def _add_selection(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--participant-label",
        "--participant_label",
        nargs="+",
        metavar="LABEL",
        help="only these participants, with or without sub-",
    )
    group.add_argument(
        "--session-label",
        "--session_label",
        "--session-id",
        nargs="+",
        metavar="LABEL",
        help="only these sessions, with or without ses-",
    )
    group.add_argument("--run-label", "--run_label", nargs="+", metavar="LABEL", help="only these")
    group.add_argument(
        "--modalities",
        nargs="+",
        choices=["T1w", "T2w"],
        default=["T1w", "T2w"],
        help="only these (both)",
    )
    group.add_argument(
        "--skip-bids-validation",
        "--skip_bids_validation",
        action="store_true",
        help="do not run bids-validator-deno on the dataset first",
    )


def _add_processing(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--age-months",
        type=_number(float, at_least=0),
        metavar="M",
        help="the age of all images of this run, instead of the dataset's; 0 is an age",
    )
    group.add_argument(
        "--fetal",
        action="store_true",
        help="the images are of fetuses; --age-months counts from conception",
    )
    group.add_argument(
        "--skull-strip",
        choices=["auto", "skip", "force"],
        default="auto",
        help="auto (default) recognises an image whose skull is gone; skip takes every image for "
        "one; force runs the stripping network",
    )
    group.add_argument(
        "--device",
        default="auto",
        metavar="{auto,cpu,cuda,cuda:N}",
        type=_device,
        help="auto (default) takes a GPU when there is one; cuda fails when there is none",
    )
    group.add_argument(
        "--weights",
        default="auto",
        metavar="NAME_or_DIR",
        help="auto (default), bundled, the name of one set, or a folder with the published files",
    )
    group.add_argument(
        "--weights-dir",
        type=Path,
        metavar="DIR",
        help="folder with the published files; auto takes them where they fit",
    )


def _add_execution(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "-w",
        "--work-dir",
        "--work_dir",
        type=Path,
        default=Path("work"),
        metavar="DIR",
        help="where intermediate files go and stay (./work); not inside bids_dir or output_dir",
    )
    group.add_argument(
        "--nprocs",
        "--n-cpus",
        "--n_cpus",
        type=_number(int, at_least=1),
        metavar="N",
        help="processors to use (all that the machine, container and SLURM allow)",
    )
    group.add_argument(
        "--omp-nthreads",
        type=_number(int, at_least=1),
        metavar="N",
        help=f"processors for one step (nprocs, at most {MOST_THREADS})",
    )
    group.add_argument(
        "--mem-mb",
        "--mem_mb",
        type=_memory,
        metavar="M",
        help="memory to use, in MB or with a suffix K, M, G, T (all that is allowed)",
    )
    group.add_argument(
        "--dry-run", action="store_true", help="say what would be done, and do nothing"
    )
    group.add_argument(
        "--stop-on-first-crash",
        action="store_true",
        help="stop when one image fails; without it the others are done",
    )
    group.add_argument(
        "--notrack", action="store_true", help="does nothing: bmex never sends anything anywhere"
    )


def new_run_id() -> str:
    """Time and a random part: ``20251121-080534_1f0c9a7e``; sorts by time, never collides."""
    return f"{datetime.now().astimezone():%Y%m%d-%H%M%S}_{uuid.uuid4().hex[:8]}"


def check_paths(paths: Paths) -> None:
    """Refuse paths that are missing or would put files where they must not be (UsageError)."""
    bids_dir, output_dir, work_dir = paths.bids_dir, paths.output_dir, paths.work_dir
    if not bids_dir.is_dir():
        what = "a file" if bids_dir.exists() else "nothing"
        raise UsageError(
            f"expected a dataset folder at {bids_dir}, found {what}; check the path, and inside a "
            "container whether it is mounted"
        )
    if output_dir.is_relative_to(bids_dir):
        raise UsageError(
            f"expected an output folder outside the dataset {bids_dir}, got {output_dir}; name "
            f"another, such as {bids_dir}-bmex"
        )
    if work_dir.is_relative_to(bids_dir):
        raise UsageError(
            f"expected a work folder outside the dataset {bids_dir}, got {work_dir}; name another "
            "with -w"
        )
    if work_dir.is_relative_to(output_dir):
        raise UsageError(
            f"expected a work folder outside the output {output_dir}, which is to be a valid BIDS "
            f"dataset, got {work_dir}; name another with -w"
        )


def _absolute(path: Path) -> Path:
    """Absolute, links followed; the path need not exist."""
    return path.expanduser().resolve()


def _labels(values: Sequence[str] | None, prefix: str) -> tuple[str, ...] | None:
    """Without prefix and doubles, sorted; None stays None.

    >>> _labels(["sub-02", "01", "02"], "sub-")
    ('01', '02')
    """
    if values is None:
        return None
    return tuple(sorted({value.removeprefix(prefix) for value in values}))


def _weights(name: str, folder: Path | None) -> tuple[str, Path | None]:
    """``--weights DIR`` means: the published files of this folder and no others."""
    folder = None if folder is None else _absolute(folder)
    if folder is None and name not in {"auto", "bundled"} and Path(name).expanduser().is_dir():
        return PUBLISHED, _absolute(Path(name))
    if folder is not None and not folder.is_dir():
        raise UsageError(f"expected a folder of weights at {folder}, found none; check the path")
    return name, folder


def _number(kind: Callable[[str], float], *, at_least: float) -> Callable[[str], float]:
    def convert(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and value >= at_least):
            whole = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(
                f"expected {whole} of {at_least} or more, got {text!r}"
            )
        return value

    return convert


def _device(text: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", text):
        raise argparse.ArgumentTypeError(f"expected auto, cpu, cuda or cuda:N, got {text!r}")
    return text


def _memory(text: str) -> float:
    """Memory in 2^30 bytes.

    >>> _memory("2048"), _memory("1.5G"), _memory("2T")
    (2.0, 1.5, 2048.0)
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)B?", text.strip().upper())
    if not found or float(found[1]) == 0:
        raise argparse.ArgumentTypeError(f"expected memory such as 8000 or 8G, got {text!r}")
    return float(found[1]) * MEMORY_UNITS[found[2] or "M"]

# SPDX-License-Identifier: Apache-2.0
"""``bmex-enhance``: the command line of :mod:`bmex_bids.running.single`."""

from __future__ import annotations

import argparse
import gzip
import shutil
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from bmex_bids.cli import arguments
from bmex_bids.cli.ending import ended
from bmex_bids.cli.files import check_distinct, check_target
from bmex_bids.cli.streams import forgiving, say
from bmex_bids.common.contrasts import SUFFIXES
from bmex_bids.common.names import sidecar_of
from bmex_bids.common.scoring import in_words
from bmex_bids.config import MOST_THREADS
from bmex_bids.outputs.records import MOTION, motion_in_words, table_of
from bmex_bids.running import interrupts, single
from bmex_bids.running.single import Request, Result
from bmex_bids.running.status import EXIT_DONE, EXIT_FAILED, gate_reasons

PROGRAM = "bmex-enhance"
#: option → which product of the workflow it saves (``field`` of ``outputs.sidecar.PRODUCTS``)
SAVES: Mapping[str, str] = {
    "OUT": "enhanced_native",
    "--save-res": "enhanced_res",
    "--save-head": "preproc_native",
    "--save-mask": "mask_native",
    "--save-dseg": "dseg_native",
    "--save-uncertainty": "uncertainty_native",
}
REPORT = "--report"


def main(argv: Sequence[str] | None = None) -> int:
    """Enhance one image and return an exit code, as ``bmex`` has them."""
    with forgiving():
        options = build_parser().parse_args(argv)
        return ended(
            PROGRAM,
            lambda: _main(options),
            interrupted="interrupted; no half-written file is left",
        )


def _main(options: argparse.Namespace) -> int:
    request, targets = check(options)
    with interrupts.handled(), single.temporary_folder(PROGRAM) as folder:
        result = single.run(request, folder, say=say)
        record, absent = save(result, targets)
    passed = True
    for line, good in conclusion(targets, record, absent):
        passed = passed and good
        print(line, file=sys.stdout if good else sys.stderr, flush=True)
    return EXIT_DONE if passed else EXIT_FAILED


def build_parser() -> argparse.ArgumentParser:
    """The parser of ``bmex-enhance``; flags are those of ``bmex`` where both have them."""
    parser = arguments.Parser(
        prog=PROGRAM,
        description="Enhance one anatomical image of a brain: less motion, less noise. For a "
        "whole study use bmex, which does the same to each image of a BIDS dataset.",
        epilog="Exit codes: 0 done; 1 the image failed, or the result did not pass the quality "
        "gate; 2 the command line is wrong; 5 problem of the machine (weights, device, permission, "
        "disk). Intermediate files go to a temporary folder (set TMPDIR for another disk) and are "
        "removed.",
        allow_abbrev=False,
    )
    parser.add_argument("source", metavar="IN", type=Path, help="NIfTI image; it is not changed")
    parser.add_argument(
        "out",
        metavar="OUT",
        type=Path,
        help="the enhanced brain on the grid of IN, in harmonised intensities (0 to about 1000): "
        ".nii.gz or .nii; OUT.json beside it says how it was made",
    )
    arguments.add_shared(parser, "age_months", required=True, help="age at the scan; 0 is an age")
    arguments.add_shared(
        parser,
        "fetal",
        help="a fetus: the age counts from conception, and --contrast must be T2w",
    )
    parser.add_argument(
        "--contrast",
        choices=list(SUFFIXES),
        default="T1w",
        help="contrast of IN (default: %(default)s)",
    )
    _add_saves(parser.add_argument_group("further outputs"))
    _add_processing(parser.add_argument_group("processing"))
    arguments.add_shared(parser, "verbose")
    parser.add_argument("--version", action=arguments.ShowVersion)
    return parser


def _add_saves(group: argparse._ArgumentGroup) -> None:
    for name, text in (
        ("--save-res", "the enhanced brain at 0.8 mm (fetus: 0.75 mm), as the network made it"),
        ("--save-head", "the whole head with the enhanced brain in it, in the intensities of IN"),
        ("--save-mask", "the brain mask"),
        ("--save-dseg", "tissues: 1 grey matter, 2 white matter, 3 fluid"),
        (
            "--save-uncertainty",
            "the expected error of OUT (standard deviation), in its units, if the weights estimate it",
        ),
    ):
        group.add_argument(
            name, name.replace("save-", "save_"), type=Path, metavar="FILE", help=text
        )
    group.add_argument(
        REPORT,
        type=Path,
        metavar="FILE.html",
        help="a page with pictures before and after, all in one file",
    )


def _add_processing(group: argparse._ArgumentGroup) -> None:
    arguments.add_shared(
        group,
        "skull_strip",
        help="auto (default): detect whether the skull is already removed; skip: IN is already "
        "stripped; force: always run the stripping network",
    )
    group.add_argument(
        "--mask",
        type=Path,
        metavar="FILE",
        help="a brain mask made by another program, used instead of skull stripping; voxels above "
        "0.5 are brain",
    )
    for name in single.SETTINGS:
        if name not in {"skull_strip", "omp_nthreads"}:
            arguments.add_shared(group, arguments.entry_named(name).setting.option)
    arguments.add_shared(
        group,
        "omp_nthreads",
        help=f"processors to use (default: all that are allowed, at most {MOST_THREADS})",
    )


def check(options: argparse.Namespace) -> tuple[Request, dict[str, Path]]:
    """Look at every path before anything is read.

    Returns
    -------
    what is asked for, and flag → where its file is saved, with ``"OUT"`` always

    Raises
    ------
    UsageError
        IN is not there, a name has another ending than its kind of file, or two files are one.
    OutputError
        A folder to save in is missing or cannot be written.
    """
    # links are not followed: the names that count are those the user gave
    source = options.source.expanduser().absolute()
    targets = {"OUT": options.out}
    for flag in (*SAVES, REPORT):
        value = getattr(options, flag.lstrip("-").replace("-", "_"), None)
        if value is not None:
            targets[flag] = value
    targets = {flag: path.expanduser().absolute() for flag, path in targets.items()}
    mask = None if options.mask is None else options.mask.expanduser().absolute()
    single.check_source("IN", source)
    if mask is not None:
        single.check_source("--mask", mask)
    for flag, path in targets.items():
        check_target(flag, path)
    check_distinct({"IN": source} | ({"--mask": mask} if mask else {}), targets)
    request = Request(
        source=source,
        contrast=options.contrast,
        age_months=options.age_months,
        fetal=options.fetal,
        mask=mask,
        report=REPORT in targets,
        settings={
            name: getattr(options, arguments.entry_named(name).setting.option)
            for name in single.SETTINGS
        },
        verbosity=options.verbose,
    )
    return request, targets


def save(result: Result, targets: Mapping[str, Path]) -> tuple[dict[str, Any], set[str]]:
    """Copy what was asked for out of the temporary folder, all of it or nothing.

    Parameters
    ----------
    targets : flag → file

    Returns
    -------
    record, absent : what stands under ``BMEX`` in the sidecar of OUT, and the flags whose image
        was not made
    """
    from bmex_bids.outputs.files import as_json, write_together

    wanted = {SAVES[flag]: path for flag, path in targets.items() if flag in SAVES}
    fills: dict[Path, Callable[[Path], object]] = {}
    records = {}
    for product, image, sidecar in result.files():
        target = wanted.get(product.field)
        if target is None:
            continue
        content = single.read_sidecar(sidecar)
        records[product.field] = content["BMEX"]
        fills[sidecar_of(target)] = partial(_write_text, text=as_json(content))
        fills[target] = partial(_copy_image, image, packed=target.name.endswith(".gz"))
    if REPORT in targets:
        fills[targets[REPORT]] = partial(_write_text, text=result.page())
    write_together(fills)
    absent = {flag for flag in targets if flag in SAVES and SAVES[flag] not in records}
    return dict(records[SAVES["OUT"]]), absent


def _write_text(path: Path, *, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _copy_image(source: Path, target: Path, *, packed: bool) -> None:
    """Copy a ``.nii.gz``, unpacked where a ``.nii`` is wanted."""
    with source.open("rb") if packed else gzip.open(source) as stream, target.open("wb") as file:
        shutil.copyfileobj(stream, file)


def conclusion(
    targets: Mapping[str, Path], record: Mapping[str, Any], absent: Collection[str] = ()
) -> Iterator[tuple[str, bool]]:
    """What is said at the end, line by line, and whether it is as the user hoped.

    Parameters
    ----------
    absent : flags whose image was not made: tissues where the contrast is wrong, the uncertainty
        where the weights have not learnt it
    """
    titles = {
        "OUT": "enhanced",
        "--save-res": "fine grid",
        "--save-head": "head",
        "--save-mask": "mask",
        "--save-dseg": "tissues",
        "--save-uncertainty": "uncertainty",
        REPORT: "report",
    }
    for flag, title in titles.items():
        if flag in absent:
            yield f"{title}: not made, so {flag} saved nothing", True
        elif flag in targets:
            yield f"{title}: {targets[flag]}", True
    quality = record["Quality"]
    scored = quality.get("Score") or {}
    if scored.get("before"):
        yield in_words(scored["before"], scored.get("after")), True
    yield (
        f"tissue contrast (TCT): {_figure(quality['tct_before'])} -> "
        f"{_figure(quality['tct_after'])}; quality index (QI, before over after): "
        f"{_figure(quality['qi'])}",
        True,
    )
    if table_of(record, MOTION).get("Applied"):
        yield f"corrected: {motion_in_words(record)}", True
    for text in record["Warnings"]:
        yield f"warning: {text}", True
    gate = record["Gate"]
    for text in gate_reasons(gate):
        yield f"quality gate: {text}", True
    if gate["Verdict"] == "fail":
        yield f"{PROGRAM}: the result did NOT pass the quality gate; look at it before use", False


def _figure(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.2f}"


if __name__ == "__main__":
    sys.exit(main())

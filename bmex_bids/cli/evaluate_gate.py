# SPDX-License-Identifier: Apache-2.0
"""``bmex-evaluate gate``: its flags, and the way from them to the page."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bmex_bids.evaluation.gate import Sample

#: of the page that is written
MARK = "gate"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags and work of ``bmex-evaluate gate``."""
    parser.add_argument(
        "--outputs", type=Path, nargs="*", default=[], metavar="DIR", help="outputs of bmex"
    )
    parser.add_argument(
        "--damaged", metavar="REGEX",
        help="names of the images in --outputs whose scans are damaged, and count as such",
    )  # fmt: skip
    parser.add_argument(
        "--data", type=Path, metavar="DIR",
        help="folder with adult-brains, heads-open, fetal-atlas, label-maps and MANIFEST.tsv",
    )  # fmt: skip
    parser.add_argument(
        "--masks", type=Path, metavar="DIR", help="brain masks of heads-open, NAME_*.nii.gz"
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR",
        help="folder for gate.tsv; samples in it are not measured again",
    )  # fmt: skip
    parser.add_argument(
        "--page", type=Path, metavar="FILE.md",
        help="replace the text between the marks 'gate: begin' and 'gate: end' of this page",
    )  # fmt: skip
    parser.set_defaults(work=_work)


def _work(options: argparse.Namespace) -> int:
    from bmex_bids.evaluation.gate import (
        DAMAGED,
        GOOD,
        append,
        by_rule,
        markdown,
        read_rows,
        rows_of,
    )
    from bmex_bids.evaluation.summary import replaced
    from bmex_bids.exceptions import UsageError
    from bmex_bids.outputs.files import write_text

    table = options.out / "gate.tsv"
    rows = read_rows(table)
    done = {row.sample for row in rows}
    for sample in _samples(options):
        if sample.name not in done:
            damaged = options.damaged and re.search(options.damaged, sample.name)
            rows += rows_of(sample, DAMAGED if damaged else GOOD)
            append(table, rows)
            print(sample.name, rows[-1].verdict, flush=True)
    if not rows:
        raise UsageError(
            "expected outputs or images, got none; name them with --outputs or --data"
        )
    text = markdown(rows)
    print(f"\n{text}\n\n{by_rule(rows)}")
    if options.page is not None:
        page = options.page.read_text(encoding="utf-8")
        print(write_text(options.page, replaced(page, text, MARK)))
    return 0


def _samples(options: argparse.Namespace) -> Iterator[Sample]:
    from bmex_bids.evaluation.gate import FETAL_LABELS, ages, brains, label_maps, outputs
    from bmex_bids.evaluation.subjects import ADULT_MONTHS
    from bmex_bids.training.synthesis import tissue_lookup

    for folder in options.outputs:
        yield from outputs(folder)
    if options.data is None:
        return
    known = ages(options.data / "MANIFEST.tsv")
    yield from brains(options.data / "adult-brains", known)
    yield from label_maps(options.data / "fetal-atlas", FETAL_LABELS, None)
    yield from label_maps(options.data / "label-maps", tissue_lookup(), ADULT_MONTHS)
    if options.masks is not None:
        yield from brains(options.data / "heads-open", known, options.masks)

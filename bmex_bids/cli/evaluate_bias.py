# SPDX-License-Identifier: Apache-2.0
"""``bmex-evaluate bias``: its flags, and the way from them to the page."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from bmex_bids.cli.evaluate_benchmark import add_run
from bmex_bids.cli.evaluate_pages import figures_of
from bmex_bids.cli.evaluate_pairs import add_choice, compare_pairs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bmex_bids.evaluation.pairs import Row


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags and work of ``bmex-evaluate bias``."""
    add_run(parser, "bias.tsv and bias.md")
    group = parser.add_argument_group("a dataset with still and moved scans")
    group.add_argument(
        "--bids", type=Path, metavar="DIR", dest="bids_dir",
        help="compare its scans instead of the validation images, with --reference and --moved",
    )  # fmt: skip
    add_choice(group, required=False)
    parser.set_defaults(work=_work)


def _work(options: argparse.Namespace) -> int:
    if options.bids_dir is not None:
        rows, left_out, heading = compare_pairs(options)
        return _write(options, rows, {}, heading, left_out)
    from bmex_bids.evaluation import bias

    figures, weights = figures_of(options, bias, structures=True)
    heading = f"simulated motion, {weights}"
    return _write(options, bias.changes(figures), bias.truths(figures), heading, {})


def _write(
    options: argparse.Namespace,
    rows: Sequence[Row],
    truth: Mapping[tuple[str, str], float],
    heading: str,
    left_out: Mapping[str, str],
) -> int:
    from bmex_bids.evaluation import bias_page
    from bmex_bids.evaluation.pairs import volume_words, write_table
    from bmex_bids.evaluation.summary import replaced
    from bmex_bids.outputs.files import write_text

    rows = [row for row in rows if volume_words(row.measure)]
    text = bias_page.markdown(rows, truth, heading=heading, left_out=left_out)
    written = [
        write_text(options.out / "bias.md", text),
        write_table(options.out / "bias_pairs.tsv", rows),
    ]
    if options.page is not None:
        page = replaced(
            options.page.read_text(encoding="utf-8"), bias_page.table(rows, truth), "bias"
        )
        written.append(write_text(options.page, page))
    print(f"\n{text}", *written, sep="\n")
    return 0

# SPDX-License-Identifier: Apache-2.0
"""``bmex-evaluate ratings``: its flags, and its page."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags and work of ``bmex-evaluate ratings``."""
    parser.add_argument(
        "table", type=Path, metavar="TSV",
        help="table with a row for each image: ratings of the raw and of the enhanced image (more is "
        "better)",
    )  # fmt: skip
    parser.add_argument("--before", default="rating_before", metavar="COLUMN",
                        help="rating of the raw image (default: %(default)s)")  # fmt: skip
    parser.add_argument("--after", default="rating_after", metavar="COLUMN",
                        help="rating of the enhanced image (default: %(default)s)")  # fmt: skip
    parser.add_argument("--site", default="site", metavar="COLUMN", help="(default: %(default)s)")
    parser.add_argument(
        "--scores", nargs="+", default=[], metavar="COLUMN",
        help="scores to correlate with the ratings (default: all other numbers)",
    )  # fmt: skip
    parser.add_argument(
        "--group", type=Path, metavar="TSV",
        help="table with the scores, such as group_T1w.tsv; joined by the column image",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, metavar="FILE.md", help="also write the page")
    parser.set_defaults(work=_work)


def _work(options: argparse.Namespace) -> int:
    from bmex_bids.evaluation.ratings import Columns, markdown, read_ratings
    from bmex_bids.outputs.files import write_text

    columns = Columns(options.before.lower(), options.after.lower(), options.site.lower())
    ratings = read_ratings(
        options.table,
        columns,
        group=options.group,
        scores=[name.lower() for name in options.scores],
    )
    text = markdown(ratings)
    print(text)
    if options.out is not None:
        print(write_text(options.out, text))
    return 0

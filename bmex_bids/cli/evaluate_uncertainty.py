# SPDX-License-Identifier: Apache-2.0
"""``bmex-evaluate uncertainty``: its flags, its tables, and where the fitted numbers go."""

from __future__ import annotations

import argparse
from pathlib import Path

from bmex_bids.cli.evaluate_benchmark import add_run, settings_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags and work of ``bmex-evaluate uncertainty``."""
    add_run(parser, "uncertainty.tsv and uncertainty.md", weights=None)
    parser.add_argument(
        "--store", type=Path, metavar="FILE",
        help="write the fitted factors into the entry of these weights in this file "
        "(bmex_bids/data/weights.json)",
    )  # fmt: skip
    parser.set_defaults(work=_work)


def _work(options: argparse.Namespace) -> int:
    from bmex_bids.evaluation import uncertainty
    from bmex_bids.evaluation.summary import Table, replaced
    from bmex_bids.outputs.files import write_text

    record = uncertainty.learnt_weights(options.weights, options.weights_dir)
    settings = settings_of(options, record, uncertainty.IMAGES)
    print(f"weights {record.name} ({record.sha256[:12]})", flush=True)
    rows = uncertainty.run(
        settings, lambda line: print(line, flush=True), compute=not options.tables_only
    )
    fitted = uncertainty.calibrate(Table(rows))
    table = uncertainty.markdown(rows, fitted)
    text = (
        f"Weights `{record.name}`. Fitted to other images: the expected error times "
        f"{fitted.error_scale:.3f}; standard deviation of a volume {fitted.volume_scale:.3g} of "
        f"its spread.\n\n{table}\n\nSpearman's correlation, each image:\n\n"
        f"{uncertainty.each_image(rows)}\n"
    )
    written = [write_text(options.out / "uncertainty.md", text)]
    if options.store is not None:
        uncertainty.store(options.store, record.sha256, fitted)
        written.append(options.store)
    if options.page is not None:
        page = replaced(options.page.read_text(encoding="utf-8"), table, "uncertainty")
        written.append(write_text(options.page, page))
    print(f"\n{text}", *written, sep="\n")
    return 0

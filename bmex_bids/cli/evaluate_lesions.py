# SPDX-License-Identifier: Apache-2.0
"""``bmex-evaluate lesions``: its flags and its table."""

from __future__ import annotations

import argparse

from bmex_bids.cli.evaluate_benchmark import add_run, settings_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags and work of ``bmex-evaluate lesions``."""
    what = "lesions.tsv, lesions.md, which lesions were put in, and pictures"
    add_run(parser, what, weights=None)
    parser.set_defaults(work=_work)


def _work(options: argparse.Namespace) -> int:
    from bmex_bids.evaluation import lesions
    from bmex_bids.evaluation.summary import replaced
    from bmex_bids.evaluation.uncertainty import learnt_weights
    from bmex_bids.outputs.files import write_text

    record = learnt_weights(options.weights, options.weights_dir)
    settings = settings_of(options, record, lesions.IMAGES)
    print(f"weights {record.name} ({record.sha256[:12]})", flush=True)
    rows = lesions.run(
        settings, lambda line: print(line, flush=True), compute=not options.tables_only
    )
    table = lesions.markdown(rows)
    text = f"Weights `{record.name}`.\n\n{table}\n"
    written = [write_text(options.out / "lesions.md", text)]
    if options.page is not None:
        page = replaced(options.page.read_text(encoding="utf-8"), lesions.short(rows), "lesions")
        written.append(write_text(options.page, page))
    print(f"\n{text}", *written, sep="\n")
    return 0

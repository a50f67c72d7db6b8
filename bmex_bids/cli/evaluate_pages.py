# SPDX-License-Identifier: Apache-2.0
"""Commands of ``bmex-evaluate`` that go over images and write one page.

``harmonisation``, ``downstream`` and ``low-field``: a module of ``evaluation`` each, with ``IMAGES``, ``plan``,
``do_unit``, ``TABLE``, ``table`` and ``markdown``.
"""

from __future__ import annotations

import argparse
import importlib
from functools import partial
from typing import TYPE_CHECKING, Any

from bmex_bids.cli.evaluate_benchmark import add_run, in_words, settings_of

if TYPE_CHECKING:
    from bmex_bids.evaluation.rows import Row


def add_arguments(parser: argparse.ArgumentParser, name: str) -> None:
    """Flags and work of ``bmex-evaluate`` with a module of ``evaluation``."""
    add_run(parser, f"{name}.tsv and {name}.md")
    parser.set_defaults(work=partial(_work, name=name))


def _work(options: argparse.Namespace, name: str) -> int:
    from bmex_bids.evaluation.summary import replaced
    from bmex_bids.outputs.files import write_text

    module = importlib.import_module(f"bmex_bids.evaluation.{name.replace('-', '_')}")
    figures, weights = figures_of(options, module)
    text = module.markdown(figures, weights)
    written = [write_text(options.out / f"{name}.md", text)]
    if options.page is not None:
        page = replaced(options.page.read_text(encoding="utf-8"), module.table(figures), name)
        written.append(write_text(options.page, page))
    print(f"\n{text}", *written, sep="\n")
    return 0


def figures_of(
    options: argparse.Namespace, module: Any, *, structures: bool = False
) -> tuple[list[Row], str]:
    """The figures of a module's units for the flags of ``add_run``, and which weights."""
    from bmex_bids.evaluation.benchmark import run_units
    from bmex_bids.network.weights.registry import select

    record = select("enhance", weights=options.weights, weights_dir=options.weights_dir)
    settings = settings_of(options, record, module.IMAGES, by_age=True, structures=structures)
    weights = in_words(settings)
    print(weights, flush=True)
    figures = run_units(
        settings,
        list(module.plan(settings)),
        module.do_unit,
        module.TABLE,
        lambda line: print(line, flush=True),
        compute=not options.tables_only,
    )
    return figures, weights

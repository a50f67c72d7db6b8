# SPDX-License-Identifier: Apache-2.0
"""``bmex-evaluate benchmark``: its flags, and the way from them to the tables and pictures."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bmex_bids.cli import arguments
from bmex_bids.network.variants import VARIANTS

if TYPE_CHECKING:
    from bmex_bids.evaluation.benchmark import Settings
    from bmex_bids.network.weights.registry import WeightRecord


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags and work of ``bmex-evaluate benchmark``."""
    add_run(parser, "figures.tsv, benchmark.md and pictures")
    parser.add_argument(
        "--weights-file", type=Path, metavar="FILE",
        help="weights that are in no registry, instead of --weights",
    )  # fmt: skip
    parser.add_argument(
        "--variant", choices=list(VARIANTS), default="bmex-compact",
        help="kind of network of --weights-file (default: %(default)s)",
    )  # fmt: skip
    parser.set_defaults(work=_work)


def add_run(parser: argparse.ArgumentParser, what: str, weights: str | None = "bundled") -> None:
    """Flags of every command that goes over images and cells.

    Parameters
    ----------
    what : is written to the folder
    weights : by default
    """
    arguments.add_networks(parser, weights)
    parser.add_argument(
        "--data", type=Path, default=Path("../shared/data"), metavar="DIR",
        help="folder with the validation images (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR",
        help=f"folder for {what}; what it has already is not computed again",
    )  # fmt: skip
    parser.add_argument(
        "--images", type=_names, metavar="A;B", default=(), help="only these images"
    )
    parser.add_argument(
        "--cells", type=_names, metavar="A;B", default=(),
        help="only these cells, or families of cells (clean, motion, noise, slices, together, "
        "torchio)",
    )  # fmt: skip
    parser.add_argument(
        "--jobs", type=int, default=1, help="processes, one thread each (default: %(default)s)"
    )
    parser.add_argument(
        "--no-mirroring", action="store_true",
        help="as bmex --no-mirroring",
    )  # fmt: skip
    parser.add_argument(
        "--tables-only", action="store_true",
        help="compute nothing, only write the tables and pictures of what --out has",
    )  # fmt: skip
    parser.add_argument(
        "--page", type=Path, metavar="FILE.md",
        help=f"also replace the table between the marks '{parser.prog.split()[-1]}: begin' and "
        f"'{parser.prog.split()[-1]}: end' of this page",
    )  # fmt: skip


def settings_of(
    options: argparse.Namespace,
    record: WeightRecord,
    images: Sequence[str],
    *,
    by_age: bool = False,
    structures: bool = False,
) -> Settings:
    """What the flags of :func:`add_run` ask for.

    Parameters
    ----------
    record : enhances
    images : where no flag names some
    by_age : without --weights, each image gets the set for its age, as in the app
    structures : are labelled, where a bundled network does so
    """
    from bmex_bids.degrade.cells import CELLS
    from bmex_bids.evaluation.app import Networks
    from bmex_bids.evaluation.benchmark import Settings
    from bmex_bids.network.weights.registry import bundled_of, select

    families = {cell.family for cell in CELLS.values()}
    cells: list[str] = []
    for word in options.cells:
        cells += [n for n, c in CELLS.items() if c.family == word] if word in families else [word]
    return Settings(
        data=options.data,
        out=options.out,
        networks=Networks(
            record,
            select("strip", weights="bundled"),
            device=options.device,
            mirroring=not options.no_mirroring,
            structures=bundled_of("segment") if structures else None,
        ),
        images=options.images or tuple(images),
        cells=tuple(cells),
        jobs=options.jobs,
        by_age=by_age and options.weights == "bundled",
    )


def in_words(settings: Settings) -> str:
    """Which weights enhance in a run."""
    if settings.by_age:
        return "bundled weights by age"
    record = settings.networks.enhance
    return f"weights `{record.name}`, SHA-256 `{record.sha256[:12]}…`"


def _names(text: str) -> tuple[str, ...]:
    """Names separated by semicolons; those of cells have commas."""
    return tuple(word.strip() for word in text.split(";") if word.strip())


def _work(options: argparse.Namespace) -> int:
    from bmex_bids.evaluation.benchmark import run
    from bmex_bids.evaluation.figures import write_figures
    from bmex_bids.evaluation.subjects import SUBJECTS
    from bmex_bids.evaluation.summary import markdown, page_tables, replaced
    from bmex_bids.network.weights.registry import select, unregistered
    from bmex_bids.outputs.files import write_text

    if options.weights_file is not None:
        record = unregistered(options.weights_file, options.variant)
    else:
        record = select("enhance", weights=options.weights, weights_dir=options.weights_dir)
    by_age = options.weights_file is None
    settings = settings_of(options, record, tuple(SUBJECTS), by_age=by_age)
    weights = in_words(settings)
    print(weights, flush=True)
    rows = run(settings, lambda line: print(line, flush=True), compute=not options.tables_only)
    text = markdown(rows, weights)
    written = [write_text(options.out / "benchmark.md", text)]
    written += write_figures(rows, options.out, settings.images)
    if options.page is not None:
        page = replaced(options.page.read_text(encoding="utf-8"), page_tables(rows))
        written.append(write_text(options.page, page))
    print(f"\n{text}", *written, sep="\n")
    return 0

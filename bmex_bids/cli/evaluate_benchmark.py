# SPDX-License-Identifier: Apache-2.0
"""``bmex-evaluate benchmark``: its flags, and the way from them to the tables and figures."""

from __future__ import annotations

import argparse
from pathlib import Path

PARTS = ("cells", "registration", "scanners", "contrast")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags and work of ``bmex-evaluate benchmark``."""
    parser.add_argument(
        "--data", type=Path, default=Path("../shared/data"), metavar="DIR",
        help="folder with lifespan-bids and label-maps (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR",
        help="where tables, figures and the cache of degraded images go; what is there already "
        "is not computed again",
    )  # fmt: skip
    parser.add_argument("--weights", default="bundled", help="weight set (default: %(default)s)")
    parser.add_argument(
        "--weights-file", type=Path, metavar="FILE",
        help="weights of the compact network that are in no registry yet, instead of --weights",
    )  # fmt: skip
    parser.add_argument(
        "--ablation", type=Path, metavar="FILE",
        help="weights of the compact network trained without the tissue module, to compare with",
    )  # fmt: skip
    parser.add_argument(
        "--images", type=_names, metavar="A,B", default=(),
        help="only these images (sub-0003, sub-0007, map-17 … map-20; default: both real ones, "
        "map-17 and map-19)",
    )  # fmt: skip
    parser.add_argument(
        "--cells", type=_names, metavar="A,B", default=(),
        help="only these cells, or families of cells (motion, resolution, noise, smoothing, clean)",
    )  # fmt: skip
    parser.add_argument(
        "--parts", type=_names, metavar="A,B", default=PARTS,
        help=f"only these of {', '.join(PARTS)} (default: all)",
    )  # fmt: skip
    parser.add_argument(
        "--draws", type=int, metavar="N", default=1,
        help="so many draws of motion and of noise for each image and cell; goals are judged on their "
        "means (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument(
        "--jobs", type=int, default=2, help="processes, one thread each (default: %(default)s)"
    )
    parser.add_argument(
        "--no-mirroring",
        action="store_true",
        help="one pass of the network, as bmex --no-mirroring",
    )
    parser.add_argument(
        "--tables-only", action="store_true",
        help="compute nothing: write the table and the figures of what is there",
    )  # fmt: skip
    parser.set_defaults(work=_work)


def _names(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _work(options: argparse.Namespace) -> int:
    from bmex_bids.evaluation.benchmark import Settings, run
    from bmex_bids.evaluation.cells import CELLS
    from bmex_bids.evaluation.figures import write_figures
    from bmex_bids.evaluation.methods import weight_record
    from bmex_bids.evaluation.subjects import DEFAULT_SUBJECTS
    from bmex_bids.evaluation.summary import markdown
    from bmex_bids.network.weights.registry import select
    from bmex_bids.outputs.files import write_text

    if options.weights_file is not None:
        record = weight_record(options.weights_file)
    else:
        record = select("enhance", weights=options.weights)
    families = {cell.family for cell in CELLS.values()}
    cells: list[str] = []
    for word in options.cells:
        cells += [n for n, c in CELLS.items() if c.family == word] if word in families else [word]
    settings = Settings(
        data=options.data,
        out=options.out,
        record=record,
        ablation=None if options.ablation is None else weight_record(options.ablation),
        images=options.images or DEFAULT_SUBJECTS,
        cells=tuple(cells),
        parts=options.parts,
        device=options.device,
        jobs=options.jobs,
        mirroring=not options.no_mirroring,
        draws=options.draws,
    )
    print(f"weights {record.name} ({record.sha256[:12]})", flush=True)
    rows = run(settings, lambda line: print(line, flush=True), compute=not options.tables_only)
    text = markdown(rows, record.name, record.sha256)
    summary = write_text(options.out / "benchmark.md", text)
    figures = write_figures(rows, options.out, settings.images)
    print(f"\n{text}\n{summary}", *figures, sep="\n")
    return 0

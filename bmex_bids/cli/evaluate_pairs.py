# SPDX-License-Identifier: Apache-2.0
"""``bmex-evaluate pairs``: its flags, and the way from them to the page."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from bmex_bids.cli import arguments

if TYPE_CHECKING:
    from bmex_bids.evaluation.pairs import Compared, Pair, Row


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags and work of ``bmex-evaluate pairs``."""
    parser.add_argument("bids_dir", type=Path, metavar="BIDS_DIR", help="the dataset")
    add_choice(parser)
    parser.add_argument(
        "--out", type=Path, default=Path("pairs"), metavar="DIR",
        help="folder for pairs.md, pairs.tsv and pictures (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--pictures", type=int, default=4, metavar="N",
        help="number of pairs to draw (default: %(default)s)",
    )  # fmt: skip
    arguments.add_networks(parser)
    parser.set_defaults(work=_work)


def add_choice(parser: argparse._ActionsContainer, *, required: bool = True) -> None:
    """Which scans of a dataset are still and which moved, and what ``bmex`` made of them."""
    parser.add_argument(
        "--reference", required=required, metavar="ENTITIES",
        help="the still scan, such as acq-standard or ses-1_run-1",
    )  # fmt: skip
    parser.add_argument(
        "--moved", required=required, nargs="+", metavar="ENTITIES",
        help="the moved scans, such as acq-headmotion1 acq-headmotion2; the other entities of a "
        "pair are the same",
    )  # fmt: skip
    parser.add_argument(
        "--enhanced", type=Path, metavar="DIR",
        help="output of bmex on the dataset; without it bmex is run into DIR/enhanced of --out",
    )  # fmt: skip
    parser.add_argument(
        "--suffix", default="T1w", choices=["T1w", "T2w"], help="(default: %(default)s)"
    )


def _work(options: argparse.Namespace) -> int:
    from bmex_bids.evaluation import pairs_page
    from bmex_bids.evaluation.figures import save
    from bmex_bids.evaluation.pairs import write_table
    from bmex_bids.outputs.files import write_text

    pictures: list[Path] = []

    def draw(pair: Pair, compared: Compared) -> None:
        if len(pictures) < options.pictures:
            path = options.out / f"{pair.name}.png"
            pictures.append(save(path, pairs_page.pair_figure(pair, compared)))

    rows, left_out, heading = compare_pairs(options, draw)
    pictures.insert(0, save(options.out / "pairs.png", pairs_page.lines_figure(rows)))
    text = pairs_page.markdown(rows, left_out, pictures, heading=heading)
    table = write_table(options.out / "pairs.tsv", rows)
    print(f"\n{text}", write_text(options.out / "pairs.md", text), table, sep="\n")
    return 0


def compare_pairs(
    options: argparse.Namespace, seen: Callable[[Pair, Compared], object] = lambda *_: None
) -> tuple[list[Row], dict[str, str], str]:
    """Figures of the pairs that the flags of :func:`add_choice` name.

    Parameters
    ----------
    seen : takes each pair's images

    Returns
    -------
    rows, left_out : see ``evaluation.pairs.run``
    heading : what was compared
    """
    from bmex_bids.evaluation import pairs
    from bmex_bids.exceptions import UsageError

    if not (options.reference and options.moved):
        raise UsageError("expected --reference and --moved with --bids, got one or none of them")
    reference = pairs.Choice.parse(options.reference)
    moved = [pairs.Choice.parse(text) for text in options.moved]
    bids_dir = options.bids_dir.absolute()
    found = pairs.find_pairs(bids_dir, reference, moved, options.suffix)
    print(f"{len(found)} pairs", flush=True)
    enhanced = options.enhanced or _enhance(options, bids_dir)

    def say(line: str) -> None:
        print(line, flush=True)

    rows, left_out = pairs.run(found, bids_dir, enhanced.absolute(), say=say, seen=seen)
    return rows, left_out, f"{reference.text} against {', '.join(choice.text for choice in moved)}"


def _enhance(options: argparse.Namespace, bids_dir: Path) -> Path:
    """Run ``bmex``, which leaves out what is there already; the folder of its output."""
    from bmex_bids.cli.run import main

    out: Path = options.out.absolute() / "enhanced"
    words = [str(bids_dir), str(out), "participant", "--weights", options.weights]
    if options.weights_dir is not None:
        words += ["--weights-dir", str(options.weights_dir)]
    main([*words, "--device", options.device])  # images that failed are left out, and named
    return out

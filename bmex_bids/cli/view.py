# SPDX-License-Identifier: Apache-2.0
"""``bmex-view``: the images of an output in a browser of this machine, before and after."""

from __future__ import annotations

import argparse
import sys
import webbrowser
from collections.abc import Sequence
from pathlib import Path

from bmex_bids import values
from bmex_bids.cli import arguments
from bmex_bids.cli.ending import ended
from bmex_bids.exceptions import EnvironmentProblem, NoInputError

PROGRAM = "bmex-view"


def build_parser() -> argparse.ArgumentParser:
    """The command line of ``bmex-view``."""
    parser = arguments.Parser(
        prog=PROGRAM,
        description="Show the images of an output of bmex in a browser: before and after, their "
        "difference, mask and tissues. Ratings are saved in OUTPUT_DIR/ratings.tsv. The server "
        "listens on this machine alone, at an address with a secret; Ctrl-C ends it. For a remote "
        "machine use ssh -L PORT:127.0.0.1:PORT, with --port PORT --no-browser.",
        allow_abbrev=False,
    )
    parser.add_argument("output_dir", type=Path, metavar="OUTPUT_DIR", help="an output of bmex")
    parser.add_argument(
        "--port",
        type=arguments.typed(values.number(int, at_least=0)),
        default=0,
        metavar="N",
        help="port (default: a free one)",
    )
    parser.add_argument(
        "--no-browser", "--no_browser", action="store_true", help="only print the address"
    )
    parser.add_argument("--version", action=arguments.ShowVersion)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until Ctrl-C; return an exit code as ``bmex`` has them."""
    options = build_parser().parse_args(argv)
    return ended(PROGRAM, lambda: _serve(options))


def _serve(options: argparse.Namespace) -> int:
    from bmex_bids.reports.viewer import Viewer, address, server

    viewer = Viewer(options.output_dir.expanduser().resolve())
    if not viewer.files:
        raise NoInputError(
            f"expected enhanced images (desc-preproc) in {viewer.output_dir}, found none; name "
            "the output folder of a run"
        )
    try:
        made = server(viewer, options.port)
    except (OSError, OverflowError) as error:
        raise EnvironmentProblem(
            f"expected port {options.port} to be free, got: {error}; name another with --port"
        ) from error
    url = address(viewer, made)
    count = len(viewer.files)
    print(f"{count} image{'s' * (count != 1)}: {url}\nCtrl-C ends it", flush=True)
    if not options.no_browser:
        webbrowser.open(url)
    with made:
        try:
            made.serve_forever()
        except KeyboardInterrupt:
            print()
    return 0


if __name__ == "__main__":
    sys.exit(main())

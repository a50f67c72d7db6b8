# SPDX-License-Identifier: Apache-2.0
"""``bmex-evaluate recon``: its flags and its table."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from bmex_bids.cli.recon import NETWORK, VARIANT, weights_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags and work of ``bmex-evaluate recon``."""
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR",
        help="folder for recon.tsv and recon.md; a stopped run continues from it",
    )  # fmt: skip
    data = Path("../shared/data")
    parser.add_argument(
        "--data", type=Path, default=data, metavar="DIR",
        help=f"folder with label-maps and kspace (default: {data})",
    )  # fmt: skip
    parser.add_argument(
        "--weights", type=Path, metavar="FILE", help="of LF-MRI (default: bundled, if any)"
    )
    parser.add_argument(
        "--rival", action="append", default=[], metavar="NAME=FILE",
        help="weights of another cascade to judge beside it; again for more",
    )  # fmt: skip
    parser.add_argument("--slices", type=int, default=96, help="painted ones (default: 96)")
    parser.add_argument(
        "--threads", type=int, default=1, help="threads of the processor (default: 1)"
    )
    parser.set_defaults(work=_work)


def _work(options: argparse.Namespace) -> int:
    import torch

    from bmex_bids.evaluation import recon
    from bmex_bids.network.weights.checkpoints import load_network
    from bmex_bids.outputs.files import write_text

    torch.set_num_threads(options.threads)
    record = weights_of(options.weights)
    files = {NETWORK: record.path} if record else {}
    files |= {name: Path(file) for name, _, file in (r.partition("=") for r in options.rival)}
    networks: dict[str, Any] = {name: load_network(path, VARIANT) for name, path in files.items()}
    if record is None:
        print("no weights of LF-MRI: the classical methods only")
    rows = recon.run(
        options.data, options.out, networks, options.slices, lambda line: print(line, flush=True)
    )
    table = recon.markdown(rows)
    print(f"\n{table}\n\n{write_text(options.out / 'recon.md', table + chr(10))}")
    return 0

# SPDX-License-Identifier: Apache-2.0
"""``python writer.py BIDS OUT NAME ROUNDS``: one of several processes that share an output folder.

It does what a run does to files that runs share, and looks after each round whether all of them are
whole; it exits with an error when one is not.
"""

from __future__ import annotations

import json
import os
import sys
from functools import partial
from pathlib import Path

from bmex_bids.cli.parser import parse
from bmex_bids.outputs.dataset import write_dataset
from bmex_bids.outputs.files import as_json, clear_temporaries, write_together
from bmex_bids.outputs.lock import alone
from bmex_bids.outputs.resume import finished, text_checksum
from bmex_bids.outputs.status import write_status
from bmex_bids.reports.methods import collect_facts, write_citation

SHARED = "sub-01_desc-enhanced_T1w"
FINGERPRINT = {"Input": "same for all"}


def commit(out: Path, text: str) -> None:
    """The products of one image, as the node of the outputs writes them."""
    names = [f"product-{number}.json" for number in range(5)]
    record = {name: text_checksum(text) for name in names}
    fills = {out / name: partial(Path.write_text, data=text) for name in names}
    table = as_json({"BMEX": {"Fingerprint": FINGERPRINT, "Outputs": record}})
    fills[out / "record.json"] = partial(Path.write_text, data=table)
    with alone(out, SHARED):
        clear_temporaries(fills)
        write_together(fills)


def check(out: Path) -> None:
    description = json.loads((out / "dataset_description.json").read_text())
    assert description["Name"].startswith("bmex_bids")
    assert "*.html" in (out / ".bidsignore").read_text().split("\n")
    assert (out / "desc-enhanced_dseg.tsv").read_text().endswith("CSF\n")
    assert (out / "logs" / "CITATION.md").read_text().endswith("\n")
    with alone(out, SHARED):
        assert finished(out / "record.json", FINGERPRINT, [])


def main(bids: Path, out: Path, name: str, rounds: int) -> None:
    os.environ["BMEX_CONTAINER_TAG"] = f"bmex_bids:{name}"
    config = parse([str(bids), str(out), "participant", "-w", str(out.parent / "work")])
    config.log_dir.mkdir(parents=True)
    for number in range(rounds):
        rows = [{"image": "sub-01_T1w", "status": f"round {number} of {name}"}]
        write_dataset(bids, out)
        write_status(config.log_dir / "status.tsv", rows)
        write_citation(out, collect_facts(out), markdown_only=bool(number % 2))
        commit(out, f"round {number} of {name}\n" * 100)
        check(out)
        told = (config.log_dir / "status.tsv").read_text()
        assert told == f"image\tstatus\nsub-01_T1w\tround {number} of {name}\n"
    sys.stdout.write(config.run_id)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))

# SPDX-License-Identifier: Apache-2.0
"""The dataset around the derivatives: description, what validators leave out, status of a run."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bmex_bids import __version__
from bmex_bids.outputs.container import container
from bmex_bids.outputs.files import clear_temporaries, write_text

NAME = "bmex_bids: enhanced structural brain MRI"
BIDS_VERSION = "1.10.0"
CODE_URL = "https://github.com/bmex-bids/bmex_bids"
ACKNOWLEDGE = (
    "Please cite Sun et al., Nat. Biomed. Eng. 9:521-538 (2025), doi:10.1038/s41551-024-01283-7, "
    "and say which weights were used (the sidecars name them)."
)
#: without trailing slashes: validator 3.0.2 does not take "figures/" to cover nested folders
#: (and a sidecar without an image, which --qc-only writes, is an error to it)
IGNORED = (
    "*.html",
    "logs",
    "figures",
    "sub-*/figures",
    "sub-*/ses-*/figures",
    "group_*",
    "work",
    "*_desc-quality_*.json",
)
#: a temporary file of this age is nobody's any more
STALE_S = 3600.0
DSEG_TABLE = """\
index\tname\tabbreviation
1\tGrey Matter\tGM
2\tWhite Matter\tWM
3\tCerebrospinal Fluid\tCSF
"""


def describe(bids_dir: Path, output_dir: Path) -> dict[str, Any]:
    """``dataset_description.json`` of the derivatives.

    ``GeneratedBy`` names the container image that runs this code, where there is one.
    """
    generator: dict[str, Any] = {"Name": "bmex_bids", "Version": __version__, "CodeURL": CODE_URL}
    image = container()
    if image:
        generator["Container"] = image
    raw = _raw_description(bids_dir)
    description: dict[str, Any] = {
        "Name": NAME,
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [generator],
        "HowToAcknowledge": ACKNOWLEDGE,
        "DatasetLinks": {"raw": Path(os.path.relpath(bids_dir, output_dir)).as_posix()},
    }
    sources = {
        key: raw[name]
        for key, name in (("DOI", "DatasetDOI"), ("Version", "DatasetVersion"))
        if isinstance(raw.get(name), str)
    }
    if sources:
        description["SourceDatasets"] = [sources]
    return description


def _raw_description(bids_dir: Path) -> dict[str, Any]:
    try:
        content = json.loads(
            (bids_dir / "dataset_description.json").read_text(encoding="utf-8-sig")
        )
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def write_dataset(bids_dir: Path, output_dir: Path) -> None:
    """Description, ``.bidsignore`` and the tissues' names; written only where they change."""
    wanted = {
        "dataset_description.json": json.dumps(describe(bids_dir, output_dir), indent=2) + "\n",
        ".bidsignore": "\n".join(IGNORED) + "\n",
        "desc-enhanced_dseg.tsv": DSEG_TABLE,
    }
    for name, text in wanted.items():
        path = output_dir / name
        clear_temporaries([path], older_than_s=STALE_S)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            write_text(path, text)


def write_status(path: Path, rows: Sequence[Mapping[str, str]]) -> Path:
    """The table of what became of each image: one row each, the columns of the first row."""
    header = list(rows[0]) if rows else ["image", "status"]
    lines = ["\t".join(header)]
    lines += ["\t".join(_cell(row.get(column, "")) for column in header) for row in rows]
    return write_text(path, "\n".join(lines) + "\n")


def _cell(value: str) -> str:
    return " ".join(str(value).split())

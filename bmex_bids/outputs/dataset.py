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
from bmex_bids.outputs.lock import alone

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


def merged(ours: Mapping[str, Any], there: Mapping[str, Any]) -> dict[str, Any]:
    """Our description, with what others wrote into the one that is there.

    Keys that are not ours stay (authors, licence, funding), and so do the programs that made other
    parts of the dataset: another version or container of ours among them.  Merging again changes
    nothing, so processes that do it at once agree in the end, whoever was last.

    >>> a, b = {"Name": "bmex_bids", "Version": "1"}, {"Name": "bmex_bids", "Version": "2"}
    >>> merged({"GeneratedBy": [b]}, {"GeneratedBy": [a], "License": "CC0"})
    {'GeneratedBy': [{'Name': 'bmex_bids', 'Version': '1'}, {'Name': 'bmex_bids', 'Version': '2'}], \
'License': 'CC0'}
    """
    made = there.get("GeneratedBy")
    programs = (
        [entry for entry in made if isinstance(entry, dict)] if isinstance(made, list) else []
    )
    programs += [entry for entry in ours.get("GeneratedBy", []) if entry not in programs]
    links = there.get("DatasetLinks")
    return {
        **ours,
        **{key: value for key, value in there.items() if key not in ours},
        **({"GeneratedBy": programs} if programs else {}),
        **(
            {"DatasetLinks": {**links, **ours["DatasetLinks"]}}
            if isinstance(links, dict) and "DatasetLinks" in ours
            else {}
        ),
    }


def _raw_description(bids_dir: Path) -> dict[str, Any]:
    return _read_object(bids_dir / "dataset_description.json")


def _read_object(path: Path) -> dict[str, Any]:
    """A JSON object; what is missing or none is empty."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig")) if path.is_file() else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def write_dataset(bids_dir: Path, output_dir: Path) -> None:
    """Description, ``.bidsignore`` and the tissues' names; written only where they change.

    Several processes may do this at once: a file is replaced whole, and by one at a time, so that
    none of them loses what another has just put in.
    """
    if any(_text(path) != text for path, text in _wanted(bids_dir, output_dir).items()):
        with alone(output_dir, "dataset"):
            for path, text in _wanted(bids_dir, output_dir).items():
                clear_temporaries([path])
                if _text(path) != text:
                    write_text(path, text)


def _wanted(bids_dir: Path, output_dir: Path) -> dict[Path, str]:
    """What shall stand in the files of :func:`write_dataset`."""
    there = _read_object(output_dir / "dataset_description.json")
    lines = (_text(output_dir / ".bidsignore") or "").splitlines()
    others = [line for line in lines if line not in IGNORED]  # of other programs
    description = merged(describe(bids_dir, output_dir), there)
    return {
        output_dir / "dataset_description.json": json.dumps(description, indent=2) + "\n",
        output_dir / ".bidsignore": "\n".join([*others, *IGNORED]) + "\n",
        output_dir / "desc-enhanced_dseg.tsv": DSEG_TABLE,
    }


def _text(path: Path) -> str | None:
    """What stands in a file; None where it is missing, or no text."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None


def write_status(path: Path, rows: Sequence[Mapping[str, str]]) -> Path:
    """The table of what became of each image: one row each, the columns of the first row."""
    header = list(rows[0]) if rows else ["image", "status"]
    lines = ["\t".join(header)]
    lines += ["\t".join(_cell(row.get(column, "")) for column in header) for row in rows]
    return write_text(path, "\n".join(lines) + "\n")


def _cell(value: str) -> str:
    return " ".join(str(value).split())

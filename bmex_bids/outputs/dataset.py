# SPDX-License-Identifier: Apache-2.0
"""The dataset around the derivatives: description, what validators leave out, status of a run."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from bmex_bids import __version__
from bmex_bids.common.tissues import TISSUES
from bmex_bids.outputs.container import container
from bmex_bids.outputs.files import clear_temporaries, write_text
from bmex_bids.outputs.lock import alone

LOGGER = logging.getLogger(__name__)

NAME = "bmex_bids: enhanced structural brain MRI"
BIDS_VERSION = "1.11.1"
CODE_URL = "https://github.com/bmex-bids/bmex_bids"
ACKNOWLEDGE = (
    "Please cite Sun et al., Nat. Biomed. Eng. 9:521-538 (2025), doi:10.1038/s41551-024-01283-7, "
    "and say which weights were used (the sidecars name them)."
)
#: without trailing slashes: validator 3.0.2 does not take "figures/" to cover nested folders
#: (and a sidecar without an image, which --qc-only writes, is an error to it); it knows no prov and no xfm yet
IGNORED = (
    "*.html",
    "logs",
    "figures",
    "sub-*/figures",
    "sub-*/ses-*/figures",
    "group_*",
    "prov",
    "ratings.tsv",
    "work",
    "*_desc-quality_*.json",
    "*_xfm.h5",
)
DSEG_TABLE = "index\tname\tabbreviation\n" + "".join(
    f"{tissue.bids}\t{tissue.name.title()}\t{tissue.label}\n"
    for tissue in sorted(TISSUES, key=lambda tissue: tissue.bids)
)


README = """\
# Enhanced structural brain MRI

Derivatives that bmex_bids made of the images of another dataset, which `dataset_description.json` names
under `DatasetLinks`. Each image has a sidecar that says what it is and how it was made; what was skipped
or failed, and why, is in the table `status.tsv` of the newest folder in `logs`. The pages `sub-*.html`
show the images before and after, and `logs/CITATION.md` has a text for a methods section.

An enhanced image is an estimate made by a network: do not diagnose from it.
"""
READMES = ("README", "README.md", "README.rst", "README.txt")


def describe(
    bids_dir: Path, output_dir: Path, links: Mapping[str, Path] | None = None
) -> dict[str, Any]:
    """``dataset_description.json`` of the derivatives.

    ``GeneratedBy`` names the container image that runs this code, where there is one.  ``links`` are other
    datasets that the sidecars name, by name.
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
        "DatasetLinks": {
            name: quote(Path(os.path.relpath(folder, output_dir)).as_posix())
            for name, folder in {"raw": bids_dir, **(links or {})}.items()
        },
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


def write_dataset(
    bids_dir: Path, output_dir: Path, links: Mapping[str, Path] | None = None
) -> None:
    """Description, README, ``.bidsignore`` and the tissues' names; written only where they change.

    Several processes may do this at once: a file is replaced whole, and by one at a time, so that
    none of them loses what another has just put in.
    """
    if any(_text(path) != text for path, text in _wanted(bids_dir, output_dir, links).items()):
        with alone(output_dir, "dataset"):
            _tell_of_another(bids_dir, output_dir)
            for path, text in _wanted(bids_dir, output_dir, links).items():
                clear_temporaries([path])
                if _text(path) != text:
                    write_text(path, text)


def _tell_of_another(bids_dir: Path, output_dir: Path) -> None:
    """Warn where the output has derivatives of another dataset, whose sources are found no more then."""
    there = _read_object(output_dir / "dataset_description.json").get("DatasetLinks")
    raw = there.get("raw") if isinstance(there, dict) else None
    if not isinstance(raw, str) or not raw or "://" in raw:
        return
    before = (output_dir / unquote(raw)).resolve()
    if before.is_dir() and before != bids_dir.resolve():
        LOGGER.warning(
            "the output has derivatives of %s too; their sources (bids:raw:...) now seem to be of %s: "
            "give each dataset an output folder of its own",
            before,
            bids_dir,
        )


def _wanted(bids_dir: Path, output_dir: Path, links: Mapping[str, Path] | None) -> dict[Path, str]:
    """What shall stand in the files of :func:`write_dataset`."""
    there = _read_object(output_dir / "dataset_description.json")
    lines = (_text(output_dir / ".bidsignore") or "").splitlines()
    others = [line for line in lines if line not in IGNORED]  # of other programs
    description = merged(describe(bids_dir, output_dir, links), there)
    return {
        output_dir / "dataset_description.json": json.dumps(description, indent=2) + "\n",
        output_dir / ".bidsignore": "\n".join([*others, *IGNORED]) + "\n",
        output_dir / "desc-enhanced_dseg.tsv": DSEG_TABLE,
        **(
            {}
            if any((output_dir / name).exists() for name in READMES)
            else {output_dir / "README.md": README}
        ),
    }


def _text(path: Path) -> str | None:
    """What stands in a file; None where it is missing, or no text."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None

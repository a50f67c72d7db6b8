# SPDX-License-Identifier: Apache-2.0
"""Provenance as BIDS-Prov (BEP028) has it: ``prov/`` of the output, from the sidecars of all images.

Each sidecar names the activity that made its image; here that activity, the software, the
environment and the files outside the dataset that it used are described.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from bmex_bids.outputs.dataset import CODE_URL
from bmex_bids.outputs.files import as_json, write_together
from bmex_bids.outputs.records import KEY, find_records, table_of
from bmex_bids.outputs.status import WITH_RESULT, latest_first, read_status
from bmex_bids.settings import read_table

#: of a sidecar: the activity that made the image
MADE_BY = "GeneratedBy"
#: of the files in ``prov/``
LABEL = "prov-bmex"
DESCRIPTION = "How bmex_bids made the images of this dataset"


def activity_id(name: str, record: Mapping[str, Any]) -> str:
    """The identifier of what made an image, from its name and the record in its sidecar."""
    lasting = {key: value for key, value in record.items() if key != "NetworkSeconds"}
    return _identifier("enhancement", {"image": name, **lasting})


def environment() -> dict[str, str]:
    """This machine, as a record holds it."""
    return {"OperatingSystem": platform.platform(), "Python": platform.python_version()}


def write_provenance(output_dir: Path) -> list[Path]:
    """Write ``prov/``, whole, and return the paths; nothing where no image names its activity.

    OutputError where the folder cannot be written.
    """
    objects = provenance(output_dir)
    if not objects["Activities"]:
        return []
    texts = {
        f"{LABEL}_{suffix}.json": as_json({name: list(objects[name].values())})
        for suffix, name in (
            ("act", "Activities"),
            ("ent", "ProvEntities"),
            ("soft", "Software"),
            ("env", "Environments"),
        )
    }
    texts["provenance.tsv"] = f"provenance_label\tdescription\n{LABEL}\t{DESCRIPTION}\n"
    texts["provenance.json"] = as_json(
        {"description": {"Description": "What the provenance files are about"}}
    )
    targets = {output_dir / "prov" / name: text for name, text in texts.items()}
    write_together(
        {
            path: partial(Path.write_text, data=text, encoding="utf-8")
            for path, text in targets.items()
        }
    )
    return list(targets)


def provenance(output_dir: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """Kind of object → identifier → object, for all images of the output."""
    found: dict[str, dict[str, dict[str, Any]]] = {
        name: {} for name in ("Activities", "ProvEntities", "Software", "Environments")
    }
    commands = _commands(output_dir)
    for image in find_records(output_dir):
        sidecar = image.sidecar()
        made_by = sidecar.get(MADE_BY)
        if not isinstance(made_by, str):
            continue
        record, name = table_of(sidecar, KEY), str(image.source)
        software = _named("bmex_bids", {"Label": "bmex_bids", "Version": record.get("Version")})
        software["AltIdentifier"] = CODE_URL
        place = _named("environment", _environment(record))
        used = [*_sources(sidecar), *_weights(record)]
        found["Software"][software["Id"]] = software
        found["Environments"][place["Id"]] = place
        found["ProvEntities"] |= {entity["Id"]: entity for entity in used}
        found["Activities"][made_by] = {
            "Id": made_by,
            "Label": f"Enhancement of {name}",
            "Command": commands.get(name, "bmex"),
            "AssociatedWith": software["Id"],
            "Used": [place["Id"], *(entity["Id"] for entity in used)],
        }
    return found


def _sources(sidecar: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The images of other datasets that an image was made from."""
    for source in sidecar.get("Sources") or []:
        path = str(source).rpartition(":")[2]
        yield {"Id": str(source), "Label": Path(path).name, "AtLocation": path}


def _weights(record: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The files of weights that an image was made with."""
    weights, mask = table_of(record, "Weights"), table_of(record, "Mask")
    for name, digest in (
        (weights.get("Name"), weights.get("SHA256")),
        (mask.get("weights"), mask.get("weights_sha256")),
    ):
        if name and digest:
            yield {
                "Id": f"bids::prov#provEntity-{digest[:8]}",
                "Label": f"weights {name}",
                "Digest": {"sha256": digest},
            }


def _environment(record: Mapping[str, Any]) -> dict[str, Any]:
    there, container = table_of(record, "Environment"), table_of(record, "Container")
    label = container.get("Tag") or f"Python {there.get('Python', '')}".strip()
    return {"Label": label, "OperatingSystem": there.get("OperatingSystem", "")}


def _commands(output_dir: Path) -> dict[str, str]:
    """Image → command line of the latest run that made it."""
    found: dict[str, str] = {}
    for folder in latest_first(output_dir):
        made = [row["image"] for row in read_status(folder) if row["status"] in WITH_RESULT]
        new = [name for name in made if name not in found]
        command = read_table(folder / "config.toml").get("command") if new else None
        if command:
            found |= dict.fromkeys(new, str(command))
    return found


def _named(label: str, content: Mapping[str, Any]) -> dict[str, Any]:
    return {"Id": _identifier(label, content), **content}


def _identifier(label: str, content: Mapping[str, Any]) -> str:
    """An identifier that another content does not have."""
    text = json.dumps(content, sort_keys=True, default=str)
    return f"bids::prov#{label}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"

# SPDX-License-Identifier: Apache-2.0
"""Print the Boutiques descriptor of bmex, made from its settings.

python containers/boutiques.py > containers/recipes/nipoppy/descriptor.json
"""

from __future__ import annotations

import json
from typing import Any

from bmex_bids import __version__
from bmex_bids.cli.arguments import spellings
from bmex_bids.config import ENTRIES, GROUPS
from bmex_bids.outputs.dataset import CODE_URL
from bmex_bids.settings import Entry, Place

POSITIONALS = ("bids_dir", "output_dir", "analysis_level")


def descriptor() -> dict[str, Any]:
    """The descriptor, schema 0.5; without what has no sense for a single run (``--submit``)."""
    entries = [e for e in ENTRIES if e.section != "cluster"]
    entries.sort(key=lambda entry: entry.setting.option not in POSITIONALS)
    inputs = [_input(entry) for entry in entries]
    keys = [item["value-key"] for item in inputs]
    return {
        "name": "bmex_bids",
        "description": "Enhance the T1w and T2w images of a BIDS dataset: less motion, less "
        "noise, finer slices, with tissue maps and a report",
        "tool-version": __version__,
        "schema-version": "0.5",
        "url": CODE_URL,
        "command-line": f"bmex {' '.join(keys)}",
        "inputs": inputs,
        "groups": [
            {"id": name.lower().replace(" ", "_"), "name": name, "members": members}
            for name in GROUPS
            if (members := [e.setting.option for e in entries if e.setting.group == name])
        ],
        "output-files": [
            {
                "id": "output_folder",
                "name": "The BIDS derivatives",
                "path-template": "[OUTPUT_DIR]",
            }
        ],
        "suggested-resources": {"cpu-cores": 4, "ram": 8, "walltime-estimate": 1800},
        "tags": {"domain": ["neuroinformatics", "bids", "mri"]},
    }


def _input(entry: Entry) -> dict[str, Any]:
    setting = entry.setting
    kind = str(getattr(setting.read, "__qualname__", ""))
    item: dict[str, Any] = {
        "id": setting.option,
        "name": setting.option.replace("_", " "),
        "description": setting.help.replace("%(default)s", str(entry.default)),
        "value-key": f"[{setting.option.upper()}]",
        "optional": setting.option not in POSITIONALS,
    }
    if setting.switch is not None or setting.counts:
        item["type"] = "Flag"
    elif setting.is_path and setting.place is not Place.WRITTEN:
        item["type"] = "File"
    elif kind.startswith("number."):
        item["type"] = "Number"
    else:
        item["type"] = "String"
    if setting.choices is not None and item["type"] == "String":
        item["value-choices"] = list(setting.choices)
    if setting.several == "words":
        item["list"] = True
    if setting.flag.startswith("-"):
        item["command-line-flag"] = spellings([setting.flag])[0]
    if setting.bare is not None:
        item["command-line-flag-separator"] = "="
    return item


if __name__ == "__main__":
    print(json.dumps(descriptor(), indent=2, ensure_ascii=False))

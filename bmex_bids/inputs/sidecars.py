# SPDX-License-Identifier: Apache-2.0
"""JSON files of a dataset, and which of them speak of a file."""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bmex_bids.common.names import BidsName

#: of JSON; a sidecar is no place for more
MOST_JSON_BYTES = 1 << 24
SURROGATES = re.compile("[\ud800-\udfff]")


def sidecar_metadata(path: Path, root: Path) -> dict[str, Any]:
    """Metadata of an image by BIDS' inheritance: JSON files from the dataset's top to it.

    A JSON file applies when its suffix is the image's and all its entities are the image's too;
    what cannot be read as JSON is passed over.
    """
    metadata: dict[str, Any] = {}
    for sidecar in applicable_sidecars(path, root):
        metadata.update(read_json(sidecar))
    return metadata


def _entities(name: str) -> Mapping[str, str]:
    """Entities of a name, also of one without ``sub`` (``task-rest_bold``); others fit nothing."""
    stem = name.split(".")[0]
    parsed = BidsName.parse(name)
    if parsed is not None:
        return parsed.entities
    pairs = [pair.partition("-") for pair in stem.split("_")[:-1]]
    return (
        {key: label for key, _, label in pairs}
        if all(dash for _, dash, _ in pairs)
        else {"": stem}
    )


def applicable_sidecars(path: Path, root: Path) -> list[Path]:
    """The JSON files that speak of an image, from the dataset's top to the image's folder."""
    image = BidsName.parse(path.name)
    if image is None:
        return []
    folders = [path.parent]
    while folders[-1] != root and root in folders[-1].parents:
        folders.append(folders[-1].parent)
    found = []
    for folder in reversed(folders):
        names = (name for name in _json_names(folder) if name.endswith(f"{image.suffix}.json"))
        for candidate in sorted(map(folder.joinpath, names), key=lambda p: len(p.name)):
            stem = candidate.name.split(".")[0]
            own = {} if stem == image.suffix else _entities(candidate.name)
            if all(image.entities.get(key) == value for key, value in own.items()):
                found.append(candidate)
    return found


def _json_names(folder: Path) -> tuple[str, ...]:
    """Names of the JSON files in a folder; the dataset's top is listed once, not for each image."""
    try:
        return _listed_json(folder, folder.stat().st_mtime_ns)
    except OSError:
        return ()


@functools.lru_cache(maxsize=64)
def _listed_json(folder: Path, mtime_ns: int) -> tuple[str, ...]:
    """As :func:`_json_names`, of a folder that was changed last at that time."""
    with os.scandir(folder) as entries:
        return tuple(entry.name for entry in entries if entry.name.endswith(".json"))


def not_fetched(paths: Iterable[Path]) -> str | None:
    """Why nothing can be done yet, where one of the files is a link to what is not here.

    So git-annex (DataLad) leaves a file whose content was not fetched.
    """
    for path in paths:
        try:
            dangling = path.is_symlink() and not path.exists()
        except OSError:  # a link to itself
            dangling = True
        if dangling:
            return (
                f"expected the content of {path}, found a link to a file that is not here; "
                "run `datalad get` (or `git annex get`) on it, then the same command again"
            )
    return None


def text_of(contents: bytes) -> str:
    """The text of a file in UTF-8, UTF-16 with its mark, or Latin-1."""
    if contents.startswith((b"\xff\xfe", b"\xfe\xff")):  # "Unicode text" of a spreadsheet
        return contents.decode("utf-16", errors="replace")
    try:
        return contents.decode("utf-8-sig")
    except UnicodeDecodeError:
        return contents.decode("latin-1")


def unreadable(paths: Iterable[Path]) -> str | None:
    """Why the first JSON file that is there and cannot be read says nothing; None for sound ones."""
    for path in paths:
        try:
            if path.is_file():
                json.loads(text_of(path.read_bytes()[:MOST_JSON_BYTES]))
        except (OSError, ValueError, RecursionError) as error:
            return f"{path.name} is no JSON file ({error})"
    return None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; what is missing, far too large, nested too deeply or none is empty.

    It is in UTF-8, as JSON has to be, or in UTF-16 or Latin-1, as editors write.  Numbers that JSON
    does not have (NaN, infinity) are None, halves of characters are replaced.
    """
    try:
        if not path.is_file() or path.stat().st_size > MOST_JSON_BYTES:
            return {}
        content = json.loads(text_of(path.read_bytes()), parse_constant=lambda _: None)
        plain = json.dumps(content, ensure_ascii=False)
        if SURROGATES.search(plain):
            content = json.loads(SURROGATES.sub("\ufffd", plain))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}

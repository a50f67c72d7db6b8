# SPDX-License-Identifier: Apache-2.0
"""Checks of the files on a command line of one image, before anything is read."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

from bmex_bids.common.names import sidecar_of
from bmex_bids.exceptions import OutputError, UsageError
from bmex_bids.inputs.on_disk import EXTENSIONS


def check_target(flag: str, path: Path) -> None:
    """Refuse a name of another kind of file (UsageError), and a folder that cannot be written.

    Raises
    ------
    UsageError, OutputError
    """
    endings = (".html",) if flag == "--report" else EXTENSIONS
    if not path.name.endswith(endings) or path.name in endings:
        raise UsageError(
            f"expected a name that ends in {' or '.join(endings)} for {flag}, got {path.name}; "
            "nothing was computed, change the name"
        )
    if path.is_dir():
        raise UsageError(f"expected a file name for {flag}, got the folder {path}; add a name")
    folder = path.parent
    if not folder.is_dir():
        raise OutputError(
            f"expected a folder for {flag} at {folder}, found none; make it first "
            f"(mkdir -p '{folder}'), and inside a container check that it is mounted"
        )
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputError(
            f"expected a folder that can be written for {flag} at {folder}, got: "
            f"{error.strerror or error}; name another folder or change its permissions"
        ) from error


def check_distinct(sources: Mapping[str, Path], targets: Mapping[str, Path]) -> None:
    """Refuse to write one file twice, or over what is read; sidecars count too."""
    taken: dict[Path, str] = {}
    for name, path in sources.items():
        taken |= {path: name, sidecar_of(path): f"the JSON file of {name}"}
    for flag, path in targets.items():
        own = {path: flag}
        if path.name.endswith(EXTENSIONS):
            own[sidecar_of(path)] = f"the JSON file of {flag}"
        for item, name in own.items():
            other = same_file(item, taken)
            if other:
                raise UsageError(
                    f"expected different files for {other} and {name}, got {item} for both; "
                    f"nothing was written, name another {flag}"
                )
        taken |= own


def same_file(path: Path, taken: Mapping[Path, str]) -> str | None:
    """Which of the files this one is, perhaps under another name (a link), if any."""
    for other, name in taken.items():
        if path.parent.samefile(other.parent) and path.name == other.name:
            return name
        if path.exists() and other.exists() and path.samefile(other):
            return name
    return None

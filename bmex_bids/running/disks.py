# SPDX-License-Identifier: Apache-2.0
"""What the file system of a folder, which need not exist yet, makes of names."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

#: bytes, where the system does not say
USUAL_LONGEST = 255


def longest_name(folder: Path) -> int:
    """Bytes that a file name may have (143 with eCryptfs)."""
    try:
        return os.pathconf(_existing(folder), "PC_NAME_MAX")
    except OSError:
        return USUAL_LONGEST


def ignores_case(folder: Path) -> bool:
    """Whether ``A`` and ``a`` are one file (CIFS, exFAT, macOS); nothing is written to find out."""
    here = _existing(folder)
    device = here.stat().st_dev
    # the name of a mounted disk's top is one of the disk above
    above = (path for path in (here, *here.parents) if path.parent.stat().st_dev == device)
    for path in itertools.chain(above, _entries(here, 100)):
        other = path.with_name(path.name.swapcase()) if path.name else path
        try:
            if other.name == path.name or path.lstat().st_dev != device:
                continue
            # some file systems give one file two numbers
            return other.exists() and (other.samefile(path) or other not in _entries(path.parent))
        except OSError:  # removed meanwhile
            continue
    return False


def keeps_names(path: Path) -> bool:
    """Whether a file is listed with the name that it was made with, not in other letters."""
    names = {each.name for each in _entries(path.parent)}
    return path.name in names or not {path.name.lower(), path.name.upper()} & names


def _entries(folder: Path, most: int | None = None) -> Iterator[Path]:
    """What a folder holds, as far as it may be read."""
    try:
        with os.scandir(folder) as entries:
            for entry in itertools.islice(entries, most):
                yield Path(entry.path)
    except OSError:
        return


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())

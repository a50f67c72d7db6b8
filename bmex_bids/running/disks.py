# SPDX-License-Identifier: Apache-2.0
"""What the file system of a folder, which need not exist yet, makes of names."""

from __future__ import annotations

import os
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
    for path in (here, *here.parents):
        if path.stat().st_dev != device:
            break
        other = path.with_name(path.name.swapcase()) if path.name else path
        if other.name != path.name:
            return other.exists() and other.samefile(path)
    return False


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())

# SPDX-License-Identifier: Apache-2.0
"""Files that are there whole or not at all."""

from __future__ import annotations

import glob
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from bmex_bids.exceptions import OutputError


def write_whole(target: Path, fill: Callable[[Path], object]) -> Path:
    """Let ``fill`` write a temporary file beside ``target``, then rename it.

    A run that is killed leaves the old file or none, never half of one.  Raises OutputError when
    the file system refuses.
    """
    write_together({target: fill})
    return target


def write_together(fills: Mapping[Path, Callable[[Path], object]]) -> None:
    """Write several files that belong together: nothing is renamed before all are complete.

    For an image without its sidecar, or a sidecar without its image, is not BIDS.

    Parameters
    ----------
    fills : target → what writes it, given a temporary path beside the target
    """
    staged: dict[Path, Path] = {}
    target = Path()
    try:
        try:
            for target, fill in fills.items():
                target.parent.mkdir(parents=True, exist_ok=True)
                handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
                os.close(handle)
                staged[target] = Path(name)
                fill(staged[target])
                staged[target].chmod(0o666 & ~_umask())
            for target, temporary in staged.items():
                temporary.replace(target)
        finally:
            for temporary in staged.values():
                temporary.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(
            f"expected to write {target}, got: {error.strerror or error}; free some space or "
            "change the permissions, then run the same command again"
        ) from error


def clear_temporaries(targets: Iterable[Path], *, older_than_s: float = 0.0) -> None:
    """Remove what killed runs left behind of files that were to become ``targets``.

    Parameters
    ----------
    older_than_s : leave younger ones, which another process may be writing just now
    """
    now = time.time()
    for target in targets:
        for path in target.parent.glob(f".{glob.escape(target.name)}.*"):
            try:
                if now - path.stat().st_mtime >= older_than_s:
                    path.unlink()
            except OSError:  # another process was quicker, or it is not ours
                continue


def _umask() -> int:
    """The process's mask of permissions (which can only be read by setting it)."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def write_text(target: Path, text: str) -> Path:
    """Write a text file, whole, as UTF-8."""
    return write_whole(target, lambda path: path.write_text(text, encoding="utf-8"))


def write_json(target: Path, table: Any) -> Path:
    """Write a JSON file, whole."""
    return write_text(target, as_json(table))


def as_json(table: Any) -> str:
    """JSON as this package writes it."""
    return json.dumps(table, indent=2, ensure_ascii=False) + "\n"


def copy_whole(source: Path, target: Path) -> Path:
    """Copy a file, whole."""
    return write_whole(target, lambda path: shutil.copyfile(source, path))

# SPDX-License-Identifier: Apache-2.0
"""Files that are there whole or not at all."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from bmex_bids.common.replacing import put_in_place
from bmex_bids.exceptions import OutputError
from bmex_bids.outputs.lock import ABANDONED_S, is_alive, machine

#: bytes of a file name that most file systems take, and of it what a temporary name adds
LONGEST_NAME, ADDED = 255, 40
#: a temporary file tells whose it is: machine and process
TEMPORARY = re.compile(r"\..+\.(?P<machine>[0-9a-f]{8})-(?P<process>\d+)-\w+")


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
                prefix = f".{_stem(target)}.{_machine()}-{os.getpid()}-"
                staged[target] = target.with_name(f"{prefix}{uuid.uuid4().hex[:8]}")
                # made here, not by mkstemp: with the modes of umask and folder, and no chmod, which
                # some file systems refuse
                os.close(os.open(staged[target], os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
                fill(staged[target])
            for target, temporary in staged.items():
                put_in_place(temporary, target)
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
        for path in target.parent.glob(f".{glob.escape(_stem(target))}.*"):
            try:
                if now - path.stat().st_mtime >= older_than_s:
                    path.unlink()
            except OSError:  # another process was quicker, or it is not ours
                continue


def clear_abandoned(folders: Iterable[Path]) -> None:
    """Remove what killed runs left behind in folders: temporary files whose process is no more.

    Those of other machines are left alone for a day: whether they are written still, only their
    own machine knows.
    """
    now = time.time()
    for folder in folders:
        try:
            hidden = [entry for entry in os.scandir(folder) if entry.name.startswith(".")]
        except OSError:  # not made yet
            continue
        for entry in hidden:
            found = TEMPORARY.fullmatch(entry.name)
            if found is None:
                continue
            try:
                if found["machine"] == _machine():
                    gone = not is_alive(int(found["process"]))
                else:
                    gone = now - entry.stat(follow_symlinks=False).st_mtime > ABANDONED_S
                if gone:
                    Path(entry.path).unlink()
            except OSError:  # another process was quicker, or it is not ours
                continue


def _stem(target: Path) -> str:
    """A file's name in that of its temporary file: shortened where that would be too long."""
    name = target.name
    try:
        longest = os.pathconf(target.parent, "PC_NAME_MAX")
    except OSError:  # no folder, or the system does not say
        longest = LONGEST_NAME
    while len(os.fsencode(name)) > longest - ADDED:
        name = name[:-1]
    return name


def _machine() -> str:
    return hashlib.sha256(machine().encode()).hexdigest()[:8]


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

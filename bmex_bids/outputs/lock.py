# SPDX-License-Identifier: Apache-2.0
"""One process at a time, on any machine that sees the output folder.

A lock is a file in ``OUTPUT/logs/locks``, made with ``O_EXCL``, which NFS has known since version
3; ``flock`` is not used, as it is switched off or local on many clusters' file systems.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from bmex_bids.exceptions import OutputError

#: a lock that stays the same for so long is nobody's any more; files are written in seconds
PATIENCE_S = 120.0
POLL_S = 0.05
#: for so long a claim or a temporary file of another machine is taken for one of a living process
ABANDONED_S = 24 * 3600.0
#: others may take it and give it back meanwhile
CLAIM_TRIES = 20


@contextlib.contextmanager
def alone(
    output_dir: Path,
    name: str,
    *,
    patience_s: float = PATIENCE_S,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[None]:
    """Hold the lock ``name`` of an output folder; wait until whoever has it is done.

    The lock of a process that is gone is taken over: at once on the same machine, else when it has
    stayed for ``patience_s`` (by our own clock: those of two machines may differ).

    Raises
    ------
    OutputError
        The folder of the locks cannot be written.
    """
    path = output_dir / "logs" / "locks" / re.sub(r"[^\w.+-]", "_", name)
    mine = f"{machine()} {os.getpid()} {uuid.uuid4().hex}"
    seen, since = "", clock()
    while not _take(path, mine):
        holder = _holder(path)
        if holder != seen:
            seen, since = holder, clock()
        if _is_gone(holder) or clock() - since > patience_s:
            _break(path, holder)
        else:
            time.sleep(POLL_S)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            if _holder(path) == mine:
                path.unlink()
            path.parent.rmdir()  # unless there are others


def claim(path: Path, *, abandoned_s: float = ABANDONED_S) -> bool:
    """Take the lock ``path`` without waiting; False where another process has it.

    It stays until the file is removed, or this process has ended.  One of another machine, whose
    processes nobody sees from here, is a process' own for ``abandoned_s``.

    Raises
    ------
    OutputError
        The folder cannot be written.
    """
    mine = f"{machine()} {os.getpid()} {uuid.uuid4().hex}"
    for _ in range(CLAIM_TRIES):
        if _take(path, mine):
            return True
        holder = _holder(path)
        try:
            old = time.time() - path.stat().st_mtime > abandoned_s
        except OSError:  # given back meanwhile
            continue
        if not (_is_gone(holder) or (old and not _is_here(holder))):
            return False
        _break(path, holder)
    return False


def _take(path: Path, mine: str) -> bool:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as stream:
                stream.write(mine)
        except OSError:  # a full disk: without a name in it, others would wait for the lock
            path.unlink()
            raise
    except (FileExistsError, FileNotFoundError):  # somebody's; the folder went with the last one
        return False
    except OSError as error:
        raise OutputError(
            f"expected to write {path}, got: {error.strerror or error}; free some space or change "
            "the permissions, then run the same command again"
        ) from error
    return True


def _holder(path: Path) -> str:
    """Who has a lock; empty where nobody has, or has not said so yet."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""


def _is_gone(holder: str) -> bool:
    """Whether a lock is of a process of this machine that has ended."""
    number = holder.partition(" ")[2].partition(" ")[0]
    return _is_here(holder) and number.isdigit() and not is_alive(int(number))


def _is_here(holder: str) -> bool:
    """Whether a lock is of a process of this machine."""
    return holder.partition(" ")[0] == machine()


def is_alive(process: int) -> bool:
    """Whether a process of this machine lives."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # somebody else's
        return True
    return True


def _break(path: Path, holder: str) -> None:
    """Remove the lock of one that is gone, unless it is another's by now."""
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    with contextlib.suppress(OSError):
        if _holder(path) == holder:
            try:
                path.rename(aside)
            except OSError:  # a file system without renaming
                aside = path
            aside.unlink()


def machine() -> str:
    """This machine since it was started, and this container: where a process number means one."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        space = str(Path("/proc/self/ns/pid").readlink())
    except (OSError, ValueError):
        boot, space = socket.gethostname(), ""
    return f"{boot}/{space}".replace(" ", "")

# SPDX-License-Identifier: Apache-2.0
"""Bring one file from an address, and go on where a former attempt ended.

What came lies in ``NAME.part``, with what is known of it in ``NAME.part.json``; a later call, also of
another process, goes on from there if the server can tell that the file is still the same.
"""

from __future__ import annotations

import fcntl
import http.client
import json
import os
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from bmex_bids.exceptions import OutputError, WeightsError

BLOCK = 1 << 18
TIMEOUT_S = 60.0
ATTEMPTS = 6  # in a row without a byte gained
#: answers that may be another one in a moment (RFC 9110; 429 is RFC 6585)
PASSING = {408, 425, 429, 500, 502, 503, 504}
#: stay as they are in an address; anything else that is no letter or number is escaped
PLAIN = "%/:=&?~#+!$,;'@()*[]"

Progress = Callable[[str, int, int | None], None]  # file, bytes so far, bytes in all if known


def silent(_name: str, _done: int, _total: int | None) -> None:
    """No progress."""


def part_of(target: Path) -> Path:
    """Where a file lies until it is whole and checked."""
    return target.with_name(f"{target.name}.part")


def download(
    url: str,
    target: Path,
    *,
    progress: Progress = silent,
    timeout_s: float = TIMEOUT_S,
    attempts: int = ATTEMPTS,
    wait_s: float = 1.0,
) -> Path:
    """Download to ``target.part`` and return that path; nothing is checked but its length.

    The caller sees to it that nobody else does the same: :func:`only_one`.

    Parameters
    ----------
    url : http or https
    target : the name the file will have; its folder exists
    timeout_s : longest silence of the server
    attempts : failures in a row, without a byte gained, after which it gives up
    wait_s : before the first further attempt; doubled each time

    Raises
    ------
    WeightsError
        The address is wrong, the server refuses, sends a web page, or keeps failing; what came so
        far is kept where a later call can go on from it.
    """
    if not re.match(r"https?://", url):
        raise WeightsError(f"expected an address with http:// or https://, got {url!r}")
    url = urllib.parse.quote(url, safe=PLAIN)
    part = part_of(target)
    failures, begun = 0, False
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            _transfer(url, part, target.name, progress, timeout_s, begun=begun)
            return part
        except WeightsError:
            raise
        except urllib.error.HTTPError as error:
            if error.code == 416:  # what we have is not a beginning of what is there now
                part.unlink(missing_ok=True)
            elif error.code not in PASSING:
                raise WeightsError(
                    f"expected {target.name} at {url}, got the answer {error.code} "
                    f"({error.reason}); check the address, or download the file in a browser "
                    "and use --from FOLDER"
                ) from error
            reason = f"{error.code} {error.reason}"
        except (ValueError, http.client.InvalidURL) as error:
            raise WeightsError(
                f"expected an address that can be asked for, got {url!r} ({error}); check it"
            ) from error
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, OSError) and error.filename:  # the disk, not the net
                raise WeightsError(
                    f"expected to write {error.filename}, got: {error.strerror}; free some "
                    "space or choose another folder with --weights-dir"
                ) from error
            reason = str(getattr(error, "reason", None) or error) or type(error).__name__
        now, begun = part.stat().st_size if part.exists() else 0, True
        failures = failures + 1 if now <= before else 1
        if failures >= attempts:
            raise WeightsError(
                f"expected {target.name} from {url}, got {attempts} failures in a row (the "
                f"last: {reason}); {now} bytes are kept, give the same command again to go on"
            )
        time.sleep(wait_s * 2 ** (failures - 1))


def _transfer(
    url: str, part: Path, name: str, progress: Progress, timeout_s: float, *, begun: bool
) -> None:
    """One request; goes on where ``part`` ends if the server can, and starts again if not.

    ``begun``: the part is of this very call.  What an earlier one left is gone on with only where the
    server can tell that the file is still the same: half of each of two files would look whole.
    """
    have = part.stat().st_size if part.exists() else 0
    notes = _notes(part)
    if have and notes.get("url") == url and notes.get("validator") and have == notes.get("total"):
        progress(name, have, have)  # it was stopped after the last byte
        return
    request = urllib.request.Request(url, headers={"User-Agent": "bmex_bids"})  # noqa: S310 (http)
    if have and notes.get("url") == url and (begun or notes.get("validator")):
        request.add_header("Range", f"bytes={have}-")
        if validator := notes.get("validator"):
            request.add_header("If-Range", validator)
    else:
        have = 0
    with urllib.request.urlopen(request, timeout=timeout_s) as answer:  # noqa: S310
        if "text/html" in (answer.headers.get("Content-Type") or ""):
            raise WeightsError(
                f"expected the file {name} at {url}, got a web page; give the address of the file "
                "itself, or download it in a browser and use --from FOLDER"
            )
        have, total = _extent(answer, have, notes.get("total"))
        validator = answer.headers.get("ETag") or answer.headers.get("Last-Modified")
        if validator and validator.startswith("W/"):
            validator = None  # a weak one does not promise the same bytes
        with _opened(part, have) as stream:  # cuts what is of another file, before that is noted
            _note(part, {"url": url, "validator": validator, "total": total})
            progress(name, have, total)
            while block := answer.read1(BLOCK):
                _write(stream, block, part)
                have += len(block)
                progress(name, have, total)
    if total is not None and have != total:
        raise http.client.IncompleteRead(b"", total - have)


def _extent(answer: Any, have: int, expected: int | None) -> tuple[int, int | None]:
    """Where in the file the answer begins, and the file's length if known."""
    length = answer.headers.get("Content-Length")
    if answer.status != 206:
        return 0, int(length) if length and length.isdigit() else None
    found = re.match(r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("Content-Range") or "")
    total = int(found[2]) if found and found[2] != "*" else None
    if found is None or int(found[1]) != have or (expected and total and total != expected):
        raise urllib.error.HTTPError(answer.url, 416, "another part than asked for", None, None)  # type: ignore[arg-type]
    return have, total


def _opened(part: Path, have: int) -> IO[bytes]:
    stream = part.open("r+b" if part.exists() else "wb")
    stream.truncate(have)
    stream.seek(have)
    return stream


def _write(stream: IO[bytes], block: bytes, part: Path) -> None:
    try:
        stream.write(block)
    except OSError as error:
        error.filename = str(part)  # tells the disk's errors from the net's
        raise


def _notes(part: Path) -> dict[str, Any]:
    try:
        notes = json.loads(part.with_name(f"{part.name}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return notes if isinstance(notes, dict) else {}


def _note(part: Path, notes: dict[str, Any]) -> None:
    part.with_name(f"{part.name}.json").write_text(json.dumps(notes), encoding="utf-8")


def discard(part: Path) -> None:
    """Remove a partial download and what is known of it."""
    part.unlink(missing_ok=True)
    discard_notes(part)


def discard_notes(part: Path) -> None:
    """What is no download cannot be gone on with."""
    part.with_name(f"{part.name}.json").unlink(missing_ok=True)


@contextmanager
def only_one(part: Path) -> Iterator[None]:
    """Keep a file that is being fetched to this process, from its first byte until it is in its place."""
    lock = part.with_name(f".{part.name}.lock")
    try:
        handle = lock.open("w")
    except OSError as error:
        raise OutputError(
            f"expected to write in {part.parent}, got: {error.strerror}; choose another folder with "
            "--weights-dir or BMEX_WEIGHTS_DIR"
        ) from error
    with handle:
        if not _locked(handle, lock):
            raise WeightsError(
                f"expected no other process to fetch {part.name}, found one; wait for it to end"
            )
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def _locked(handle: IO[str], lock: Path) -> bool:
    """Whether the lock is ours; on a file system that has none nobody else is noticed."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    # whoever had it has removed it meanwhile: the next one would lock another file of this name
    return lock.exists() and lock.stat().st_ino == os.fstat(handle.fileno()).st_ino

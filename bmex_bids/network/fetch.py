# SPDX-License-Identifier: Apache-2.0
"""Bring published weights into the weights folder: from an address, a folder or a ZIP file.

A file appears under its own name only when it is whole, has the expected checksum (where one is
known) and holds the tensors of its network.  Until then it is ``NAME.part``, and a download that
broke off goes on from there, if the server can, also after the program was stopped.
"""

from __future__ import annotations

import fcntl
import http.client
import json
import re
import shutil
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from bmex_bids.exceptions import WeightsError
from bmex_bids.network.published import (
    PublishedSet,
    ledger,
    published_sets,
    sha256,
    write_down,
)

BLOCK = 1 << 18
TIMEOUT_S = 60.0
ATTEMPTS = 6  # in a row without a byte gained
#: answers that may be another one in a moment (RFC 9110; 429 is RFC 6585)
PASSING = {408, 425, 429, 500, 502, 503, 504}

Progress = Callable[[str, int, int | None], None]  # file, bytes so far, bytes in all if known


def silent(_name: str, _done: int, _total: int | None) -> None:
    """No progress."""


# ------------------------------------------------------------------ one address
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
    part = target.with_name(f"{target.name}.part")
    failures, begun = 0, False
    with _only_one(part):
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
    part.with_name(f"{part.name}.json").unlink(missing_ok=True)


@contextmanager
def _only_one(part: Path) -> Iterator[None]:
    lock = part.with_name(f".{part.name}.lock")
    with lock.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise WeightsError(
                f"expected to be alone in fetching {part.name}, but another process is at it; "
                "wait for that one"
            ) from error
        yield
        lock.unlink(missing_ok=True)


# ------------------------------------------------------------------ into the folder
@dataclass(frozen=True)
class Fetched:
    """What became of one file.

    trust : ``"published"`` (its publisher's checksum), ``"given"`` (on the command line), or
        ``"first use"`` (nothing to compare with: its checksum was written down)
    changed : False where the same file was there already
    """

    path: Path
    sha256: str
    trust: str
    changed: bool


def install(
    part: Path,
    folder: Path,
    release: PublishedSet,
    name: str,
    *,
    origin: str,
    given_sha256: str | None = None,
) -> Fetched:
    """Check a file that came, and move it to its place; a bad one is removed.

    Parameters
    ----------
    part : the file under its temporary name, in ``folder``
    name : its published name, of a weight file or a companion
    origin : where it came from, for the ledger
    given_sha256 : what the user says it must be
    """
    file = next((file for file in release.files if file.file == name), None)
    noted = ledger(folder).get(name, {}).get("sha256")
    published = file.sha256 if file is not None else None
    expected = given_sha256 or published or noted
    found = sha256(part)
    try:
        if expected is not None and found != expected.lower():
            whose = (
                "you gave"
                if given_sha256
                else "its publisher gave"
                if published
                else "the same file had when it first came"
            )
            raise WeightsError(
                f"expected {name} to have the SHA-256 {expected}, which {whose}, got {found} from "
                f"{origin}; it was not kept. Fetch it again; if its publisher changed it, remove "
                f"{name} and its entry in checksums.json first"
            )
        if file is not None:
            _holds_network(part, name, release.variant)
    except WeightsError:
        discard(part)
        raise
    target = folder / name
    changed = not (target.is_file() and sha256(target) == found)
    part.replace(target)
    discard(part)
    trust = "given" if given_sha256 else "published" if published else "first use"
    if noted != found:
        write_down(target, found, origin)
    return Fetched(target, found, trust, changed)


def _holds_network(part: Path, name: str, variant: str) -> None:
    """Load it as its network would be; under another name, since formats go by a name's ending."""
    from bmex_bids.network.checkpoints import load_network

    readable = part.with_name(f".new-{name}")
    part.replace(readable)
    try:
        load_network(readable, variant)
    except WeightsError as error:
        raise WeightsError(f"{error}".replace(str(readable), name).replace(".new-", "")) from error
    finally:
        readable.replace(part)


def fetch_file(
    url: str,
    folder: Path,
    release: PublishedSet,
    name: str,
    *,
    given_sha256: str | None = None,
    **options: Any,
) -> Fetched:
    """Download one published file into the weights folder; ``options`` as for :func:`download`."""
    make_folder(folder)
    part = download(url, folder / name, **options)
    return install(part, folder, release, name, origin=url, given_sha256=given_sha256)


def fetch_archive(
    url: str, folder: Path, release: PublishedSet, **options: Any
) -> list[tuple[str, Fetched]]:
    """Download a ZIP file and take the published files out of it."""
    make_folder(folder)
    part = download(url, folder / f"{release.name}.zip", **options)
    try:
        return take(part, folder, (release,), origin=url)
    finally:
        discard(part)


def take(
    source: Path,
    folder: Path,
    releases: tuple[PublishedSet, ...] | None = None,
    *,
    origin: str | None = None,
    progress: Progress = silent,
) -> list[tuple[str, Fetched]]:
    """Copy every file with a published name out of a folder or a ZIP file, however deep it lies.

    Returns the set's name and what became of each file; none at all is a WeightsError.
    """
    make_folder(folder)
    wanted = {
        name: release
        for release in (releases if releases is not None else published_sets())
        for name in (*(file.file for file in release.files), *release.companions)
    }
    done = []
    for name, stream in _entries(source, set(wanted)):
        release = wanted[name]
        part = folder / f"{name}.part"
        with _only_one(part), stream, part.open("wb") as target:
            discard_notes(part)
            progress(name, 0, None)
            try:
                shutil.copyfileobj(stream, target, BLOCK)
            except (zipfile.BadZipFile, zlib.error, EOFError) as error:
                discard(part)
                raise WeightsError(
                    f"expected {name} whole in {source}, got: {error}; fetch the archive again"
                ) from error
        fetched = install(
            part, folder, release, name, origin=origin or str(source.absolute() / name)
        )
        done.append((release.name, fetched))
    if not done:
        some = ", ".join([*sorted(wanted)[:3], "…"])
        raise WeightsError(
            f"expected files with the published names ({some}) in {source}, found none; see "
            "bmex-weights list"
        )
    return done


def discard_notes(part: Path) -> None:
    """A copy is not a download to go on with."""
    part.with_name(f"{part.name}.json").unlink(missing_ok=True)


def _entries(source: Path, names: set[str]) -> Iterator[tuple[str, IO[bytes]]]:
    """Each file of one of the names, opened; of two with one name the first is taken."""
    seen: set[str] = set()
    if source.is_dir():
        for path in sorted(source.rglob("*")):
            if path.name in names - seen and path.is_file():
                seen.add(path.name)
                yield path.name, path.open("rb")
        return
    try:
        with zipfile.ZipFile(source) as archive:
            for info in archive.infolist():
                name = Path(info.filename).name
                if name in names - seen and not info.is_dir():
                    seen.add(name)
                    yield name, archive.open(info)
    except (zipfile.BadZipFile, FileNotFoundError, NotImplementedError, RuntimeError) as error:
        raise WeightsError(
            f"expected a folder or a ZIP file at {source}, got: {error}; check the path"
        ) from error


def make_folder(folder: Path) -> None:
    """Make the weights folder; one that cannot be made is a WeightsError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WeightsError(
            f"expected to make the weights folder {folder}, got: {error.strerror}; choose another "
            "with --weights-dir or BMEX_WEIGHTS_DIR"
        ) from error

# SPDX-License-Identifier: Apache-2.0
"""Bring published weights into the weights folder: from an address, a folder or a ZIP file.

A file appears under its own name only when it is whole, has the expected checksum (where one is
known) and holds the tensors of its network, or, of a template, an image.  Until then it is ``NAME.part``.
"""

from __future__ import annotations

import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePath
from typing import IO, Any

from bmex_bids.common.replacing import put_in_place
from bmex_bids.exceptions import OutputError, WeightsError
from bmex_bids.network.weights.checkpoints import load_network
from bmex_bids.network.weights.download import (
    BLOCK,
    Progress,
    discard,
    discard_notes,
    download,
    only_one,
    part_of,
    silent,
)
from bmex_bids.network.weights.published import (
    PublishedSet,
    ledger,
    locate,
    published_sets,
    sha256,
    write_down,
)
from bmex_bids.network.weights.template import template_values

Opener = Callable[[], IO[bytes]]


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
    put_in_place(part, target)
    discard(part)
    trust = "given" if given_sha256 else "published" if published else "first use"
    if noted != found:
        write_down(target, found, origin)
    return Fetched(target, found, trust, changed)


def _holds_network(part: Path, name: str, variant: str) -> None:
    """Load it as its network would be."""
    try:
        load_network(part, variant, ending=Path(name).suffix)
    except WeightsError as error:
        said = f"{error}".replace(str(part), name).replace(part.name, name)
        raise WeightsError(said) from error


def fetch_file(
    url: str,
    folder: Path,
    release: PublishedSet,
    name: str,
    *,
    given_sha256: str | None = None,
    **options: Any,
) -> list[tuple[str, Fetched]]:
    """Download one published file into the weights folder, or a ZIP file in which it lies.

    ``options`` as for :func:`.download.download`; the result as of :func:`take`.
    """
    make_folder(folder)
    part = part_of(folder / name)
    with only_one(part):
        download(url, folder / name, **options)
        if given_sha256 is not None or not _is_archive(part, release):
            one = install(part, folder, release, name, origin=url, given_sha256=given_sha256)
            return [(release.name, one)]
        archive = part.replace(part_of(folder / f"{release.name}.zip"))
        discard_notes(part)
    return _take_apart(archive, folder, release, url)


def fetch_archive(
    url: str, folder: Path, release: PublishedSet, **options: Any
) -> list[tuple[str, Fetched]]:
    """Download a ZIP file and take the published files out of it."""
    make_folder(folder)
    target = folder / f"{release.name}.zip"
    with only_one(part_of(target)):
        archive = download(url, target, **options)
        return _take_apart(archive, folder, release, url)


def _is_archive(part: Path, release: PublishedSet) -> bool:
    """Whether it is a ZIP file with files of the set.  (A ``.pt`` file is a ZIP file too.)"""
    try:
        with zipfile.ZipFile(part) as archive:
            names = {PurePath(info.filename).name for info in archive.infolist()}
    except (zipfile.BadZipFile, NotImplementedError):
        return False
    return not names.isdisjoint([*(file.file for file in release.files), *release.companions])


def _take_apart(
    archive: Path, folder: Path, release: PublishedSet, url: str
) -> list[tuple[str, Fetched]]:
    """What is in an archive that came; it goes then, unless it was the disk that failed."""
    try:
        done = take(archive, folder, (release,), origin=url)
    except WeightsError:
        discard(archive)
        raise
    discard(archive)
    return done


# ------------------------------------------------------------------ out of a folder or an archive
def take(
    source: Path,
    folder: Path,
    releases: tuple[PublishedSet, ...] | None = None,
    *,
    origin: str | None = None,
    progress: Progress = silent,
) -> list[tuple[str, Fetched]]:
    """Copy every file with a published name out of a folder or a ZIP file, however deep it lies.

    Of two with one name the first is taken.  Companions are taken together, out of one folder.

    Returns
    -------
    The set's name and what became of each file.

    Raises
    ------
    WeightsError
        There is none at all, or some were bad; the good ones are in their place then.
    OutputError
        The weights folder cannot be written.
    """
    make_folder(folder)
    done: list[tuple[str, Fetched]] = []
    bad: list[str] = []
    with _listing(source) as listing:
        for release in releases if releases is not None else published_sets():
            for file in release.files:
                path = next((path for path in listing if path.name == file.file), None)
                if path is None:
                    continue
                try:
                    one = _copied(listing, path, folder, release, origin or str(path), progress)
                except WeightsError as error:
                    bad.append(str(error))
                else:
                    done.append((release.name, one))
            try:
                more = _companions(listing, folder, release, origin)
            except WeightsError as error:
                bad.append(str(error))
            else:
                done += [(release.name, one) for one in more]
    if bad:
        good = (
            f" The others were taken: {', '.join(f.path.name for _, f in done)}." if done else ""
        )
        raise WeightsError(f"{'. '.join(bad)}.{good}" if len(bad) > 1 or done else bad[0])
    if not done:
        some = ", ".join(
            [*sorted(file.file for r in published_sets() for file in r.files)[:3], "…"]
        )
        raise WeightsError(
            f"expected files with the published names ({some}) in {source}, found none; see "
            "bmex-weights list"
        )
    return done


def _copied(
    listing: dict[PurePath, Opener],
    path: PurePath,
    folder: Path,
    release: PublishedSet,
    origin: str,
    progress: Progress,
) -> Fetched:
    """One weight file, checked and in its place."""
    part = part_of(folder / path.name)
    with only_one(part):
        discard_notes(part)  # a copy is not a download to go on with
        progress(path.name, 0, None)
        try:
            _copy(listing[path], part)
        except BaseException:
            discard(part)
            raise
        size = part.stat().st_size
        progress(path.name, size, size)
        return install(part, folder, release, path.name, origin=origin)


def _copy(opener: Opener, target: Path) -> None:
    """Write what is opened; a damaged source is a WeightsError, a target that fails an OutputError."""
    name = target.name.removesuffix(".part")
    try:
        with opener() as stream, target.open("wb") as copy:
            shutil.copyfileobj(stream, copy, BLOCK)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise WeightsError(
            f"expected {name} whole in its archive, got: {error}; fetch the archive again"
        ) from error
    except OSError as error:
        raise OutputError(
            f"expected to copy {name} to {target.parent}, got: {error.strerror}; free some space, "
            "check who may read and write there, or choose another folder with --weights-dir"
        ) from error


def _companions(
    listing: dict[PurePath, Opener], folder: Path, release: PublishedSet, origin: str | None
) -> list[Fetched]:
    """The files that go with a set's weights, all out of one folder, where it has them.

    Their names are common ones (``template.hdr``), so they are taken only where the weights come with
    them or are here already, and only when they can be read as what they are to be.
    """
    if not release.companions or not _has_weights(listing, folder, release):
        return []
    places = _beside(listing, release)
    if not places:
        return []
    if len(places) > 1:
        raise WeightsError(
            f"expected one folder with {' and '.join(release.companions)}, got "
            f"{', '.join(str(place) for place in places)}; give the right one with --from"
        )
    with tempfile.TemporaryDirectory(dir=folder, prefix=".new-") as temporary:
        parts = [Path(temporary) / name for name in release.companions]
        for part in parts:
            _copy(listing[places[0] / part.name], part)
        try:
            template_values(parts[0])
        except WeightsError as error:
            raise WeightsError(f"{error}".replace(temporary, str(places[0]))) from error
        return [
            install(part, folder, release, part.name, origin=origin or str(places[0] / part.name))
            for part in parts
        ]


def _has_weights(listing: dict[PurePath, Opener], folder: Path, release: PublishedSet) -> bool:
    names = {file.file for file in release.files}
    return any(path.name in names for path in listing) or any(
        locate(folder, name) is not None for name in names
    )


def _beside(listing: dict[PurePath, Opener], release: PublishedSet) -> list[PurePath]:
    """The folders that hold all of a set's companions; if some hold its weights too, only those."""
    parents = dict.fromkeys(path.parent for path in listing)
    whole = [p for p in parents if all(p / name in listing for name in release.companions)]
    return [p for p in whole if any(p / f.file in listing for f in release.files)] or whole


@contextmanager
def _listing(source: Path) -> Iterator[dict[PurePath, Opener]]:
    """Every file of a folder or ZIP file, however deep, and what opens it."""
    if source.is_dir():
        paths = sorted(path for path in source.absolute().rglob("*") if path.is_file())
        yield {path: partial(_open, path) for path in paths}
        return
    try:
        archive = zipfile.ZipFile(source)
    except (zipfile.BadZipFile, NotImplementedError, OSError) as error:
        raise WeightsError(
            f"expected a folder or a ZIP file at {source}, got: {error}; check the path"
        ) from error
    with archive:
        yield {
            source.absolute() / info.filename: partial(archive.open, info)
            for info in archive.infolist()
            if not info.is_dir()
        }


def _open(path: Path) -> IO[bytes]:
    return path.open("rb")


def make_folder(folder: Path) -> None:
    """Make the weights folder; one that cannot be made is a WeightsError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WeightsError(
            f"expected to make the weights folder {folder}, got: {error.strerror}; choose another "
            "with --weights-dir or BMEX_WEIGHTS_DIR"
        ) from error

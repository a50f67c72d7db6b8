# SPDX-License-Identifier: Apache-2.0
"""The published weight sets: what they are called, where they come from, where they lie here.

They are not ours to ship.  One folder holds them, :func:`weights_folder`; beside them lies
``checksums.json``, which keeps the SHA-256 that each file had when it came (trust on first use),
since their publishers give none.
"""

from __future__ import annotations

import datetime
import fcntl
import functools
import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from bmex_bids.common.replacing import put_in_place
from bmex_bids.exceptions import WeightsError

LOGGER = logging.getLogger(__name__)

ENVIRONMENT = "BMEX_WEIGHTS_DIR"
LEDGER = "checksums.json"


@dataclass(frozen=True)
class PublishedFile:
    """One file of a set: for which images, its checksum and address where they are known."""

    file: str
    age_groups: tuple[str, ...]
    contrasts: tuple[str, ...]
    sha256: str | None
    url: str | None

    def serves(self, age_group: str | None, contrast: str | None) -> bool:
        """Whether it is for the age group and contrast (None: any)."""
        return (age_group is None or age_group in self.age_groups) and (
            contrast is None or contrast in self.contrasts
        )


@dataclass(frozen=True)
class PublishedSet:
    """One release.

    page : where its publisher offers it
    archive : address of a ZIP file with all of it, None where there is none
    companions : further files of the release that are used when they are there
    """

    name: str
    kind: str  # "enhance" or "strip"
    variant: str
    version: str
    licence: str
    source: str
    description: str
    input_units: str
    page: str
    archive: str | None
    files: tuple[PublishedFile, ...]
    companions: tuple[str, ...]

    def record_name(self, file: PublishedFile) -> str:
        """``bmex-1.0.5-month24-T1w``; the set's own name where it is one file."""
        if len(self.files) == 1:
            return self.name
        return "-".join((self.name, *file.age_groups, *file.contrasts))


@functools.cache
def published_sets() -> tuple[PublishedSet, ...]:
    """The releases that are known, from ``data/published.json``."""
    text = resources.files("bmex_bids.data").joinpath("published.json").read_text("utf-8")
    table: Mapping[str, Any] = json.loads(text)
    return tuple(
        PublishedSet(
            **{
                **entry,
                "files": tuple(
                    PublishedFile(
                        **{
                            **file,
                            "age_groups": tuple(file["age_groups"]),
                            "contrasts": tuple(file["contrasts"]),
                        }
                    )
                    for file in entry["files"]
                ),
                "companions": tuple(entry["companions"]),
            }
        )
        for entry in table["sets"]
    )


def weights_folder(given: Path | None = None) -> Path:
    """Where published weights are looked for and put: ``given``, else the folder that the
    environment variable ``BMEX_WEIGHTS_DIR`` names, else ``bmex_bids/weights`` in the user's cache.
    """
    if given is not None:
        return given
    if named := os.environ.get(ENVIRONMENT):
        return Path(named).expanduser().absolute()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    try:
        cache = cache.expanduser()
    except RuntimeError:
        cache = Path("/.cache")  # neither HOME nor an entry of the user: / is the home they get
    return cache.absolute() / "bmex_bids" / "weights"


def locate(folder: Path, name: str) -> Path | None:
    """A published file, or the same converted to safetensors; None where neither is there.

    A folder that may not be looked into has none, with a warning.
    """
    try:
        for path in (folder / name, (folder / name).with_suffix(".safetensors")):
            if path.is_file():
                return path
    except OSError as error:
        _say_once(f"published weights in {folder} are ignored: {error.strerror}")
    return None


@functools.cache
def _say_once(text: str) -> None:
    LOGGER.warning(text)


def companions(release: PublishedSet, folder: Path) -> tuple[Path, ...]:
    """The further files of a release that are there."""
    paths = (folder / name for name in release.companions)
    return tuple(path for path in paths if path.is_file())


# ------------------------------------------------------------------ checksums
def ledger(folder: Path) -> dict[str, dict[str, str]]:
    """File name → ``sha256``, ``from`` and ``on`` (date), as they were when it came."""
    try:
        table = json.loads((folder / LEDGER).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise WeightsError(
            f"expected checksums in {folder / LEDGER}, got: {error}; remove that file, then run "
            "bmex-weights verify to write down those of the files as they are"
        ) from error
    if not isinstance(table, dict):
        raise WeightsError(
            f"expected an object in {folder / LEDGER}, got {type(table).__name__}; remove that file, "
            "then run bmex-weights verify to write down the checksums of the files as they are"
        )
    return {name: entry for name, entry in table.items() if isinstance(entry, dict)}


def write_down(path: Path, sha256: str, origin: str) -> None:
    """Keep a file's checksum in the ledger beside it."""
    with _alone(path.parent / f".{LEDGER}.lock"):
        table = ledger(path.parent)
        today = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
        table[path.name] = {"sha256": sha256, "from": origin, "on": today}
        temporary = path.parent / f".{LEDGER}.new"
        temporary.write_text(json.dumps(table, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        put_in_place(temporary, path.parent / LEDGER)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One process at a time; on a file system without locks everybody is alone."""
    with path.open("w") as handle:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def check(path: Path, file: PublishedFile | None = None) -> str | None:
    """Compare a file with its published checksum, else with the one it had when it came.

    Returns what it was compared with: ``"published"``, ``"first use"``, or None where there is
    nothing to compare with.  A difference is a WeightsError.
    """
    noted = ledger(path.parent).get(path.name, {}).get("sha256")
    published = file.sha256 if file is not None and path.name == file.file else None
    expected = published or noted
    if expected is None:
        return None
    found = sha256(path)
    if found != expected:
        since = "its publisher gave" if published else "it had when it came"
        raise WeightsError(
            f"expected {path} to have the SHA-256 {expected}, which {since}, found {found}: it "
            f"was changed or damaged; remove it and run bmex-weights fetch again. If you "
            f"replaced it yourself, remove its entry in {LEDGER} too"
        )
    return "published" if published else "first use"


@functools.lru_cache(maxsize=64)
def _digest(path: Path, size: int, changed: int) -> str:
    with path.open("rb") as stream:
        digest = hashlib.sha256()
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def sha256(path: Path) -> str:
    """SHA-256 of a file, computed again only when its size or time changed."""
    stat = path.stat()
    return _digest(path, stat.st_size, stat.st_mtime_ns)

# SPDX-License-Identifier: Apache-2.0
"""Find the images of a BIDS dataset."""

from __future__ import annotations

import contextlib
import functools
import glob
import hashlib
import json
import logging
import os
import re
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bmex_bids.common.names import BidsName
from bmex_bids.exceptions import NoInputError, UsageError
from bmex_bids.inputs.filters import Filters, check_filters, passes

LOGGER = logging.getLogger(__name__)

SUFFIXES = ("T1w", "T2w")
EXTENSIONS = (".nii.gz", ".nii")
#: folders that hold no raw images
IGNORED = ("derivatives", "sourcedata", "code", "stimuli", "models", "logs", "work")
MOUNT_HINT = "inside a container, check that the dataset's folder is mounted"
#: in a file's name: control characters, marks that turn the direction of writing, bytes that are no
#: UTF-8; nobody can see such a name for what it is, and databases and pages choke on it
UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
#: what lies in a participant's folder and is not for us: all but files, sessions and ``anat``; a
#: link back to the dataset, which would be walked again and again, among it
NOT_ANATOMICAL = re.compile(
    r"^/sub-[^/]+/(?!(?:ses-[^/]+/)?(?:anat(?:/[^/]+)?|[^/]*\.[^/]*)$|ses-[^/]+/?$)"
)
IMAGE_PLACE = re.compile(r"sub-[^/]+/(?:ses-[^/]+/)?anat")
#: of JSON; a sidecar is no place for more
MOST_JSON_BYTES = 1 << 24
SURROGATES = re.compile("[\ud800-\udfff]")
#: of a saved index, as pybids names it
INDEX_FILE = "layout_index.sqlite"


@dataclass(frozen=True)
class SourceImage:
    """One anatomical image of the dataset.

    Attributes
    ----------
    path : absolute
    entities : in the order of the file name, such as ``{"sub": "0001", "ses": "V01", "run": "1"}``
    suffix : ``"T1w"`` or ``"T2w"``
    metadata : of its JSON sidecars, the nearer overruling the farther
    root : the dataset's folder
    """

    path: Path
    entities: Mapping[str, str]
    suffix: str
    metadata: Mapping[str, Any] = field(default_factory=dict)
    root: Path = Path()

    @property
    def bids_name(self) -> BidsName:
        """Its name without extension."""
        return BidsName(self.entities, self.suffix)

    @property
    def stem(self) -> str:
        """All entities as in the file name: ``sub-0001_ses-V01_run-1``."""
        return self.bids_name.stem

    @property
    def name(self) -> str:
        """Stem and suffix: ``sub-0001_ses-V01_T1w``."""
        return str(self.bids_name)

    @property
    def subject(self) -> str:
        """Label without ``sub-``."""
        return self.entities["sub"]

    @property
    def session(self) -> str | None:
        """Label without ``ses-``, or None."""
        return self.entities.get("ses")

    @property
    def relative_path(self) -> str:
        """From the dataset's folder, with forward slashes."""
        return self.path.relative_to(self.root).as_posix()


def collect(
    bids_dir: Path,
    *,
    participants: Sequence[str] | None = None,
    sessions: Sequence[str] | None = None,
    suffixes: Sequence[str] = SUFFIXES,
    runs: Sequence[str] | None = None,
    filters: Filters | None = None,
    database_dir: Path | None = None,
) -> list[SourceImage]:
    """The T1w and T2w images of a dataset, sorted by name.

    Parameters
    ----------
    bids_dir : the dataset; what lies in ``derivatives`` and ``sourcedata`` is left alone
    participants, sessions, runs : labels without prefix; None takes all
    suffixes : of ``"T1w"`` and ``"T2w"``
    filters : per contrast, what its images' entities must be (see :mod:`bmex_bids.inputs.filters`)
    database_dir : where pybids' index of the dataset is kept from one run to the next; an index
        that another program left there is used when it is complete, and never changed

    Raises
    ------
    UsageError
        The folder is missing, a label that was asked for is not there, or a filter is not
        understood.
    NoInputError
        There is no image.
    """
    bids_dir = Path(bids_dir).absolute()
    if not bids_dir.is_dir():
        raise UsageError(
            f"expected a BIDS dataset in {bids_dir}, found no such folder; {MOUNT_HINT}"
        )
    if not _is_text(str(bids_dir)):
        raise UsageError(
            f"expected a dataset whose folder has a name in UTF-8, got {str(bids_dir)!r}; rename "
            "the folder, or give a link to it that has another name"
        )
    # of a hundred thousand participants, look at no other than those asked for
    subjects = {
        label
        for label in participants or ()
        if "/" not in label and (bids_dir / f"sub-{label}").is_dir()
    }
    if not participants or len(subjects) < len(set(participants)):
        subjects = {p.name.removeprefix("sub-") for p in bids_dir.glob("sub-*") if p.is_dir()}
    if not subjects:
        raise NoInputError(
            f"expected folders named sub-<label> in {bids_dir}, found none; is this the "
            f"dataset's top folder? {MOUNT_HINT}"
        )
    absent = not_fetched([bids_dir / "dataset_description.json"])
    if absent:
        raise NoInputError(absent)
    _require("participant", participants, subjects, bids_dir)
    chosen = check_filters(filters) if filters else {}
    _tell_left_out(bids_dir, participants)
    found = [
        image
        for image in _images(bids_dir, participants, database_dir)
        if image.suffix in suffixes and (participants is None or image.subject in participants)
    ]
    present = {image.session for image in found if image.session}
    if not set(sessions or ()) <= present:
        folders = (p for p in bids_dir.glob("sub-*/ses-*") if p.is_dir())
        present |= {folder.name.removeprefix("ses-") for folder in folders}
    _require("session", sessions, present, bids_dir)
    if runs is not None:
        asked = [_number(run) for run in runs]
        there = {_number(image.entities["run"]) for image in found if "run" in image.entities}
        if not set(asked) <= there:  # of another participant: no reason to end this one's task
            names = (parse_name(path.name) for path in _on_disk(bids_dir))
            there |= {_number(name[0]["run"]) for name in names if name and "run" in name[0]}
        _require("run", asked, there, bids_dir)
    found = [
        image
        for image in found
        if (sessions is None or image.session in sessions)
        and (runs is None or _number(image.entities.get("run")) in map(_number, runs))
    ]
    passing = [image for image in found if _passes(image, chosen)]
    if not passing:
        wanted = " or ".join(suffixes)
        through = (
            f"found {len(found)}, and none of them passes the filters ({_shortened(chosen)}); check "
            "the filter file"
            if found
            else "found none; check the labels and the file names"
        )
        raise NoInputError(
            f"expected a {wanted} image (sub-*/[ses-*/]anat/*_{suffixes[0]}.nii.gz) in "
            f"{bids_dir} for the labels asked for, {through}"
        )
    return sorted(passing, key=lambda image: image.relative_path)


def _tell_left_out(bids_dir: Path, participants: Sequence[str] | None) -> None:
    """Warn of images whose names cannot be printed, look like BIDS and are not, or belie their folder."""
    for path in sorted(_on_disk(bids_dir, participants)):
        name = path.relative_to(bids_dir).as_posix()
        if UNPRINTABLE.search(name):
            LOGGER.warning(
                "left out: %r: its name has characters that cannot be printed; rename it", name
            )
        elif not _named(path):
            LOGGER.warning(
                "left out: %s: its name is no BIDS name; labels are letters and numbers", name
            )
        elif not _at_home(path, bids_dir):
            LOGGER.warning(
                "left out: %s: its folder is of another participant or session than its name says; "
                "rename or move it",
                name,
            )


def _named(path: Path) -> bool:
    """Whether a path ends in a BIDS name of one of our contrasts; ``acq-0.8mm`` makes it none."""
    parsed = parse_name(path.name)
    return parsed is not None and parsed[1] in SUFFIXES


def _at_home(path: Path, bids_dir: Path) -> bool:
    """Whether participant and session of a file's name are those of its folder."""
    parsed = parse_name(path.name)
    folders = path.parent.relative_to(bids_dir).parts
    said = (
        [f"{key}-{parsed[0][key]}" for key in ("sub", "ses") if key in parsed[0]] if parsed else []
    )
    return said == [part for part in folders if part.startswith(("sub-", "ses-"))]


def _passes(image: SourceImage, filters: Filters) -> bool:
    extension = image.path.name[len(image.path.name.split(".")[0]) :]
    return passes(filters, image.suffix, image.entities, image.path.parent.name, extension)


def _shortened(filters: Filters) -> str:
    text = json.dumps(filters)
    return text if len(text) <= 200 else f"{text[:200]} …"


def _number(label: str | None) -> str:
    """Run indices are numbers: 1 and 01 are the same.  Empty where there is none."""
    return "" if label is None else label.lstrip("0") or "0"


def _require(what: str, wanted: Sequence[str] | None, present: set[str], bids_dir: Path) -> None:
    absent = sorted(set(wanted or ()) - present)
    if absent:
        some = ", ".join(sorted(present)[:10]) or "none"
        raise UsageError(
            f"expected {what} {', '.join(absent)} in {bids_dir}, found only {some}"
            f"{' …' if len(present) > 10 else ''}; check the label, and {MOUNT_HINT}"
        )


def _images(
    bids_dir: Path, participants: Sequence[str] | None, database_dir: Path | None
) -> Iterator[SourceImage]:
    if database_dir is None:
        layout = _index(bids_dir, participants)
    else:
        layout = _kept_index(bids_dir, Path(database_dir).absolute())
    folders = (path for path in _on_disk(bids_dir) if path.is_dir())  # in the place of an image
    for path in (*_anatomical(layout), *folders):
        if not IMAGE_PLACE.fullmatch(path.parent.relative_to(bids_dir).as_posix()):
            continue
        parsed = parse_name(path.name)
        if parsed is not None and _at_home(path, bids_dir):
            entities, suffix = parsed
            yield SourceImage(path, entities, suffix, sidecar_metadata(path, bids_dir), bids_dir)


def _is_text(name: str) -> bool:
    """Whether a name is UTF-8: pybids' index cannot hold others."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _anatomical(layout: Any) -> list[Path]:
    """The files of an index that may be images for us."""
    found = layout.get(datatype="anat", extension=list(EXTENSIONS))
    return [Path(file.path) for file in found]


def _index(bids_dir: Path, participants: Sequence[str] | None) -> Any:
    """A pybids layout of the raw images, in memory."""
    from bids.layout import BIDSLayout, BIDSLayoutIndexer

    # other participants' folders need not be walked; on big datasets that is most of the time
    ignore = [
        re.compile(rf"^/(?:{'|'.join(IGNORED)})(?:/|$)"),
        re.compile(r"/\."),
        UNPRINTABLE,
        NOT_ANATOMICAL,
    ]
    if participants:
        labels = "|".join(re.escape(label) for label in participants)
        ignore.append(re.compile(rf"^/sub-(?!(?:{labels})(?:/|$))"))
    return BIDSLayout(
        bids_dir,
        validate=False,
        derivatives=False,
        indexer=BIDSLayoutIndexer(validate=False, index_metadata=False, ignore=ignore),
    )


def _kept_index(bids_dir: Path, database_dir: Path) -> Any:
    """A pybids layout from a file that knows every image of today, else a new one, which is kept.

    ::

        DATABASE_DIR/layout_index.sqlite                  of another program: read, never written
        DATABASE_DIR/bmex-<dataset>/layout_index.sqlite   ours: has no metadata, so it is apart
    """
    if database_dir.exists() and not database_dir.is_dir():
        raise UsageError(
            f"expected a folder for pybids' index, got the file {database_dir}; give the folder it "
            "is in, or a new one"
        )
    ours = database_dir / f"bmex-{hashlib.sha256(str(bids_dir).encode()).hexdigest()[:8]}"
    for folder in (database_dir, ours):
        if (folder / INDEX_FILE).exists():
            layout, fault = _load_index(folder, bids_dir)
            if layout is not None:
                return layout
            LOGGER.warning("the index of the dataset in %s is not used: %s", folder, fault)
    layout = _index(bids_dir, None)
    try:
        _keep(layout, ours)
    except (OSError, sqlite3.Error) as error:
        LOGGER.warning("the index of the dataset could not be kept in %s: %s", ours, error)
    return layout


def _load_index(folder: Path, bids_dir: Path) -> tuple[Any, str]:
    """The layout kept in a folder, or None and why it cannot be used."""
    from bids.layout import BIDSLayout
    from sqlalchemy.exc import SQLAlchemyError

    # pybids would create, or complete, what it opens: look at the file first, without writing
    try:
        with contextlib.closing(
            sqlite3.connect(f"{(folder / INDEX_FILE).as_uri()}?mode=ro", uri=True)
        ) as database:
            sound = database.execute("PRAGMA quick_check").fetchone()
            root = database.execute("SELECT root FROM layout_info").fetchone()
    except sqlite3.Error as error:
        return None, f"it is damaged ({error})"
    if sound != ("ok",) or root is None:
        return None, "it is damaged"
    if Path(root[0]) != bids_dir:
        return None, f"it is of the dataset in {root[0]}, not in {bids_dir}"
    try:
        layout = BIDSLayout(database_path=folder)
        indexed = {path.as_posix() for path in _anatomical(layout)}
    except (SQLAlchemyError, ValueError, TypeError, AttributeError, KeyError) as error:
        return None, f"this version of pybids cannot read it ({error})"
    today = {
        path.as_posix()
        for path in _on_disk(bids_dir)
        if _named(path) and not UNPRINTABLE.search(path.relative_to(bids_dir).as_posix())
    }
    if not today <= indexed:
        some = sorted(today - indexed)[0]
        return None, f"it does not know {len(today - indexed)} images, such as {some}"
    gone = {path for path in indexed - today if not Path(path).exists()}
    if gone:
        return None, f"{len(gone)} of its images are gone, such as {sorted(gone)[0]}"
    return layout, ""


def _on_disk(bids_dir: Path, participants: Sequence[str] | None = None) -> Iterator[Path]:
    """The anatomical images of a dataset by their names, quicker than any index."""
    subjects = [f"sub-{glob.escape(label)}" for label in participants or ()] or ["sub-*"]
    patterns = [f"{sub}/{inner}" for sub in subjects for inner in ("anat", "ses-*/anat")]
    for pattern in patterns:
        for suffix in SUFFIXES:
            for extension in EXTENSIONS:
                for path in bids_dir.glob(f"{pattern}/*_{suffix}{extension}"):
                    if not path.name.startswith("."):
                        yield path


def _keep(layout: Any, folder: Path) -> None:
    """Save an index whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=folder) as temporary:
        layout.save(temporary, replace_connection=False)
        (Path(temporary) / INDEX_FILE).replace(folder / INDEX_FILE)


def parse_name(name: str) -> tuple[dict[str, str], str] | None:
    """Entities and suffix of a BIDS file name; None for a name that is not one.

    >>> parse_name("sub-01_ses-a_run-2_T1w.nii.gz")
    ({'sub': '01', 'ses': 'a', 'run': '2'}, 'T1w')
    >>> parse_name("localizer.nii.gz") is None
    True
    """
    parsed = BidsName.parse(name)
    return None if parsed is None else (dict(parsed.entities), parsed.suffix)


def sidecar_metadata(path: Path, root: Path) -> dict[str, Any]:
    """Metadata of an image by BIDS' inheritance: JSON files from the dataset's top to it.

    A JSON file applies when its suffix is the image's and all its entities are the image's too;
    what cannot be read as JSON is passed over.
    """
    metadata: dict[str, Any] = {}
    for sidecar in applicable_sidecars(path, root):
        metadata.update(read_json(sidecar))
    return metadata


def _entities(stem: str) -> tuple[dict[str, str], str]:
    """Entities of a name without ``sub``, such as ``task-rest_bold``; others fit nothing."""
    *pairs, suffix = stem.split("_")
    split = [pair.partition("-") for pair in pairs]
    if not all(dash for _, dash, _ in split):
        return {"": stem}, suffix
    return {key: value for key, _, value in split}, suffix


def applicable_sidecars(path: Path, root: Path) -> list[Path]:
    """The JSON files that speak of an image, from the dataset's top to the image's folder."""
    parsed = parse_name(path.name)
    if parsed is None:
        return []
    entities, suffix = parsed
    folders = [path.parent]
    while folders[-1] != root and root in folders[-1].parents:
        folders.append(folders[-1].parent)
    found = []
    for folder in reversed(folders):
        names = (name for name in _json_names(folder) if name.endswith(f"{suffix}.json"))
        for candidate in sorted(map(folder.joinpath, names), key=lambda p: len(p.name)):
            stem = candidate.name.split(".")[0]
            own = {} if stem == suffix else (parse_name(candidate.name) or _entities(stem))[0]
            if all(entities.get(key) == value for key, value in own.items()):
                found.append(candidate)
    return found


def _json_names(folder: Path) -> tuple[str, ...]:
    """Names of the JSON files in a folder; the dataset's top is listed once, not for each image."""
    try:
        return _listed_json(folder, folder.stat().st_mtime_ns)
    except OSError:
        return ()


@functools.lru_cache(maxsize=64)
def _listed_json(folder: Path, mtime_ns: int) -> tuple[str, ...]:
    """As :func:`_json_names`, of a folder that was changed last at that time."""
    with os.scandir(folder) as entries:
        return tuple(entry.name for entry in entries if entry.name.endswith(".json"))


def not_fetched(paths: Iterable[Path]) -> str | None:
    """Why nothing can be done yet, where one of the files is a link to what is not here.

    So git-annex (DataLad) leaves a file whose content was not fetched.
    """
    for path in paths:
        try:
            dangling = path.is_symlink() and not path.exists()
        except OSError:  # a link to itself
            dangling = True
        if dangling:
            return (
                f"expected the content of {path}, found a link to a file that is not here; "
                "run `datalad get` (or `git annex get`) on it, then the same command again"
            )
    return None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; what is missing, far too large, nested too deeply or none is empty.

    Numbers that JSON does not have (NaN, infinity) are None, halves of characters are replaced.
    """
    try:
        if not path.is_file() or path.stat().st_size > MOST_JSON_BYTES:
            return {}
        content = json.loads(path.read_text(encoding="utf-8-sig"), parse_constant=lambda _: None)
        plain = json.dumps(content, ensure_ascii=False)
        if SURROGATES.search(plain):
            content = json.loads(SURROGATES.sub("\ufffd", plain))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}

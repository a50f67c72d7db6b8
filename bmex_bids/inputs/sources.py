# SPDX-License-Identifier: Apache-2.0
"""The tables that may hold the age at an image, and their rows about it."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from bmex_bids.common.names import subject_folder
from bmex_bids.inputs.numbers import is_missing
from bmex_bids.inputs.tables import table_with_notes
from bmex_bids.inputs.units import SESSION_COLUMNS, SUBJECT_COLUMNS, age_columns

if TYPE_CHECKING:
    from bmex_bids.inputs.collect import SourceImage

Rows = list[dict[str, str]]


@dataclass(frozen=True)
class Source:
    """A table and its rows about an image.

    Attributes
    ----------
    table : absolute
    rows : about the image; not empty
    notes : what is odd about the table's format
    doubts : what had to be guessed to find the rows
    of_session : whether the rows are about the image or its session, not the participant at large
    """

    table: Path
    rows: Rows
    notes: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()
    of_session: bool = True


def levels(image: SourceImage, bids_dir: Path, age_file: Path | None) -> Iterator[list[Source]]:
    """Tables with rows about an image, from the most to the least specific.

    Those of one level are equally near to the image, and must not contradict each other.

    Parameters
    ----------
    image : of the dataset
    bids_dir : the dataset's folder, absolute
    age_file : a table outside the dataset, which comes first
    """
    if age_file is not None:
        yield _about(Path(age_file).absolute(), image, bids_dir, by_subject=True)
    yield [source for table in _scans_tables(image, bids_dir) for source in _scans(table, image)]
    if image.session:
        for table, by_subject in _sessions_tables(image, bids_dir):
            yield _about(table, image, bids_dir, by_subject=by_subject, by_session=True)
    yield _about(bids_dir / "participants.tsv", image, bids_dir, by_subject=True)


def age_tables(image: SourceImage, bids_dir: Path) -> list[Path]:
    """The tables of the dataset that may hold an image's age, and their JSON files."""
    tables = _scans_tables(image, bids_dir)
    if image.session:
        tables += [table for table, _ in _sessions_tables(image, bids_dir)]
    tables.append(bids_dir / "participants.tsv")
    return [path for table in tables for path in (table, table.with_suffix(".json"))]


def _sessions_tables(image: SourceImage, bids_dir: Path) -> list[tuple[Path, bool]]:
    """Tables of sessions, and whether they are everybody's, with a column for the participant."""
    subject = f"sub-{image.subject}"
    return [
        (bids_dir / subject / f"{subject}_sessions.tsv", False),
        (bids_dir / "sessions.tsv", True),
    ]


def other_tables(bids_dir: Path) -> list[str]:
    """Names of files at the top that may be a participants table in another format."""
    return sorted(
        path.name
        for path in bids_dir.glob("[Pp]articipants.*")
        if path.name not in {"participants.tsv", "participants.json"}
    )


def without_row(image: SourceImage, bids_dir: Path) -> list[str]:
    """Names of sessions tables that have ages of the participant, and none of an image's session."""
    found = []
    for table, by_subject in _sessions_tables(image, bids_dir):
        rows, _ = table_with_notes(table)
        if by_subject:
            rows = labelled(rows, SUBJECT_COLUMNS, bids_dir / f"sub-{image.subject}", must=True)
        ages = (row[name] for row in rows for name, _ in age_columns(row))
        about = _about(table, image, bids_dir, by_subject=by_subject, by_session=True)
        if not about and not all(map(is_missing, ages)):
            found.append(table.name)
    return found


def sessions_with_images(image: SourceImage, bids_dir: Path) -> list[str]:
    """Labels of the sessions of an image's participant that have a folder ``anat``; sorted."""
    folders = (bids_dir / f"sub-{image.subject}").glob("ses-*/anat")
    found = {folder.parent.name.removeprefix("ses-") for folder in folders if folder.is_dir()}
    return sorted(found | ({image.session} if image.session else set()))


def scans_rows(image: SourceImage, bids_dir: Path) -> tuple[Path | None, Rows]:
    """The nearest scans table that names an image, and its rows; None where none names it."""
    for table in _scans_tables(image, bids_dir):
        for source in _scans(table, image):
            if not source.doubts:
                return table, source.rows
    return None, []


def _scans_tables(image: SourceImage, bids_dir: Path) -> list[Path]:
    """The specification puts the table into the session's folder; people have other places, too."""
    subject_dir = bids_dir / f"sub-{image.subject}"
    folder = bids_dir / subject_folder(image.subject, image.session)
    prefix = subject_folder(image.subject, image.session).replace("/", "_")
    tables = [place / f"{prefix}_scans.tsv" for place in (folder, image.path.parent)]
    if image.session:
        tables.append(subject_dir / f"sub-{image.subject}_scans.tsv")
    return list(dict.fromkeys(tables))


def _scans(table: Path, image: SourceImage) -> Iterator[Source]:
    """Rows of a scans table about an image: by file name, else the only row there is."""
    rows, notes = table_with_notes(table)
    wanted = image.path.name
    names = [Path(row.get("filename", "").replace("\\", "/")).name for row in rows]
    for name, having in ((wanted, names), (_bare(wanted), [_bare(other) for other in names])):
        fitting = [row for row, other in zip(rows, having, strict=True) if other == name]
        if fitting:
            yield Source(table, fitting, notes)
            return
    own = (
        table.name == f"{subject_folder(image.subject, image.session).replace('/', '_')}_scans.tsv"
    )
    if len(rows) == 1 and own:
        written = rows[0].get("filename", "") or "no file"
        doubt = f"the only row of the scans table names {written}, not {wanted}; used anyway"
        yield Source(table, rows, notes, (doubt,))


def _bare(name: str) -> str:
    return name.split(".")[0]


def _about(
    table: Path,
    image: SourceImage,
    bids_dir: Path,
    *,
    by_subject: bool = False,
    by_session: bool = False,
) -> list[Source]:
    """A table with its rows about an image's subject and session, if there are any.

    What a table must say (``by_subject``, ``by_session``) it says in each row; what it need not
    say is heeded where it is said: a participants table may have a row for each session.
    """
    rows, notes = table_with_notes(table)
    doubts = []
    subject_dir = bids_dir / f"sub-{image.subject}"
    fitting = rows_of_subject(table, subject_dir.name) if by_subject else []
    fitting = fitting or labelled(rows, SUBJECT_COLUMNS, subject_dir, must=by_subject)
    if rows and not fitting and not by_subject:
        # the table lies in the subject's own folder: a wrong label in it is a slip
        written = _first(rows[0], SUBJECT_COLUMNS)
        doubts.append(f"{table.name} names the subject {written}; used anyway")
        fitting = rows
    if image.session:
        session_dir = subject_dir / f"ses-{image.session}"
        fitting = labelled(fitting, SESSION_COLUMNS, session_dir, must=by_session)
    if not fitting:
        return []
    of_session = by_session or not is_missing(_first(fitting[0], SESSION_COLUMNS))
    return [Source(table, fitting, notes, tuple(doubts), of_session)]


def rows_of_subject(table: Path, folder: str) -> Rows:
    """The rows of a table about a subject whose label is written as its folder's, or without sub-.

    Without a search: a table may have a hundred thousand rows, and an image each.
    """
    try:
        state = table.stat()
        by_subject = _rows_by_subject(table, state.st_mtime_ns, state.st_size)
    except (OSError, csv.Error):
        return []
    found = by_subject.get(folder, []) + by_subject.get(folder.partition("-")[2], [])
    return [row for _, row in sorted(found, key=lambda item: item[0])]


@lru_cache(maxsize=8)
def _rows_by_subject(
    path: Path, mtime_ns: int, size: int
) -> dict[str, list[tuple[int, dict[str, str]]]]:
    """Number and contents of the rows of each subject, as written."""
    found: dict[str, list[tuple[int, dict[str, str]]]] = {}
    for number, row in enumerate(table_with_notes(path)[0]):
        if written := _first(row, SUBJECT_COLUMNS):
            found.setdefault(written, []).append((number, row))
    return found


def labelled(rows: Rows, columns: Sequence[str], folder: Path, *, must: bool) -> Rows:
    """Rows with the label of a folder (``…/sub-0001``): so written, else one that may mean it.

    Unless they must have one, rows without a label follow those with it.
    """
    written = [_first(row, columns) for row in rows]
    chosen = [w for w in written if w in (folder.name, folder.name.partition("-")[2])]
    if not chosen:
        chosen = [w for w in written if _may_mean(w, folder)]
    fitting = [row for row, w in zip(rows, written, strict=True) if w and w in chosen]
    if fitting or must:
        return fitting
    return [row for row, w in zip(rows, written, strict=True) if is_missing(w)]


def _first(row: Mapping[str, str], columns: Sequence[str]) -> str:
    return next((row[column] for column in columns if row.get(column)), "")


def _may_mean(written: str, folder: Path) -> bool:
    """Whether a label, which no folder has, is that of a folder but for zeros or small letters.

    A spreadsheet makes ``1`` or ``1.0`` of ``0001``.
    """
    prefix, _, label = folder.name.partition("-")
    bare = re.sub(rf"^{prefix}-", "", written, flags=re.IGNORECASE)
    numeric = re.sub(r"\.0+$", "", bare)
    if numeric.isdecimal() and label.isdecimal():
        alike = int(numeric) == int(label)
    else:
        alike = bare.lower() == label.lower()
    return alike and not (folder.parent / f"{prefix}-{bare}").is_dir()

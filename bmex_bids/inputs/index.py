# SPDX-License-Identifier: Apache-2.0
"""pybids' index of a dataset, made anew or kept from one run to the next."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import re
import sqlite3
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bmex_bids.common.replacing import put_in_place
from bmex_bids.exceptions import UsageError
from bmex_bids.inputs.on_disk import EXTENSIONS, IGNORED, UNPRINTABLE, images_on_disk, is_named

LOGGER = logging.getLogger(__name__)

#: what lies in a participant's folder and is not for us: all but files, sessions and ``anat``; a
#: link back to the dataset, which would be walked again and again, among it
NOT_ANATOMICAL = re.compile(
    r"^/sub-[^/]+/(?!(?:ses-[^/]+/)?(?:anat(?:/[^/]+)?|[^/]*\.[^/]*)$|ses-[^/]+/?$)"
)
#: of a saved index, as pybids names it
INDEX_FILE = "layout_index.sqlite"


def anatomical(layout: Any) -> list[Path]:
    """The files of an index that may be images for us."""
    found = layout.get(datatype="anat", extension=list(EXTENSIONS))
    return [Path(file.path) for file in found]


def index(bids_dir: Path, participants: Sequence[str] | None) -> Any:
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


def kept_index(bids_dir: Path, database_dir: Path) -> Any:
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
    layout = index(bids_dir, None)
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
        indexed = {path.as_posix() for path in anatomical(layout)}
    except (SQLAlchemyError, ValueError, TypeError, AttributeError, KeyError) as error:
        return None, f"this version of pybids cannot read it ({error})"
    today = {
        path.as_posix()
        for path in images_on_disk(bids_dir)
        if is_named(path) and not UNPRINTABLE.search(path.relative_to(bids_dir).as_posix())
    }
    if not today <= indexed:
        some = sorted(today - indexed)[0]
        return None, f"it does not know {len(today - indexed)} images, such as {some}"
    gone = {path for path in indexed - today if not Path(path).exists()}
    if gone:
        return None, f"{len(gone)} of its images are gone, such as {sorted(gone)[0]}"
    return layout, ""


def _keep(layout: Any, folder: Path) -> None:
    """Save an index whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=folder) as temporary:
        layout.save(temporary, replace_connection=False)
        put_in_place(Path(temporary) / INDEX_FILE, folder / INDEX_FILE)

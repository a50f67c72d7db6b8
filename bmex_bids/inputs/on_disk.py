# SPDX-License-Identifier: Apache-2.0
"""Images of a dataset by their names and places alone, quicker than any index."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from bmex_bids.common.contrasts import SUFFIXES
from bmex_bids.common.names import BidsName

EXTENSIONS = (".nii.gz", ".nii")
#: folders that hold no raw images
IGNORED = ("derivatives", "sourcedata", "code", "stimuli", "models", "logs", "work")
IMAGE_PLACE = re.compile(r"sub-[^/]+/(?:ses-[^/]+/)?anat")
#: in a file's name: control characters, marks that turn the direction of writing, bytes that are no
#: UTF-8; nobody can see such a name for what it is, and databases and pages choke on it
UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def images_on_disk(bids_dir: Path, participants: Sequence[str] | None = None) -> Iterator[Path]:
    """The anatomical images of a dataset by their names, quicker than any index."""
    subjects = [f"sub-{glob.escape(label)}" for label in participants or ()] or ["sub-*"]
    patterns = [f"{sub}/{inner}" for sub in subjects for inner in ("anat", "ses-*/anat")]
    for pattern in patterns:
        for suffix in SUFFIXES:
            for extension in EXTENSIONS:
                for path in bids_dir.glob(f"{pattern}/*_{suffix}{extension}"):
                    if not path.name.startswith("."):
                        yield path


def is_named(path: Path) -> bool:
    """Whether a path ends in a BIDS name of one of our contrasts; ``acq-0.8mm`` makes it none."""
    name = BidsName.parse(path.name)
    return name is not None and name.suffix in SUFFIXES


def is_at_home(path: Path, bids_dir: Path) -> bool:
    """Whether participant and session of a file's name are those of its folder."""
    name = BidsName.parse(path.name)
    folders = path.parent.relative_to(bids_dir).parts
    entities = name.entities if name else {}
    said = [f"{key}-{entities[key]}" for key in ("sub", "ses") if key in entities]
    return said == [part for part in folders if part.startswith(("sub-", "ses-"))]

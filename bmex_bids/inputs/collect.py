# SPDX-License-Identifier: Apache-2.0
"""Find the images of a BIDS dataset."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bmex_bids.common.contrasts import DEFAULT
from bmex_bids.common.names import BidsName
from bmex_bids.exceptions import NoInputError, UsageError
from bmex_bids.inputs.filters import Filters, check_filters, passes
from bmex_bids.inputs.index import anatomical, index, kept_index
from bmex_bids.inputs.not_taken import NotTaken, not_taken, nothing_of, without_prefix
from bmex_bids.inputs.on_disk import IMAGE_PLACE, images_on_disk, is_at_home
from bmex_bids.inputs.sidecars import not_fetched, sidecar_metadata

LOGGER = logging.getLogger(__name__)

#: of what is not taken, in an error message
MOST_REASONS = 10
MOUNT_HINT = "inside a container, check that the dataset's folder is mounted"


@dataclass(frozen=True)
class SourceImage:
    """One anatomical image of the dataset.

    Attributes
    ----------
    path : absolute
    entities : in the order of the file name, such as ``{"sub": "0001", "ses": "V01", "run": "1"}``
    suffix : of :data:`bmex_bids.common.contrasts.CONTRASTS`
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


@dataclass(frozen=True)
class Survey:
    """The images of a dataset that were asked for, and what looks like one and is not taken."""

    images: tuple[SourceImage, ...]
    not_taken: tuple[NotTaken, ...] = ()


def collect(bids_dir: Path, **wanted: Any) -> list[SourceImage]:
    """The anatomical images of a dataset, sorted by name; what is left out is logged.

    Parameters and errors are those of :func:`survey`.
    """
    found = survey(bids_dir, **wanted)
    for item in found.not_taken:
        LOGGER.warning("left out: %s: %s", item.name, item.reason)
    return list(found.images)


def survey(
    bids_dir: Path,
    *,
    participants: Sequence[str] | None = None,
    sessions: Sequence[str] | None = None,
    suffixes: Sequence[str] = DEFAULT,
    runs: Sequence[str] | None = None,
    filters: Filters | None = None,
    database_dir: Path | None = None,
) -> Survey:
    """The anatomical images of a dataset, sorted by name, and what is not taken, with reasons.

    Parameters
    ----------
    bids_dir : the dataset; what lies in ``derivatives`` and ``sourcedata`` is left alone
    participants, sessions, runs : labels without prefix; None takes all
    suffixes : of :data:`bmex_bids.common.contrasts.CONTRASTS`
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
    if not is_text(str(bids_dir)):
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
            f"expected folders named sub-<label> in {bids_dir}, found none; {_where(bids_dir)}"
        )
    absent = not_fetched([bids_dir / "dataset_description.json"])
    if absent:
        raise NoInputError(absent)
    _require("participant", participants, subjects, bids_dir)
    chosen = check_filters(filters) if filters else {}
    known = [
        image
        for image in _images(bids_dir, participants, database_dir)
        if image.suffix in {*DEFAULT, *suffixes}
        and (participants is None or image.subject in participants)
    ]
    left = not_taken(bids_dir, [image.path for image in known], participants)
    found = [image for image in known if image.suffix in suffixes]
    present = {image.session for image in found if image.session}
    if not set(sessions or ()) <= present:
        folders = (p for p in bids_dir.glob("sub-*/ses-*") if p.is_dir())
        present |= {folder.name.removeprefix("ses-") for folder in folders}
    _require("session", sessions, present, bids_dir)
    if runs is not None:
        asked = [_number(run) for run in runs]
        there = {_number(image.entities["run"]) for image in found if "run" in image.entities}
        if not set(asked) <= there:  # of another participant: no reason to end this one's task
            names = filter(None, (BidsName.parse(p.name) for p in images_on_disk(bids_dir)))
            there |= {_number(n.entities["run"]) for n in names if "run" in n.entities}
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
        told = [*_brings_nothing(participants or (), known, passing, left)]
        told += [item for item in left if not any(item.name in each.reason for each in told)]
        reasons = "".join(f"\n  {item.name}: {item.reason}" for item in told[:MOST_REASONS])
        more = f"\n  … and {len(told) - MOST_REASONS} more" if len(told) > MOST_REASONS else ""
        raise NoInputError(
            f"expected a {wanted} image (sub-*/[ses-*/]anat/*_{suffixes[0]}.nii.gz) in "
            f"{bids_dir} for the labels asked for, {through}{reasons}{more}"
        )
    left += _brings_nothing(participants or (), known, passing, left)
    return Survey(tuple(sorted(passing, key=lambda image: image.relative_path)), tuple(left))


def _where(bids_dir: Path) -> str:
    """What may be meant by a folder without participants."""
    inside = sorted({path.parent.name for path in bids_dir.glob("*/sub-*") if path.is_dir()})
    if inside:
        return f"is {' or '.join(inside[:3])} in it meant?"
    without = without_prefix(bids_dir)
    if without:
        return f"rename the folders of participants, such as {without[0]} to sub-{without[0]}"
    return f"is this the dataset's top folder? {MOUNT_HINT}"


def _brings_nothing(
    participants: Sequence[str],
    known: Sequence[SourceImage],
    chosen: Sequence[SourceImage],
    left: Sequence[NotTaken],
) -> Iterator[NotTaken]:
    """The participants asked for of whom no image is chosen."""
    for label in sorted(set(participants) - {image.subject for image in chosen}):
        others = sum(image.subject == label for image in known)
        odd = [item for item in left if item.name.startswith((f"sub-{label}/", f"sub-{label}_"))]
        if others:
            found = f"found {others}, not of the sessions, runs, contrasts or filters asked for"
        elif odd:
            found = f"found none that can be taken ({odd[0].name}: {odd[0].reason})"
        else:
            found = f"found no {' or '.join(DEFAULT)} image in sub-{label}/[ses-*/]anat"
        yield nothing_of(label, found)


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
        layout = index(bids_dir, participants)
    else:
        layout = kept_index(bids_dir, Path(database_dir).absolute())
    in_place_of_images = (p for p in images_on_disk(bids_dir, participants) if p.is_dir())
    for path in (*anatomical(layout), *in_place_of_images):
        if not IMAGE_PLACE.fullmatch(path.parent.relative_to(bids_dir).as_posix()):
            continue
        name = BidsName.parse(path.name)
        if name is not None and is_at_home(path, bids_dir):
            metadata = sidecar_metadata(path, bids_dir)
            yield SourceImage(path, name.entities, name.suffix, metadata, bids_dir)


def is_text(name: str) -> bool:
    """Whether a name is UTF-8: pybids' index cannot hold others."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True

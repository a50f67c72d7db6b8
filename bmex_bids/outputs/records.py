# SPDX-License-Identifier: Apache-2.0
"""Our own sidecars in an output dataset: which images have one, and what it says.

What was done to an image is a table under the key :data:`KEY` of each of its sidecars.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from bmex_bids.common.contrasts import SUFFIXES
from bmex_bids.common.names import BidsName, subject_folder

#: of a sidecar: what was done to the image
KEY = "BMEX"
#: of a record: what the motion correction did; absent where it was switched off
MOTION = "MotionCorrection"
#: within it: lines of k-space of unequal strength, how many spikes, slices thicker than voxels, and
#: noise; absent where none was mended
UNEVEN, SPIKES, THICK, NOISE = "UnevenLines", "Spikes", "ThickSlices", "Noise"
#: of a record: thick slices of the scan that were split; absent where none were
SPLIT = "SlicesSplit"
#: ``PhaseEncodingAxis`` of that table in words
AXES = ("left–right", "anterior–posterior", "superior–inferior")
#: label of the network's grid → label of the grid of half its edge
HALVED: Mapping[str, str] = {"0p8": "0p4", "0p75": "0p375"}
#: of a record: the network that halved the edges of voxels; absent where none did
SUPER = "SuperResolution"
#: of a record: template whose histogram the brain was matched to; absent where it was the age's
TEMPLATE_MATCH = "HistogramReference"
#: of a record's weights: share of the network's correction that was applied
CORRECTION_SHARE = "CorrectionShare"
#: of a record: the network that found the tissues; absent where the enhancement's own did
TISSUE_MAPS = "TissueMaps"
#: a run writes all sidecars of an image within this time
TOGETHER_S = 30.0


class RecordError(ValueError):
    """A file that is no sidecar of ours; the message says why, to follow the file's name."""


class MaskMethod(str, Enum):
    """Where a brain mask comes from: ``Mask.method`` of a record."""

    NETWORK = "network"
    STRIPPED = "stripped"
    GIVEN = "given"

    @property
    def words(self) -> str:
        """For people."""
        return {
            MaskMethod.NETWORK: "stripping network",
            MaskMethod.STRIPPED: "the input has no skull",
            MaskMethod.GIVEN: "given",
        }[self]

    @classmethod
    def words_of(cls, value: Any) -> str:
        """A method in words; one that is not known as it is."""
        known = {method.value for method in cls}
        return cls(value).words if value in known else str(value or "")


class Kind(Enum):
    """The sidecars that are asked for, the one preferred as an image's record first."""

    NATIVE = "enhanced"
    RES = "enhanced on the network's grid"
    HALF = "super-resolved to half the edge of the network's grid"
    QUALITY = "quality measures only"
    PREPROC = "enhanced in its head"

    @classmethod
    def of(cls, name: BidsName) -> Kind | None:
        """The kind of a sidecar by its name; None for any other file."""
        if name.extension != ".json" or name.suffix not in SUFFIXES:
            return None
        if "space" in name.entities:  # of a template
            return None
        resolution = name.entities.get("res")
        if resolution in HALVED.values():
            return cls.HALF if name.entities.get("desc") == "enhanced" else None
        key = (name.entities.get("desc", ""), resolution is not None)
        return {
            ("enhanced", False): cls.NATIVE,
            ("enhanced", True): cls.RES,
            ("quality", False): cls.QUALITY,
            ("preproc", False): cls.PREPROC,
        }.get(key)


@dataclass(frozen=True)
class ImageRecords:
    """The sidecars of one image.

    Attributes
    ----------
    source : name of the raw image, without extension
    paths : of its sidecars
    """

    source: BidsName
    paths: Mapping[Kind, Path]

    def latest_first(self) -> list[Path]:
        """The sidecars that may be the image's record, those of the latest run first.

        A run that asks for other products (``--output-res``, ``--qc-only``) leaves those of an
        earlier run, which may have had another age or other weights.
        """
        kinds = [kind for kind in Kind if kind in self.paths and kind is not Kind.PREPROC]
        times = {kind: self.paths[kind].stat().st_mtime for kind in kinds}
        since = max(times.values(), default=0.0) - TOGETHER_S
        return [self.paths[kind] for kind in sorted(kinds, key=lambda kind: times[kind] < since)]

    def sidecar(self) -> dict[str, Any]:
        """The first that can be read and has a record; empty where none can."""
        for path in self.latest_first():
            try:
                sidecar = read_sidecar(path)
            except RecordError:
                continue
            if sidecar[KEY]:
                return sidecar
        return {}

    def record(self) -> dict[str, Any]:
        """The record of :meth:`sidecar`; empty where there is none."""
        return table_of(self.sidecar(), KEY)


def find_records(
    output_dir: Path, subject: str | None = None, session: str | None = None
) -> list[ImageRecords]:
    """The images of an output dataset that have sidecars, in the order of their names.

    Parameters
    ----------
    subject : only this participant's, of ``session``; None is all participants and sessions
    """
    found: dict[str, tuple[BidsName, dict[Kind, Path]]] = {}
    for path in _sidecars(output_dir, subject, session):
        name = BidsName.parse(path.name)
        kind = Kind.of(name) if name else None
        if name is None or kind is None:
            continue
        source = name.without("res", "desc", "space")
        if subject is None or (source.subject, source.session) == (subject, session):
            found.setdefault(str(source), (source, {}))[1][kind] = path
    return [ImageRecords(*found[name]) for name in sorted(found)]


def _sidecars(output_dir: Path, subject: str | None, session: str | None) -> Iterator[Path]:
    if subject is not None:
        folders = [output_dir / subject_folder(subject, session) / "anat"]
    else:
        folders = [*output_dir.glob("sub-*/anat"), *output_dir.glob("sub-*/ses-*/anat")]
    for folder in folders:
        for suffix in SUFFIXES:
            yield from folder.glob(f"*_{suffix}.json")


def read_sidecar(path: Path) -> dict[str, Any]:
    """A sidecar that holds a record under :data:`KEY`; RecordError for anything else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise RecordError(f"cannot be read ({error.strerror or error})") from error
    except (ValueError, RecursionError) as error:
        raise RecordError(f"is not complete JSON ({error})") from error
    if not isinstance(content, dict) or not isinstance(content.get(KEY), dict):
        raise RecordError(f"lacks the key {KEY}, so it is not of bmex_bids or not complete")
    return content


def read_record(path: Path) -> dict[str, Any] | None:
    """The record in a sidecar; None where there is none."""
    try:
        record: dict[str, Any] = read_sidecar(path)[KEY]
    except RecordError:
        return None
    return record


def motion_undone_mm(record: Mapping[str, Any]) -> float | None:
    """Root mean square of the motion that was undone; 0 for none, None without the step.

    >>> motion_undone_mm({MOTION: {"Applied": True, "RMSDisplacement": 1.9}})
    1.9
    """
    table = table_of(record, MOTION)
    if not table:
        return None
    return number_in(table, "RMSDisplacement") or 0.0


def motion_in_words(record: Mapping[str, Any]) -> str:
    """What the motion correction did, in one line; empty without the step.

    >>> motion_in_words({MOTION: {"Applied": False, "Reason": "the image is still"}})
    'nothing undone: the image is still'
    """
    table = table_of(record, MOTION)
    if not table:
        return ""
    if not table.get("Applied"):
        return f"nothing undone: {table.get('Reason')}"
    parts = []
    if spikes := table.get(SPIKES):
        parts.append(f"spikes of k-space: {spikes}")
    if uneven := table_of(table, UNEVEN):
        parts += ["uneven lines", *_axis_in_words(uneven)]
    if (displacement := number_in(table, "RMSDisplacement")) is not None:
        parts += [str(table.get("Model")), f"{displacement:.1f} mm RMS"]
        parts += _axis_in_words(table)
    if parts:
        parts.append("undone in k-space")
    if thickness := number_in(table_of(table, THICK), "Thickness"):
        parts.insert(0, f"slices of {thickness:.1f} mm sharpened")
    if noise := number_in(table_of(table, NOISE), "StandardDeviation"):
        parts.append(f"noise of {noise:.1f} % of the range reduced")
    before, after = (number_in(table, f"Entropy{when}") for when in ("Before", "After"))
    if before is not None and after is not None:
        parts.append(f"gradient entropy {before:.5g} → {after:.5g}")
    return ", ".join(parts)


def slices_in_words(record: Mapping[str, Any]) -> str:
    """Which slices of the scan were split; empty for none.

    >>> slices_in_words({SPLIT: {"Axis": 2, "Thickness": 3.0, "Parts": 4}})
    'slices of 3.0 mm in 4 parts, across superior–inferior'
    """
    table = table_of(record, SPLIT)
    thickness, parts, axis = (table.get(key) for key in ("Thickness", "Parts", "Axis"))
    if not thickness or not isinstance(axis, int) or not 0 <= axis < len(AXES):
        return ""
    return f"slices of {thickness:.1f} mm in {parts} parts, across {AXES[axis]}"


def _axis_in_words(table: Mapping[str, Any]) -> list[str]:
    axis = table.get("PhaseEncodingAxis")
    if isinstance(axis, int) and 0 <= axis < len(AXES):
        return [f"lines along {AXES[axis]}"]
    return []


def number_in(table: Mapping[str, Any], key: str) -> float | None:
    """A number in a table; None where there is none."""
    value = table.get(key)
    return float(value) if isinstance(value, int | float) else None


def table_of(record: Mapping[str, Any], key: str) -> dict[str, Any]:
    """A table in a record; empty where there is none."""
    value = record.get(key)
    return value if isinstance(value, dict) else {}

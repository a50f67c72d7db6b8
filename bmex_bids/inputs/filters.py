# SPDX-License-Identifier: Apache-2.0
"""Choose images by their entities, with the filter files that users of fMRIPrep have.

::

    {"t1w": {"session": "V01", "acquisition": null, "run": ["1", 2], "reconstruction": "*"}}

takes the T1w images of session V01 without ``acq-``, with ``run-1`` or ``run-2`` (leading zeros do
not matter) and with some ``rec-``; T2w images, of which the file says nothing, are all taken.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bmex_bids.common.contrasts import SUFFIXES
from bmex_bids.exceptions import UsageError

#: key of the file → suffix of the images
KEYS: Mapping[str, str] = {suffix.lower(): suffix for suffix in SUFFIXES}

#: entity as pybids calls it → its key in file names
ENTITIES: Mapping[str, str] = {
    "subject": "sub",
    "session": "ses",
    "sample": "sample",
    "task": "task",
    "tracksys": "tracksys",
    "acquisition": "acq",
    "nucleus": "nuc",
    "volume": "voi",
    "ceagent": "ce",
    "staining": "stain",
    "tracer": "trc",
    "reconstruction": "rec",
    "direction": "dir",
    "run": "run",
    "proc": "proc",
    "modality": "mod",
    "echo": "echo",
    "flip": "flip",
    "inv": "inv",
    "inversion": "inv",
    "mt": "mt",
    "part": "part",
    "recording": "recording",
    "space": "space",
    "split": "split",
    "chunk": "chunk",
    "hemisphere": "hemi",
}
#: what pybids calls entities too, but a name has without a key
PARTS = ("suffix", "datatype", "extension")
#: entities that are numbers: 1 and 01 are the same
NUMBERS = frozenset({"run", "echo", "flip", "inv", "split", "chunk"})

Filters = Mapping[str, Mapping[str, Any]]


def read_filters(path: Path) -> dict[str, dict[str, Any]]:
    """A filter file, checked.

    Raises
    ------
    UsageError
        The file is missing, no JSON, or says something that is not understood.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = (error.strerror or str(error)) if isinstance(error, OSError) else "no UTF-8 text"
        raise UsageError(
            f"expected a JSON file of filters in {path}, got: {why}; check the path, and inside a "
            "container that its folder is mounted"
        ) from error
    try:
        filters = json.loads(text, object_pairs_hook=_without_repeats)
    except ValueError as error:
        raise UsageError(
            f"expected JSON in {path}, got: {error}; correct the file (a comma too many, a missing "
            "quotation mark?)"
        ) from error
    return check_filters(filters, str(path))


def check_filters(filters: Any, where: str = "the filters") -> dict[str, dict[str, Any]]:
    """The filters as plain dicts, or a UsageError that says what in them is not understood."""
    if not isinstance(filters, Mapping):
        raise UsageError(
            f'expected {{"t1w": {{…}}, "t2w": {{…}}}} in {where}, got {_kind(filters)}; see '
            "fMRIPrep's --bids-filter-file for the form"
        )
    unknown = [str(key) for key in filters if key not in KEYS]
    if unknown:
        raise UsageError(
            f"expected only the keys {', '.join(KEYS)} in {where}, got {', '.join(unknown)}; "
            "take out what is not about images of these contrasts (keys are in small letters)"
        )
    return {key: _check_one(key, entry, where) for key, entry in filters.items()}


def _check_one(key: str, entry: Any, where: str) -> dict[str, Any]:
    if not isinstance(entry, Mapping):
        raise UsageError(
            f"expected entities and their values under {key} in {where}, got {_kind(entry)}; "
            f'write for example {{"{key}": {{"session": "01"}}}}'
        )
    for entity, wanted in entry.items():
        if entity not in ENTITIES and entity not in PARTS:
            raise UsageError(
                f"expected entities of BIDS under {key} in {where}, got {entity!r}; "
                + _suggestion(str(entity))
            )
        values = wanted if isinstance(wanted, list) else [wanted]
        if not values or not all(_is_value(value) for value in values):
            raise UsageError(
                f"expected a label, a list of labels, null (absent) or "
                f'"*" (any) for {entity} of {key} in {where}, got {json.dumps(wanted, default=str)}'
            )
    suffix = entry.get("suffix", "*")
    if not fits(KEYS[key], suffix):
        raise UsageError(
            f"expected the suffix {KEYS[key]} for {key} in {where}, got {json.dumps(suffix)}; other "
            "images cannot be enhanced"
        )
    return dict(entry)


def _suggestion(entity: str) -> str:
    known = [*ENTITIES, *PARTS]
    long = next((name for name, short in ENTITIES.items() if short == entity), None)
    near = long or next(iter(difflib.get_close_matches(entity.lower(), known, 1)), None)
    return f"did you mean {near}?" if near else f"known are {', '.join(known)}"


def _is_value(value: Any) -> bool:
    return value is None or (isinstance(value, str | int) and not isinstance(value, bool))


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", type(None): "null"}
    return names.get(type(value), f"a {type(value).__name__}")


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; a key that is there twice would silently lose its first value."""
    result = dict(pairs)
    if len(result) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = sorted({key for key in keys if keys.count(key) > 1})
        raise ValueError(f"{', '.join(twice)} is there twice")
    return result


def passes(
    filters: Filters, suffix: str, entities: Mapping[str, str], datatype: str, extension: str
) -> bool:
    """Whether an image passes the filters of its suffix.

    Parameters
    ----------
    filters : as :func:`check_filters` returns them
    suffix, entities : of the image's name, such as ``"T1w"`` and ``{"sub": "01"}``
    datatype, extension : such as ``"anat"`` and ``".nii.gz"``
    """
    entry = next(
        (filters[key] for key, its in KEYS.items() if its == suffix and key in filters), {}
    )
    parts = {"suffix": suffix, "datatype": datatype, "extension": extension}
    return all(
        fits(parts[entity], wanted)
        if entity in parts
        else fits(entities.get(ENTITIES[entity]), wanted, ENTITIES[entity])
        for entity, wanted in entry.items()
    )


def fits(label: str | None, wanted: Any, key: str = "") -> bool:
    """Whether a label (None: absent) is one of those wanted.

    >>> (
    ...     fits("01", ["1", None], "run"),
    ...     fits(None, None),
    ...     fits(None, "*"),
    ...     fits("a", "acq-a", "acq"),
    ... )
    (True, True, False, True)
    """
    if isinstance(wanted, list):
        return any(fits(label, one, key) for one in wanted)
    if wanted is None or label is None:
        return wanted is None and label is None
    if wanted == "*":
        return True
    written = str(wanted).removeprefix(f"{key}-")
    if key in NUMBERS and label.isdecimal() and written.isdecimal():
        return int(label) == int(written)
    return written == label or (not key and f".{written}" == label)

# SPDX-License-Identifier: Apache-2.0
"""Several images of one contrast in one session: which is best, and a filter that picks it.

Images that fail the quality gate come last.  Then the first figure decides that all images of the
session have: the score of motion, the estimated error, MRIQC's ``cjv``, each of the enhanced image,
lower is better.  Of equal ones the first by name is preferred.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from bmex_bids.common.names import BidsName
from bmex_bids.reports.group_rows import Row, grouped

#: measures that decide, the one preferred first; lower is better
DECIDING = ("quality_Score_after_motion", "quality_estimated_error_after", "cjv")
#: folder of the filters in the output
FILTERS = "group_filters"
#: short name of an entity → that of pybids
LONG_NAMES = {
    "ses": "session",
    "acq": "acquisition",
    "ce": "ceagent",
    "rec": "reconstruction",
    "part": "part",
    "echo": "echo",
    "inv": "inv",
    "mod": "modality",
    "run": "run",
}


def ranked(rows: Sequence[Row]) -> list[Row]:
    """The rows of one contrast in their order, with ``repeats``, ``rank`` and ``best`` filled in."""
    texts: dict[str, dict[str, str]] = {}
    for members in grouped(rows, _session).values():
        by = _deciding(members)
        order = sorted(
            members,
            key=lambda row: (
                row.text["verdict"] == "fail",
                _value(row, by) if by else 0.0,
                row.name,
            ),
        )
        for place, row in enumerate(order, 1):
            texts[row.name] = {
                "repeats": str(len(order)),
                "rank": str(place),
                "best": "true" if place == 1 else "false",
            }
    return [replace(row, text={**row.text, **texts[row.name]}) for row in rows]


def deciding(rows: Sequence[Row], row: Row) -> str:
    """The measure by which an image was ranked among the others of its session; or nothing."""
    return _deciding([other for other in rows if _session(other) == _session(row)])


def _session(row: Row) -> str:
    return f"{row.text['participant_id']} {row.text['session_id']}"


def _deciding(members: Sequence[Row]) -> str:
    return next(
        (name for name in DECIDING if all(_value(row, name) is not None for row in members)), ""
    )


def _value(row: Row, name: str) -> Any:
    return row.measures.get(name, row.mriqc.get("after", {}).get(name))


def filters(by_suffix: Mapping[str, Sequence[Row]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """A file for ``--bids-filter-file`` of fMRIPrep and NiBabies for each session with repeats.

    Parameters
    ----------
    by_suffix : T1w or T2w → its rows, ranked

    Yields
    ------
    name : ``sub-01_ses-A.json``
    content : a query for each contrast with repeats; an entity that the best image lacks and
        another has is null, which both programs take as absent
    """
    found: dict[str, dict[str, Any]] = {}
    for suffix, rows in by_suffix.items():
        for members in grouped(rows, _session).values():
            if len(members) < 2:
                continue
            names = [BidsName.of(row.name) for row in members]
            best = next(
                name
                for name, row in zip(names, members, strict=True)
                if row.text["best"] == "true"
            )
            file = f"sub-{best.subject}" + (f"_ses-{best.session}" if best.session else "")
            query: dict[str, Any] = {"datatype": "anat", "suffix": suffix}
            for short, long in LONG_NAMES.items():
                if any(short in name.entities for name in names):
                    label = best.entities.get(short)
                    query[long] = int(label) if short == "run" and label else label
            found.setdefault(f"{file}.json", {})[suffix.lower()] = query
    yield from sorted(found.items())

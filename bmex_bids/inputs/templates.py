# SPDX-License-Identifier: Apache-2.0
"""Standard spaces: the templates of TemplateFlow that are asked for, and where their files are.

Only the folder is read.  The package ``templateflow`` would index the whole archive, make the
folder where there is none, and fetch what is missing; a run fetches nothing.

::

    MNI152NLin2009cAsym        res-1
    MNI152NLin2009cAsym:res-2
    MNIInfant                  age chooses the cohort
    MNIInfant:cohort-3:res-1
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bmex_bids.exceptions import TemplateError, UsageError

#: words of other BIDS Apps: the image's own space, which is always written, and surfaces
OWN_SPACES = frozenset(
    {"T1w", "T2w", "FLAIR", "PDw", "anat", "func", "bold", "boldref", "run", "sbref"}
)
SURFACES = re.compile(r"fs(native|average\d?|LR)(:den-\w+)*|onavg\S*")
ARCHIVE = "https://templateflow.s3.amazonaws.com"
#: units of a template's cohorts, in months; weeks are left out: some count from conception
MONTHS = {"month": 1.0, "months": 1.0, "year": 12.0, "years": 12.0, "yr": 12.0, "yrs": 12.0}
#: file names of templates, without ``tpl-…`` and the cohort
FILE = re.compile(
    r"(?:_res-0*(?P<res>\d+))?(?P<brain>_(?:desc|label)-brain)?_(?P<suffix>[A-Z]\w+|mask)\.nii(\.gz)?"
)


@dataclass(frozen=True)
class Space:
    """A standard space as ``--output-spaces`` names it; empty where the name does not say it."""

    template: str
    cohort: str = ""
    resolution: str = ""

    def __str__(self) -> str:
        parts = [self.template]
        parts += [f"cohort-{self.cohort}"] if self.cohort else []
        parts += [f"res-{self.resolution}"] if self.resolution else []
        return ":".join(parts)

    @property
    def label(self) -> str:
        """Of the entity ``space``.

        >>> Space("MNIInfant", "2").label
        'MNIInfant+2'
        """
        return f"{self.template}+{self.cohort}" if self.cohort else self.template

    @property
    def stem(self) -> str:
        """Start of the names of its files."""
        cohort = f"_cohort-{self.cohort}" if self.cohort else ""
        return f"tpl-{self.template}{cohort}"

    @property
    def folder(self) -> str:
        """Of its files, in the archive."""
        cohort = f"/cohort-{self.cohort}" if self.cohort else ""
        return f"tpl-{self.template}{cohort}"


@dataclass(frozen=True)
class Grid:
    """A template at one resolution.

    Attributes
    ----------
    resolution : label of the entity ``res``; empty where none was asked for
    image : of the brain or the head
    mask : of the brain; None where ``image`` shows nothing else
    """

    resolution: str
    image: Path
    mask: Path | None = None


@dataclass(frozen=True)
class Template:
    """A template with its files.

    Attributes
    ----------
    label : of the entity ``space``
    contrast : of its images; not always that of the image that is brought there
    reference : address of the image in the archive
    grids : on which an image is written; it is registered to the first
    """

    label: str
    contrast: str
    reference: str
    grids: tuple[Grid, ...]

    @property
    def files(self) -> list[Path]:
        """All that the results depend on."""
        return [path for grid in self.grids for path in (grid.image, grid.mask) if path]


def parse_spaces(words: Iterable[str]) -> list[Space]:
    """The standard spaces of a command line, each once; own spaces and surfaces are left out.

    >>> [str(space) for space in parse_spaces(["T1w", "MNIInfant:res-1:res-02:cohort-3"])]
    ['MNIInfant:cohort-3:res-1', 'MNIInfant:cohort-3:res-2']

    Raises
    ------
    UsageError
        A word is no template's name, or says something that is not understood of it.
    """
    found: dict[Space, None] = {}
    for word in words:
        if not left_out(word):
            found |= dict.fromkeys(_parse(word))
    return list(found)


def one_space(word: str) -> str:
    """The one space that ``--histogram-reference`` names (UsageError).

    >>> one_space("tpl-MNIInfant:cohort-02")
    'MNIInfant:cohort-2'
    """
    spaces = parse_spaces([word])
    if len(spaces) != 1:
        raise UsageError(
            f"expected one template for --histogram-reference, got {word!r}; write for example "
            "tpl-MNI152NLin2009cAsym"
        )
    return str(spaces[0])


def left_out(word: str) -> str:
    """Why a word of other BIDS Apps brings no standard space; empty for one that does."""
    if word in OWN_SPACES:
        return "not needed here: images in their own space are always written"
    if SURFACES.fullmatch(word):
        return "not needed here: no FreeSurfer is run and no surface is made"
    return ""


def _parse(word: str) -> Iterator[Space]:
    template, *modifiers = word.removeprefix("tpl-").split(":")
    asked: dict[str, list[str]] = {"cohort": [""], "res": [""]}
    for modifier in modifiers:
        key, _, value = modifier.partition("-")
        if key not in asked or not re.fullmatch(r"\d+", value):
            raise UsageError(
                f"expected cohort-N or res-N (numbers of TemplateFlow) behind {template}: in "
                f"--output-spaces, got {modifier!r}; write for example {template}:res-2"
            )
        asked[key] = [part for part in asked[key] if part] + [value.lstrip("0") or "0"]
    if not re.fullmatch(r"[0-9A-Za-z]+", template) or len(asked["cohort"]) > 1:
        raise UsageError(
            f"expected the name of a template with at most one cohort for --output-spaces, got "
            f"{word!r}; write for example MNI152NLin2009cAsym:res-2 or MNIInfant:cohort-3"
        )
    for resolution in asked["res"]:
        yield Space(template, asked["cohort"][0], resolution)


def home() -> Path:
    """The folder of templates: ``TEMPLATEFLOW_HOME``, else where ``templateflow`` keeps it."""
    given = os.environ.get("TEMPLATEFLOW_HOME")
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(given or Path(cache) / "templateflow").expanduser().absolute()


def templates_for(
    spaces: Sequence[Space], *, contrast: str, months: float | None, root: Path | None = None
) -> tuple[list[Template], list[str]]:
    """The templates for an image, and notes about those that do not suit it.

    Parameters
    ----------
    spaces : from :func:`parse_spaces`
    contrast : of the image; a T1w or T2w template is taken where the template has none of this
    months : age from birth; None of a fetus
    root : None is :func:`home`

    Raises
    ------
    TemplateError
        Files are missing; the message has a line for each space that says how to fetch them.
    """
    root = home() if root is None else root
    notes: list[str] = []
    missing: list[str] = []
    by_label: dict[str, list[Space]] = {}
    for space in spaces:
        try:
            settled, note = _with_cohort(space, months, root)
        except TemplateError as error:
            missing.append(str(error))
            continue
        if settled is not None:
            by_label.setdefault(settled.label, []).append(settled)
        elif note not in notes:
            notes.append(note)
    found = []
    for same in by_label.values():
        try:
            found.append(_find(same, contrast, root))
        except TemplateError as error:
            missing.append(str(error))
    if missing:
        raise TemplateError("\n".join(missing))
    return found, notes


def _with_cohort(space: Space, months: float | None, root: Path) -> tuple[Space | None, str]:
    """The space with the cohort of an age; or None, and why."""
    if space.cohort:
        return space, ""
    cohorts = _description(space, root).get("cohort")
    if not isinstance(cohorts, dict) or not cohorts:
        return space, ""
    ranges = {}
    for label, entry in cohorts.items():
        unit, ages = MONTHS.get(str(entry.get("units"))), entry.get("age")
        if unit and isinstance(ages, list) and len(ages) == 2:
            ranges[label] = (ages[0] * unit, ages[1] * unit)
    without = f"no space {space}: "
    if not ranges:
        return (
            None,
            f"{without}its cohorts are not of ages from birth; name one, as {space}:cohort-N",
        )
    if months is None:
        return None, f"{without}its cohorts are not for a fetus"
    fitting = [label for label, (low, high) in ranges.items() if low <= months <= high]
    if not fitting:
        low, high = min(r[0] for r in ranges.values()), max(r[1] for r in ranges.values())
        return None, f"{without}its cohorts are for {low:g} to {high:g} months, not {months:g}"
    # at a border, and where one cohort is part of another, the narrower; then the younger
    width = {label: ranges[label][1] - ranges[label][0] for label in fitting}
    return replace(space, cohort=min(fitting, key=lambda c: (width[c], int(c)))), ""


def _description(space: Space, root: Path) -> dict[str, Any]:
    path = root / f"tpl-{space.template}" / "template_description.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        content = None
    if content is None and any(path.parent.glob(f"{space.stem}_*.nii*")):
        return {}  # files that were copied one by one, of a template without cohorts
    if not isinstance(content, dict):
        raise TemplateError(
            _to_fetch(space, f"template_description.json of {space.template}", root)
        )
    return content


def _find(spaces: Sequence[Space], contrast: str, root: Path) -> Template:
    """The files of one template and cohort at the resolutions asked for."""
    found: dict[tuple[str, str], Path] = {}
    for path in sorted((root / spaces[0].folder).glob(f"{spaces[0].stem}_*")):
        part = FILE.fullmatch(path.name[len(spaces[0].stem) :])
        if (
            part and path.is_file() and path.stat().st_size
        ):  # the archive's skeleton is empty files
            kind = ("brain " if part["brain"] else "") + part["suffix"]
            found[part["res"] or "", kind] = path
    for suffix in dict.fromkeys((contrast, "T1w", "T2w")):
        grids = []
        for space in sorted(spaces, key=lambda space: int(space.resolution or 1)):
            grid = _grid(space.resolution, suffix, found)
            if grid is None:
                break
            grids.append(grid)
        else:
            reference = f"{ARCHIVE}/{spaces[0].folder}/{grids[0].image.name}"
            return Template(spaces[0].label, suffix, reference, tuple(grids))
    raise TemplateError(_to_fetch(spaces[0], f"the {contrast} image and the brain mask", root))


def _grid(resolution: str, suffix: str, files: dict[tuple[str, str], Path]) -> Grid | None:
    """The image and mask at a resolution; without one, at res-1 or that of a template without."""
    for res in (resolution,) if resolution else ("1", ""):
        mask = files.get((res, "brain mask"))
        if mask is not None and (res, suffix) in files:
            return Grid(resolution, files[res, suffix], mask)
        if (res, f"brain {suffix}") in files:
            return Grid(resolution, files[res, f"brain {suffix}"], mask)
    return None


def _to_fetch(space: Space, what: str, root: Path) -> str:
    res = f" --res {space.resolution or 1}"
    cohort = f" --cohort {space.cohort}" if space.cohort else ""
    return (
        f"expected {what} for the space {space} in {root / space.folder}, found none; a run "
        f"fetches nothing. Where there is a network, run `TEMPLATEFLOW_HOME={root} templateflow get "
        f"{space.template}{cohort}{res} -s T1w -s T2w -s mask`, or copy the files from "
        f"{ARCHIVE}/{space.folder}/; another folder of templates is named with --templateflow-home"
    )

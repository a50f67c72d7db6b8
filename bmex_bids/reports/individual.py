# SPDX-License-Identifier: Apache-2.0
"""The page of one participant (and session): ``data/templates/subject.html.j2`` filled in.

The page is written for whoever has a picture, a sidecar, a row of ``status.tsv`` or a crash file,
and for whoever has none of them.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from markupsafe import Markup

from bmex_bids import __version__
from bmex_bids.common.contrasts import SUFFIXES
from bmex_bids.common.names import BidsName
from bmex_bids.outputs.files import write_text
from bmex_bids.outputs.pages import render
from bmex_bids.outputs.pictures import PICTURES, Picture, figures_folder
from bmex_bids.outputs.records import KEY, MOTION, find_records, table_of
from bmex_bids.outputs.status import WITH_RESULT, latest_first, read_status
from bmex_bids.outputs.summary import summary_html
from bmex_bids.reports.about import about_image, about_run
from bmex_bids.reports.crashes import find_crashes

#: formats of the methods text that are shown as source
SOURCES = {"md": "Markdown", "tex": "LaTeX", "bib": "BibTeX"}


@dataclass(frozen=True)
class Page:
    """Whose page it is; labels without prefix, session None in a dataset without sessions."""

    subject: str
    session: str | None = None

    @property
    def stem(self) -> str:
        """``sub-01_ses-A``: the page's name, and what the names of its images begin with."""
        return f"sub-{self.subject}" + (f"_ses-{self.session}" if self.session else "")

    def owns(self, image: str) -> bool:
        """Whether an image such as ``sub-01_ses-A_run-1_T1w`` belongs on this page.

        >>> Page("01").owns("sub-01_T1w"), Page("01").owns("sub-01_ses-A_T1w")
        (True, False)
        """
        name = BidsName.parse(image)
        return name is not None and (name.subject, name.session) == (self.subject, self.session)


@dataclass(frozen=True)
class Image:
    """One image of a page.

    Attributes
    ----------
    row : of ``status.tsv``; empty without
    sidecar : see ``outputs.records``; empty without
    figures : desc → picture or fragment
    """

    name: str
    row: Mapping[str, str] = field(default_factory=dict)
    sidecar: Mapping[str, Any] = field(default_factory=dict)
    figures: Mapping[str, Path] = field(default_factory=dict)

    @property
    def status(self) -> str:
        """Of the row; empty without."""
        return self.row.get("status") or ""

    @property
    def record(self) -> dict[str, Any]:
        """What was done to it; empty without a sidecar."""
        return table_of(self.sidecar, KEY)

    @property
    def is_bad(self) -> bool:
        """Whether the run left it without a result."""
        return self.status not in {*WITH_RESULT, ""}

    @property
    def verdict(self) -> str:
        """What a badge says: what went wrong with the run, else what the quality gate says."""
        if self.is_bad:
            return self.status
        gate = table_of(self.record, "Gate")
        return str(gate.get("Verdict") or self.row.get("gate") or "").lower()

    @cached_property
    def summary(self) -> Markup:
        """Of the record, or else the fragment that the run wrote."""
        if self.record:
            text = summary_html(self.record, contrast=self.name.rpartition("_")[2])
        elif "summary" in self.figures:
            text = self.figures["summary"].read_text(encoding="utf-8")
        else:
            text = ""
        return Markup(text)  # noqa: S704 - our own HTML, escaped where it was made

    @property
    def pictures(self) -> Iterator[tuple[str, Picture, Path]]:
        """Name, description and file of the pictures that are there, in the order of the page."""
        undone = table_of(self.record, MOTION).get("Applied")
        for desc, picture in PICTURES.items():
            if undone and picture.if_undone:
                picture = replace(picture, caption=f"{picture.caption} {picture.if_undone}")
            if desc in self.figures and picture.extension == ".svg":
                yield desc, picture, self.figures[desc]


def page_name(subject: str, session: str | None) -> str:
    """File name of a page.

    >>> page_name("01", None), page_name("01", "A")
    ('sub-01.html', 'sub-01_ses-A.html')
    """
    return f"{Page(subject, session).stem}.html"


def pages_there(output_dir: Path) -> list[Page]:
    """The pages of participants and sessions that are in the output."""
    found = (
        re.fullmatch(r"sub-([^_]+)(?:_ses-([^_]+))?", p.stem)
        for p in output_dir.glob("sub-*.html")
    )
    return sorted((Page(name[1], name[2]) for name in found if name), key=lambda page: page.stem)


def write_subject_report(
    output_dir: Path,
    subject: str,
    session: str | None = None,
    *,
    run_id: str | None = None,
    reason_rows: Sequence[Mapping[str, str]] | None = None,
) -> Path:
    """Put all that is known of a participant's images together on one page; return its path.

    Parameters
    ----------
    output_dir : with ``sub-<subject>/figures`` and ``logs``
    subject, session : labels without prefix; None is a dataset without sessions
    run_id : of the run whose errors are shown; None takes the latest that knows this participant
    reason_rows : of ``status.tsv``, where the caller has them at hand; None reads them
    """
    page = Page(subject, session)
    text = subject_page(output_dir, page, run_id=run_id, reason_rows=reason_rows)
    return write_text(output_dir / f"{page.stem}.html", text)


def subject_page(
    output_dir: Path,
    page: Page,
    *,
    run_id: str | None = None,
    reason_rows: Sequence[Mapping[str, str]] | None = None,
    standalone: bool = False,
) -> str:
    """The page as HTML; for the parameters see :func:`write_subject_report`.

    Parameters
    ----------
    standalone : the pictures are part of the page, which links to no other file
    """
    if run_id is None:
        run_id = latest_run(output_dir, page)
    run_dir = output_dir / "logs" / run_id if run_id else None
    if reason_rows is None:
        reason_rows = read_status(run_dir) if run_dir else ()
    images = find_images(output_dir, page, reason_rows)
    crashes = find_crashes(run_dir, page.subject, page.session) if run_dir else []
    faults = [
        (image, [crash for crash in crashes if crash.is_of(image.name)])
        for image in images
        if image.is_bad
    ]
    # the text is about images with results: a page without any would describe the others'
    nothing = bool(images) and all(image.is_bad and not image.record for image in images)
    return render(
        "subject.html.j2",
        page=page,
        images=images,
        faults=faults,
        crashes=[crash for crash in crashes if not any(crash in own for _, own in faults)],
        run_id=run_id,
        output_dir=output_dir,
        inline=inline_svg if standalone else None,
        methods={} if nothing else methods_texts(output_dir / "logs"),
        about={
            "run": about_run(output_dir, run_id),
            "images": [(image, rows) for image in images if (rows := about_image(image.sidecar))],
        },
        sessions=other_sessions(output_dir, page, [row["image"] for row in reason_rows]),
        groups=[
            name
            for suffix in SUFFIXES
            if (output_dir / (name := f"group_{suffix}.html")).is_file()
        ],
        version=__version__,
    )


def inline_svg(path: Path) -> Markup:
    """A picture as a part of a page; a browser shows no data URI above 2 MiB in an ``object``."""
    text = path.read_text(encoding="utf-8")
    return Markup(text[text.index("<svg") :])  # noqa: S704 - drawn by interfaces.reportlets


def find_images(output_dir: Path, page: Page, rows: Sequence[Mapping[str, str]]) -> list[Image]:
    """All images of a page: with a row, a picture or a record."""
    row_of = {row["image"]: row for row in rows if page.owns(row["image"])}
    figures = find_figures(output_dir, page)
    sidecars = {
        str(image.source): image.sidecar()
        for image in find_records(output_dir, page.subject, page.session)
    }
    return [
        Image(name, row_of.get(name, {}), sidecars.get(name, {}), figures.get(name, {}))
        for name in sorted({*row_of, *figures, *sidecars}, key=_natural)
    ]


def find_figures(output_dir: Path, page: Page) -> dict[str, dict[str, Path]]:
    """Image name → desc → picture or fragment, of one participant and session."""
    found: dict[str, dict[str, Path]] = {}
    folder = figures_folder(output_dir, page.subject)
    for path in sorted(folder.glob(f"{glob.escape(page.stem)}_*")):
        name = BidsName.parse(path.name)
        if name is None or name.extension not in {".svg", ".html"} or "desc" not in name.entities:
            continue
        source = str(name.without("desc"))
        if page.owns(source):
            found.setdefault(source, {})[name.entities["desc"]] = path
    return found


def latest_run(output_dir: Path, page: Page) -> str | None:
    """The latest run with a row or a crash file of this participant and session.

    A later run may have been about others only, and tells nothing.
    """
    for folder in latest_first(output_dir):
        if any(page.owns(row["image"]) for row in read_status(folder)) or find_crashes(
            folder, page.subject, page.session
        ):
            return folder.name
    return None


def other_sessions(output_dir: Path, page: Page, rows: Sequence[str]) -> list[str]:
    """The participant's sessions that have a page or will get one; none where there is only one.

    Parameters
    ----------
    rows : names of the images in ``status.tsv``
    """
    prefix = f"sub-{page.subject}_ses-"
    names = [*rows, *(path.stem for path in output_dir.glob(f"{glob.escape(prefix)}*.html"))]
    names += [path.name for path in figures_folder(output_dir, page.subject).glob("*_desc-*.svg")]
    found = {name.removeprefix(prefix).split("_")[0] for name in names if name.startswith(prefix)}
    return sorted(found, key=_natural) if page.session and len(found) > 1 else []


def methods_texts(logs: Path) -> dict[str, Any]:
    """The methods text of the dataset: to read (``html`` or ``plain``), and its ``sources``.

    Empty where there is none.
    """
    texts = {
        kind: path.read_text(encoding="utf-8").strip()
        for kind in ("html", *SOURCES)
        if (path := logs / f"CITATION.{kind}").is_file()
    }
    if not {"html", "md"} & set(texts):
        return {}
    body = re.search(r"<body[^>]*>(.*)</body>", texts.get("html", ""), re.S | re.I)
    inert = re.sub(
        r"<(script|style)\b.*?</\1>|<link\b[^>]*>",
        "",
        body[1] if body else texts.get("html", ""),
        flags=re.S | re.I,
    )
    return {
        "html": Markup(inert.strip()),  # noqa: S704 - made by reports.methods, scripts taken out
        "plain": texts.pop("md", "") if "html" not in texts else "",
        "sources": {SOURCES[kind]: text for kind, text in texts.items() if kind in SOURCES},
    }


def _natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts run-2 before run-10."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", name)]

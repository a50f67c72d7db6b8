# SPDX-License-Identifier: Apache-2.0
"""The page of one participant (and session), put together by nireports.

What is on the page is said in ``data/reports-spec.yml``, how it looks in
``data/subject-page.tpl``.  Three things of nireports are not used, for good reasons: its template,
which loads from the net; its list of crash files, which shows those of one folder whoever they
belong to; its tabs of methods text, which need the scripts of its template.
"""

from __future__ import annotations

import glob
import hashlib
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote

from nireports.assembler.report import Report, SubReport
from nireports.assembler.reportlet import Reportlet

from bmex_bids import __version__
from bmex_bids.common.names import BidsName
from bmex_bids.outputs.files import write_text
from bmex_bids.outputs.records import find_records
from bmex_bids.outputs.status import latest_first, read_status
from bmex_bids.outputs.summary import summary_html

#: of ``status.tsv``: nothing to explain
GOOD = frozenset({"done", "unchanged", ""})
#: characters of a traceback or of a node's inputs that are shown, from the end
LONGEST = 20_000


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

    def owns_node(self, node: str) -> bool:
        """Whether a Nipype node such as ``run.sub_01_ses_A_T1w_wf.find_brain`` worked for it."""
        prefix = mangled(self.stem) + "_"
        return any(
            part.startswith(prefix) and (self.session or not part.startswith(f"{prefix}ses_"))
            for part in node.split(".")
        )


@dataclass(frozen=True)
class Crash:
    """A step that failed, as its crash file tells."""

    path: Path
    node: str
    inputs: str
    traceback: str


@dataclass(frozen=True)
class StagedFile:
    """What nireports wants to know of a file."""

    path: Path
    entities: Mapping[str, str]


@dataclass(frozen=True)
class Stage:
    """The files of one section, asked for by their ``desc`` alone: nireports' layout.

    A pybids layout would do, but takes a second to make, takes entities from the whole path, so
    that an output folder ``/data/sub-07/run-2`` confuses it, and does not know them all.
    """

    root: Path

    def get(self, desc: str) -> list[StagedFile]:
        """The files with this ``desc``."""
        paths = sorted(self.root.rglob(f"*_desc-{desc}_*"))
        return [StagedFile(path, {"desc": desc}) for path in paths]


class SubjectReport(Report):  # type: ignore[misc]
    """nireports' report of several folders: one for each image and one for the whole page."""

    def __init__(self, folders: Mapping[str, Path], **options: Any) -> None:
        """Make the sections.

        Parameters
        ----------
        folders : title of the section → folder of its files; the title "" keeps the names of the
            specification
        options : of nireports' Report
        """
        self.folders = folders
        super().__init__(**options)

    def index(self, config: dict[str, Any]) -> None:
        """Make the sections of each folder in turn; those without a file are left out."""
        for title, folder in self.folders.items():
            for part in config["sections"]:
                items = (
                    Reportlet(Stage(folder), config=item, out_dir=folder)
                    for item in part["reportlets"]
                )
                if filled := [item for item in items if not item.is_empty()]:
                    name = folder.name if title else part["name"]
                    self.sections.append(SubReport(name, bool(title), filled, title or name))


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

    The page is written for whoever has a picture, a sidecar, a row of ``status.tsv`` or a crash
    file, and for whoever has none of them.

    Parameters
    ----------
    output_dir : with ``sub-<subject>/figures`` and ``logs``
    subject, session : labels without prefix; None is a dataset without sessions
    run_id : of the run whose errors are shown; None takes the latest that knows this participant
    reason_rows : of ``status.tsv``, where the caller has them at hand; None reads them
    """
    page = Page(subject, session)
    if run_id is None:
        run_id = latest_run(output_dir, page)
    run_dir = output_dir / "logs" / run_id if run_id else None
    if reason_rows is None:
        reason_rows = read_status(run_dir) if run_dir else []
    rows = {row["image"]: row for row in reason_rows if page.owns(row["image"])}
    crashes = find_crashes(run_dir, page) if run_dir else []
    figures = find_figures(output_dir, page)
    records = {
        str(image.source): image.record()
        for image in find_records(output_dir, page.subject, page.session)
    }
    names = sorted({*rows, *figures, *records}, key=_natural)
    images = {name: Image(name, rows.get(name, {}), records.get(name, {})) for name in names}
    with tempfile.TemporaryDirectory(prefix="bmex-page-") as temporary:
        stage = Path(temporary)
        folders: dict[str, Path] = {}
        for name, image in images.items():
            folder = stage / alias(name)
            _stage_image(folder, page, image, figures.get(name, {}))
            folders[image.title(page)] = folder
        _stage_page(stage / "page", page, list(images.values()), crashes, run_id, output_dir)
        folders[""] = stage / "page"
        data = resources.files("bmex_bids.data")
        with (
            resources.as_file(data / "reports-spec.yml") as specification,
            resources.as_file(data / "subject-page.tpl") as template,
        ):
            report = SubjectReport(
                folders,
                out_dir=stage,
                run_uuid=run_id,
                bootstrap_file=specification,
                out_filename=f"{alias(page.stem)}.html",
                metadata={
                    "filename": alias(page.stem),
                    "template": str(template.absolute()).replace("'", "''"),
                },
            )
            trouble = sum(image.status not in GOOD for image in images.values()) or len(crashes)
            for section in report.sections:
                if section.name == "Errors" and trouble:
                    section.title = f"Errors <span class='badge fail'>{trouble}</span>"
            report.header = [_header(page, list(images.values()))]
            report.navbar = [_elsewhere(output_dir, page, reason_rows)]
            report.footer = [
                f"bmex_bids {__version__}. An enhanced image is an estimate made by a network: do "
                "not diagnose from it."
            ]
            report.generate_report()
        made = (stage / f"{alias(page.stem)}.html").read_text(encoding="utf-8")
        return write_text(
            output_dir / f"{page.stem}.html", _with_names(made, page, images, figures)
        )


#: signs that are safe in HTML, in a link and in the specification of nireports
ODD = re.compile(r"[^\w .-]")


def alias(name: str) -> str:
    """What stands for a name that holds markup while nireports, which escapes nothing, works.

    >>> alias("sub-01_T1w"), alias("sub-<b>_T1w")
    ('sub-01_T1w', 'sub-_b__T1w-3be1fac7')
    """
    if not ODD.search(name):
        return name
    return f"{ODD.sub('_', name)}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _with_names(
    text: str,
    page: Page,
    images: Mapping[str, Image],
    figures: Mapping[str, Mapping[str, Path]],
) -> str:
    """A page with its names instead of their aliases: quoted in links, escaped elsewhere."""
    folder = f"sub-{page.subject}"
    for pictures in figures.values():
        for path in pictures.values():
            staged = f"{alias(folder)}/figures/{alias(path.stem)}{path.suffix}"
            real = f"{folder}/figures/{path.name}"
            if staged != real:
                text = text.replace(staged, quote(real))
    for name in (*images, page.stem):
        if alias(name) != name:
            text = text.replace(alias(name), escape(name))
    return text


@dataclass(frozen=True)
class Image:
    """One image of a page: its name, its row of ``status.tsv``, ``BMEX`` of its sidecar."""

    name: str
    row: Mapping[str, str]
    record: Mapping[str, Any]

    @property
    def status(self) -> str:
        """Of the row; empty without."""
        return self.row.get("status") or ""

    @property
    def verdict(self) -> str:
        """What a badge says: what went wrong with the run, else what the quality gate says."""
        if self.status not in GOOD:
            return self.status
        gate = self.record.get("Gate") or {}
        return str(gate.get("Verdict") or self.row.get("gate") or "").lower()

    def title(self, page: Page) -> str:
        """What tells this image from the others of its page, and its badge, as HTML."""
        label = self.name.removeprefix(f"{page.stem}_").replace("_", " ")
        return f"{escape(label)} {_badge(self.verdict)}".strip()


def find_figures(output_dir: Path, page: Page) -> dict[str, dict[str, Path]]:
    """Image name → desc → picture or fragment, of one participant and session."""
    found: dict[str, dict[str, Path]] = {}
    for path in sorted(
        (output_dir / f"sub-{page.subject}" / "figures").glob(f"{glob.escape(page.stem)}_*")
    ):
        stem, _, suffix = path.name.split(".")[0].rpartition("_")
        source, marker, desc = stem.rpartition("_desc-")
        if marker and path.suffix in {".svg", ".html"} and page.owns(f"{source}_{suffix}"):
            found.setdefault(f"{source}_{suffix}", {})[desc] = path
    return found


def latest_run(output_dir: Path, page: Page) -> str | None:
    """The latest run with a row or a crash file of this participant and session.

    A later run may have been about others only, and tells nothing.
    """
    for folder in latest_first(output_dir):
        if any(page.owns(row["image"]) for row in read_status(folder)):
            return folder.name
        if find_crashes(folder, page):
            return folder.name
    return None


def find_crashes(run_dir: Path, page: Page) -> list[Crash]:
    """What failed for this participant and session in a run, in order of time, each once."""
    found: dict[tuple[str, str], Crash] = {}
    for path in sorted(run_dir.glob("crash-*.txt")):
        crash = _crash(path, path.stat().st_mtime_ns)
        if page.owns_node(crash.node):
            found.setdefault((crash.node, crash.traceback), crash)
    return list(found.values())


@lru_cache(maxsize=1024)
def _crash(path: Path, mtime_ns: int) -> Crash:
    """A crash file, read once for all pages."""
    return read_crash(path)


def read_crash(path: Path) -> Crash:
    """A text crash file of Nipype; one that looks otherwise is all traceback."""
    text = path.read_text(encoding="utf-8", errors="replace")
    head = re.match(r"Node: (.+)\nWorking directory: .*\n", text)
    if head is None:
        return Crash(path, "", "", text.strip())
    rest = text[head.end() :].strip()
    inputs, traceback = "", rest
    if rest.startswith("Node inputs:"):
        start = re.search(r"^(Traceback \(most|\w*(Error|Died|Exception)\b.*:)", rest, re.M)
        cut = start.start() if start else len("Node inputs:")
        inputs, traceback = rest[:cut].removeprefix("Node inputs:").strip(), rest[cut:].strip()
    return Crash(path, head[1].strip(), inputs[-LONGEST:], traceback[-LONGEST:])


def mangled(name: str) -> str:
    """A name as the names of Nipype's workflows have it.

    >>> mangled("sub-01_ses-A_T1w")
    'sub_01_ses_A_T1w'
    """
    return re.sub(r"\W", "_", name)


def _stage_image(folder: Path, page: Page, image: Image, figures: Mapping[str, Path]) -> None:
    """What nireports needs to find of an image.

    Of a picture it only looks at the name, since the page links to it; an empty one stands in, as
    nireports rewrites the files it finds, in place.
    """
    folder.mkdir()
    fragments = {"status": _banner(image), "summary": ""}
    if image.record:
        fragments["summary"] = summary_html(image.record, contrast=image.name.rpartition("_")[2])
    elif "summary" in figures:
        fragments["summary"] = figures["summary"].read_text(encoding="utf-8")
    for desc, path in figures.items():
        if path.suffix == ".svg":
            name = f"{alias(path.stem)}{path.suffix}"
            _put(folder / alias(f"sub-{page.subject}") / "figures" / name, "<svg/>\n")
            fragments.pop(desc, None)
    source, _, suffix = image.name.rpartition("_")
    for desc, text in fragments.items():
        if text:
            _put(folder / f"{alias(source)}_desc-{desc}_{suffix}.html", text)


def _stage_page(
    folder: Path,
    page: Page,
    images: Sequence[Image],
    crashes: Sequence[Crash],
    run_id: str | None,
    output_dir: Path,
) -> None:
    """What nireports needs to find of the whole page."""
    errors = "\n".join(_errors(page, images, crashes, run_id))
    _put(folder / f"{alias(page.stem)}_desc-errors_T1w.html", errors)
    methods = "\n".join(_methods(output_dir / "logs"))
    if methods:
        _put(folder / f"{alias(page.stem)}_desc-methods_T1w.html", methods)


def _put(path: Path, text: str) -> None:
    """Write a fragment so that nireports reads it right in any locale."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode("ascii", "xmlcharrefreplace"))


def _header(page: Page, images: Sequence[Image]) -> str:
    session = f", session {escape(page.session)}" if page.session else ""
    count = f"{len(images)} image{'s' * (len(images) != 1)}"
    return (
        f"<h1>Participant {escape(page.subject)}{session}</h1>\n"
        f"<p class='lead'>Enhanced structural brain MRI, {count}</p>"
    )


def _elsewhere(output_dir: Path, page: Page, rows: Sequence[Mapping[str, str]]) -> str:
    """Links to the pages of the participant's other sessions and to the group's, where they are.

    The page of a session may be yet to come: who has pictures or a row will get one.
    """
    names = [row["image"] for row in rows]
    names += [
        path.name
        for path in (output_dir / f"sub-{page.subject}" / "figures").glob("sub-*_desc-*.svg")
    ]
    names += [
        path.stem for path in output_dir.glob(f"{glob.escape(f'sub-{page.subject}')}_ses-*.html")
    ]
    prefix = f"sub-{page.subject}_ses-"
    sessions = {
        name.removeprefix(prefix).split("_")[0] for name in names if name.startswith(prefix)
    }
    groups = sorted(path.name for path in output_dir.glob("group_T[12]w.html"))
    parts = []
    if page.session and len(sessions) > 1:
        parts.append(
            _link_list(
                "Sessions",
                {
                    f"ses-{name}": page_name(page.subject, name)
                    for name in sorted(sessions, key=_natural)
                },
                here=f"ses-{page.session}",
            )
        )
    if groups:
        parts.append(_link_list("Group", {name[6:9]: name for name in groups}, here=""))
    return "\n".join(parts)


def _link_list(heading: str, links: Mapping[str, str], here: str) -> str:
    items = [
        f"<li><b>{escape(label)}</b></li>"
        if label == here
        else f"<li><a href='{escape(target)}'>{escape(label)}</a></li>"
        for label, target in links.items()
    ]
    return f"<h2>{heading}</h2>\n<ul>" + "".join(items) + "</ul>"


def _badge(verdict: str) -> str:
    kind = escape(verdict.replace(" ", "-"))
    return f"<span class='badge {kind}'>{escape(verdict)}</span>" if verdict else ""


def _banner(image: Image) -> str:
    """What is said above an image that the run did not finish; nothing above a good one."""
    if image.status in GOOD:
        return ""
    step = f" in “{escape(image.row['step'])}”" if image.row.get("step") else ""
    earlier = "<p>What is shown below is of an earlier run.</p>" if image.record else ""
    return (
        f"<div class='banner {escape(image.status.replace(' ', '-'))}'><p><b>"
        f"{escape(image.status.capitalize())}</b>{step}: "
        f"{escape(image.row.get('reason') or 'no reason was given')}</p>{earlier}</div>"
    )


def _errors(
    page: Page, images: Sequence[Image], crashes: Sequence[Crash], run_id: str | None
) -> Iterator[str]:
    """Each image that the run did not finish, with its reason and its crash files."""
    log = f" in run <a href='logs/{escape(run_id)}/'>{escape(run_id)}</a>" if run_id else ""
    bad = [image for image in images if image.status not in GOOD]
    if not bad and not crashes:
        yield f"<p class='fine'>No errors{log}.</p>"
        return
    yield f"<p class='hint'>What went wrong{log}:</p>"
    left = list(crashes)
    for image in bad:
        own = [crash for crash in left if f"{mangled(image.name)}_wf" in crash.node.split(".")]
        left = [crash for crash in left if crash not in own]
        yield f"<h3>{escape(image.name)} {_badge(image.status)}</h3>"
        yield _banner(image)
        for crash in own:
            yield from _crash_html(crash)
    for crash in left:
        yield f"<h3>{escape(crash.node)}</h3>"
        yield from _crash_html(crash)


def _crash_html(crash: Crash) -> Iterator[str]:
    step = ".".join(crash.node.split(".")[2:]) or crash.node
    yield f"<p>Step <code>{escape(step)}</code>: {escape(_reason(crash.traceback))}</p>"
    yield f"<details><summary>Traceback</summary><pre>{escape(crash.traceback)}</pre></details>"
    if crash.inputs:
        yield f"<details><summary>Inputs</summary><pre>{escape(crash.inputs)}</pre></details>"
    yield f"<p class='hint'>File: <code>{escape(crash.path.name)}</code></p>"


def _reason(traceback: str) -> str:
    """The line of a traceback that names the error; Nipype writes others below it."""
    lines = [line.strip() for line in traceback.splitlines() if line.strip()]
    named = [
        line for line in lines if re.match(r"[\w.]*(Error|Exception|Died|Problem)\b.*: ", line)
    ]
    return (named or lines or ["no reason was given"])[-1]


def _methods(logs: Path) -> Iterator[str]:
    """The methods text of the dataset: to read, and as source to copy; nothing without a text."""
    texts = {}
    for kind in ("html", "md", "tex", "bib"):
        path = logs / f"CITATION.{kind}"
        if path.is_file():
            texts[kind] = path.read_text(encoding="utf-8")
    if "html" in texts:
        body = re.search(r"<body[^>]*>(.*)</body>", texts.pop("html"), re.S | re.I)
        if body:
            inert = re.sub(
                r"<(script|style)\b.*?</\1>|<link\b[^>]*>", "", body[1], flags=re.S | re.I
            )
            yield f"<div class='methods'>{inert.strip()}</div>"
    elif "md" in texts:
        yield f"<pre class='methods'>{escape(texts.pop('md').strip())}</pre>"
    labels = {"md": "Markdown", "tex": "LaTeX", "bib": "BibTeX"}
    for kind, text in texts.items():
        if kind in labels:
            yield f"<details><summary>As {labels[kind]}</summary><pre>{escape(text.strip())}</pre>"
            yield "</details>"


def _natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts run-2 before run-10."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", name)]

# SPDX-License-Identifier: Apache-2.0
"""The page of one participant (and session): all of it is in the output folder, nothing online."""

from __future__ import annotations

import os
from collections.abc import Iterator
from html import escape
from pathlib import Path

from bmex_bids import __version__
from bmex_bids.outputs.files import write_text

#: reportlet → heading and what to look for
SECTIONS: dict[str, tuple[str, str]] = {
    "summary": ("Summary", ""),
    "enhancement": (
        "Before and after",
        "The image after enhancement; point at it to flicker between before and after. Both are "
        "shown in one intensity window. Anatomy must stay where it is.",
    ),
    "brainmask": (
        "Brain mask",
        "The outline should follow the brain's surface, without eyes or skull.",
    ),
    "tissues": (
        "Tissues",
        "Yellow: white matter. Green: border between grey matter and fluid. As the "
        "network classified them.",
    ),
    "histogram": (
        "Intensities",
        "Inside the brain, in the units of the age's histogram reference.",
    ),
}
STYLE = """
body{font-family:system-ui,sans-serif;margin:0
auto;max-width:1100px;padding:1rem;color:#222;background:#fff}
h1{font-size:1.5rem}h2{font-size:1.2rem;border-bottom:2px solid
#0072b2;margin-top:2rem}h3{font-size:1rem;margin-bottom:.2rem} nav
a{margin-right:1rem}object{width:100%;display:block}p.hint{color:#555;margin:.2rem 0 .5rem}
table.summary{border-collapse:collapse}table.summary th{text-align:left;padding:.15rem 1rem .15rem
0;font-weight:600;vertical-align:top} p.warning{background:#fff3cd;border-left:4px solid
#e69f00;padding:.4rem .7rem}footer{color:#777;margin-top:2rem;font-size:.85rem}
"""


def page_name(subject: str, session: str | None) -> str:
    """File name of a page.

    >>> page_name("01", None), page_name("01", "A")
    ('sub-01.html', 'sub-01_ses-A.html')
    """
    return f"sub-{subject}" + (f"_ses-{session}" if session else "") + ".html"


def write_subject_report(output_dir: Path, subject: str, session: str | None = None) -> Path:
    """Put the pictures of a participant's images together on one page, and return its path.

    Parameters
    ----------
    output_dir : with ``sub-<subject>/figures``
    subject, session : labels without prefix; None is a dataset without sessions
    """
    figures = output_dir / f"sub-{subject}" / "figures"
    images = _images(figures, subject, session)
    title = page_name(subject, session).removesuffix(".html")
    body = [f"<h1>{escape(title)}: enhanced brain images</h1>", "<nav>"]
    body += [f"<a href='#{escape(name)}'>{escape(name)}</a>" for name in images]
    body.append("</nav>")
    for name, parts in images.items():
        body.append(f"<h2 id='{escape(name)}'>{escape(name)}</h2>")
        for section, (heading, hint) in SECTIONS.items():
            if section in parts:
                body += _section(heading, hint, parts[section], output_dir)
    body.append(
        f"<footer>bmex_bids {__version__}. The enhanced image is an estimate: "
        "do not diagnose from it.</footer>"
    )
    page = (
        f"<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        f"<title>{escape(title)}</title>"
        f"<style>{STYLE}</style></head><body>\n" + "\n".join(body) + "\n</body></html>\n"
    )
    return write_text(output_dir / page_name(subject, session), page)


def _images(figures: Path, subject: str, session: str | None) -> dict[str, dict[str, Path]]:
    """Image name → section → file, of one participant and session."""
    prefix = page_name(subject, session).removesuffix(".html") + "_"
    found: dict[str, dict[str, Path]] = {}
    for path in sorted(figures.glob(f"{prefix}*")):
        stem, _, suffix = path.name.split(".")[0].rpartition("_")
        before, marker, section = stem.rpartition("_desc-")
        if not marker or section not in SECTIONS or (session is None and "_ses-" in before):
            continue
        found.setdefault(f"{before}_{suffix}", {})[section] = path
    return found


def _section(heading: str, hint: str, path: Path, output_dir: Path) -> Iterator[str]:
    yield f"<h3>{escape(heading)}</h3>"
    if hint:
        yield f"<p class='hint'>{escape(hint)}</p>"
    if path.suffix == ".html":
        yield path.read_text(encoding="utf-8")
    else:
        link = Path(os.path.relpath(path, output_dir)).as_posix()
        yield f"<object type='image/svg+xml' data='{escape(link)}'>{escape(heading)}</object>"

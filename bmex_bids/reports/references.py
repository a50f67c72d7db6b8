# SPDX-License-Identifier: Apache-2.0
"""The methods text as HTML and LaTeX: Markdown by markdown-it, references by pybtex.

Both number the references in the order of their citation.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from importlib import resources
from typing import Any

from markdown_it import MarkdownIt
from markupsafe import Markup
from pybtex.backends.html import Backend as HtmlBackend
from pybtex.backends.latex import Backend as LatexBackend
from pybtex.database import BibliographyData, parse_string
from pybtex.style.formatting.unsrt import Style

from bmex_bids.outputs.pages import render

#: where the list of references goes; Pandoc puts it at the end of a text
REFERENCES_HEADING = "### References"
_CITATION = re.compile(r"\[(@[\w:.-]+(?:; *@[\w:.-]+)*)\]")
_TEX = str.maketrans(
    {
        "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#",
        "%": r"\%", "_": r"\_", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
        "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
    }
)  # fmt: skip
#: type of a token of markdown-it → what LaTeX has in its place
_COMMANDS = {
    "em_open": r"\emph{", "em_close": "}", "strong_open": r"\textbf{", "strong_close": "}",
    "heading_open": r"\subsubsection*{", "heading_close": "}\n\n", "paragraph_close": "\n\n",
    "softbreak": "\n",
}  # fmt: skip


def cited_keys(text: str) -> list[str]:
    """The keys that a text cites, each once, in the order of their first citation.

    >>> cited_keys("A [@b; @a], and again [@a]; but not me@home.org.")
    ['b', 'a']
    """
    return list(dict.fromkeys(key for found in _CITATION.findall(text) for key in _keys(found)))


def _keys(citation: str) -> list[str]:
    return [part.strip().removeprefix("@") for part in citation.split(";")]


@lru_cache(maxsize=1)
def known_references() -> BibliographyData:
    """The entries of ``boilerplate/references.bib``."""
    source = resources.files("bmex_bids.boilerplate").joinpath("references.bib")
    return parse_string(source.read_text(encoding="utf-8"), "bibtex")


def bibliography(keys: Sequence[str]) -> BibliographyData:
    """The entries with these keys, in this order; KeyError for one that is not known."""
    return BibliographyData({key: known_references().entries[key] for key in keys})


def to_html(text: str) -> str:
    """A methods text as what belongs in the body of a page, with its references."""
    keys = cited_keys(text)
    body = _parser().render(text, {"numbers": {key: n for n, key in enumerate(keys, 1)}})
    items = [(key, Markup(item)) for key, item in _formatted(keys, HtmlBackend())]  # noqa: S704
    return body + render("references.html.j2", references=items)


def to_latex(text: str) -> str:
    """A methods text as a LaTeX document that needs no BibTeX run."""
    tokens = _parser().parse(text.strip().removesuffix(REFERENCES_HEADING))
    body = "".join(_latex(part) for token in tokens for part in (token.children or [token]))
    keys = cited_keys(text)
    items = "\n".join(
        rf"\bibitem{{{key}}} {item}" for key, item in _formatted(keys, LatexBackend())
    )
    return (
        "\\documentclass{article}\n\\usepackage[utf8]{inputenc}\n\\usepackage{hyperref}\n"
        f"\\begin{{document}}\n\n{body.strip()}\n\n\\begin{{thebibliography}}{{99}}\n{items}\n"
        "\\end{thebibliography}\n\n\\end{document}\n"
    )


def html_page(body: str, *, title: str) -> str:
    """A page of its own around what belongs in its body; nothing in it is fetched."""
    return render("citation.html.j2", title=title, body=Markup(body))  # noqa: S704


def _formatted(keys: Sequence[str], backend: Any) -> list[tuple[str, str]]:
    entries = Style(abbreviate_names=True).format_bibliography(bibliography(keys), keys)
    return [(entry.key, entry.text.render(backend)) for entry in entries]


def _latex(token: Any) -> str:
    if token.type == "text":
        return str(token.content).translate(_TEX)
    if token.type == "code_inline":
        return rf"\texttt{{{token.content.translate(_TEX)}}}"
    if token.type == "citation":
        return rf"\cite{{{','.join(token.meta['keys'])}}}"
    return _COMMANDS.get(token.type, "")


@lru_cache(maxsize=1)
def _parser() -> MarkdownIt:
    """CommonMark with citations; HTML in a text is text."""
    parser = MarkdownIt("commonmark", {"html": False})
    parser.inline.ruler.before("link", "citation", _read_citation)
    parser.add_render_rule("citation", _show_citation)
    return parser


def _read_citation(state: Any, silent: bool) -> bool:
    match = _CITATION.match(state.src, state.pos)
    if match is None:
        return False
    if not silent:
        state.push("citation", "", 0).meta = {"keys": _keys(match[1])}
    state.pos = match.end()
    return True


def _show_citation(_: Any, tokens: Any, index: int, __: Any, env: Any) -> str:
    links = (
        Markup('<a href="#ref-{}">{}</a>').format(key, env["numbers"][key])
        for key in tokens[index].meta["keys"]
    )
    return f"[{', '.join(links)}]"

# SPDX-License-Identifier: Apache-2.0
"""Citations: which a text makes, what a BibTeX file says of them, and the text as HTML and LaTeX.

The renderer knows what the methods text is made of (paragraphs, headings, emphasis, code, citations)
and numbers the references.  Pandoc, where there is one, knows more; see ``reports.methods``.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape

#: where the list of references goes; Pandoc puts it at the end of a text
REFERENCES_HEADING = "### References"
STYLE = (
    "body{font-family:system-ui,sans-serif;line-height:1.5;max-width:46rem;margin:2rem auto;"
    "padding:0 1rem;color:#222;background:#fff}code{overflow-wrap:anywhere}"
    "ol.references li,.csl-entry{margin-bottom:.4rem}"
)

#: (kind of piece, its content) → how it is written
Renderer = Callable[[str, str], str]

_CITATION = re.compile(r"\[(@[\w:.-]+(?:; *@[\w:.-]+)*)\]")
_TOKEN = re.compile(
    r"\\(?P<escaped>[^\w\s])"
    rf"|(?P<citation>{_CITATION.pattern})"
    r"|`(?P<code>[^`]+)`"
    r"|\*\*(?P<strong>(?:\\.|[^*\\])+)\*\*"
    r"|\*(?P<emphasis>(?:\\.|[^*\\])+)\*"
)
_ACCENTS = {
    "'": "\u0301", "`": "\u0300", "^": "\u0302", '"': "\u0308", "~": "\u0303", "=": "\u0304",
    ".": "\u0307", "v": "\u030c", "c": "\u0327", "u": "\u0306", "H": "\u030b", "r": "\u030a",
}  # fmt: skip
_TEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#",
    "%": r"\%", "_": r"\_", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "–": "--", "—": "---",
    "×": r"$\times$", "µ": r"$\mu$",
}  # fmt: skip


@dataclass(frozen=True)
class Reference:
    """An entry of a BibTeX file.

    Attributes
    ----------
    source : as it stands in the file
    fields : name (lower case) → value without its outer braces, still LaTeX
    """

    key: str
    kind: str
    source: str
    fields: Mapping[str, str]


def cited_keys(text: str) -> list[str]:
    """The keys that a text cites, each once, in the order of their first citation.

    >>> cited_keys("A [@b; @a], and again [@a]; but not me@home.org.")
    ['b', 'a']
    """
    found = (key for match in _CITATION.finditer(text) for key in _keys(match[1]))
    return list(dict.fromkeys(found))


def _keys(citation: str) -> list[str]:
    return [part.strip().removeprefix("@") for part in citation.split(";")]


def read_bibtex(text: str) -> dict[str, Reference]:
    """The entries of a BibTeX file whose values are all in braces, by key; ValueError otherwise."""
    entries = {}
    for head in re.finditer(r"@(\w+)\{([^\s,{}]+),", text):
        end = _closing(text, head.start() + len(head[1]) + 1)
        fields = {}
        position = head.end()
        while name := re.compile(r"[\s,]*(\w+)\s*=\s*(?=\{)").match(text, position, end):
            position = _closing(text, name.end()) + 1
            fields[name[1].lower()] = " ".join(text[name.end() + 1 : position - 1].split())
        if text[position:end].strip(" \t\r\n,"):
            raise ValueError(
                f"expected fields of the form name = {{value}} in the reference {head[2]}, got "
                f"{text[position:end].strip()!r}; mend references.bib"
            )
        entries[head[2]] = Reference(
            head[2], head[1].lower(), text[head.start() : end + 1], fields
        )
    return entries


def _closing(text: str, opening: int) -> int:
    """Where the brace at ``opening`` is closed."""
    depth = 0
    for position in range(opening, len(text)):
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        if depth == 0:
            return position
    raise ValueError(
        f"expected each brace to be closed, got an open one in {text[opening : opening + 40]!r}; "
        "mend references.bib"
    )


def plain(value: str) -> str:
    """A BibTeX value as plain text.

    >>> plain("Ib{\\\\'a}{\\\\~n}ez, {MRI}, 1--2")
    'Ibáñez, MRI, 1–2'
    """

    def accented(match: re.Match[str]) -> str:
        return unicodedata.normalize("NFC", match[2] + _ACCENTS[match[1]])

    value = re.sub(r"\\(['`^\"~=.]|[vcuHr](?=[\s{]))\s*\{?([A-Za-z])\}?", accented, value)
    value = re.sub(r"\\([&%$#_{}])", r"\1", value)
    return re.sub(r"[{}]", "", value).replace("---", "—").replace("--", "–").replace("~", " ")


# ------------------------------------------------------------------ a reference in words
@dataclass(frozen=True)
class _Words:
    """A reference in plain text: ``authors. title. *where*``, and a link."""

    authors: str
    title: str
    container: str
    details: str
    link: str


def _words(reference: Reference) -> _Words:
    fields = {name: plain(value) for name, value in reference.fields.items()}
    volume = fields.get("volume", "")
    number = f"({fields['number']})" if "number" in fields else ""
    pages = f":{fields['pages']}" if "pages" in fields else ""
    year = f"({fields['year']})" if "year" in fields else ""
    details = " ".join(part for part in (f"{volume}{number}{pages}", year) if part)
    container = next(
        (fields[name] for name in ("journal", "booktitle", "howpublished") if name in fields), ""
    )
    link = f"https://doi.org/{fields['doi']}" if "doi" in fields else fields.get("url", "")
    return _Words(
        _authors(fields.get("author", "")), fields.get("title", ""), container, details, link
    )


def _authors(value: str) -> str:
    """``Sun, Yue and Wang, Li and others`` → ``Sun Y, Wang L, et al.``

    >>> _authors("Van Leemput, Koen and Fonov, Vladimir S. and others")
    'Van Leemput K, Fonov VS, et al.'
    """
    names = []
    for author in value.split(" and "):
        family, _, given = author.partition(", ")
        initials = "".join(part[0] for part in re.split(r"[\s.-]+", given) if part)
        names.append("et al." if author == "others" else f"{family} {initials}".strip())
    text = ", ".join(names)
    return text if text.endswith(".") else f"{text}."


# ------------------------------------------------------------------ HTML
def html_page(body: str, *, title: str) -> str:
    """A page of its own around what belongs in its body; nothing in it is fetched from elsewhere."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"{body.strip()}\n</body>\n</html>\n"
    )


def to_html(text: str, references: Mapping[str, Reference]) -> str:
    """A methods text as what belongs in the body of a page, its references numbered at the end."""
    keys = cited_keys(text)
    numbers = {key: number for number, key in enumerate(keys, 1)}

    def cite(cited: Sequence[str]) -> str:
        links = (f'<a href="#ref-{escape(key)}">{numbers[key]}</a>' for key in cited)
        return f"[{', '.join(links)}]"

    def render(kind: str, value: str) -> str:
        if kind == "citation":
            return cite(_keys(value))
        if kind == "code":
            return f"<code>{escape(value)}</code>"
        if kind in {"strong", "emphasis"}:
            tag = "strong" if kind == "strong" else "em"
            return f"<{tag}>{_inline(value, render)}</{tag}>"
        return escape(value, quote=False)

    parts = []
    for level, content in _blocks(text):
        tag = f"h{level}" if level else "p"
        parts.append(f"<{tag}>{_inline(content, render)}</{tag}>")
    if keys:
        items = (
            f'<li id="ref-{escape(key)}">{_html_reference(references[key])}</li>' for key in keys
        )
        parts.append("\n".join(['<ol class="references">', *items, "</ol>"]))
    return "\n".join(parts) + "\n"


def _html_reference(reference: Reference) -> str:
    words = _words(reference)
    parts = [escape(words.authors, quote=False), f"{escape(words.title, quote=False)}."]
    if words.container:
        details = f" {escape(words.details, quote=False)}" if words.details else ""
        parts.append(f"<em>{escape(words.container, quote=False)}</em>{details}.")
    if words.link:
        parts.append(f'<a href="{escape(words.link)}">{escape(words.link, quote=False)}</a>')
    return " ".join(parts)


# ------------------------------------------------------------------ LaTeX
def to_latex(text: str, references: Mapping[str, Reference]) -> str:
    """A methods text as a LaTeX document of its own, its references numbered at the end.

    It needs no package but those of every installation, and no BibTeX run.
    """

    def render(kind: str, value: str) -> str:
        if kind == "citation":
            return rf"\cite{{{','.join(_keys(value))}}}"
        if kind == "code":
            return rf"\texttt{{{_tex(value)}}}"
        if kind in {"strong", "emphasis"}:
            command = "textbf" if kind == "strong" else "emph"
            return rf"\{command}{{{_inline(value, render)}}}"
        return _tex(value)

    commands = {1: "section", 2: "subsection", 3: "subsubsection"}
    body = [
        rf"\{commands.get(level, 'paragraph')}*{{{_inline(content, render)}}}"
        if level
        else _inline(content, render)
        for level, content in _blocks(text.strip().removesuffix(REFERENCES_HEADING))
    ]
    keys = cited_keys(text)
    if keys:
        items = (rf"\bibitem{{{key}}} {_tex_reference(references[key])}" for key in keys)
        body.append("\n".join([r"\begin{thebibliography}{99}", *items, r"\end{thebibliography}"]))
    head = [
        r"\documentclass{article}",
        r"\usepackage[utf8]{inputenc}",
        r"\usepackage{url}",
        r"\begin{document}",
    ]
    return "\n".join(head) + "\n\n" + "\n\n".join(body) + "\n\n\\end{document}\n"


def _tex_reference(reference: Reference) -> str:
    words = _words(reference)
    parts = [_tex(words.authors), f"{_tex(words.title)}."]
    if words.container:
        details = f" {_tex(words.details)}" if words.details else ""
        parts.append(rf"\emph{{{_tex(words.container)}}}{details}.")
    if words.link:
        parts.append(rf"\url{{{words.link}}}")
    return " ".join(parts)


def _tex(text: str) -> str:
    """Plain text with what LaTeX takes for commands written out, and accents as commands.

    >>> _tex("50 % of bmex_bids, Céline")
    "50 \\\\% of bmex\\\\_bids, C\\\\'{e}line"
    """
    commands = {mark: name for name, mark in _ACCENTS.items()}
    result = []
    for character in text:
        apart = unicodedata.normalize("NFD", character)
        base, marks = apart[:1], apart[1:]
        if character in _TEX:
            result.append(_TEX[character])
        elif marks in commands and base.isascii():
            result.append(rf"\{commands[marks]}{{{base}}}")
        else:
            result.append(character)
    return "".join(result)


# ------------------------------------------------------------------ both
def _blocks(text: str) -> Iterator[tuple[int, str]]:
    """(level, content) of each heading (1, 2, 3 …) and paragraph (0)."""
    for block in re.split(r"\n\s*\n", text.strip()):
        content = " ".join(block.split())
        heading = re.match(r"(#{1,6}) +(.*)", content)
        if heading:
            yield len(heading[1]), heading[2]
        elif content:
            yield 0, content


def _inline(text: str, render: Renderer) -> str:
    """The pieces of a line, each as ``render(kind, content)`` has it, put together."""
    result, position = [], 0
    for match in _TOKEN.finditer(text):
        result.append(render("text", text[position : match.start()]))
        kind = match.lastgroup or "text"
        if kind == "escaped":
            kind = "text"
        content = next(value for value in match.groupdict().values() if value is not None)
        result.append(render(kind, content.strip("[]") if kind == "citation" else content))
        position = match.end()
    result.append(render("text", text[position:]))
    return "".join(result)

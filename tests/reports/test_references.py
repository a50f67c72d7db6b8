# SPDX-License-Identifier: Apache-2.0
import configparser
from fnmatch import fnmatch
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path

import pytest

from bmex_bids.reports.references import (
    cited_keys,
    html_page,
    plain,
    read_bibtex,
    to_html,
    to_latex,
)

ROOT = Path(__file__).resolve().parents[2]
BIB = r"""
@article{one,
  author = {Ny{\'u}l, L{\'a}szl{\'o} G. and Van Leemput, Koen},
  title = {On {MRI} & more},
  journal = {A Journal},
  volume = {19},
  number = {2},
  pages = {143--150},
  year = {2000},
  doi = {10.1/x_y}
}

@misc{two, author = {Esteban, Oscar and others}, title = {Tool},
  url = {https://example.org/t}}
"""
TEXT = """\
First *bmex_bids* [@two], 50 % \\<x\\> & so [@two; @one].

Then `a_b` and **bold \\* here**.

### References
"""
VOID = {"meta", "br", "link"}


class Page(HTMLParser):
    """Fails on a tag that is closed wrongly; keeps ids, links and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)
        table = dict(attrs)
        if "id" in table:
            self.ids.append(table["id"])
        if tag == "a":
            self.links.append(table["href"])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def references():
    return read_bibtex(BIB)


def test_a_bibtex_entry_is_read_with_braces_inside_braces(references):
    assert list(references) == ["one", "two"]
    one = references["one"]
    assert one.kind == "article"
    assert one.fields["title"] == "On {MRI} & more"
    assert one.fields["year"] == "2000"
    assert one.source.startswith("@article{one,")
    assert one.source.endswith("doi = {10.1/x_y}\n}")
    assert references["two"].fields["url"] == "https://example.org/t"


@pytest.mark.parametrize(
    "text", ["@article{a, title = {x}, year = 2000}", "@article{a, title = {x}"]
)
def test_bibtex_that_we_do_not_read_is_refused(text):
    with pytest.raises(ValueError, match=r"mend references\.bib"):
        read_bibtex(text)


def test_keys_are_found_once_in_the_order_of_their_citation():
    assert cited_keys(TEXT) == ["two", "one"]


def test_accents_become_letters():
    assert plain(r"Ny{\'u}l, Ib{\'a}{\~n}ez, Pol{\'{i}}v, {\v{c}}") == "Nyúl, Ibáñez, Polív, č"


def test_html_numbers_its_references_and_links_to_them(references):
    page = Page(html_page(to_html(TEXT, references), title="T & t"))
    assert "First bmex_bids [1], 50 % <x> & so [1, 2]." in page.text
    assert "Then a_b and bold * here." in page.text
    assert page.ids == ["ref-two", "ref-one"]
    assert page.links[:3] == ["#ref-two", "#ref-two", "#ref-one"]
    assert "Nyúl LG, Van Leemput K. On MRI & more. A Journal 19(2):143–150 (2000)." in page.text
    assert "Esteban O, et al. Tool. https://example.org/t" in page.text
    assert "https://doi.org/10.1/x_y" in page.links
    assert "@" not in page.text


def test_latex_cites_what_its_list_has_and_escapes_the_rest(references):
    tex = to_latex(TEXT, references)
    assert r"First \emph{bmex\_bids} \cite{two}, 50 \% \textless{}x\textgreater{} \& so" in tex
    assert r"\cite{two,one}" in tex
    assert r"\texttt{a\_b} and \textbf{bold * here}" in tex
    assert tex.index(r"\bibitem{two}") < tex.index(r"\bibitem{one}")
    assert r"Ny\'{u}l LG" in tex
    assert r"143--150" in tex
    assert r"\url{https://doi.org/10.1/x_y}" in tex
    assert r"\subsubsection" not in tex  # the list brings its own heading
    assert tex.count("{") - tex.count(r"\{") == tex.count("}") - tex.count(r"\}")


def test_every_reference_of_ours_has_author_title_and_a_way_to_it():
    source = resources.files("bmex_bids.boilerplate").joinpath("references.bib")
    references = read_bibtex(source.read_text(encoding="utf-8"))
    assert len(references) >= 15
    for key, reference in references.items():
        assert {"author", "title"} <= set(reference.fields), key
        assert {"doi", "url", "booktitle"} & set(reference.fields), key
    dois = [r.fields["doi"] for r in references.values() if "doi" in r.fields]
    assert len(dois) == len(set(dois))
    assert references["bmex"].fields["doi"] == "10.1038/s41551-024-01283-7"


def test_the_frame_and_the_references_go_into_the_package():
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    patterns = parser["options.package_data"]["bmex_bids.boilerplate"].split()
    files = [path.name for path in (ROOT / "boilerplate").iterdir() if path.is_file()]
    assert {"methods.md", "references.bib"} <= set(files)
    for name in files:
        assert name.endswith(".py") or any(fnmatch(name, pattern) for pattern in patterns)

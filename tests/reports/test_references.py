# SPDX-License-Identifier: Apache-2.0
import configparser
from fnmatch import fnmatch
from html.parser import HTMLParser
from pathlib import Path

import pytest

from bmex_bids.reports.references import (
    cited_keys,
    html_page,
    known_references,
    to_html,
    to_latex,
)

ROOT = Path(__file__).resolve().parents[2]
TEXT = """\
First *bmex_bids* [@nireports], 50 % \\<x\\> & so [@nireports; @nyul].

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


def test_keys_are_found_once_in_the_order_of_their_citation():
    assert cited_keys(TEXT) == ["nireports", "nyul"]


def test_a_key_that_is_not_known_is_an_error():
    with pytest.raises(KeyError, match="nobody"):
        to_html("As in [@nobody].")


def test_html_numbers_its_references_and_links_to_them():
    page = Page(html_page(to_html(TEXT), title="T & t"))
    assert "First bmex_bids [1], 50 % <x> & so [1, 2]." in page.text
    assert "Then a_b and bold * here." in page.text
    assert page.ids == ["ref-nireports", "ref-nyul"]
    assert page.links[:3] == ["#ref-nireports", "#ref-nireports", "#ref-nyul"]
    text = " ".join(page.text.split())
    assert "L. G. Nyúl, J. K. Udupa, and X. Zhang. New variants of a method of MRI scale" in text
    assert "Transactions on Medical Imaging, 19(2):143–150, 2000." in text
    assert "https://doi.org/10.1109/42.836373" in page.links
    assert "https://github.com/nipreps/nireports" in page.links
    assert "@" not in page.text


def test_html_in_a_text_is_text():
    page = Page(to_html("A <b>bold</b> <script>x</script> & [link](http://x.invalid) [@nyul]."))
    assert "A <b>bold</b> <script>x</script> &" in page.text


def test_latex_cites_what_its_list_has_and_escapes_the_rest():
    tex = to_latex(TEXT)
    assert (
        r"First \emph{bmex\_bids} \cite{nireports}, 50 \% \textless{}x\textgreater{} \& so" in tex
    )
    assert r"\cite{nireports,nyul}" in tex
    assert r"\texttt{a\_b} and \textbf{bold * here}" in tex
    assert tex.index(r"\bibitem{nireports}") < tex.index(r"\bibitem{nyul}")
    assert r"L.~G. Ny{ú}l" in tex
    assert "143–150" in tex
    assert r"\href{https://doi.org/10.1109/42.836373}" in tex
    assert r"\subsubsection" not in tex  # the list brings its own heading
    assert tex.count("{") - tex.count(r"\{") == tex.count("}") - tex.count(r"\}")


def test_every_reference_of_ours_has_author_title_and_a_way_to_it():
    references = known_references().entries
    assert len(references) >= 15
    for key, entry in references.items():
        assert "author" in entry.persons, key
        assert "title" in entry.fields, key
        assert {"doi", "url", "booktitle"} & set(entry.fields), key
    dois = [entry.fields["doi"] for entry in references.values() if "doi" in entry.fields]
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

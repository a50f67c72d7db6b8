# SPDX-License-Identifier: Apache-2.0
"""How the fault campaigns compare an output with that of an undisturbed run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from results import Lost
from tiny import plain_drawings, same_output

PAGE = "<p>{words}</p><table><tr><th>Command line</th><td>bmex {folder}</td></tr></table></html>"


def output(folder: Path, *, words: str = "Brain", agent: str = "bmex") -> Path:
    """A page and a provenance, as a run that was typed with this folder writes them."""
    (folder / "prov").mkdir(parents=True)
    activity = {"Command": f"bmex {folder}", "Agent": agent}
    (folder / "prov/act.json").write_text(json.dumps({"Activities": [activity]}))
    (folder / "sub-01.html").write_text(PAGE.format(words=words, folder=folder))
    return folder


def test_what_was_typed_is_no_difference(tmp_path):
    """Pages and provenance hold the command line, and every case has other folders."""
    same = same_output(output(tmp_path / "case"), output(tmp_path / "undisturbed"))
    assert same == "2 files as undisturbed"


@pytest.mark.parametrize(
    ("change", "name"), [({"words": "Bra"}, "sub-01.html"), ({"agent": "x"}, "act.json")]
)
def test_another_word_is_one(tmp_path, change, name):
    with pytest.raises(Lost, match=f"{name} differs"):
        same_output(output(tmp_path / "case", **change), output(tmp_path / "undisturbed"))


def test_the_plain_pictures_are_as_many_as_the_real_ones():
    """One was missing, so no image was unchanged, and no campaign tried that."""
    real = dict.fromkeys(("summary", "difference", "brainmask"), print)
    plain = plain_drawings(real)
    assert (set(plain), plain["summary"]) == (set(real), print)
    assert plain["difference"] is not print

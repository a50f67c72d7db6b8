# SPDX-License-Identifier: Apache-2.0
import pytest

from bmex_bids.cli import evaluate
from bmex_bids.degrade.cells import QUICK
from bmex_bids.evaluation import quick


@pytest.fixture
def calls(monkeypatch):
    seen = []
    monkeypatch.setattr(evaluate, "_enhancement", lambda options: seen.append("enhance"))
    monkeypatch.setattr(evaluate, "_stripping", lambda options: seen.append("strip"))
    return seen


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], ["enhance", "strip"]),
        (["--quick"], ["enhance", "strip"]),
        (["--only", "strip"], ["strip"]),
        (["--quick", "--only", "enhance", "--threads", "2"], ["enhance"]),
        (["quick", "--only", "enhance"], ["enhance"]),
    ],
)
def test_the_flags_from_before_there_were_subcommands_still_work(calls, words, expected):
    assert evaluate.main(words) == 0
    assert calls == expected


def test_every_validation_cell_has_a_goal(monkeypatch, capsys):
    """A cell that training had got and the table had not ended the command with a KeyError."""
    rows = [quick.Row("brain", cell, before=30.0, after=40.0) for cell in QUICK]
    monkeypatch.setattr(quick, "enhancement_rows", lambda *_, **__: iter(rows))
    assert evaluate.main(["quick", "--only", "enhance"]) == 0
    printed = capsys.readouterr().out.splitlines()
    for cell in QUICK:
        assert sum(cell in line and line.endswith("reached") for line in printed) == 1
    assert not any("NOT" in line for line in printed)


def test_help_names_every_subcommand(capsys):
    with pytest.raises(SystemExit) as stop:
        evaluate.main(["--help"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in evaluate.COMMANDS)


def test_an_unknown_flag_is_refused_with_the_usage(capsys):
    with pytest.raises(SystemExit) as stop:
        evaluate.main(["benchmark", "--no-such-flag", "--out", "x"])
    assert stop.value.code == 2
    assert "--no-such-flag" in capsys.readouterr().err

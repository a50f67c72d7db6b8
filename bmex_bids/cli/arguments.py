# SPDX-License-Identifier: Apache-2.0
"""Settings as arguments of argparse."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bmex_bids import values
from bmex_bids.config import ENTRIES
from bmex_bids.outputs.container import version_line
from bmex_bids.settings import Entry, Setting


def typed(read: Callable[[str], Any]) -> Callable[[str], Any]:
    """A reader of words for argparse's ``type``, whose ValueError is the message."""

    def convert(text: str) -> Any:
        try:
            return read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return convert


def number(kind: Callable[[str], float], *, at_least: float) -> Callable[[str], Any]:
    """:func:`bmex_bids.values.number` for argparse's ``type``."""
    return typed(values.number(kind, at_least=at_least))


def spellings(flags: Sequence[str]) -> list[str]:
    """The flags, each followed by its spelling with underscores where that differs.

    >>> spellings(["-w", "--work-dir"])
    ['-w', '--work-dir', '--work_dir']
    """
    found = []
    for flag in flags:
        dashes = "--" if flag.startswith("--") else ""
        found += [flag]
        if dashes and "-" in flag.removeprefix(dashes):
            found += [dashes + flag.removeprefix(dashes).replace("-", "_")]
    return found


def entry(option: str) -> Entry:
    """The setting with an option's name (argparse's ``dest``)."""
    return next(item for item in ENTRIES if item.setting.option == option)


def entry_named(name: str) -> Entry:
    """The setting with a field's name."""
    return next(item for item in ENTRIES if item.name == name)


def add(
    parser: argparse._ActionsContainer, setting: Setting, default: Any = None, **changes: Any
) -> None:
    """Add the argument of a setting.

    Parameters
    ----------
    default : what the parsed options have where the flag is not given
    changes : keywords of ``add_argument`` that differ from the setting's, such as ``help``
    """
    keywords: dict[str, Any] = {"help": setting.help}
    positional = not setting.flags[0].startswith("-")
    if not positional:
        keywords |= {"dest": setting.option, "default": default}
    if setting.switch is not None:
        keywords |= {"action": "store_const", "const": setting.switch}
    elif setting.counts:
        keywords |= {"action": "count"}
    else:
        if setting.is_path:
            keywords["type"] = Path
        elif setting.read is not None:
            keywords["type"] = typed(setting.read)
        if setting.choices is not None:
            keywords["choices"] = list(setting.choices)
        if setting.metavar is not None:
            keywords["metavar"] = setting.metavar
    if setting.several == "words":
        keywords["nargs"] = "+"
    elif setting.several == "flags":
        keywords |= {"action": "append", "default": list(default or ())}
    if setting.bare is not None:
        keywords |= {"nargs": "?", "const": setting.bare}
    parser.add_argument(*spellings(setting.flags), **keywords | changes)


def add_shared(parser: argparse._ActionsContainer, option: str, **changes: Any) -> None:
    """Add an argument of ``bmex`` to another program."""
    found = entry(option)
    add(parser, found.setting, found.default, **changes)


def add_networks(parser: argparse._ActionsContainer, weights: str | None = "bundled") -> None:
    """Which weights are measured, and where they run; ``weights`` by default."""
    which = weights or "the bundled one"
    parser.add_argument("--weights", default=weights, help=f"weight set (default: {which})")
    parser.add_argument(
        "--weights-dir", type=Path, metavar="DIR", help="folder with published weights"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")


class Parser(argparse.ArgumentParser):
    """A parser that names the flag which an unknown one may have been meant for."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """The options; unknown arguments end the program with code 2."""
        options, unknown = self.parse_known_args(args, namespace)
        if unknown:
            flags = [flag for flag in self._option_string_actions if "_" not in flag]
            hints = [near for word in unknown if (near := did_you_mean(word, flags))]
            hint = f"; did you mean {', '.join(dict.fromkeys(hints))}?" if hints else ""
            self.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
        return options


def did_you_mean(word: str, flags: Sequence[str]) -> str | None:
    """The flag that is spelt most like a word; None where none is like it.

    >>> did_you_mean("--particpant_lable", ["--participant-label", "--age-months"])
    '--participant-label'
    """
    given = word.partition("=")[0].replace("_", "-").lower()
    if not given.startswith("--"):
        return None
    longer = [flag for flag in flags if flag.startswith(given)]
    near = longer[:1] or difflib.get_close_matches(given, flags, 1, 0.7)
    return near[0] if near else None


class ShowVersion(argparse.Action):
    """``--version``: one line (argparse's own action would break a long one), and the end."""

    def __init__(self, option_strings: Sequence[str], dest: str) -> None:
        super().__init__(option_strings, dest, nargs=0, help="show the version and exit")

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print(version_line(parser.prog))
        parser.exit()

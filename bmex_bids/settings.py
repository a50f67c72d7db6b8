# SPDX-License-Identifier: Apache-2.0
"""Settings as frozen dataclasses: what each field says of itself, and TOML, written and read.

A dataclass within a dataclass is a TOML table; nothing is nested deeper.
"""

from __future__ import annotations

import dataclasses
import sys
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar, Union

from bmex_bids.exceptions import UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Section = TypeVar("Section")


class Place(Enum):
    """What a path leads to, and what a container may do there."""

    FILE = "a file that is there and is read"
    FOLDER = "a folder that is there and is read"
    WRITTEN = "a folder that is written, and made where there is none"


class Unset(Enum):
    """Stands for a default that is the field's own."""

    FIELD = "the default of the field"


def itself(value: Any) -> Any:
    """The value, unchanged."""
    return value


@dataclass(frozen=True)
class Setting:
    """How one field is given on a command line and what else depends on it.

    Attributes
    ----------
    flags : spellings; the first with two dashes names the option; without dashes: an argument.
        A spelling with underscores is taken too
    help, group, metavar, choices : for ``--help``
    read : a word of the command line as a value; ValueError says what was expected
    switch : value that the flag sets, which takes no word
    counts : the flag takes no word, and its value is how often it is given
    bare : value of a flag without a word after it, where the word may be left out
    several : ``"words"`` after one flag, or ``"flags"`` with a word each
    unset : what the parser has where the flag is not given; the field's default if not said
    tidy : the value as the configuration has it
    place : what a path leads to; containers mount it
    paths : the paths in a value that is no path itself
    debug : value with ``--debug``; it is then not for a configuration file
    command_line_only : why the setting is not taken from a configuration file; empty: it is
    outside_only : the flag has no sense inside a container
    fingerprint : results depend on it, so that a change does an image again
    """

    flags: tuple[str, ...]
    help: str
    group: str = ""
    metavar: str | None = None
    choices: tuple[str, ...] | None = None
    read: Callable[[str], Any] | None = None
    switch: Any = None
    counts: bool = False
    bare: Any = None
    several: str = ""
    unset: Any = Unset.FIELD
    tidy: Callable[[Any], Any] = itself
    place: Place | None = None
    paths: Callable[[Any], Iterable[Path]] | None = None
    debug: Any = None
    command_line_only: str = ""
    outside_only: bool = False
    fingerprint: bool = False

    @property
    def is_path(self) -> bool:
        """Whether the value is a path."""
        return self.place is not None and self.paths is None

    def paths_in(self, value: Any) -> Iterable[Path]:
        """The paths that a value holds; none where it is None."""
        if value is None or self.place is None:
            return ()
        return (value,) if self.paths is None else self.paths(value)

    @property
    def flag(self) -> str:
        """The flag that messages name."""
        return next((name for name in self.flags if name.startswith("--")), self.flags[0])

    @property
    def option(self) -> str:
        """Name of the parsed option (argparse's ``dest``)."""
        return self.flag.lstrip("-").replace("-", "_")

    def settle(self, value: Any) -> Any:
        """A parsed option as the configuration has it; a path is made absolute.

        Raises
        ------
        UsageError
            There is no file at the path of a file.
        """
        if value is None:
            return None
        if isinstance(value, Path):
            value = absolute(value)
            if self.place is Place.FILE and not value.is_file():
                raise UsageError(
                    f"expected a file for {self.flag}, found none at {value}; check the path, and "
                    "inside a container whether it is mounted"
                )
            return value
        value = self.tidy(value)
        return tuple(value) if isinstance(value, list) else value


def setting(*flags: str, default: Any = dataclasses.MISSING, **facts: Any) -> Any:
    """A field of a dataclass with its :class:`Setting`."""
    metadata = {"setting": Setting(flags, **facts)}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Entry:
    """A field with a setting: the section it stands in (empty: none), its name and default."""

    section: str
    name: str
    setting: Setting
    default: Any

    def value(self, settings: Any) -> Any:
        """The field's value in an object of the outer dataclass."""
        return getattr(getattr(settings, self.section) if self.section else settings, self.name)


def entries(kind: type[Any], section: str = "") -> Iterator[Entry]:
    """All fields with a setting of a dataclass and of the dataclasses in it."""
    hints = typing.get_type_hints(kind)
    for item in dataclasses.fields(kind):
        if dataclasses.is_dataclass(hints[item.name]):
            yield from entries(hints[item.name], item.name)
        elif "setting" in item.metadata:
            found: Setting = item.metadata["setting"]
            default = item.default if found.unset is Unset.FIELD else found.unset
            yield Entry(section, item.name, found, default)


def absolute(path: Path) -> Path:
    """Absolute, links followed; the path need not exist."""
    return path.expanduser().resolve()


def dumps(settings: Any) -> str:
    """TOML text of a dataclass, which :func:`loads` reads back as an equal object."""
    import tomli_w  # here, since the flags are read where no library is installed

    return tomli_w.dumps(_table(settings))


def loads(kind: type[Section], text: str, where: str, default: Section | None = None) -> Section:
    """A dataclass from TOML text.

    Parameters
    ----------
    kind : the dataclass
    where : what the text is, for messages
    default : what fields without a key are; not given: the dataclass's own defaults

    Raises
    ------
    UsageError
        It is not TOML, has an unknown key, a wrong type, or lacks a key.
    """
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(
            f"expected TOML, got: {error}; correct the file or leave it out"
        ) from error
    return _build(kind, table, where, default)


def read_table(path: Path) -> dict[str, Any]:
    """A TOML file; empty where it cannot be read."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _table(settings: Any) -> dict[str, Any]:
    """What TOML can hold; a field that is None is left out."""
    table: dict[str, Any] = {}
    for item in dataclasses.fields(settings):
        value = getattr(settings, item.name)
        if dataclasses.is_dataclass(value):
            table[item.name] = _table(value)
        elif value is not None:
            table[item.name] = str(value) if isinstance(value, Path) else value
    return table


def _build(kind: type[Section], table: Any, where: str, default: Section | None = None) -> Section:
    if not isinstance(table, Mapping):
        raise UsageError(f"expected a table for {where}, got {table!r}")
    hints = typing.get_type_hints(kind)
    unknown = sorted(set(table) - set(hints))
    if unknown:
        raise UsageError(
            f"expected keys of {sorted(hints)} in {where}, got {', '.join(unknown)}; remove it or "
            "correct its spelling"
        )
    values = {
        name: _convert(hints[name], value, name, getattr(default, name, None))
        for name, value in table.items()
    }
    if default is not None:
        changed: Section = dataclasses.replace(default, **values)  # type: ignore[type-var]
        return changed
    try:
        return kind(**values)
    except TypeError as error:
        raise UsageError(f"{where} lacks a key: {error}") from error


def _convert(hint: Any, value: Any, name: str, default: Any = None) -> Any:
    """A TOML value as the type that a field is declared with."""
    if typing.get_origin(hint) in (Union, types.UnionType):  # X | None; None is an absent key
        (hint,) = (part for part in typing.get_args(hint) if part is not type(None))
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _build(hint, value, f"[{name}]", default)
    if typing.get_origin(hint) is tuple and isinstance(value, list):
        (inner, *_) = typing.get_args(hint)
        return tuple(_convert(inner, part, name) for part in value)
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise UsageError(
            f"expected {getattr(hint, '__name__', hint)} for {name}, got {value!r}; correct the file"
        )
    return value

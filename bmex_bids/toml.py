# SPDX-License-Identifier: Apache-2.0
"""Frozen dataclasses as TOML, and back: settings that a person can read and change.

A dataclass within a dataclass is a table; nothing is nested deeper.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import types
import typing
from pathlib import Path
from typing import Any, TypeVar, Union

from bmex_bids.exceptions import UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Section = TypeVar("Section")


def dumps(settings: Any) -> str:
    """TOML text of a dataclass, which :func:`loads` reads back as an equal object."""
    lines, tables = [], []
    for item in dataclasses.fields(settings):
        value = getattr(settings, item.name)
        if dataclasses.is_dataclass(value):
            tables += ["", f"[{item.name}]"]
            for part in dataclasses.fields(value):
                tables += _line(part.name, getattr(value, part.name))
        else:
            lines += _line(item.name, value)
    return "\n".join([*lines, *tables]) + "\n"


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
        raise UsageError(f"expected TOML, got: {error}; mend the file or do without") from error
    return _build(kind, table, where, default)


def _line(name: str, value: Any) -> list[str]:
    """``name = value``; nothing for None, which TOML does not have."""
    return [] if value is None else [f"{name} = {_literal(value)}"]


def _literal(value: Any) -> str:
    """A TOML literal.

    >>> _literal(("a", "b")), _literal(True), _literal(2.0), _literal("é")
    ('["a", "b"]', 'true', '2.0', '"é"')
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, tuple | list):
        return "[" + ", ".join(_literal(part) for part in value) + "]"
    # JSON's escapes are TOML's, but for the delete character
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")


def _build(kind: type[Section], table: Any, where: str, default: Section | None = None) -> Section:
    if not isinstance(table, dict):
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
            f"expected {getattr(hint, '__name__', hint)} for {name}, got {value!r}; mend the file"
        )
    return value

# SPDX-License-Identifier: Apache-2.0
"""Everything a run was told, as frozen dataclasses that can be written to TOML and read again.

Importing this module does nothing.  Only ``cli`` reads it; everything below takes plain arguments.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, Union

from bmex_bids.exceptions import UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Section = TypeVar("Section")


@dataclass(frozen=True)
class Paths:
    """Where things are; all absolute."""

    bids_dir: Path
    output_dir: Path
    work_dir: Path


@dataclass(frozen=True)
class Selection:
    """Which images; None is all of them, labels are without their prefix (``0001``, ``V01``)."""

    participants: tuple[str, ...] | None = None
    sessions: tuple[str, ...] | None = None
    runs: tuple[str, ...] | None = None
    modalities: tuple[str, ...] = ("T1w", "T2w")
    filter_file: Path | None = None
    database_dir: Path | None = None


@dataclass(frozen=True)
class AgeOverride:
    """An age that overrules the dataset's; ``fetal`` counts it from conception."""

    months: float | None = None
    fetal: bool = False
    file: Path | None = None


@dataclass(frozen=True)
class Processing:
    """What is done to an image, and with which weights.

    Attributes
    ----------
    derivatives : ``NAME=PATH`` of datasets with brain masks made elsewhere
    output_res : grids the enhanced image is written on, ``"native"`` and ``"0p8"``
    qc_only : write the quality measures and no image
    """

    skull_strip: str = "auto"
    derivatives: tuple[str, ...] = ()
    device: str = "auto"
    weights: str = "auto"
    weights_dir: Path | None = None
    output_res: tuple[str, ...] = ("native", "0p8")
    qc_only: bool = False
    random_seed: int = 0


@dataclass(frozen=True)
class Resources:
    """How much of the machine may be used; ``mem_gb`` None is all there is."""

    nprocs: int = 1
    omp_nthreads: int = 1
    mem_gb: float | None = None
    low_mem: bool = False
    gpu_slots: int = 1


@dataclass(frozen=True)
class Execution:
    """How the run goes about it; ``dry_run`` is empty, ``"table"`` or ``"json"``."""

    skip_bids_validation: bool = False
    dry_run: str = ""
    reports_only: bool = False
    boilerplate_only: bool = False
    md_only_boilerplate: bool = False
    write_graph: bool = False
    resource_monitor: bool = False
    clean_workdir: bool = False
    stop_on_first_crash: bool = False
    debug: bool = False
    plugin_file: Path | None = None
    drop_workdir: bool = False
    skip_boilerplate: bool = False
    verbosity: int = 0


@dataclass(frozen=True)
class Cluster:
    """A batch system that does the work; ``submit`` is empty or ``"slurm"``.

    Attributes
    ----------
    partition, account, time_limit, gres : SLURM's words
    options : other options of sbatch, ``NAME=VALUE``
    max_running : tasks at once
    per_task : participants of a task; None: one, or as many as the array's size needs
    container : image file for Apptainer; None runs in the environment that submits
    """

    submit: str = ""
    partition: str | None = None
    account: str | None = None
    time_limit: str | None = None
    gres: str | None = None
    options: tuple[str, ...] = ()
    max_running: int = 100
    per_task: int | None = None
    container: Path | None = None


@dataclass(frozen=True)
class Config:
    """One run.

    Attributes
    ----------
    run_id : names the folder ``OUTPUT/logs/<run_id>``
    version : of bmex_bids
    """

    run_id: str
    version: str
    paths: Paths
    analysis_levels: tuple[str, ...] = ("participant",)
    selection: Selection = field(default_factory=Selection)
    age: AgeOverride = field(default_factory=AgeOverride)
    processing: Processing = field(default_factory=Processing)
    resources: Resources = field(default_factory=Resources)
    execution: Execution = field(default_factory=Execution)
    cluster: Cluster = field(default_factory=Cluster)

    @property
    def log_dir(self) -> Path:
        """Where this run keeps its settings, its status table and its crash files."""
        return self.paths.output_dir / "logs" / self.run_id

    def to_toml(self) -> str:
        """TOML text that :meth:`from_toml` reads back as an equal object."""
        lines, tables = [], []
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            if dataclasses.is_dataclass(value):
                tables += ["", f"[{item.name}]"]
                for part in dataclasses.fields(value):
                    tables += _line(part.name, getattr(value, part.name))
            else:
                lines += _line(item.name, value)
        return "\n".join([*lines, *tables]) + "\n"

    @classmethod
    def from_toml(cls, text: str) -> Config:
        """Read TOML text; an unknown key or a wrong type is a UsageError."""
        try:
            table = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise UsageError(
                f"expected TOML, got: {error}; mend the file or do without"
            ) from error
        return _build(cls, table, "the configuration")


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


def _build(kind: type[Section], table: Any, where: str) -> Section:
    if not isinstance(table, dict):
        raise UsageError(f"expected a table for {where}, got {table!r}")
    hints = typing.get_type_hints(kind)
    unknown = sorted(set(table) - set(hints))
    if unknown:
        raise UsageError(
            f"expected keys of {sorted(hints)} in {where}, got {', '.join(unknown)}; remove it or "
            "correct its spelling"
        )
    values = {name: _convert(hints[name], value, name) for name, value in table.items()}
    try:
        return kind(**values)
    except TypeError as error:
        raise UsageError(f"{where} lacks a key: {error}") from error


def _convert(hint: Any, value: Any, name: str) -> Any:
    """A TOML value as the type that a field is declared with."""
    if typing.get_origin(hint) in (Union, types.UnionType):  # X | None; None is an absent key
        (hint,) = (part for part in typing.get_args(hint) if part is not type(None))
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _build(hint, value, f"[{name}]")
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

# SPDX-License-Identifier: Apache-2.0
"""Flags → :class:`~bmex_bids.config.Config`.  Loads nothing heavy, writes no file."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import sys
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bmex_bids import __version__
from bmex_bids.cli import arguments, foreign
from bmex_bids.cli.streams import say
from bmex_bids.config import ENTRIES, GROUPS, MOST_THREADS, OTHER, TASK_CPUS, Config, Paths
from bmex_bids.exceptions import UsageError
from bmex_bids.inputs.templates import left_out
from bmex_bids.running.planning import given_weights, new_run_id
from bmex_bids.running.resources import available_cpus
from bmex_bids.settings import Place, Setting

CONFIG_FILE = Setting(
    ("--config-file",),
    group=OTHER,
    place=Place.FILE,
    metavar="TOML",
    help="take the settings of an earlier run (OUTPUT/logs/<run>/config.toml); flags on the "
    "command line overrule them",
)
#: flags that set nothing: taken so that command lines written for other BIDS Apps work
NO_EFFECT = (
    Setting(
        ("--random-seed",),
        metavar="N",
        help="no effect: nothing in a run is random",
        read=int,
    ),
    Setting(("--notrack",), switch=True, help="no effect: bmex sends nothing anywhere"),
)


def parse(argv: Sequence[str] | None = None) -> Config:
    """The configuration of a command line.

    ``--help``, ``--version`` and what argparse itself refuses end the program (exit code 0 or 2).

    Raises
    ------
    UsageError
        A path does not exist or lies where it must not, or a configuration file cannot be read.
    """
    given = sys.argv[1:] if argv is None else argv
    argv, notes = foreign.translate(given)
    for note in notes:
        say(note, sys.stderr)
    parser = build_parser()
    first, _ = _file_flag().parse_known_args(argv)
    if first.config_file is not None:
        parser.set_defaults(**read_config(first.config_file).as_options())
    options = parser.parse_args(argv)
    if options.debug:
        for entry in ENTRIES:
            if entry.setting.debug is not None:
                setattr(options, entry.setting.option, entry.setting.debug)
    for word in options.output_spaces:
        if reason := left_out(word):
            say(f"--output-spaces {word}: {reason}", sys.stderr)
    options.nprocs = options.nprocs or (TASK_CPUS if options.submit else available_cpus())
    options.omp_nthreads = min(options.omp_nthreads or MOST_THREADS, options.nprocs)
    options.weights, options.weights_dir = given_weights(options.weights, options.weights_dir)
    config = dataclasses.replace(configuration(options), command=shlex.join(["bmex", *given]))
    check_paths(config.paths)
    return config


def configuration(options: argparse.Namespace) -> Config:
    """The configuration of parsed options.

    The cluster's settings count with ``--submit`` alone; ``--nprocs`` and ``--mem-mb`` are then
    the size of a task.

    Raises
    ------
    UsageError
        A file is not there, or the options contradict each other.
    """
    top: dict[str, Any] = {}
    sections: dict[str, dict[str, Any]] = {"cluster": {}}
    for entry in ENTRIES:
        if entry.section == "cluster" and not options.submit:
            continue
        table = sections.setdefault(entry.section, {}) if entry.section else top
        table[entry.name] = entry.setting.settle(getattr(options, entry.setting.option))
    if options.submit and (options.reports_only or options.boilerplate_only):
        raise UsageError(
            "expected work for a cluster, got --reports-only or --boilerplate-only, which take "
            "seconds; leave out --submit"
        )
    kinds = typing.get_type_hints(Config)
    return Config(
        run_id=new_run_id(),
        version=__version__,
        **top,
        **{name: kinds[name](**fields) for name, fields in sections.items()},
    )


def read_config(path: Path) -> Config:
    """A configuration file (UsageError)."""
    try:
        return Config.from_toml(path.expanduser().read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"expected a configuration file at {path}, got: {error}; a run writes one to "
            "OUTPUT/logs/<run>/config.toml"
        ) from error


def _file_flag() -> argparse.ArgumentParser:
    """Only ``--config-file``: what it holds becomes the other flags' defaults."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    arguments.add(parser, CONFIG_FILE)
    return parser


def build_parser() -> argparse.ArgumentParser:
    """The parser of ``bmex``; its groups are named as fMRIPrep names them."""
    parser = arguments.Parser(
        prog="bmex",
        description="Enhance the anatomical images of a BIDS dataset: less motion, less noise, "
        "finer slices, with tissue maps and a report.",
        epilog="Exit codes: 0 every image has a result that does not fail the quality gate; 1 no "
        "image has; 2 the command line is wrong; 3 some images have; 4 no image can be processed; 5 "
        "problem of the machine (weights, device, permission, disk). "
        "OUTPUT/logs/<run>/status.tsv has one row per image. The same command again processes only "
        "what is missing or changed. Flags of other BIDS Apps are translated or ignored, with a "
        f"message: {', '.join(item.flags[-1] for item in foreign.FOREIGN)} and others.",
        allow_abbrev=False,
    )
    for entry in ENTRIES:
        if not entry.setting.group:
            arguments.add(parser, entry.setting)
    # the work folder last, as in fMRIPrep
    ordered = sorted(ENTRIES, key=lambda entry: entry.section == "paths")
    for name in GROUPS:
        group = parser.add_argument_group(name)
        if name == OTHER:
            group.add_argument("--version", action=arguments.ShowVersion)
        for entry in ordered:
            if entry.setting.group == name:
                arguments.add(group, entry.setting, entry.default)
    arguments.add(group, CONFIG_FILE)
    for setting in NO_EFFECT:
        arguments.add(group, setting)
    return parser


def check_paths(paths: Paths) -> None:
    """Refuse paths that are missing or would put files where they must not be (UsageError)."""
    bids_dir, output_dir, work_dir = paths.bids_dir, paths.output_dir, paths.work_dir
    if not bids_dir.is_dir():
        what = "a file" if bids_dir.exists() else "nothing"
        raise UsageError(
            f"expected a dataset folder at {bids_dir}, found {what}; check the path, and inside a "
            "container whether it is mounted"
        )
    if output_dir.is_relative_to(bids_dir):
        raise UsageError(
            f"expected an output folder outside the dataset {bids_dir}, got {output_dir}; name "
            f"another, such as {bids_dir}-bmex"
        )
    if work_dir.is_relative_to(bids_dir):
        raise UsageError(
            f"expected a work folder outside the dataset {bids_dir}, got {work_dir}; name another "
            "with -w"
        )
    if work_dir.is_relative_to(output_dir):
        raise UsageError(
            f"expected a work folder outside the output {output_dir}, which is to be a valid BIDS "
            f"dataset, got {work_dir}; name another with -w"
        )

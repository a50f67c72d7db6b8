# SPDX-License-Identifier: Apache-2.0
"""Flags → :class:`~bmex_bids.config.Config`.  Loads nothing heavy, writes no file."""

from __future__ import annotations

import argparse
import math
import re
import uuid
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from bmex_bids import __version__
from bmex_bids.config import (
    AgeOverride,
    Cluster,
    Config,
    Execution,
    Paths,
    Processing,
    Resources,
    Selection,
)
from bmex_bids.exceptions import UsageError
from bmex_bids.inputs.derivatives import parse_derivatives
from bmex_bids.network.weights.registry import PUBLISHED, weight_names
from bmex_bids.outputs.container import version_line
from bmex_bids.running.resources import available_cpus
from bmex_bids.slurm.scripts import TASK_CPUS, TASK_MEM_GB

#: threads beyond this number bring a step nothing
MOST_THREADS = 8
MEMORY_UNITS = {"K": 2**-20, "M": 2**-10, "G": 1.0, "T": 2.0**10}  # in 2^30 bytes
VERY_VERBOSE = 2


def parse(argv: Sequence[str] | None = None) -> Config:
    """The configuration of a command line.

    ``--help``, ``--version`` and what argparse itself refuses end the program (exit code 0 or 2).

    Raises
    ------
    UsageError
        A path does not exist or lies where it must not, or a configuration file cannot be read.
    """
    parser = build_parser()
    first, _ = _file_flag().parse_known_args(argv)
    if first.config_file is not None:
        parser.set_defaults(**as_options(_read(first.config_file)))
    options = parser.parse_args(argv)
    if options.debug:
        options.nprocs, options.verbose = 1, max(options.verbose, VERY_VERBOSE)
    nprocs = options.nprocs or (TASK_CPUS if options.submit else available_cpus())
    threads = min(options.omp_nthreads or MOST_THREADS, nprocs)
    weights, weights_dir = _weights(options.weights, options.weights_dir)
    config = Config(
        run_id=new_run_id(),
        version=__version__,
        paths=Paths(
            bids_dir=_absolute(options.bids_dir),
            output_dir=_absolute(options.output_dir),
            work_dir=_absolute(options.work_dir),
        ),
        analysis_levels=tuple(dict.fromkeys(options.analysis_level)),
        selection=Selection(
            participants=_labels(options.participant_label, "sub-"),
            sessions=_labels(options.session_label, "ses-"),
            runs=_labels(options.run_label, "run-"),
            modalities=tuple(sorted(set(options.modalities))),
            filter_file=_file(options.bids_filter_file, "--bids-filter-file"),
            database_dir=_optional(options.bids_database_dir),
        ),
        age=AgeOverride(
            months=options.age_months,
            fetal=options.fetal,
            file=_file(options.age_file, "--age-file"),
            strict=options.strict_ages,
        ),
        processing=Processing(
            skull_strip=options.skull_strip,
            brain_extraction=options.brain_extraction,
            derivatives=_derivatives(options.derivatives),
            device=options.device,
            weights=weights,
            weights_dir=weights_dir,
            geometry=options.geometry,
            mirroring=not options.no_mirroring,
            precision=options.precision,
            output_res=tuple(r for r in GRIDS if r in options.output_res),
            qc_only=options.qc_only,
            random_seed=options.random_seed,
        ),
        resources=Resources(
            nprocs=nprocs,
            omp_nthreads=threads,
            mem_gb=options.mem_mb,
            low_mem=options.low_mem,
            gpu_slots=options.gpu_slots,
        ),
        execution=Execution(
            skip_bids_validation=options.skip_bids_validation,
            dry_run=options.dry_run,
            reports_only=options.reports_only,
            boilerplate_only=options.boilerplate_only,
            md_only_boilerplate=options.md_only_boilerplate,
            write_graph=options.write_graph,
            resource_monitor=options.resource_monitor,
            clean_workdir=options.clean_workdir,
            stop_on_first_crash=options.stop_on_first_crash or options.debug,
            debug=options.debug,
            plugin_file=_file(options.use_plugin, "--use-plugin"),
            drop_workdir=options.drop_workdir,
            skip_boilerplate=options.skip_boilerplate,
            verbosity=options.verbose,
        ),
        cluster=_cluster(options),
    )
    check_paths(config.paths)
    return config


GRIDS = ("native", "0p8")


def as_options(config: Config) -> dict[str, Any]:
    """The flags that would give this configuration: what a configuration file sets.

    The three positional arguments stay what the command line says, as with fMRIPrep; ``--dry-run``
    and its like say what to do now and are not taken from a file.  Nor is ``--use-plugin``: a plugin's
    arguments may hold a shell script, and no file of settings may bring one with it.  Nor what ``--debug``
    made of the others: one process, and all that it says.
    """
    selection, processing, resources = config.selection, config.processing, config.resources
    options = {
        "work_dir": config.paths.work_dir,
        "participant_label": selection.participants,
        "session_label": selection.sessions,
        "run_label": selection.runs,
        "modalities": list(selection.modalities),
        "bids_filter_file": selection.filter_file,
        "bids_database_dir": selection.database_dir,
        "age_months": config.age.months,
        "fetal": config.age.fetal,
        "age_file": config.age.file,
        "strict_ages": config.age.strict,
        "skull_strip": processing.skull_strip,
        "brain_extraction": processing.brain_extraction,
        "derivatives": list(processing.derivatives),
        "device": processing.device,
        "weights": processing.weights,
        "weights_dir": processing.weights_dir,
        "geometry": processing.geometry,
        "no_mirroring": not processing.mirroring,
        "precision": processing.precision,
        "output_res": list(processing.output_res),
        "qc_only": processing.qc_only,
        "random_seed": processing.random_seed,
        "nprocs": resources.nprocs,
        "omp_nthreads": resources.omp_nthreads,
        "mem_mb": resources.mem_gb,
        "low_mem": resources.low_mem,
        "gpu_slots": resources.gpu_slots,
        "skip_bids_validation": config.execution.skip_bids_validation,
        "md_only_boilerplate": config.execution.md_only_boilerplate,
        "write_graph": config.execution.write_graph,
        "resource_monitor": config.execution.resource_monitor,
        "stop_on_first_crash": config.execution.stop_on_first_crash,
        "drop_workdir": config.execution.drop_workdir,
        "skip_boilerplate": config.execution.skip_boilerplate,
        "verbose": config.execution.verbosity,
    }
    if config.execution.debug:
        for flag in ("nprocs", "omp_nthreads", "stop_on_first_crash", "verbose"):
            del options[flag]
    return options


def _file_flag() -> argparse.ArgumentParser:
    """Only ``--config-file``: what it holds becomes the other flags' defaults."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config-file", "--config_file", type=Path)
    return parser


def _read(path: Path) -> Config:
    try:
        return Config.from_toml(path.expanduser().read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"expected a configuration file at {path}, got: {error}; a run writes one to "
            "OUTPUT/logs/<run>/config.toml"
        ) from error


def build_parser() -> argparse.ArgumentParser:
    """The parser of ``bmex``; its groups are named as fMRIPrep names them."""
    parser = argparse.ArgumentParser(
        prog="bmex",
        description="Enhance the T1w and T2w images of a BIDS dataset: less motion, less noise, "
        "finer slices, with tissue maps and a report.",
        epilog="Exit codes: 0 all done; 1 nothing came out; 2 the command line is wrong; 3 some "
        "images are done, others failed, were skipped or did not pass the quality gate; 4 no "
        "usable input; 5 the machine stands in the way (weights, device, permission). "
        "OUTPUT/logs/<run>/status.tsv has one row an image. The same command again does only "
        "what is missing or changed.",
        allow_abbrev=False,
    )
    parser.add_argument("bids_dir", type=Path, help="the dataset; it stays untouched")
    parser.add_argument(
        "output_dir", type=Path, help="where results go; is made; not inside bids_dir"
    )
    parser.add_argument(
        "analysis_level",
        nargs="+",
        choices=["participant", "group"],
        help="participant: each image; group: tables and pages over all images that are done",
    )
    _add_selection(parser.add_argument_group("Options for filtering BIDS queries"))
    _add_age(parser.add_argument_group("Options for the age"))
    _add_processing(parser.add_argument_group("Options for processing"))
    _add_outputs(parser.add_argument_group("Options for outputs"))
    _add_performance(parser.add_argument_group("Options to handle performance"))
    _add_cluster(parser.add_argument_group("Options for clusters"))
    _add_subset(parser.add_argument_group("Options for performing only a subset of the workflow"))
    _add_other(parser.add_argument_group("Other options"))
    return parser


def _add_selection(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--skip-bids-validation",
        "--skip_bids_validation",
        action="store_true",
        help="do not run bids-validator-deno on the dataset first",
    )
    group.add_argument(
        "--participant-label",
        "--participant_label",
        nargs="+",
        metavar="LABEL",
        help="only these participants, with or without sub-",
    )
    group.add_argument(
        "--session-label",
        "--session_label",
        "--session-id",
        nargs="+",
        metavar="LABEL",
        help="only these sessions, with or without ses-",
    )
    group.add_argument(
        "--run-label", "--run_label", nargs="+", metavar="LABEL", help="only these runs"
    )
    group.add_argument(
        "--modalities",
        nargs="+",
        choices=["T1w", "T2w"],
        default=["T1w", "T2w"],
        help="only these (default: both)",
    )
    group.add_argument(
        "--bids-filter-file",
        "--bids_filter_file",
        type=Path,
        metavar="FILE",
        help="JSON with the keys t1w and t2w and entities below them, as fMRIPrep takes it; null: "
        'the entity is absent; "*": any',
    )
    group.add_argument(
        "--bids-database-dir",
        "--bids_database_dir",
        type=Path,
        metavar="DIR",
        help="where pybids keeps its index of the dataset, to start faster the next time",
    )
    group.add_argument(
        "-d",
        "--derivatives",
        nargs="+",
        default=[],
        metavar="NAME=PATH",
        help="datasets with brain masks made elsewhere (desc-brain_mask); used instead of our own "
        "skull stripping",
    )


def _add_age(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--age-months",
        "--age_months",
        type=_number(float, at_least=0),
        metavar="M",
        help="the age of all images of this run, instead of the dataset's; 0 is an age",
    )
    group.add_argument(
        "--age-file",
        "--age_file",
        type=Path,
        metavar="TSV",
        help="table with participant_id, perhaps session_id, and age_months, age_weeks, age_years "
        "or age; looked into before the dataset's own tables",
    )
    group.add_argument(
        "--fetal",
        action="store_true",
        help="the images are of fetuses; --age-months counts from conception",
    )
    group.add_argument(
        "--strict-ages",
        "--strict_ages",
        action="store_true",
        help="skip images about whose age anything had to be guessed (one age for several "
        "sessions, no unit, tables that disagree) instead of a warning",
    )


def _add_processing(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--skull-strip",
        "--skull_strip",
        choices=["auto", "skip", "force"],
        default="auto",
        help="auto (default) recognises an image whose skull is gone; skip takes every image for "
        "one; force runs the stripping network",
    )
    group.add_argument(
        "--brain-extraction",
        "--brain_extraction",
        choices=["own", "deepbet"],
        default="own",
        help="the network that finds the brain in a head: own (default) knows every age and "
        "contrast; deepbet knows T1w images, and is installed with bmex_bids[deepbet]. Images of "
        "another contrast, and of fetuses, always go to our own",
    )
    group.add_argument(
        "--weights",
        default="auto",
        metavar="NAME_or_DIR",
        help="auto (default) takes the published BME-X weights where they are here, else the "
        "bundled ones; bundled; the name of one set (see bmex-weights list); or a folder with the "
        "published files",
    )
    group.add_argument(
        "--weights-dir",
        "--weights_dir",
        type=Path,
        metavar="DIR",
        help="the weights folder, with published files (default: BMEX_WEIGHTS_DIR, else that of "
        "bmex-weights in the cache)",
    )
    group.add_argument(
        "--random-seed",
        "--random_seed",
        type=_number(int, at_least=0),
        default=0,
        metavar="N",
        help="seed of everything random (default: %(default)s); today nothing in a run is",
    )


def _add_outputs(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--output-res",
        "--output_res",
        nargs="+",
        choices=GRIDS,
        default=list(GRIDS),
        help="grids to write the enhanced image on: the input's, and the network's of 0.8 mm "
        "(0.75 mm for a fetus) (default: both)",
    )
    group.add_argument(
        "--qc-only",
        "--qc_only",
        action="store_true",
        help="quality measures and report only; no image is written",
    )
    group.add_argument(
        "--md-only-boilerplate",
        "--md_only_boilerplate",
        action="store_true",
        help="write the methods text as Markdown only",
    )
    group.add_argument(
        "--skip-boilerplate",
        "--skip_boilerplate",
        action="store_true",
        help="leave the methods text to a later run (--boilerplate-only), for it looks at the whole "
        "output",
    )
    group.add_argument(
        "--write-graph",
        "--write_graph",
        action="store_true",
        help="write the workflow's graph to OUTPUT/logs/<run>/",
    )


def _add_performance(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--nprocs",
        "--n-cpus",
        "--n_cpus",
        "--nthreads",
        "--n-procs",
        type=_number(int, at_least=1),
        metavar="N",
        help="processors to use (all that the machine, container and SLURM allow)",
    )
    group.add_argument(
        "--omp-nthreads",
        "--omp_nthreads",
        type=_number(int, at_least=1),
        metavar="N",
        help=f"processors for one step (nprocs, at most {MOST_THREADS})",
    )
    group.add_argument(
        "--mem-mb",
        "--mem_mb",
        "--mem",
        type=_memory,
        metavar="M",
        help="memory to use, in MB or with a suffix K, M, G, T (all that is allowed)",
    )
    group.add_argument(
        "--low-mem",
        "--low_mem",
        action="store_true",
        help="one image at a time and smaller tiles: slower, less memory",
    )
    group.add_argument(
        "--device",
        default="auto",
        metavar="{auto,cpu,cuda,cuda:N}",
        type=_device,
        help="auto (default) takes a GPU when there is one; cuda fails when there is none",
    )
    group.add_argument(
        "--geometry",
        choices=["fast", "reference"],
        default="fast",
        help="fast (default): the whole brain at once, or as few tiles as the memory asks for; "
        "reference: the published overlapping cubes of 40 voxels, many times slower, to compare",
    )
    group.add_argument(
        "--no-mirroring",
        "--no_mirroring",
        action="store_true",
        help="one pass of the bundled network instead of the mean of four, over the brain and its "
        "mirror images: a quarter of the network's time, a somewhat weaker result",
    )
    group.add_argument(
        "--precision",
        choices=["auto", "float32", "bfloat16"],
        default="auto",
        help="number format of the network's features: auto (default) is bfloat16 on a GPU, and for "
        "published weights on a processor, that multiplies it in hardware, else float32; give "
        "float32 for the same numbers on every machine of a cluster",
    )
    group.add_argument(
        "--gpu-slots",
        "--gpu_slots",
        type=_number(int, at_least=1),
        default=1,
        metavar="N",
        help="steps that may use the GPU at once (default: %(default)s)",
    )
    group.add_argument(
        "--use-plugin",
        "--use_plugin",
        "--nipype-plugin-file",
        type=Path,
        metavar="FILE",
        help="YAML with plugin and plugin_args: any plugin of Nipype instead of our own scheduling",
    )
    group.add_argument(
        "--resource-monitor",
        "--resource_monitor",
        action="store_true",
        help="measure memory and processors of each step (Nipype's monitor)",
    )
    group.add_argument(
        "--stop-on-first-crash",
        "--stop_on_first_crash",
        action="store_true",
        help="stop when one image fails; without it the others are done",
    )


def _add_cluster(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--submit",
        choices=["slurm"],
        default="",
        help="do not process here: write an array script, one task a participant, and a group job, "
        "and submit both; only what is unfinished and not in the queue. --nprocs and --mem-mb are "
        f"of one task then (default: {TASK_CPUS} processors, {TASK_MEM_GB}G). With "
        "--dry-run the scripts are written and not submitted",
    )
    for name in ("partition", "account", "gres"):
        group.add_argument(f"--{name}", metavar=name.upper(), help=f"sbatch's --{name}")
    group.add_argument(
        "--time-limit",
        "--time_limit",
        metavar="TIME",
        help="of a task, in SLURM's words such as 4:00:00 (30 min, and 20 min an image)",
    )
    group.add_argument(
        "--slurm-option",
        "--slurm_option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="any other option of sbatch, such as qos=long; may be given several times",
    )
    group.add_argument(
        "--max-running",
        "--max_running",
        type=_number(int, at_least=1),
        default=Cluster.max_running,
        metavar="N",
        help="tasks that may run at once (default: %(default)s)",
    )
    group.add_argument(
        "--participants-per-task",
        "--participants_per_task",
        type=_number(int, at_least=1),
        metavar="N",
        help="(1; more where the cluster's arrays are too small for one each)",
    )
    group.add_argument(
        "--container",
        type=Path,
        metavar="SIF",
        help="run the tasks in this image with Apptainer, instead of the environment that submits",
    )


def _cluster(options: argparse.Namespace) -> Cluster:
    """What ``--submit`` needs; ``--nprocs`` and ``--mem-mb`` are a task's size with it."""
    if not options.submit:
        return Cluster()
    if options.reports_only or options.boilerplate_only:
        raise UsageError(
            "expected work for a cluster, got --reports-only or --boilerplate-only, which take "
            "seconds; leave out --submit"
        )
    return Cluster(
        submit=options.submit,
        partition=options.partition,
        account=options.account,
        time_limit=options.time_limit,
        gres=options.gres,
        options=tuple(options.slurm_option),
        max_running=options.max_running,
        per_task=options.participants_per_task,
        container=_file(options.container, "--container"),
    )


def _add_subset(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--dry-run",
        "--dry_run",
        nargs="?",
        choices=["table", "json"],
        const="table",
        default="",
        metavar="table|json",
        help="say what would be done with each image, with time and memory, and do nothing; "
        "--dry-run=json for programs",
    )
    group.add_argument(
        "--reports-only",
        "--reports_only",
        action="store_true",
        help="only put the pages together again, from what is in the output",
    )
    group.add_argument(
        "--boilerplate-only",
        "--boilerplate_only",
        "--boilerplate",
        action="store_true",
        help="only write the methods text, from what is in the output",
    )


class ShowVersion(argparse.Action):
    """``--version``: one line (argparse's own action would break a long one), and the end."""

    def __init__(self, option_strings: Sequence[str], dest: str) -> None:
        super().__init__(option_strings, dest, nargs=0, help="say the version and end")

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print(version_line(parser.prog))
        parser.exit()


def _add_other(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--version", action=ShowVersion)
    group.add_argument(
        "-v",
        "--verbose",
        action="count",
        default=0,
        help="say more; -vv: say everything",
    )
    group.add_argument(
        "-w",
        "--work-dir",
        "--work_dir",
        type=Path,
        default=Path("work"),
        metavar="DIR",
        help="where intermediate files go and stay (./work); not inside bids_dir or output_dir",
    )
    group.add_argument(
        "--clean-workdir",
        "--clean_workdir",
        action="store_true",
        help="remove the workflows of earlier runs from the work folder first",
    )
    group.add_argument(
        "--drop-workdir",
        "--drop_workdir",
        action="store_true",
        help="remove an image's intermediate files as soon as it is done",
    )
    group.add_argument(
        "--config-file",
        "--config_file",
        type=Path,
        metavar="TOML",
        help="flags of an earlier run (OUTPUT/logs/<run>/config.toml); what is on the command line "
        "overrules them",
    )
    group.add_argument(
        "--debug",
        action="store_true",
        help="one process, stop at the first crash, say everything",
    )
    group.add_argument(
        "--notrack", action="store_true", help="does nothing: bmex never sends anything anywhere"
    )


def new_run_id() -> str:
    """Time and a random part: ``20251121-080534_1f0c9a7e``; sorts by time, never collides."""
    return f"{datetime.now().astimezone():%Y%m%d-%H%M%S}_{uuid.uuid4().hex[:8]}"


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


def _absolute(path: Path) -> Path:
    """Absolute, links followed; the path need not exist."""
    return path.expanduser().resolve()


def _optional(path: Path | None) -> Path | None:
    return None if path is None else _absolute(path)


def _file(path: Path | None, flag: str) -> Path | None:
    """A file that a flag names; UsageError where there is none."""
    if path is None:
        return None
    if not _absolute(path).is_file():
        raise UsageError(
            f"expected a file for {flag}, found none at {path}; check the path, and inside a "
            "container whether it is mounted"
        )
    return _absolute(path)


def _derivatives(values: Sequence[str]) -> tuple[str, ...]:
    """``NAME=PATH`` with absolute paths; a path alone is named by its folder.

    >>> _derivatives(["x=/"])
    ('x=/',)
    """
    return tuple(f"{name}={folder}" for name, folder in parse_derivatives(values).items())


def _labels(values: Sequence[str] | None, prefix: str) -> tuple[str, ...] | None:
    """Without prefix and doubles, sorted; None stays None.

    >>> _labels(["sub-02", "01", "02"], "sub-")
    ('01', '02')
    """
    if values is None:
        return None
    return tuple(sorted({value.removeprefix(prefix) for value in values}))


def _weights(name: str, folder: Path | None) -> tuple[str, Path | None]:
    """``--weights DIR`` means: the published files of this folder and no others."""
    folder = None if folder is None else _absolute(folder)
    if folder is None and is_weights_folder(name):
        return PUBLISHED, _absolute(Path(name))
    if folder is not None and not folder.is_dir():
        raise UsageError(f"expected a folder of weights at {folder}, found none; check the path")
    return name, folder


def is_weights_folder(name: str) -> bool:
    """Whether ``--weights`` names a folder; one with the name of a set needs ``./`` before it."""
    return name not in weight_names() and Path(name).expanduser().is_dir()


def _number(kind: Callable[[str], float], *, at_least: float) -> Callable[[str], float]:
    def convert(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and value >= at_least):
            whole = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(
                f"expected {whole} of {at_least} or more, got {text!r}"
            )
        return value

    return convert


def _device(text: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", text):
        raise argparse.ArgumentTypeError(f"expected auto, cpu, cuda or cuda:N, got {text!r}")
    return text


def _memory(text: str) -> float:
    """Memory in 2^30 bytes.

    >>> _memory("2048"), _memory("1.5G"), _memory("2T")
    (2.0, 1.5, 2048.0)
    >>> _memory("4 GB"), _memory("4GiB")
    (4.0, 4.0)
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)I?B?", text.strip().upper())
    if not found or float(found[1]) == 0:
        raise argparse.ArgumentTypeError(f"expected memory such as 8000 or 8G, got {text!r}")
    return float(found[1]) * MEMORY_UNITS[found[2] or "M"]

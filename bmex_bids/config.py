# SPDX-License-Identifier: Apache-2.0
"""Everything a run is told, as frozen dataclasses that are written to TOML and read again.

Each field says how its flag is spelt, what it takes, whether a configuration file may set it,
whether results depend on it, and which paths it holds.  The parser, the configuration file, the
fingerprint of ``outputs.resume`` and the mounts of containers are made from that, so that a new
flag is one field here, and the line that uses it.

Importing this module loads no library.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bmex_bids import settings, values
from bmex_bids.common import contrasts
from bmex_bids.inputs.derivatives import parse_derivatives
from bmex_bids.inputs.scans_filter import read_filter
from bmex_bids.inputs.templates import one_space, parse_spaces
from bmex_bids.network.inference.options import GEOMETRIES, PRECISIONS
from bmex_bids.settings import Place, setting

FILTER = "Options for filtering BIDS queries"
AGE = "Options for the age"
PROCESSING = "Options for processing"
OUTPUTS = "Options for outputs"
PERFORMANCE = "Options to handle performance"
CLUSTER = "Options for clusters"
SUBSET = "Options for performing only a subset of the workflow"
OTHER = "Other options"
#: in the order of ``--help``, named as fMRIPrep names them
GROUPS = (FILTER, AGE, PROCESSING, OUTPUTS, PERFORMANCE, CLUSTER, SUBSET, OTHER)

#: threads beyond this number bring a step nothing
MOST_THREADS = 8
#: size of a cluster's task where ``--nprocs`` and ``--mem-mb`` do not say it
TASK_CPUS, TASK_MEM_GB = 4, 8
#: grids of the enhanced image, in the order they are written; those without being asked for
GRIDS = ("native", "0p8", "0p4")
USUAL_GRIDS = GRIDS[:2]
#: maps of the expected error
UNCERTAINTIES = ("learnt", "off")
SEGMENTS = ("off", "tissues", "rois")

#: reasons why a configuration file does not set something
WHICH_DATA = "the command line names the data, as with fMRIPrep"
WHAT_NOW = "it says what to do now, not how"
MAY_HOLD_SCRIPTS = "the arguments of a plugin may hold a shell script"
ABOUT_SUBMITTING = "it is about submitting, and a task does not submit again"


def _derivatives(given: Any) -> tuple[str, ...]:
    """``NAME=PATH`` with absolute paths; a path alone is named by its folder."""
    return tuple(f"{name}={folder}" for name, folder in parse_derivatives(given).items())


def _folders_of_derivatives(given: Any) -> Iterator[Path]:
    yield from parse_derivatives(given).values()


@dataclass(frozen=True)
class Paths:
    """Where things are; all absolute."""

    bids_dir: Path = setting(
        "bids_dir",
        place=Place.FOLDER,
        command_line_only=WHICH_DATA,
        help="the dataset; it is not changed",
    )
    output_dir: Path = setting(
        "output_dir",
        place=Place.WRITTEN,
        command_line_only=WHICH_DATA,
        help="folder for the results, made if absent; not inside bids_dir",
    )
    work_dir: Path = setting(
        "-w",
        "--work-dir",
        group=OTHER,
        place=Place.WRITTEN,
        unset=Path("work"),
        metavar="DIR",
        help="folder for intermediate files, which stay there (default: ./work); not inside "
        "bids_dir or output_dir",
    )


@dataclass(frozen=True)
class Selection:
    """Which images; None is all of them, labels are without their prefix (``0001``, ``V01``)."""

    participants: tuple[str, ...] | None = setting(
        "--participant-label",
        default=None,
        group=FILTER,
        several="words",
        tidy=values.labels("sub-"),
        metavar="LABEL",
        help="only these participants, with or without sub-, separated by spaces or commas",
    )
    sessions: tuple[str, ...] | None = setting(
        "--session-label",
        "--session-id",
        default=None,
        group=FILTER,
        several="words",
        tidy=values.labels("ses-"),
        metavar="LABEL",
        help="only these sessions, with or without ses-",
    )
    runs: tuple[str, ...] | None = setting(
        "--run-label",
        "--run-id",
        default=None,
        group=FILTER,
        several="words",
        tidy=values.labels("run-"),
        metavar="LABEL",
        help="only these runs",
    )
    modalities: tuple[str, ...] = setting(
        "-m",
        "--modalities",
        default=contrasts.DEFAULT,
        group=FILTER,
        several="words",
        choices=contrasts.SUFFIXES,
        tidy=values.labels(""),
        help=f"images of these contrasts (default: {' '.join(contrasts.DEFAULT)}); FLAIR and PDw "
        "from 30 months of age on; UNIT1 (MP2RAGE) as T1w",
    )
    filter_file: Path | None = setting(
        "--bids-filter-file",
        default=None,
        group=FILTER,
        place=Place.FILE,
        metavar="FILE",
        help="JSON with the keys t1w, t2w, flair, pdw and unit1 and BIDS entities below them, as in "
        'fMRIPrep; null: the entity is absent; "*": any value',
    )
    database_dir: Path | None = setting(
        "--bids-database-dir",
        default=None,
        group=FILTER,
        place=Place.WRITTEN,
        metavar="DIR",
        help="keep the pybids index of the dataset in this folder; the next run then starts faster",
    )
    scans_filter: str | None = setting(
        "--scans-filter",
        default=None,
        group=FILTER,
        tidy=lambda text: read_filter(text).text,
        metavar="FILTER",
        help="only images whose row in scans.tsv passes, such as 'QU_motion<=2 and site!=B'",
    )
    least_coverage: float | None = setting(
        "--least-coverage",
        default=None,
        group=FILTER,
        read=values.number(float, at_least=0),
        metavar="MM",
        help="leave out images whose field of view is shorter than this along an axis",
    )


@dataclass(frozen=True)
class AgeOverride:
    """An age that overrules the dataset's; ``fetal`` counts it from conception."""

    months: float | None = setting(
        "--age-months",
        default=None,
        group=AGE,
        read=values.number(float, at_least=0),
        metavar="M",
        help="age of all images of this run, instead of the ages in the dataset; 0 is an age",
    )
    fetal: bool = setting(
        "--fetal",
        default=False,
        group=AGE,
        switch=True,
        help="the images are of fetuses; ages count from conception",
    )
    file: Path | None = setting(
        "--age-file",
        default=None,
        group=AGE,
        place=Place.FILE,
        metavar="TSV",
        help="table with participant_id, optionally session_id, and age_months, age_weeks, "
        "age_years or age; it overrules the dataset's own tables",
    )
    strict: bool = setting(
        "--strict-ages",
        default=False,
        group=AGE,
        switch=True,
        help="skip an image whose age needs an assumption (one age for several sessions, no unit, "
        "tables that disagree), instead of warning",
    )


@dataclass(frozen=True)
class Processing:
    """What is done to an image, and with which weights.

    Attributes
    ----------
    brain_extraction : which network finds the brain in a head, ``"own"`` or ``"deepbet"``
    geometry, mirroring, precision : see :class:`bmex_bids.network.inference.options.Options`
    max_change : largest change of a voxel, % of the range of the reference; None: no limit
    reorient : correct a header that calls the axes wrongly
    motion_correction : ``"auto"`` undoes motion that the image shows, ``"off"`` does not look for it
    derivatives : ``NAME=PATH`` of datasets with brain masks made elsewhere
    output_res : grids the enhanced image is written on, of :data:`GRIDS`
    qc_only : write the quality measures and no image
    histogram_reference : a template, as ``output_spaces`` names them
    output_spaces, templateflow_home : standard spaces, and the folder of their templates; see
        ``inputs.templates``
    uncertainty : ``"learnt"`` writes the map of the expected error, ``"off"`` does not
    segment : ``"tissues"`` writes the tissue maps, ``"rois"`` the labels of structures too,
        ``"off"`` neither
    """

    skull_strip: str = setting(
        "--skull-strip",
        "--skull-strip-t1w",
        default="auto",
        group=PROCESSING,
        choices=("auto", "skip", "force"),
        fingerprint=True,
        help="auto (default): detect whether the skull is already removed; skip: treat every image "
        "as already stripped; force: always extract the brain",
    )
    brain_extraction: str = setting(
        "--brain-extraction",
        default="own",
        group=PROCESSING,
        choices=("own", "deepbet"),
        help="network that extracts the brain: own (default), for all ages and contrasts; deepbet, "
        "for T1w images, is installed with bmex_bids[deepbet]. Other contrasts and fetuses always "
        "use own",
    )
    reorient: bool = setting(
        "--reorient",
        default=False,
        group=PROCESSING,
        switch=True,
        fingerprint=True,
        help="if the brain looks rotated by right angles against the header, correct the header of "
        "the outputs. Left and right cannot be told apart",
    )
    motion_correction: str = setting(
        "--motion-correction",
        default="auto",
        group=PROCESSING,
        choices=("auto", "off"),
        fingerprint=True,
        help="auto (default): look for read-out faults in the image itself, and correct them "
        "before all other steps: interpolated thick slices, spikes, lines of k-space of unequal "
        "strength (ghosts), periodic motion, jumps of the head, strong noise; off: do not",
    )
    derivatives: tuple[str, ...] = setting(
        "-d",
        "--derivatives",
        default=(),
        group=PROCESSING,
        several="words",
        tidy=_derivatives,
        place=Place.FOLDER,
        paths=_folders_of_derivatives,
        metavar="NAME=PATH",
        help="datasets with brain masks (desc-brain_mask) of other programs, used instead of brain "
        "extraction",
    )
    device: str = setting(
        "--device",
        default="auto",
        group=PERFORMANCE,
        read=values.device,
        metavar="{auto,cpu,cuda,cuda:N}",
        help="auto (default): a GPU if there is one; cuda: fail if there is none",
    )
    weights: str = setting(
        "--weights",
        default="auto",
        group=PROCESSING,
        metavar="NAME_or_DIR",
        help="auto (default): the published BME-X weights if they are installed, else the bundled "
        "ones; bundled; the name of a set (see bmex-weights list); or a folder with the published "
        "files",
    )
    weights_dir: Path | None = setting(
        "--weights-dir",
        default=None,
        group=PROCESSING,
        place=Place.FOLDER,
        metavar="DIR",
        help="folder with the published weights (default: BMEX_WEIGHTS_DIR, else the cache of "
        "bmex-weights)",
    )
    geometry: str = setting(
        "--geometry",
        default="fast",
        group=PERFORMANCE,
        choices=GEOMETRIES,
        fingerprint=True,
        help="fast (default): the whole brain at once, or as few tiles as the memory allows; "
        "reference: the published overlapping cubes of 40 voxels, for comparison, many times slower",
    )
    mirroring: bool = setting(
        "--no-mirroring",
        default=True,
        group=PERFORMANCE,
        switch=False,
        fingerprint=True,
        help="fewer passes of the bundled network (one instead of four, or three instead of six): "
        "faster, somewhat weaker result",
    )
    precision: str = setting(
        "--precision",
        default="auto",
        group=PERFORMANCE,
        choices=PRECISIONS,
        fingerprint=True,
        help="number format of the network's features. auto (default): bfloat16 on a GPU, and for "
        "published weights on a processor with bfloat16 instructions; else float32. float32 gives "
        "the same result on all machines, up to rounding",
    )
    max_change: float | None = setting(
        "--max-change",
        default=None,
        group=PROCESSING,
        read=values.number(float, at_least=0),
        fingerprint=True,
        metavar="P",
        help="limit the change of each voxel of the brain, motion correction included, to P %% of the "
        "range of the reference (0 to 1000): 5 is 50 units (default: no limit)",
    )
    output_res: tuple[str, ...] = setting(
        "--output-res",
        default=USUAL_GRIDS,
        group=OUTPUTS,
        several="words",
        choices=GRIDS,
        tidy=lambda given: tuple(grid for grid in GRIDS if grid in given),
        fingerprint=True,
        help="grids of the enhanced image (default: native 0p8). native: the input's; 0p8: the "
        "network's, 0.8 mm (fetus: 0.75 mm); 0p4: super-resolved to half the voxel size of 0p8",
    )
    output_spaces: tuple[str, ...] = setting(
        "--output-spaces",
        default=(),
        group=OUTPUTS,
        several="words",
        tidy=lambda given: tuple(str(space) for space in parse_spaces(given)),
        metavar="TEMPLATE",
        help="also write images, mask and tissues in these standard spaces of TemplateFlow, with "
        "the transform: MNI152NLin2009cAsym, MNI152NLin2009cAsym:res-2, MNIInfant (the age chooses "
        "the cohort), MNIInfant:cohort-3. Nothing is downloaded",
    )
    templateflow_home: Path | None = setting(
        "--templateflow-home",
        default=None,
        group=OUTPUTS,
        place=Place.FOLDER,
        metavar="DIR",
        help="folder of templates (default: TEMPLATEFLOW_HOME, else ~/.cache/templateflow)",
    )
    histogram_reference: str | None = setting(
        "--histogram-reference",
        default=None,
        group=PROCESSING,
        tidy=one_space,
        metavar="TEMPLATE",
        help="match intensities to the brain of this template of TemplateFlow, such as "
        "tpl-MNIInfant, instead of the age's reference, which the weights were trained with",
    )
    output_layout: str = setting(
        "--output-layout",
        default="bids",
        group=OUTPUTS,
        choices=("bids", "bme-x"),
        help="bids (default): masks and tissues of a T2w image have space-T2w where there is a "
        "T1w image too; bme-x: always space-T1w or space-T2w, and a copy of the raw image, as in the "
        "published container",
    )
    qc_only: bool = setting(
        "--qc-only",
        default=False,
        group=OUTPUTS,
        switch=True,
        fingerprint=True,
        help="write only quality measures and report, no image",
    )
    segment: str = setting(
        "--segment",
        default="tissues",
        group=OUTPUTS,
        choices=SEGMENTS,
        fingerprint=True,
        help="tissues (default): labels and probabilities of grey matter, white matter and fluid; "
        "rois: also labels and volumes of 13 structures (ventricles, cortex, hippocampus …), from "
        "21 months on; off: neither",
    )
    uncertainty: str = setting(
        "--uncertainty",
        default="learnt",
        group=OUTPUTS,
        choices=UNCERTAINTIES,
        fingerprint=True,
        help="learnt (default): write a map of the expected error of the enhanced image "
        "(desc-uncertainty), if the weights estimate it; off: do not",
    )


A_NUMBER_OF_PROCESSORS: dict[str, Any] = {
    "default": 1, "unset": None, "debug": 1, "group": PERFORMANCE,
    "read": values.number(int, at_least=1), "metavar": "N",
}  # fmt: skip


@dataclass(frozen=True)
class Resources:
    """How much of the machine may be used; ``mem_gb`` None is all there is."""

    nprocs: int = setting(
        "--nprocs",
        "--n-cpus",
        "--nthreads",
        "--n-procs",
        **A_NUMBER_OF_PROCESSORS,
        help="processors to use (default: all that the machine, container and SLURM allow)",
    )
    omp_nthreads: int = setting(
        "--omp-nthreads",
        **A_NUMBER_OF_PROCESSORS,
        help=f"processors for one step (default: nprocs, at most {MOST_THREADS})",
    )
    mem_gb: float | None = setting(
        "--mem-mb",
        "--mem",
        default=None,
        group=PERFORMANCE,
        read=values.memory,
        metavar="M",
        help="memory to use, in MB or with a suffix K, M, G, T (default: all that is allowed)",
    )
    low_mem: bool = setting(
        "--low-mem",
        default=False,
        group=PERFORMANCE,
        switch=True,
        help="one image at a time and smaller tiles: slower, less memory",
    )
    gpu_slots: int = setting(
        "--gpu-slots",
        default=1,
        group=PERFORMANCE,
        read=values.number(int, at_least=1),
        metavar="N",
        help="steps that may use the GPU at once (default: %(default)s)",
    )


@dataclass(frozen=True)
class Execution:
    """How the run goes about it; ``dry_run`` is empty, ``"table"`` or ``"json"``."""

    skip_bids_validation: bool = setting(
        "--skip-bids-validation",
        default=False,
        group=FILTER,
        switch=True,
        help="do not run bids-validator-deno on the dataset first",
    )
    dry_run: str = setting(
        "--dry-run",
        default="",
        group=SUBSET,
        choices=("table", "json"),
        bare="table",
        command_line_only=WHAT_NOW,
        metavar="table|json",
        help="only print what would be done with each image, with time and memory; "
        "--dry-run=json: as JSON",
    )
    reports_only: bool = setting(
        "--reports-only",
        default=False,
        group=SUBSET,
        switch=True,
        command_line_only=WHAT_NOW,
        help="only make the report pages again, from the files in the output",
    )
    boilerplate_only: bool = setting(
        "--boilerplate-only",
        "--boilerplate",
        default=False,
        group=SUBSET,
        switch=True,
        command_line_only=WHAT_NOW,
        help="only make the methods text and the provenance again, from the files in the output",
    )
    md_only_boilerplate: bool = setting(
        "--md-only-boilerplate",
        default=False,
        group=OUTPUTS,
        switch=True,
        help="write the methods text as Markdown only",
    )
    write_graph: bool = setting(
        "--write-graph",
        default=False,
        group=OUTPUTS,
        switch=True,
        help="write the graph of the workflow to OUTPUT/logs/<run>/",
    )
    resource_monitor: bool = setting(
        "--resource-monitor",
        default=False,
        group=PERFORMANCE,
        switch=True,
        help="record memory and processors of each step (Nipype's monitor)",
    )
    clean_workdir: bool = setting(
        "--clean-workdir",
        default=False,
        group=OTHER,
        switch=True,
        command_line_only=WHAT_NOW,
        help="first remove the intermediate files of earlier runs from the work folder",
    )
    stop_on_first_crash: bool = setting(
        "--stop-on-first-crash",
        default=False,
        debug=True,
        group=PERFORMANCE,
        switch=True,
        help="stop when one image fails, instead of going on with the others",
    )
    debug: bool = setting(
        "--debug",
        default=False,
        group=OTHER,
        switch=True,
        command_line_only=WHAT_NOW,
        help="use one process, stop at the first failure, show all messages",
    )
    plugin_file: Path | None = setting(
        "--use-plugin",
        "--nipype-plugin-file",
        default=None,
        group=PERFORMANCE,
        place=Place.FILE,
        command_line_only=MAY_HOLD_SCRIPTS,
        metavar="FILE",
        help="YAML file with plugin and plugin_args: a Nipype plugin instead of the built-in "
        "scheduler",
    )
    drop_workdir: bool = setting(
        "--drop-workdir",
        default=False,
        group=OTHER,
        switch=True,
        help="remove the intermediate files of an image as soon as it is done",
    )
    skip_boilerplate: bool = setting(
        "--skip-boilerplate",
        default=False,
        group=OUTPUTS,
        switch=True,
        help="do not write the methods text and the provenance, which are made from the whole "
        "output; --boilerplate-only writes them later",
    )
    verbosity: int = setting(
        "-v",
        "--verbose",
        default=0,
        debug=2,
        group=OTHER,
        counts=True,
        help="more messages; -vv: all messages",
    )


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

    submit: str = setting(
        "--submit",
        default="",
        group=CLUSTER,
        choices=("slurm",),
        command_line_only=ABOUT_SUBMITTING,
        outside_only=True,
        help="submit an array job with one task per participant, and a group job, instead of "
        "processing here; what is finished or in the queue is left out. --nprocs and --mem-mb are "
        f"the size of a task (default: {TASK_CPUS} processors, {TASK_MEM_GB}G). With --dry-run "
        "the scripts are only written",
    )
    partition: str | None = setting(
        "--partition",
        default=None,
        group=CLUSTER,
        command_line_only=ABOUT_SUBMITTING,
        metavar="PARTITION",
        help="sbatch's --partition",
    )
    account: str | None = setting(
        "--account",
        default=None,
        group=CLUSTER,
        command_line_only=ABOUT_SUBMITTING,
        metavar="ACCOUNT",
        help="sbatch's --account",
    )
    time_limit: str | None = setting(
        "--time-limit",
        default=None,
        group=CLUSTER,
        command_line_only=ABOUT_SUBMITTING,
        metavar="TIME",
        help="time limit of a task in SLURM's format, such as 4:00:00 (default: 30 min, and 20 "
        "min per image)",
    )
    gres: str | None = setting(
        "--gres",
        default=None,
        group=CLUSTER,
        command_line_only=ABOUT_SUBMITTING,
        metavar="GRES",
        help="sbatch's --gres",
    )
    options: tuple[str, ...] = setting(
        "--slurm-option",
        default=(),
        group=CLUSTER,
        several="flags",
        command_line_only=ABOUT_SUBMITTING,
        outside_only=True,
        metavar="NAME=VALUE",
        help="any other option of sbatch, such as qos=long; can be repeated",
    )
    max_running: int = setting(
        "--max-running",
        default=100,
        group=CLUSTER,
        read=values.number(int, at_least=1),
        command_line_only=ABOUT_SUBMITTING,
        metavar="N",
        help="tasks that may run at once (default: %(default)s)",
    )
    per_task: int | None = setting(
        "--participants-per-task",
        default=None,
        group=CLUSTER,
        read=values.number(int, at_least=1),
        command_line_only=ABOUT_SUBMITTING,
        metavar="N",
        help="participants of one task (default: 1, or more if the cluster limits the array)",
    )
    container: Path | None = setting(
        "--container",
        default=None,
        group=CLUSTER,
        place=Place.FILE,
        command_line_only=ABOUT_SUBMITTING,
        outside_only=True,
        metavar="SIF",
        help="run the tasks in this image with Apptainer (default: in the submitting environment)",
    )


@dataclass(frozen=True)
class Config:
    """One run.

    Attributes
    ----------
    run_id : names the folder ``OUTPUT/logs/<run_id>``
    version : of bmex_bids
    command : the command line, for people
    """

    run_id: str
    version: str
    paths: Paths
    command: str = field(default="", compare=False)
    analysis_levels: tuple[str, ...] = setting(
        "analysis_level",
        default=("participant",),
        several="words",
        choices=("participant", "group"),
        tidy=lambda given: tuple(dict.fromkeys(given)),
        command_line_only=WHICH_DATA,
        help="participant: process each image; group: tables and pages over all finished images",
    )
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
        return settings.dumps(self)

    @classmethod
    def from_toml(cls, text: str) -> Config:
        """Read TOML text; an unknown key or a wrong type is a UsageError."""
        return settings.loads(cls, text, "the configuration")

    def as_options(self) -> dict[str, Any]:
        """The parsed options that give this configuration, as a configuration file sets them.

        Left out are the settings with :attr:`~bmex_bids.settings.Setting.command_line_only`, and
        those that ``--debug`` overrules.
        """
        return {
            entry.setting.option: entry.value(self)
            for entry in ENTRIES
            if not entry.setting.command_line_only
            and not (self.execution.debug and entry.setting.debug is not None)
        }

    def fingerprint(self) -> dict[str, Any]:
        """The settings that results depend on, by the names of their fields."""
        return {e.name: e.value(self) for e in ENTRIES if e.setting.fingerprint}

    def mounts(self) -> Iterator[tuple[Path, bool]]:
        """What a container must see of this machine, and whether it writes there."""
        for entry in ENTRIES:
            if not entry.setting.outside_only:
                for path in entry.setting.paths_in(entry.value(self)):
                    yield path, entry.setting.place is Place.WRITTEN


#: every setting, by sections
ENTRIES = tuple(settings.entries(Config))

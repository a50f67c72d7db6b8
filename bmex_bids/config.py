# SPDX-License-Identifier: Apache-2.0
"""Everything a run was told, as frozen dataclasses that can be written to TOML and read again.

Importing this module does nothing.  Only ``cli`` reads it; everything below takes plain arguments.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from bmex_bids import toml


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
    strict: bool = False


@dataclass(frozen=True)
class Processing:
    """What is done to an image, and with which weights.

    Attributes
    ----------
    brain_extraction : which network finds the brain in a head, ``"own"`` or ``"deepbet"``
    geometry : how the network goes over the brain, ``"fast"`` or ``"reference"``
    mirroring : let mirror images of the brain through the bundled network too, and average
    precision : number format of the network's features, ``"auto"``, ``"float32"`` or ``"bfloat16"``
    derivatives : ``NAME=PATH`` of datasets with brain masks made elsewhere
    output_res : grids the enhanced image is written on, ``"native"`` and ``"0p8"``
    qc_only : write the quality measures and no image
    """

    skull_strip: str = "auto"
    brain_extraction: str = "own"
    derivatives: tuple[str, ...] = ()
    device: str = "auto"
    weights: str = "auto"
    weights_dir: Path | None = None
    geometry: str = "fast"
    mirroring: bool = True
    precision: str = "auto"
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
        return toml.dumps(self)

    @classmethod
    def from_toml(cls, text: str) -> Config:
        """Read TOML text; an unknown key or a wrong type is a UsageError."""
        return toml.loads(cls, text, "the configuration")

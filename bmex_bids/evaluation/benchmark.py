# SPDX-License-Identifier: Apache-2.0
"""The benchmark: validation images × cells through the whole app, judged against the clean image.

A unit of work is one image in one cell.  A head is damaged as a head and stripped by the app; a
stripped brain is damaged and masked by its own mask.  A unit appends its figures to one table when it
is done, with a key that says what they were computed from, so a run that was killed goes on, and new
weights cost the network's figures alone.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from bmex_bids.common.boxes import bounding_box
from bmex_bids.common.orphans import end_with_parent
from bmex_bids.degrade.cells import CELLS, Cell
from bmex_bids.degrade.steps import Scan
from bmex_bids.evaluation import judge, torchio_cells
from bmex_bids.evaluation import rows as table
from bmex_bids.evaluation.app import Networks, Passed, through_app
from bmex_bids.evaluation.rows import Row, key_of
from bmex_bids.evaluation.subjects import (
    SUBJECTS,
    Clean,
    Subject,
    load_clean,
    require_data,
    subject_of,
)
from bmex_bids.exceptions import BmexError, StepError, UsageError
from bmex_bids.network.weights.registry import select, sha256
from bmex_bids.outputs.files import write_whole

Array = NDArray[np.float32]
#: changes when the figures do: measures, segmenters, cells
FIGURES_VERSION = "12"
#: changes when what is kept of a clean image does
PASSED_VERSION = "2"
TABLE, SLICES, TRUTH = "figures.tsv", "slices", "truth"
#: cells of which each image has a picture
PICTURED = ("clean", "moderate", "severe", "noise 2.5%", "2.4 mm")
PHASE_AXIS, SLICE_AXIS = 1, 2


@dataclass(frozen=True)
class Settings:
    """What one run is asked for; plain values, so that another process can be told.

    Attributes
    ----------
    data, out : folders
    networks : weights, and how they run
    images, cells : names; TorchIO's cells only where it is installed, unless they are named
    jobs : processes
    by_age : the bundled set for the age and contrast of each image enhances, as in the app
    """

    data: Path
    out: Path
    networks: Networks
    images: tuple[str, ...] = tuple(SUBJECTS)
    cells: tuple[str, ...] = ()
    jobs: int = 1
    by_age: bool = False

    def networks_for(self, subject: Subject) -> Networks:
        """What enhances and strips one image."""
        if not self.by_age:
            return self.networks
        chosen = select(
            "enhance", weights="bundled", age_months=subject.months, contrast=subject.contrast
        )
        return replace(self.networks, enhance=chosen)

    def chosen_cells(self) -> tuple[str, ...]:
        """The cells of this run, in the order of the table."""
        if self.cells:
            return tuple(name for name in CELLS if name in self.cells)
        second = torchio_cells.available()
        return tuple(name for name, cell in CELLS.items() if second or cell.torchio is None)


@dataclass(frozen=True)
class Unit:
    """One image in one cell, and the key of each method's figures."""

    image: str
    cell: str
    keys: dict[tuple[str, str, str], str] = field(default_factory=dict)


# ---------------------------------------------------------------- a run
def run(
    settings: Settings,
    report: Callable[[str], None] = lambda line: None,
    *,
    compute: bool = True,
) -> list[Row]:
    """Compute what is missing and return the rows that belong to this run.

    Parameters
    ----------
    report : is told each finished unit, a line of text
    compute : without it, what is there already is returned
    """
    check(settings)
    return run_units(settings, list(plan(settings)), do_unit, TABLE, report, compute=compute)


def run_units(
    settings: Settings,
    units: Sequence[Unit],
    work: Callable[[Settings, Unit], list[Row]],
    name: str,
    report: Callable[[str], None] = lambda line: None,
    *,
    compute: bool = True,
) -> list[Row]:
    """Do the units that a table has no rows of, and return the rows of all.

    Parameters
    ----------
    work : makes a unit's rows, in another process; the last of each method is ``seconds``
    name : of the table, in the folder of the settings
    """
    settings.out.mkdir(parents=True, exist_ok=True)
    path = settings.out / name
    wanted = {name: key for unit in units for name, key in unit.keys.items()}
    done = table.finished(table.read(path))
    left = [unit for unit in (missing(unit, done) for unit in units) if unit.keys]
    report(f"{len(units)} images × cells, {len(left) if compute else 0} to compute")
    if compute and left:
        begun = time.monotonic()
        with _pool(settings.jobs) as pool:
            futures = {pool.submit(work, settings, unit): unit for unit in left}
            try:
                for number, future in enumerate(as_completed(futures), start=1):
                    table.append(path, future.result())
                    unit, passed = futures[future], time.monotonic() - begun
                    report(f"{number}/{len(left)} {unit.image}, {unit.cell} ({passed:.0f} s)")
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    return table.current(table.read(path), wanted)


def check(settings: Settings) -> None:
    """Raise UsageError for images and cells that there are not."""
    for what, names, known in (
        ("images", settings.images, tuple(SUBJECTS)),
        ("cells", settings.cells, tuple(CELLS)),
    ):
        wrong = [name for name in names if name not in known]
        if wrong:
            raise UsageError(f"expected {what} of {', '.join(known)}; got {', '.join(wrong)}")


def plan(settings: Settings) -> Iterator[Unit]:
    """All units of a run; image by image, so that one image's truth is made once."""
    cells = settings.chosen_cells()
    yield from units_of(
        settings, settings.images, cells, lambda cell: methods_of(CELLS[cell]), (FIGURES_VERSION,)
    )


def units_of(
    settings: Settings,
    images: Sequence[str],
    cells: Sequence[str],
    methods: Callable[[str], Sequence[str]],
    versions: Sequence[str],
) -> Iterator[Unit]:
    """Image × cell with the keys of the figures; UsageError for an image that is not there.

    Parameters
    ----------
    methods : cell → names in the table
    versions : of what makes the figures
    """
    for image in images:
        subject = subject_of(image)
        path = settings.data / subject.path
        require_data(path, "the validation data at")
        content, version = sha256(path)[:12], settings.networks_for(subject).version
        for cell in cells:
            fault = fault_version(CELLS[cell], image)
            key = key_of(*versions, content, cell, fault, version)
            yield Unit(image, cell, {(image, cell, method): key for method in methods(cell)})


def methods_of(cell: Cell) -> tuple[str, ...]:
    """The methods that a cell is judged with: ``damaged`` is what came, prepared."""
    names = ["damaged", "bmex", "n4", "nlm"]
    if cell.noise is not None:
        names.append("nlm, known noise")
    if cell.slices_mm is not None:
        names.append("lanczos")
    return tuple(names)


def fault_version(cell: Cell, image: str) -> str:
    """What a cell's damage hangs on besides the image."""
    if cell.torchio is not None:
        return f"{cell.torchio} {torchio_cells.version() if torchio_cells.available() else ''}"
    return cell.recipe(subject_of(image).seed).to_json()


def missing(unit: Unit, done: set[tuple[str, str, str, str]]) -> Unit:
    """The unit with the figures that are not there yet."""
    keys = {name: key for name, key in unit.keys.items() if (*name, key) not in done}
    return Unit(unit.image, unit.cell, keys)


def _pool(jobs: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(
        max(jobs, 1), mp_context=multiprocessing.get_context("spawn"), initializer=_begin_worker
    )


def _begin_worker() -> None:
    """One thread a process; a worker ends with the run that started it, also when that is killed."""
    import SimpleITK as sitk
    import torch
    from threadpoolctl import threadpool_limits

    end_with_parent()
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    threadpool_limits(1)  # numpy's library has counted the processors already
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)


def rows_of(unit: Unit, figures: Mapping[str, Mapping[str, float]], seconds: float) -> list[Row]:
    """A unit's rows; ``figures`` is method → measure → value."""
    return [
        Row(*name, key, metric, value)
        for name, key in unit.keys.items()
        for metric, value in {**figures[name[2]], "seconds": seconds}.items()
    ]


# ---------------------------------------------------------------- a unit
@dataclass(frozen=True)
class Truth:
    """What a unit is judged against.

    Attributes
    ----------
    clean : on the input grid
    passed : the clean image through the app; what the app gives its network is the truth there
    classes : segmenter → three classes of ``matched``
    """

    clean: Clean
    passed: Passed
    classes: Mapping[str, NDArray[np.uint8]]

    @property
    def matched(self) -> Array:
        """The truth on the network's grid, template units."""
        return self.passed.matched

    @property
    def mask_res(self) -> NDArray[np.bool_]:
        """The brain on the network's grid."""
        return self.passed.mask_res

    @property
    def mask(self) -> NDArray[np.bool_]:
        """The brain on the input grid."""
        return self.passed.mask


def do_unit(settings: Settings, unit: Unit) -> list[Row]:
    """The figures of one image in one cell."""
    begun = time.monotonic()
    truth, damaged, result = pass_cell(settings, unit.image, unit.cell)
    figures = figures_of(truth, CELLS[unit.cell], damaged, result)
    keep_slices(settings.out, unit, truth, result)
    return rows_of(unit, figures, time.monotonic() - begun)


def pass_cell(settings: Settings, image: str, name: str) -> tuple[Truth, Array, Passed]:
    """The clean image, the damaged one, and what the app makes of it.

    A StepError names image and cell.
    """
    cell = CELLS[name]
    try:
        truth = truth_of(settings, image)
        if cell.family == "clean":
            return truth, truth.clean.data, truth.passed
        damaged = damage(truth, cell, subject_of(image).seed)
        return truth, damaged, pass_through(settings, image, truth.clean, damaged)
    except BmexError as error:
        code = error.exit_code
        raise StepError(f"{image}, {name}: {error}", code) from error


def truth_of(settings: Settings, image: str) -> Truth:
    """The clean image through the app, and its classes, kept on disk for all cells."""
    subject = subject_of(image)
    clean = load_clean(settings.data, subject)
    names = judge.segmenters()
    digits = key_of(
        FIGURES_VERSION, PASSED_VERSION, sha256(settings.data / subject.path),
        settings.networks_for(subject).version, str(subject.seed), *names,
    )  # fmt: skip
    target = settings.out / TRUTH / f"{image}_{digits}.npz"

    def make() -> dict[str, Any]:
        result = pass_through(settings, image, clean, clean.data)
        return vars(result) | {
            name: judge.classes(name, result.matched, result.mask_res) for name in names
        }

    arrays = kept(target, make)
    passed = Passed(**{part.name: arrays[part.name] for part in fields(Passed)})
    return Truth(clean, passed, {name: arrays[name] for name in names})


def kept(path: Path, make: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    """Arrays of a file, which is written first where it is not there."""
    if not path.exists():
        arrays = make()

        def fill(temporary: Path) -> None:
            with temporary.open("wb") as stream:
                np.savez(stream, **arrays)

        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, fill)
    with np.load(path) as found:
        return {name: found[name] for name in found.files}


def damage(truth: Truth, cell: Cell, seed: int) -> Array:
    """The damaged image on the input grid, not negative; a stripped brain has only its mask."""
    clean = truth.clean
    if cell.torchio is not None:
        bad = torchio_cells.damage(cell.torchio, clean.data, clean.affine, seed, PHASE_AXIS)
    else:
        scan = Scan(judge.range_of(clean.data, truth.mask), PHASE_AXIS, SLICE_AXIS)
        bad = cell.recipe(seed, scan).apply(clean.data, clean.spacing)
    bad = np.clip(bad, 0, None)
    return bad if clean.mask is None else np.where(clean.mask, bad, 0).astype(np.float32)


def pass_through(settings: Settings, image: str, clean: Clean, data: Array) -> Passed:
    """One image on the clean one's grid through the app, in a temporary folder."""
    subject = subject_of(image)
    with tempfile.TemporaryDirectory(prefix="bmex-benchmark-") as folder:
        work = Path(folder)
        path = work / f"sub-benchmark_{subject.contrast}.nii"
        nib.save(clean.image(data), path)
        mask = None
        if clean.mask is not None:
            mask = work / "mask.nii"
            nib.save(clean.image(clean.mask.astype(np.uint8)), mask)
        return through_app(path, subject, settings.networks_for(subject), work, mask)


def figures_of(
    truth: Truth, cell: Cell, damaged: Array, result: Passed
) -> dict[str, dict[str, float]]:
    """Method → measure → value."""
    mask = truth.mask_res
    native, slab = truth.clean.data, cell.slices_mm
    figures = {
        "damaged": _whole(result.matched, truth)
        | judge.on_input_grid(damaged, native, truth.mask),
        "bmex": _whole(result.enhanced, truth)
        | judge.on_input_grid(result.preproc, native, truth.mask),
        "n4": judge.in_template_units(
            judge.linear_fit(result.corrected, truth.matched, mask), truth.matched, mask
        ),
        "nlm": judge.in_template_units(judge.denoised(result.matched, mask), truth.matched, mask),
    }
    overlap = (
        2 * np.count_nonzero(truth.mask & result.mask) / (truth.mask.sum() + result.mask.sum())
    )
    figures["bmex"]["mask_dice"] = float(overlap)
    if cell.noise is not None:
        sigma = cell.noise / 100 * judge.range_of(native, truth.mask)
        # how far the app's matching stretches the scanner's units
        stretch = float(truth.matched[mask].std() / native[truth.mask].std())
        mended = judge.denoised(result.matched, mask, sigma * stretch)
        figures["nlm, known noise"] = judge.in_template_units(mended, truth.matched, mask)
    if slab is not None:
        factor = max(slab / truth.clean.spacing[SLICE_AXIS], 1.0)
        source = native if cell.motion is None else damaged
        mended = judge.lanczos(source, SLICE_AXIS, factor)
        figures["lanczos"] = judge.on_input_grid(mended, native, truth.mask)
    return figures


def _whole(image: Array, truth: Truth) -> dict[str, float]:
    """Measures in template units, and of the tissues by each segmenter."""
    figures = judge.in_template_units(image, truth.matched, truth.mask_res)
    for name, wanted in truth.classes.items():
        found = judge.classes(name, image, truth.mask_res)
        figures |= judge.tissue_agreement(name, found, wanted, truth.mask_res)
    return figures


# ---------------------------------------------------------------- pictures' raw material
def keep_slices(out: Path, unit: Unit, truth: Truth, result: Passed) -> None:
    """The middle axial slice of before, after and truth, template units."""
    if unit.cell not in PICTURED:
        return
    box = bounding_box(truth.mask_res, 2)
    level = (box[2].start + box[2].stop) // 2
    planes = {
        name: np.where(truth.mask_res, volume, 0)[box[0], box[1], level]
        for name, volume in (
            ("before", result.matched), ("after", result.enhanced), ("truth", truth.matched),
        )
    }  # fmt: skip
    target = slice_file(out, unit.image, unit.cell)
    target.parent.mkdir(parents=True, exist_ok=True)

    def fill(path: Path) -> None:
        with path.open("wb") as stream:
            np.savez(stream, **planes)  # type: ignore[arg-type]

    write_whole(target, fill)


def slice_file(out: Path, image: str, cell: str) -> Path:
    """Where the slices of an image in a cell lie."""
    return out / SLICES / f"{image}_{cell}.npz".replace(" ", "-").replace("%", "pc")

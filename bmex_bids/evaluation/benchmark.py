# SPDX-License-Identifier: Apache-2.0
"""The benchmark: every image, cell and method, once, and never twice.

Work is cut into units that another process can do: preparing an image, one image in one cell (all
methods that lack figures), the histograms of an image's synthetic scanners, the tissue contrast of
one real image.  Degraded images are kept on disk, since no weights change them.
"""

from __future__ import annotations

import hashlib
import math
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bmex_bids.evaluation import registration
from bmex_bids.evaluation import rows as table
from bmex_bids.evaluation.cells import CELLS, MOTION, SAMPLE, fingerprint
from bmex_bids.evaluation.harmonisation import SCANNERS, distances
from bmex_bids.evaluation.methods import Job, Method, methods, network_version
from bmex_bids.evaluation.rows import Row, key_of
from bmex_bids.evaluation.segmentation import segment
from bmex_bids.evaluation.subjects import (
    DEFAULT_SUBJECTS,
    SUBJECTS,
    Case,
    drawn,
    load_case,
    seed_of,
    subject_name,
)
from bmex_bids.exceptions import UsageError
from bmex_bids.metrics.reference import mse, psnr
from bmex_bids.metrics.structure import Structure
from bmex_bids.metrics.tissue import dice, tct
from bmex_bids.network.weights.registry import WeightRecord, sha256
from bmex_bids.outputs.files import write_whole
from bmex_bids.training.images import REAL_IMAGES, VALIDATION_IMAGES, CleanImage, prepare

if TYPE_CHECKING:
    from bmex_bids.network.inference.predict import Enhancement

Array = NDArray[np.float32]
RANGE = 1000.0
#: changes when the figures do: measures, segmenter
FIGURES_VERSION = "2"
#: methods whose output is registered; Demons takes longer than anything else here
REGISTERED = ("degraded", "bmex", "ablation")
#: the clean partner each subject is registered to: (file, age group) or a painted subject
PARTNERS: dict[str, tuple[str, str] | str] = {
    "sub-0003": (REAL_IMAGES[0][0], "month24"),
    "sub-0007": (REAL_IMAGES[5][0], "month6"),
    "map-17": "map-18",
    "map-18": "map-17",
    "map-19": "map-20",
    "map-20": "map-19",
}
TABLE = "figures.tsv"
CACHE = "cache"
#: rows of the ten images as they are, and of the synthetic scanners, in the column ``cell``
AS_IS, SCANNER_CELL = "as it is", "scanners"


@dataclass(frozen=True)
class Settings:
    """What one run is asked for; plain values, so that another process can be told.

    Attributes
    ----------
    data, out : folders
    record, ablation : weights; no ablation where None
    images, cells : names; no cells means those of each image's own plan
    parts : of ``cells``, ``registration``, ``scanners``, ``contrast``
    device, jobs : where networks run, and in how many processes; each has one thread
    mirroring : as in ``network.predict.enhance``
    draws : of each image in each cell that has motion or noise
    """

    data: Path
    out: Path
    record: WeightRecord
    ablation: WeightRecord | None = None
    images: tuple[str, ...] = DEFAULT_SUBJECTS
    cells: tuple[str, ...] = ()
    parts: tuple[str, ...] = ("cells", "registration", "scanners", "contrast")
    device: str = "auto"
    jobs: int = 2
    mirroring: bool = True
    draws: int = 1

    def methods(self) -> dict[str, Method]:
        """The methods of this run."""
        return dict(
            methods(
                self.record,
                self.ablation,
                device=self.device,
                threads=1,
                mirroring=self.mirroring,
            )
        )

    def enhance(self, data: Array, mask: NDArray[np.bool_]) -> Enhancement:
        """What the network of this run makes of an image that is matched already."""
        from bmex_bids.network.inference.predict import enhance

        return enhance(
            data, mask, self.record, device=self.device, threads=1, mirroring=self.mirroring
        )

    @property
    def version(self) -> str:
        """What the network's results hang on besides its input."""
        return network_version(self.record, self.mirroring)

    def cells_of(self, image: str) -> tuple[str, ...]:
        """The cells of an image: those asked for, of those that the image has."""
        own = tuple(CELLS) if SUBJECTS[image].whole else SAMPLE
        return tuple(c for c in (self.cells or own) if c in CELLS)

    def places(self) -> Iterator[tuple[str, str]]:
        """(image or further draw of one, cell) of this run."""
        for name in self.images:
            for number in range(1, self.draws + 1):
                for cell in self.cells_of(name):
                    if number == 1 or CELLS[cell].random:
                        yield drawn(name, number), cell


@dataclass
class Unit:
    """One piece of work: a function of this module, its arguments, and what it is called."""

    title: str
    function: Callable[..., list[Row]]
    arguments: tuple[Any, ...]
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
    _check(settings)
    settings.out.mkdir(parents=True, exist_ok=True)
    path = settings.out / TABLE
    begun = time.monotonic()
    with _pool(settings.jobs) as pool:
        prints = _prepare_all(pool, settings, report)
        units = list(plan(settings, prints))
        wanted = {name: key for unit in units for name, key in unit.keys.items()}
        done = table.finished(table.read(path))
        left = (_missing(unit, done) for unit in units) if compute else ()
        open_units = [unit for unit in left if unit.keys]
        report(
            f"{len(wanted)} results wanted, {sum(len(u.keys) for u in open_units)} to compute "
            f"in {len(open_units)} pieces"
        )
        futures: dict[Future[list[Row]], Unit] = {
            pool.submit(unit.function, settings, *unit.arguments, unit.keys): unit
            for unit in open_units
        }
        try:
            for number, future in enumerate(as_completed(futures), start=1):
                table.append(path, future.result())
                report(
                    f"{number}/{len(futures)} {futures[future].title} "
                    f"({time.monotonic() - begun:.0f} s)"
                )
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return table.current(table.read(path), wanted)


def _check(settings: Settings) -> None:
    for what, names, known in (
        ("images", settings.images, tuple(SUBJECTS)),
        ("cells", settings.cells, tuple(CELLS)),
        ("parts", settings.parts, ("cells", "registration", "scanners", "contrast")),
    ):
        wrong = [name for name in names if name not in known]
        if wrong:
            raise UsageError(f"expected {what} of {', '.join(known)}; got {', '.join(wrong)}")
    if settings.draws < 1:
        raise UsageError(f"expected one draw or more, got {settings.draws}; see --draws")


def _pool(jobs: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(
        max(jobs, 1), mp_context=multiprocessing.get_context("spawn"), initializer=_begin_worker
    )


def _begin_worker() -> None:
    """Processes share the work; threads inside them would only get in each other's way.

    A worker ends with the run that started it, also when that is killed: it would go on else.
    """
    import SimpleITK as sitk
    import torch
    from threadpoolctl import threadpool_limits

    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    threadpool_limits(1)  # numpy's library has counted the processors already
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def plan(settings: Settings, prints: dict[str, str]) -> Iterator[Unit]:
    """All units of a run, each with the key of every result; ``prints`` are the images'."""
    chosen = settings.methods()
    partners = {
        name: f"{PARTNERS[name]} {_partner_content(settings, name)}" for name in settings.images
    }
    for image, cell in settings.places():
        name = subject_name(image)
        recipe = fingerprint(CELLS[cell].recipe(seed_of(image)))
        base = (FIGURES_VERSION, prints[name], recipe)
        keys = {}
        if "cells" in settings.parts:
            keys = {
                (image, cell, method): key_of(*base, how.version)
                for method, how in chosen.items()
                if how.serves(CELLS[cell])
            }
        if "registration" in settings.parts and (cell in MOTION or cell == "clean"):
            keys |= {
                (image, cell, f"{method} registered"): key_of(
                    *base, chosen[method].version, partners[name], registration.VERSION
                )
                for method in REGISTERED
                if method in chosen
            }
        yield Unit(f"{image}, {cell}", do_cell, (image, cell), keys)
    if "scanners" in settings.parts:
        for image in settings.images:
            recipes = "".join(fingerprint(recipe) for recipe in SCANNERS.values())
            key = key_of(FIGURES_VERSION, prints[image], recipes, settings.version)
            yield Unit(
                f"{image}, scanners", do_scanners, (image,), {(image, SCANNER_CELL, "bmex"): key}
            )
    if "contrast" in settings.parts:
        for name, group, contrast in (*REAL_IMAGES, *VALIDATION_IMAGES):
            short = "_".join(Path(name).name.split("_")[:2])
            content = _digest(settings.data / name)
            key = key_of(FIGURES_VERSION, name, content, group, contrast, settings.version)
            yield Unit(
                f"{short}, as it is", do_contrast, (name, group, contrast),
                {(short, AS_IS, "bmex"): key},
            )  # fmt: skip


def _missing(unit: Unit, done: set[tuple[str, str, str, str]]) -> Unit:
    keys = {name: key for name, key in unit.keys.items() if (*name, key) not in done}
    return Unit(unit.title, unit.function, unit.arguments, keys)


# ---------------------------------------------------------------- images and their cache
def _prepare_all(
    pool: ProcessPoolExecutor, settings: Settings, report: Callable[[str], None]
) -> dict[str, str]:
    """Fingerprint of every image of the run; the images lie in the cache afterwards."""
    wanted = list(settings.images)
    prints = {}
    for name, (value, shape) in zip(
        wanted, pool.map(_prepare, [settings] * len(wanted), wanted), strict=True
    ):
        prints[name] = value
        report(f"{name}: {' × '.join(map(str, shape))} voxels")
    return prints


def _prepare(settings: Settings, image: str) -> tuple[str, tuple[int, ...]]:
    case = load_case(settings.data, image)
    arrays = {
        "data": case.clean.data,
        "mask": case.clean.mask,
        "labels": case.clean.labels,
        "head": case.head,
        "box": np.array([[side.start, side.stop] for side in case.box]),
        "segmented": segment(case.clean.data, case.clean.mask),
    }
    target = settings.out / CACHE / f"{image}.npz"
    target.parent.mkdir(parents=True, exist_ok=True)

    def fill(path: Path) -> None:
        with path.open("wb") as stream:
            np.savez(stream, **arrays)  # type: ignore[arg-type]

    write_whole(target, fill)
    coarse = np.rint(case.head / 4).astype(np.int16)
    print_ = hashlib.sha256(coarse.tobytes() + case.clean.mask.tobytes()).hexdigest()[:12]
    return print_, case.clean.data.shape


def cached_case(out: Path, image: str) -> tuple[Case, NDArray[np.uint8]]:
    """A prepared image of the cache, and the segmenter's classes of it when clean."""
    name = subject_name(image)
    subject = SUBJECTS[name]
    with np.load(out / CACHE / f"{name}.npz") as archive:
        clean = CleanImage(
            name, archive["data"], archive["mask"], archive["labels"], (0.8, 0.8, 0.8),
            subject.age_group, subject.contrast,
        )  # fmt: skip
        low = [(int(a), int(b)) for a, b in archive["box"]]
        box = (slice(*low[0]), slice(*low[1]), slice(*low[2]))
        return Case(clean, archive["head"], box), archive["segmented"]


def cached_degraded(out: Path, image: str, cell: str, case: Case) -> Array:
    """The degraded head's box, from the cache or made now; float32, not masked."""
    recipe = CELLS[cell].recipe(seed_of(image))
    digits = hashlib.sha256(np.rint(case.head / 4).astype(np.int16).tobytes()).hexdigest()[:8]
    target = out / CACHE / f"{_place(image, cell)}_{digits}{fingerprint(recipe)}.npy"
    if target.exists():
        kept: Array = np.load(target)
        return kept
    bad = case.degraded(recipe)

    def fill(path: Path) -> None:
        with path.open("wb") as stream:
            np.save(stream, bad)

    write_whole(target, fill)
    return bad


# ---------------------------------------------------------------- units
def do_cell(
    settings: Settings, image: str, cell: str, keys: dict[tuple[str, str, str], str]
) -> list[Row]:
    """All figures of one image in one cell that are wanted in ``keys``."""
    case, clean_classes = cached_case(settings.out, image)
    clean = case.clean
    unmasked = cached_degraded(settings.out, image, cell, case)
    job = Job(
        image=np.where(clean.mask, unmasked, 0).astype(np.float32),
        unmasked=unmasked, mask=clean.mask, clean=clean, cell=CELLS[cell],
        head_length=case.head.shape[2], offset=case.box[2].start,
    )  # fmt: skip
    chosen = settings.methods()
    structure: Structure | None = None
    result = []
    for name in {method.removesuffix(" registered"): None for _, _, method in keys}:
        begun = time.monotonic()
        mended = np.where(clean.mask, chosen[name].run(job), 0).astype(np.float32)
        mended = np.clip(mended, 0, None)
        seconds = time.monotonic() - begun
        figures: dict[str, float] = {}
        if (image, cell, name) in keys:
            structure = structure or Structure(clean.data, clean.mask, RANGE)
            figures = measure(mended, clean, structure)
            figures |= tissue_agreement(segment(mended, clean.mask), clean_classes, clean.mask)
            figures["seconds"] = seconds
            _keep_slice(settings.out, image, cell, name, mended)
            key = keys[image, cell, name]
            result += [Row(image, cell, name, key, m, v) for m, v in figures.items()]
        registered = f"{name} registered"
        if (image, cell, registered) in keys:
            key = keys[image, cell, registered]
            begun = time.monotonic()
            value = registration_figure(settings, image, mended, clean_classes, clean)
            result.append(Row(image, cell, registered, key, "registration_dice", value))
            result.append(Row(image, cell, registered, key, "seconds", time.monotonic() - begun))
    return result


def measure(mended: Array, clean: CleanImage, structure: Structure) -> dict[str, float]:
    """The measures that need the truth, inside the brain, for a range of 1000 template units."""
    ssim, ms_ssim = structure.ssim_and_ms_ssim(mended)
    return {
        "mse": mse(mended, clean.data, clean.mask),
        "psnr": psnr(mended, clean.data, clean.mask, RANGE),
        "ssim": ssim,
        "ms_ssim": ms_ssim,
        "uqi": structure.uqi(mended),
        "vif": structure.vif(mended),
    }


def tissue_agreement(
    found: NDArray[np.uint8], truth: NDArray[np.uint8], mask: NDArray[np.bool_]
) -> dict[str, float]:
    """Dice of the three classes (dark to bright) and their mean, and relative changes of volume."""
    figures = {}
    overlaps = []
    for number, name in ((1, "dark"), (2, "middle"), (3, "bright")):
        a, b = found[mask] == number, truth[mask] == number
        overlaps.append(dice(a, b))
        figures[f"dice_{name}"] = overlaps[-1]
        figures[f"volume_{name}"] = int(a.sum()) / int(b.sum()) - 1 if b.any() else math.nan
    figures["dice"] = float(np.mean(overlaps))
    return figures


def registration_figure(
    settings: Settings,
    image: str,
    mended: Array,
    classes: NDArray[np.uint8],
    clean: CleanImage,
) -> float:
    """Dice of the classes after registering an image to its clean partner.

    Exact labels where both are painted, else the segmenter's of the clean images.
    """
    name = subject_name(image)
    fixed, fixed_labels = _partner(settings, name)
    own = clean.labels if SUBJECTS[name].painted else classes
    return registration.registered_dice(mended, own, fixed, fixed_labels, clean.spacing)


def _partner(settings: Settings, image: str) -> tuple[Array, NDArray[np.uint8]]:
    """The clean partner of an image and its labels, from the cache or made now."""
    partner = PARTNERS[image]
    target = settings.out / CACHE / f"partner-of-{image}_{_partner_content(settings, image)}.npz"
    if not target.exists():
        if isinstance(partner, str):
            clean = load_case(settings.data, partner).clean
            labels = clean.labels
        else:
            clean = prepare(settings.data / partner[0], partner[1], "T1w", with_labels=False)
            labels = segment(clean.data, clean.mask)

        def fill(path: Path) -> None:
            with path.open("wb") as stream:
                np.savez(stream, data=clean.data, labels=labels)

        write_whole(target, fill)
    with np.load(target) as archive:
        return archive["data"], archive["labels"]


def _partner_content(settings: Settings, image: str) -> str:
    """A few digits for the content of the file that an image's partner is made from."""
    partner = PARTNERS[image]
    name = SUBJECTS[partner].path if isinstance(partner, str) else partner[0]
    return _digest(settings.data / name)


def _digest(path: Path) -> str:
    """Eight digits for a file's content; none for one that is absent, which its unit will say."""
    return sha256(path)[:8] if path.is_file() else ""


def do_scanners(
    settings: Settings, image: str, keys: dict[tuple[str, str, str], str]
) -> list[Row]:
    """Histogram distances of an image's synthetic scanners, before and after."""
    begun = time.monotonic()
    clean = cached_case(settings.out, image)[0].clean
    ((name, key),) = keys.items()

    def mend(matched_image: Array) -> Array:
        return settings.enhance(matched_image, clean.mask).image

    result = [
        Row(*name, key, f"histogram_{stage}_{pair}", value)
        for pair, stage, value in distances(clean, mend)
    ]
    return [*result, Row(*name, key, "seconds", time.monotonic() - begun)]


def do_contrast(
    settings: Settings,
    path: str,
    group: str,
    contrast: str,
    keys: dict[tuple[str, str, str], str],
) -> list[Row]:
    """Tissue contrast of one real image as it is, before and after the network.

    ``tct_*`` with the network's labels, as the application reports it; ``tct_classes_*`` with the
    labels of :mod:`bmex_bids.evaluation.segmentation` on the image before, which the network has no
    part in (its two brighter classes for T1w, its two darker ones for T2w).
    """
    begun = time.monotonic()
    image = prepare(settings.data / path, group, contrast, with_labels=False)
    result = settings.enhance(image.data, image.mask)
    classes = segment(image.data, image.mask)
    independent = classes if contrast == "T1w" else np.where(classes > 0, classes + 1, 0)
    figures = {
        "tct_before": tct(image.data, result.labels),
        "tct_after": tct(result.image, result.labels),
        "tct_classes_before": tct(image.data, independent),
        "tct_classes_after": tct(result.image, independent),
        "seconds": time.monotonic() - begun,
    }
    ((name, key),) = keys.items()
    return [Row(*name, key, metric, value) for metric, value in figures.items()]


# ---------------------------------------------------------------- pictures' raw material
def _keep_slice(out: Path, image: str, cell: str, method: str, volume: Array) -> None:
    """The middle axial slice, for the figures; the latest run's."""
    target = slice_file(out, image, cell, method)
    target.parent.mkdir(parents=True, exist_ok=True)

    def fill(path: Path) -> None:
        with path.open("wb") as stream:
            np.save(stream, volume[:, :, int(volume.shape[2] * 0.55)])

    write_whole(target, fill)


def slice_file(out: Path, image: str, cell: str, method: str) -> Path:
    """Where the axial slice of a result lies."""
    return out / "slices" / f"{_place(image, cell)}_{method}.npy"


def _place(image: str, cell: str) -> str:
    """An image and a cell as a part of a file's name."""
    return f"{image}_{cell}".replace(" ", "-").replace("%", "pc")


__all__: Sequence[str] = ["Settings", "plan", "run", "slice_file"]

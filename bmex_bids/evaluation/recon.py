# SPDX-License-Identifier: Apache-2.0
"""Reconstructions of unseen painted slices, and of a real one, by each method.

All methods get the same data and the same coil maps, estimated from those data.
"""

from __future__ import annotations

import csv
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import scipy.ndimage
from numpy.typing import NDArray

from bmex_bids.metrics.reference import psnr, ssim
from bmex_bids.recon.classical import METHODS, root_sum_of_squares
from bmex_bids.recon.coils import Complex, estimated
from bmex_bids.recon.operators import CENTRE_SHARES, line_mask
from bmex_bids.recon.reconstruct import slice_by_network
from bmex_bids.recon.unrolled import Cascade
from bmex_bids.training.images import VALIDATION_MAPS
from bmex_bids.training.recon_slices import HeadSlices, load_all, measure, paint

Array = NDArray[np.float32]
Mask = NDArray[np.bool_]
Say = Callable[[str], None]

#: weights of the penalties that are tried; the best one on :data:`TUNING` other slices is taken
GRID: Mapping[str, tuple[float, ...]] = {
    "zero-filled": (0.0,),
    "sense": (0.003, 0.01, 0.03, 0.1),
    "wavelet": (0.001, 0.003, 0.01, 0.03),
}
TUNING, SEED = 4, 2026
#: voxels around a lesion that its box takes in
MARGIN = 2
#: a real slice of eight coils, in the folder of data
REAL, REAL_MASKS = "kspace/sigpy_brain_8coils_ksp.npy", 5
#: of the maximum: what is brighter is head
HEAD_SHARE = 0.12


@dataclass(frozen=True)
class Row:
    """Figures of one slice by one method; NaN where there is none."""

    image: str
    acceleration: int
    method: str
    psnr: float
    ssim: float
    lesion_psnr: float = np.nan
    lesion: float = np.nan  # whether there is one
    score: float = np.nan
    peak_inside: float = np.nan  # whether the activation peaks in a lesion's box
    chance: float = np.nan  # share of the head in the boxes

    @property
    def key(self) -> tuple[str, int, str]:
        """What no other row has."""
        return self.image, self.acceleration, self.method


@dataclass(frozen=True)
class Case:
    """A slice to reconstruct.

    Attributes
    ----------
    kspace, mask : (R, H, W), and the lines (W,) that were measured
    truth : (H, W), what the image should be
    judged : (H, W), where PSNR and SSIM are taken
    lesions : (H, W)
    """

    name: str
    acceleration: int
    kspace: Complex
    mask: Mask
    truth: Array
    judged: Mask
    lesions: Mask


def cases(heads: Sequence[HeadSlices], slices: int, seed: int) -> Iterator[Case]:
    """Painted slices, equally many of each map, each at every acceleration."""
    for number, acceleration in itertools.product(range(slices), CENTRE_SHARES):
        rng = np.random.default_rng([seed, number])
        painted = paint(heads[number % len(heads)], rng)
        measured = measure(painted.magnitude, acceleration, rng)
        yield Case(
            f"painted-{number:03d}", acceleration, measured.kspace, measured.mask,
            painted.magnitude, np.ones(painted.lesions.shape, dtype=bool), painted.lesions,
        )  # fmt: skip


def real_cases(data: Path) -> Iterator[Case]:
    """The real slice under several masks; the truth is its full sampling, in the head alone.

    Outside, the truth is noise, which a root sum of squares makes a floor.
    """
    path = data / REAL
    if not path.exists():
        return
    kspace = np.load(path).astype(np.complex64)
    truth = root_sum_of_squares(kspace)
    head = scipy.ndimage.binary_fill_holes(truth > HEAD_SHARE * truth.max())
    for number, acceleration in itertools.product(range(REAL_MASKS), CENTRE_SHARES):
        rng = np.random.default_rng([SEED, number])
        mask = line_mask(kspace.shape[-1], acceleration, CENTRE_SHARES[acceleration], rng)
        yield Case(
            f"real-{number}", acceleration, kspace * mask, mask, truth, head,
            np.zeros(truth.shape, dtype=bool),
        )  # fmt: skip


def boxes(lesions: Mask) -> Mask:
    """Boxes about the lesions, with a margin."""
    found = np.zeros_like(lesions)
    for rows, columns in scipy.ndimage.find_objects(scipy.ndimage.label(lesions)[0]):
        found[
            max(rows.start - MARGIN, 0) : rows.stop + MARGIN,
            max(columns.start - MARGIN, 0) : columns.stop + MARGIN,
        ] = True
    return found


def figures(case: Case, image: Array, method: str) -> Row:
    """Figures of a magnitude image."""
    top = float(case.truth.max())
    box = boxes(case.lesions)
    return Row(
        case.name, case.acceleration, method,
        psnr(image, case.truth, case.judged, top), ssim(image, case.truth, case.judged, top),
        psnr(image, case.truth, box, top) if box.any() else np.nan, float(box.any()),
    )  # fmt: skip


def network_row(case: Case, network: Cascade, maps: Complex, method: str) -> Row:
    """Figures of the network's image, of its score and of its attention."""
    oracle = case.lesions if network.attention == "oracle" else None
    image, attention, score = slice_by_network(network, case.kspace, maps, oracle)
    row, box = figures(case, image, method), boxes(case.lesions)
    if network.attention in ("none", "oracle"):  # its classifier is not trained
        return row
    peak = np.unravel_index(int(attention.argmax()), attention.shape)
    inside = float(box[peak]) if box.any() else np.nan
    chance = box[case.truth > 0].mean() if box.any() else np.nan
    return Row(**{**asdict(row), "score": score, "peak_inside": inside, "chance": float(chance)})


def run(
    data: Path, out: Path, networks: Mapping[str, Cascade], slices: int, say: Say
) -> list[Row]:
    """Rows of all slices and methods; those in ``out/recon.tsv`` are not made again."""
    out.mkdir(parents=True, exist_ok=True)
    heads = load_all(data, VALIDATION_MAPS, out / "validation-slices.npz")
    table = out / "recon.tsv"
    rows = read_rows(table)
    done = {row.key for row in rows}
    weights = tuned(heads, out / "weights.tsv", say)
    for case in itertools.chain(real_cases(data), cases(heads, slices, SEED)):
        wanted = [
            name for name in (*METHODS, *networks)
            if (case.name, case.acceleration, name) not in done
        ]  # fmt: skip
        if not wanted:
            continue
        maps, _ = estimated(case.kspace, case.mask)
        new = []
        for name in wanted:
            if name in networks:
                new.append(network_row(case, networks[name], maps, name))
            else:
                weight = weights[name, case.acceleration]
                new.append(figures(case, METHODS[name](case.kspace, maps, weight), name))
        append(table, new)
        rows += new
        words = ", ".join(f"{row.method} {row.psnr:.2f}" for row in new)
        say(f"{case.name} {case.acceleration}×: {words}")
    return rows


def tuned(heads: Sequence[HeadSlices], keep: Path, say: Say) -> dict[tuple[str, int], float]:
    """The weight of :data:`GRID` with the best PSNR, by method and acceleration."""
    if keep.exists():
        with keep.open(newline="") as stream:
            return {(m, int(a)): float(w) for m, a, w in csv.reader(stream, delimiter="\t")}
    sums: dict[tuple[str, int, float], float] = {}
    for case in cases(heads, TUNING, SEED + 1):
        maps, _ = estimated(case.kspace, case.mask)
        for method, grid in GRID.items():
            for weight in grid if len(grid) > 1 else ():
                image = METHODS[method](case.kspace, maps, weight)
                key = method, case.acceleration, weight
                sums[key] = sums.get(key, 0.0) + figures(case, image, method).psnr
    best = {("zero-filled", acceleration): 0.0 for acceleration in CENTRE_SHARES}
    for method, acceleration in itertools.product(("sense", "wavelet"), CENTRE_SHARES):
        best[method, acceleration] = max(
            GRID[method], key=lambda weight: sums[method, acceleration, weight]
        )
        say(f"{method} {acceleration}×: best weight {best[method, acceleration]:g}")
    with keep.open("w", newline="") as stream:
        writer = csv.writer(stream, delimiter="\t")
        writer.writerows((m, a, w) for (m, a), w in best.items())
    return best


def append(path: Path, rows: Sequence[Row]) -> None:
    """Add rows to a table."""
    new = not path.exists()
    with path.open("a", newline="") as stream:
        writer = csv.DictWriter(stream, [item.name for item in fields(Row)], delimiter="\t")
        if new:
            writer.writeheader()
        writer.writerows(asdict(row) for row in rows)


def read_rows(path: Path) -> list[Row]:
    """The rows of a table; none where there is no table."""
    if not path.exists():
        return []
    with path.open(newline="") as stream:
        return [
            Row(
                entry["image"], int(entry["acceleration"]), entry["method"],
                *(float(entry[item.name]) for item in fields(Row)[3:]),
            )
            for entry in csv.DictReader(stream, delimiter="\t")
        ]  # fmt: skip


def markdown(rows: Sequence[Row]) -> str:
    """Means by acceleration and method: painted slices, then the real one."""
    lines = [
        "| slices | | method | PSNR, dB | SSIM | PSNR in lesions, dB | AUC | peak in a lesion |",
        "|---|--:|---|--:|--:|--:|--:|--:|",
    ]
    for kind, acceleration in itertools.product(("painted", "real"), CENTRE_SHARES):
        chosen = [
            row for row in rows
            if row.image.startswith(kind) and row.acceleration == acceleration
        ]  # fmt: skip
        for method in dict.fromkeys(row.method for row in chosen):
            of = [row for row in chosen if row.method == method]
            cells = [
                f"{len(of)} {kind}", f"{acceleration}×", method, _mean(of, "psnr", 2),
                _mean(of, "ssim", 3), _mean(of, "lesion_psnr", 2), _auc(of), _peak(of),
            ]  # fmt: skip
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _mean(rows: Sequence[Row], name: str, digits: int) -> str:
    values = np.array([getattr(row, name) for row in rows])
    known = values[~np.isnan(values)]
    return f"{known.mean():.{digits}f}" if known.size else "–"


def _auc(rows: Sequence[Row]) -> str:
    ill = np.array([row.score for row in rows if row.lesion == 1 and not np.isnan(row.score)])
    well = np.array([row.score for row in rows if row.lesion == 0 and not np.isnan(row.score)])
    if not (ill.size and well.size):
        return "–"
    wins = (ill[:, None] > well).mean() + 0.5 * (ill[:, None] == well).mean()
    return f"{wins:.2f}"


def _peak(rows: Sequence[Row]) -> str:
    inside = _mean(rows, "peak_inside", 2)
    return inside if inside == "–" else f"{inside} (chance {_mean(rows, 'chance', 3)})"

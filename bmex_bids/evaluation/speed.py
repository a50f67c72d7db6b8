# SPDX-License-Identifier: Apache-2.0
"""How fast the network is on this machine, and how near to what the machine can do.

* The network over one synthetic brain, beside plain torch in bfloat16 and ``torch.compile``; the
  time of the reference geometry is that of a few patches times their number.
* Their agreement on a real brain, with weights that were trained.
* The bias correction on a shrunk grid against the full one.

Times depend on what else the machine does.  Weights of the published shape are random numbers
here, which changes no time.
"""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from bmex_bids.exceptions import UsageError
from bmex_bids.imaging.intensity import n4
from bmex_bids.metrics.reference import psnr
from bmex_bids.network.inference.passes import CROP, PADDING, PATCH
from bmex_bids.network.inference.predict import Enhancement, enhance
from bmex_bids.network.inference.tiling import reference_grid
from bmex_bids.network.inference.volumes import brain_box
from bmex_bids.network.weights.registry import WeightRecord, unregistered
from bmex_bids.training.images import VALIDATION_IMAGES, prepare

BRAIN = (160, 192, 160)  # voxels of 0.8 mm
SPACING_MM = 0.8
RANGE = 1000.0  # template units
MATRIX = 2048
MATRIX_S = 1.0  # as long as that matrices are multiplied, that the rate is one that lasts
COMPILERS = ("g++", "clang++", "c++")
Result = TypeVar("Result")
Array = NDArray[np.float32]
Mask = NDArray[np.bool_]
#: ``time.perf_counter``, or ``time.process_time`` where others use the machine too
Clock = Callable[[], float]


@dataclass(frozen=True)
class MatrixRate:
    """Matrix products, 10^9 operations a second: what lasts, and the best single product of milliseconds."""

    lasting: float
    best: float


@dataclass(frozen=True)
class Machine:
    """What the figures were measured on.

    Attributes
    ----------
    gflops : rate of float32 matrix products
    gflops_bf16 : the same in bfloat16 where the processor has it in hardware, else None
    """

    processor: str
    threads: int
    memory_gb: float
    torch: str
    gflops: MatrixRate
    gflops_bf16: MatrixRate | None


def machine(threads: int, clock: Clock = time.perf_counter) -> Machine:
    """Look at this machine, and multiply matrices on it."""
    import torch

    from bmex_bids.network.devices import native_dtype

    torch.set_num_threads(threads)
    native = native_dtype(torch.device("cpu")) == torch.bfloat16
    return Machine(
        processor=_processor(),
        threads=threads,
        memory_gb=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30,
        torch=torch.__version__,
        gflops=matrix_rate(torch.float32, clock),
        gflops_bf16=matrix_rate(torch.bfloat16, clock) if native else None,
    )


def matrix_rate(
    dtype: object,
    clock: Clock = time.perf_counter,
    size: int = MATRIX,
    seconds: float = MATRIX_S,
) -> MatrixRate:
    """Multiply matrices for a while, after once for nothing; the median product and the fastest."""
    import torch

    a = torch.ones((size, size)).to(dtype)  # type: ignore[call-overload]
    a @ a
    times: list[float] = []
    while sum(times) < seconds:
        begun = clock()
        a @ a
        times.append(clock() - begun)
    operations = 2 * size**3 / 1e9
    return MatrixRate(float(operations / np.median(times)), float(operations / min(times)))


def _processor() -> str:
    for line in _lines(Path("/proc/cpuinfo")):
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


# ------------------------------------------------------------------ what is measured
def synthetic_brain(shape: tuple[int, int, int] = BRAIN) -> tuple[Array, Mask]:
    """An ellipsoid that fills a box, with shells of tissue and noise, template units; its mask."""
    axes = [(np.arange(n) - (n - 1) / 2) / (n / 2) for n in shape]
    x, y, z = np.meshgrid(*axes, indexing="ij", sparse=True)
    radius = np.sqrt(x**2 + y**2 + z**2)
    levels = np.select([radius < 0.3, radius < 0.8], [200.0, 750.0], 480.0)
    noise = np.random.default_rng(0).normal(0.0, 30.0, shape)
    mask = radius < 1
    return np.where(mask, np.clip(levels + noise, 1, None), 0).astype(np.float32), mask


def published_shape(width: int, folder: Path) -> WeightRecord:
    """Random weights in a file of the published names and shapes; same numbers each time."""
    import torch
    from safetensors.torch import save_file

    from bmex_bids.network.models.bmex import BMEX

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(width)
        network = BMEX(width)
    state = {published_name(name): value for name, value in network.state_dict().items()}
    path = folder / f"random-{width}.safetensors"
    save_file(state, str(path))
    return unregistered(path, "bmex-pytorch", f"random, w = {width}")


def published_name(name: str) -> str:
    """The inverse of ``bmex.from_published``.

    >>> published_name("recon.conv4_1.weight"), published_name("tissue.bn2.running_var")
    ('conv4_1_recon.weight', 'bn2.running_var')
    """
    network, _, rest = name.partition(".")
    layer, _, kind = rest.rpartition(".")
    return {"tissue": rest, "recon": f"{layer}_recon.{kind}"}.get(network, name)


def patch_count(mask: Mask) -> int:
    """Patches of the reference geometry over a brain."""
    a, b, c = (max(s.stop - s.start + 2 * PADDING, PATCH) for s in brain_box(mask, 0))
    return sum(1 for _ in reference_grid((a, b, c)))


@dataclass(frozen=True)
class NetworkRow:
    """One network over the synthetic brain.

    Attributes
    ----------
    reference_s : time of the reference geometry, ``patches_timed`` of ``patches`` measured
    first_s, fast_s : of two passes of the fast geometry, one behind the other: the first one, which is
        given its memory by the system, and the second
    fast_peak_gb : the process's, Python and torch included
    rate : of matrix products in that precision, just before or just after: the higher one
    tflop : operations of the convolutions over what was computed; 0 where they are not counted
    memory_mb : what it was told to keep to, or None
    """

    weights: str
    patches: int
    patches_timed: int
    reference_s: float
    first_s: float
    fast_s: float
    fast_peak_gb: float
    rate: MatrixRate
    tflop: float
    precision: str
    memory_mb: float | None = None


@dataclass(frozen=True)
class PlainRow:
    """The network's own forward pass in bfloat16 over the brain's whole box, as torch computes it.

    Attributes
    ----------
    name : how it was run
    seconds : of a pass, after a first one
    compile_s : what ``torch.compile`` took on top of that in the first one; None without it
    """

    name: str
    seconds: float
    compile_s: float | None = None


def plain_rows(
    record: WeightRecord,
    data: Array,
    mask: Mask,
    *,
    threads: int,
    clock: Clock = time.perf_counter,
) -> Iterator[PlainRow]:
    """Time what a user would run instead: plain torch, and ``torch.compile`` where a C++ compiler is."""
    import torch

    from bmex_bids.network.inference.volumes import fed
    from bmex_bids.network.models.compact import whose_turn
    from bmex_bids.network.weights.checkpoints import load_network

    torch.set_num_threads(threads)
    network = whose_turn(load_network(record.path, record.variant), 0).to(torch.bfloat16)
    network = network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    x = torch.from_numpy(fed(data, mask).brain)[None, None].to(torch.bfloat16)

    def passes(forward: Callable[..., Any]) -> list[float]:
        with torch.inference_mode():
            return [_timed(lambda: forward(x), clock)[0] for _ in range(2)]

    yield PlainRow("plain bfloat16, whole box", passes(network)[1])
    if any(shutil.which(name) for name in COMPILERS):
        first, second = passes(torch.compile(network))
        yield PlainRow("torch.compile, bfloat16", second, max(first - second, 0.0))


def _one_pass(
    data: Array, mask: Mask, record: WeightRecord, threads: int, **how: Any
) -> Enhancement:
    """The network on the processor, over the brain alone: mirror images would only repeat it."""
    return enhance(data, mask, record, device="cpu", threads=threads, mirroring=False, **how)


def network_row(
    record: WeightRecord,
    data: Array,
    mask: Mask,
    *,
    threads: int,
    patches: int,
    memory_mb: float | None = None,
    clock: Clock = time.perf_counter,
) -> NetworkRow:
    """Time a pass of both geometries, after another one; ``patches`` of the reference, at least one."""
    import torch

    total, timed = patch_count(mask), max(patches, 1)
    each = time_patches(record, timed, threads, clock)
    kind = getattr(torch, _one_pass(*synthetic_brain((8, 8, 8)), record, threads).precision)
    before = matrix_rate(kind, clock)
    with peak_memory() as peak:
        result = enhance(
            data, mask, record, device="cpu", threads=threads, memory_mb=memory_mb,
            mirroring=("x",), clock=clock,  # two passes
        )  # fmt: skip
    after = matrix_rate(kind, clock)
    first, second = result.passes
    return NetworkRow(
        weights=record.name,
        patches=total,
        patches_timed=timed,
        reference_s=each * total,
        first_s=first,
        fast_s=second,
        fast_peak_gb=peak() / 2**30,
        # not the mean: once the machine was busy with something else in one of them
        rate=MatrixRate(max(before.lasting, after.lasting), max(before.best, after.best)),
        tflop=result.operations / 1e12 / 2,
        precision=result.precision,
        memory_mb=memory_mb,
    )


def time_patches(
    record: WeightRecord, count: int, threads: int, clock: Clock = time.perf_counter
) -> float:
    """Seconds that the reference takes for a patch: the mean of ``count``, after one more."""
    data, mask = synthetic_brain((PATCH - 2 * CROP,) * 3)
    seconds = []
    for _ in range(count + 1):
        begun = clock()
        _one_pass(data, mask, record, threads, geometry="reference")
        seconds.append(clock() - begun)
    return float(np.mean(seconds[1:]))


@dataclass(frozen=True)
class Agreement:
    """Fast against reference on a brain, with trained weights; dB inside the mask."""

    image: str
    psnr_db: float
    reference_s: float
    fast_s: float
    same_labels: float


def agreement(
    data: Array,
    mask: Mask,
    record: WeightRecord,
    name: str,
    *,
    threads: int,
    clock: Clock = time.perf_counter,
) -> Agreement:
    """Run both geometries and compare."""
    fast_s, fast = _timed(lambda: _one_pass(data, mask, record, threads), clock)
    slow_s, slow = _timed(
        lambda: _one_pass(data, mask, record, threads, geometry="reference"), clock
    )
    return Agreement(
        image=name,
        psnr_db=psnr(fast.image, slow.image, mask, RANGE),
        reference_s=slow_s,
        fast_s=fast_s,
        same_labels=float((fast.labels == slow.labels)[mask].mean()),
    )


def real_brain(data_dir: Path) -> tuple[Array, Mask, str]:
    """The first of the validation images, as the app prepares it."""
    name, group, contrast = VALIDATION_IMAGES[0]
    if not (data_dir / name).exists():
        raise UsageError(
            f"expected the validation data at {data_dir / name}, found none; give its folder with "
            "--data"
        )
    clean = prepare(data_dir / name, group, contrast, with_labels=False)
    return clean.data, clean.mask, clean.name


@dataclass(frozen=True)
class BiasRow:
    """N4 on a shrunk grid against the full one."""

    shrunk_s: float
    full_s: float
    ratio_sd: float  # standard deviation of the fields' ratio inside the mask

    @property
    def ratio(self) -> float:
        """How many times faster."""
        return self.full_s / self.shrunk_s


def bias_row(shape: tuple[int, int, int] = BRAIN, clock: Clock = time.perf_counter) -> BiasRow:
    """Correct a smooth field on both grids."""
    data, mask = synthetic_brain(shape)
    axes = [np.linspace(-1, 1, n) for n in shape]
    x, y, z = np.meshgrid(*axes, indexing="ij", sparse=True)
    field = np.exp(0.25 * x - 0.15 * y * z + 0.1 * z**2)
    affine = np.diag([SPACING_MM] * 3 + [1.0])
    image = nib.Nifti1Image((data * field).astype(np.float32), affine)
    inside = nib.Nifti1Image(mask.astype(np.uint8), affine)
    shrunk_s, shrunk = _timed(lambda: n4(image, inside)[1], clock)
    full_s, full = _timed(lambda: n4(image, inside, shrink_mm=SPACING_MM)[1], clock)
    quotient = np.asarray(shrunk.dataobj)[mask] / np.asarray(full.dataobj)[mask]
    return BiasRow(shrunk_s, full_s, float(quotient.std() / quotient.mean()))


def _timed(work: Callable[[], Result], clock: Clock) -> tuple[float, Result]:
    begun = clock()
    result = work()
    return clock() - begun, result


# ------------------------------------------------------------------ memory
@contextmanager
def peak_memory() -> Iterator[Callable[[], int]]:
    """A function that says the most this process has held since then, in bytes (Linux).

    Where the kernel does not let the mark be taken back, it is that of the whole process.
    """
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        pass
    yield _high_water


def _high_water() -> int:
    for line in _lines(Path("/proc/self/status")):
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


@contextmanager
def random_weights(width: int) -> Iterator[WeightRecord]:
    """Weights of :func:`published_shape` in a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        yield published_shape(width, Path(folder))

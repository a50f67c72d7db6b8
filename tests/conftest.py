# SPDX-License-Identifier: Apache-2.0
"""Fixtures every test may ask for.

========================  ====================================================================
``shared_data``           folder of real images beside the checkout; skips where it is absent
``make_image``            ``make_image("LAS", (8, 9, 10), "int16")``: an image in any orientation
``head_phantom``          ``head_phantom()``: a head of ellipsoids with known mask and tissues
``brain``                 ``brain("LAS", oblique=10)``: a small stripped brain, as a scanner stores it
``tiny_records``          weights of a network so small that a brain takes a second
``coarse_grid``           the app works on a grid of 1.6 mm: an eighth of the voxels
``bids_skeleton``         ``bids_skeleton({...})``: a BIDS dataset from a dict
========================  ====================================================================
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform
from numpy.typing import NDArray

# Compiled modules are kept, whatever the environment says: each program that a test starts would
# compile torch and nipype anew, which takes longer than most tests.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
# Before anything imports torch or ITK: tests are small, threads only get in each other's way, most of
# all beside another process of tests.
_threads = "1" if "PYTEST_XDIST_WORKER" in os.environ else "2"
for _variable in ("OMP_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"):
    os.environ.setdefault(_variable, _threads)
# Nipype and its friends never ask the network from a test, and plots never ask for a screen.
os.environ.setdefault("NO_ET", "1")
os.environ.setdefault("NIPYPE_NO_ET", "1")
os.environ.setdefault("MPLBACKEND", "Agg")


@pytest.fixture(autouse=True)
def _levels_of_loggers() -> Iterator[None]:
    """A test that starts the app leaves the next one the loggers as they were."""
    loggers = [logging.getLogger(name) for name in ("bmex_bids", "nibabel.global")]
    levels = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real images, ``../shared/data``; the test is skipped where it is absent."""
    root = Path(__file__).resolve().parents[1]
    candidates = [root.parent / "shared" / "data", root / "shared" / "data"]
    for folder in candidates:
        if (folder / "README.md").is_file():
            return folder
    pytest.skip("the real images of ../shared/data are not on this machine")


@pytest.fixture
def make_image(tmp_path: Path) -> Callable[..., nib.Nifti1Image]:
    """A function that makes a small image in a given orientation.

    ``make_image(orientation="RAS", shape=(8, 9, 10), dtype="float32", *, spacing=(1, 1, 1),
    oblique=0.0, origin=(-3, -4, -5), data=None, path=None)``

    orientation : nibabel axis codes of the stored array, such as "LPS" or "PIR"
    shape : of the stored array
    spacing : in mm, along the stored axes
    oblique : degrees by which the grid is turned about the left-right *and* the head-foot axis
    origin : world position of the array's first corner before the rotation, in mm
    data : the voxels; without it, whole numbers 0, 1, 2 ... modulo 1000, so that no flip or
        transposition leaves them unchanged
    path : where to save; without it, the image stays in memory
    """

    def make(
        orientation: str = "RAS",
        shape: Sequence[int] = (8, 9, 10),
        dtype: Any = "float32",
        *,
        spacing: Sequence[float] = (1.0, 1.0, 1.0),
        oblique: float = 0.0,
        origin: Sequence[float] = (-3.0, -4.0, -5.0),
        data: NDArray[Any] | None = None,
        path: str | Path | None = None,
    ) -> nib.Nifti1Image:
        if data is None:
            data = np.arange(int(np.prod(shape))).reshape(tuple(shape)) % 1000
        affine = _oriented_affine(orientation, data.shape[:3], spacing, origin)
        affine = _rotation(oblique) @ affine
        image = nib.Nifti1Image(np.asarray(data).astype(dtype), affine)
        image.header.set_xyzt_units("mm", "sec")
        image.set_qform(affine, code=1)
        image.set_sform(affine, code=1)
        if path is not None:
            target = Path(path) if Path(path).is_absolute() else tmp_path / path
            target.parent.mkdir(parents=True, exist_ok=True)
            nib.save(image, target)
            image = nib.load(target)
        return image

    return make


def _oriented_affine(
    orientation: str, shape: Sequence[int], spacing: Sequence[float], origin: Sequence[float]
) -> NDArray[np.float64]:
    """Affine of an array stored in ``orientation`` whose voxels keep their place in the world."""
    change = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(tuple(orientation)))
    # axis k of the stored array is world axis order[k]
    order = [int(np.flatnonzero(change[:, 0] == axis)[0]) for axis in range(3)]
    world_shape = [0, 0, 0]
    world_spacing = [0.0, 0.0, 0.0]
    for stored, world in enumerate(order):
        world_shape[world] = int(shape[stored])
        world_spacing[world] = float(spacing[stored])
    ras = np.diag([*world_spacing, 1.0])
    ras[:3, 3] = origin
    return ras @ inv_ornt_aff(change, world_shape)


def _rotation(degrees: float) -> NDArray[np.float64]:
    cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    about_x = np.array([[1, 0, 0, 0], [0, cos, -sin, 0], [0, sin, cos, 0], [0, 0, 0, 1]])
    about_z = np.array([[cos, -sin, 0, 0], [sin, cos, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    return about_x @ about_z


@dataclass(frozen=True)
class HeadPhantom:
    """A head of nested ellipsoids, LPS+, with all that a test needs to know of it.

    image : whole head, float32, about 0...1000
    brain : the same with everything outside the mask set to 0
    mask : bool array; tissues : uint8 array, 0 background, 1 CSF, 2 GM, 3 WM (inside the mask)
    """

    image: nib.Nifti1Image
    brain: nib.Nifti1Image
    mask: NDArray[np.bool_]
    tissues: NDArray[np.uint8]

    @property
    def litres(self) -> float:
        """Volume of the mask."""
        return float(self.mask.sum() * np.prod(self.image.header.get_zooms()[:3]) / 1e6)


@pytest.fixture
def head_phantom() -> Callable[..., HeadPhantom]:
    """A function that makes a head: ``head_phantom(spacing=4.0, size=1.0, noise=5.0, seed=0)``.

    ``size`` scales the head; at 1 its brain holds about 1.3 litres.  ``noise`` is the standard
    deviation of the noise in intensity units.
    """

    def make(
        spacing: float = 4.0, size: float = 1.0, noise: float = 5.0, seed: int = 0
    ) -> HeadPhantom:
        half = np.array([90.0, 110.0, 100.0]) * size  # field of view, mm
        shape = tuple(int(n) for n in np.ceil(2 * half / spacing))
        axes = [(np.arange(n, dtype=np.float64) - (n - 1) / 2) * spacing / size for n in shape]
        x, y, z = np.meshgrid(*axes, indexing="ij", sparse=True)

        def ellipsoid(a: float, b: float, c: float) -> NDArray[np.bool_]:
            return (x / a) ** 2 + (y / b) ** 2 + (z / c) ** 2 <= 1

        scalp, skull = ellipsoid(84, 102, 92), ellipsoid(76, 94, 84)
        mask = ellipsoid(60, 76, 68)  # 4/3 pi a b c = 1.30 litres
        tissues = np.zeros(shape, np.uint8)
        tissues[mask] = 1
        tissues[ellipsoid(57, 73, 65)] = 2
        tissues[ellipsoid(46, 62, 54)] = 3
        tissues[ellipsoid(8, 18, 10)] = 1  # the ventricles

        values = np.zeros(shape, np.float64)
        values[scalp] = 850.0
        values[skull] = 60.0
        values[ellipsoid(63, 79, 71)] = 150.0  # fluid around the brain
        for label, level in ((1, 180.0), (2, 480.0), (3, 720.0)):
            values[tissues == label] = level
        values += np.random.default_rng(seed).normal(0.0, noise, shape)
        values = np.clip(values, 0, None).astype(np.float32)

        affine = np.diag([-spacing, -spacing, spacing, 1.0])
        affine[:3, 3] = [half[0], half[1], -half[2]]
        head = nib.Nifti1Image(values, affine)
        brain = nib.Nifti1Image(np.where(mask, values, 0).astype(np.float32), affine)
        return HeadPhantom(head, brain, mask, tissues)

    return make


@pytest.fixture
def brain(head_phantom: Callable[..., HeadPhantom]) -> Callable[..., nib.Nifti1Image]:
    """A stripped brain of a newborn, 0.21 litres, in any orientation, as a scanner stores it."""

    def make(
        orientation: str = "LPS", oblique: float = 0.0, seed: int = 0, contrast: str = "T1w"
    ) -> nib.Nifti1Image:
        phantom = head_phantom(spacing=2.5, size=0.55, seed=seed)
        values = np.asarray(phantom.brain.dataobj)
        if contrast == "T2w":  # fluid is bright
            values = np.where(phantom.mask, 1000 - 0.6 * values, 0)
        image = nib.Nifti1Image(np.rint(values * 3).astype(np.int16), phantom.image.affine)
        wanted = axcodes2ornt(tuple(orientation))
        image = image.as_reoriented(ornt_transform(io_orientation(image.affine), wanted))
        cos, sin = np.cos(np.deg2rad(oblique)), np.sin(np.deg2rad(oblique))
        turn = np.array([[cos, -sin, 0, 0], [sin, cos, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
        turned = nib.Nifti1Image(np.asarray(image.dataobj), turn @ image.affine)
        turned.set_qform(turned.affine, 1)
        turned.set_sform(turned.affine, 2)
        turned.header.set_xyzt_units("mm", "sec")
        return turned

    return make


@pytest.fixture(scope="session", autouse=True)
def no_published_weights(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Whatever weights the developer has fetched, the tests begin without."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BMEX_WEIGHTS_DIR", str(tmp_path_factory.mktemp("no-weights") / "none"))
        yield


GROUPS = ("fetal", "month0", "month3", "month6", "month9", "month12", "month18", "month24")


@pytest.fixture(scope="module")
def tiny_records(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """Weight records of a network so small that a brain takes a second.

    It is untrained: its last layers are zero, so it returns its input.
    """
    import torch
    from safetensors.torch import save_file

    from bmex_bids.network.models.compact import CompactBMEX
    from bmex_bids.network.weights.registry import WeightRecord

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_file(CompactBMEX(width=4, tissue_width=4).state_dict(), path)
    common = {
        "path": path,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "licence": "Apache-2.0",
        "source": "made by a test",
        "description": "untrained",
        "variant": "bmex-compact",
        "input_units": "template units",
        "version": "0",
    }
    return [
        WeightRecord(
            name="tiny", kind="enhance", age_groups=GROUPS, contrasts=("T1w", "T2w"), **common
        ),
        WeightRecord(name="tiny-strip", kind="strip", age_groups=(), contrasts=(), **common),
    ]


@pytest.fixture(scope="module")
def tiny_slices(tiny_records: list[Any], tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """The same with a network over slices, which gives its input back and expects an error.

    The error that it expects is that of ``VARIANCE_UNIT``, where the brain's mean is ``MEAN``.
    """
    from safetensors.torch import save_file

    from bmex_bids.network.models.slices import SliceUNet

    path = tmp_path_factory.mktemp("weights") / "slices.safetensors"
    save_file(SliceUNet((8, 8, 8)).state_dict(), path)
    digits = hashlib.sha256(path.read_bytes()).hexdigest()
    first, *others = tiny_records
    return [replace(first, path=path, sha256=digits, variant="bmex-slices"), *others]


@pytest.fixture
def coarse_grid(monkeypatch):
    """An eighth of the voxels: what a test looks at is not in the image."""
    monkeypatch.setattr("bmex_bids.inputs.plan.SPACING", (1.6, "0p8"))


@pytest.fixture
def bids_skeleton(
    tmp_path: Path, make_image: Callable[..., nib.Nifti1Image]
) -> Callable[..., Path]:
    """A function that writes a BIDS dataset from a dict and returns its folder.

    ``bids_skeleton(tree, name="bids", description=True)``.  Keys are names of files or folders
    (with slashes if you like), values say what is written:

    ========================================  ==================================================
    a dict under a name ending in ``.json``   JSON
    any other dict                            a folder
    a list of dicts                           a TSV file, columns in order of first appearance
    a list of lists                           a TSV file, first row the header
    a str or bytes                            the file's contents
    an image                                  saved under that name
    ``None`` under ``.nii.gz`` or ``.nii``    a small image
    ========================================  ==================================================

    A ``dataset_description.json`` is added unless the tree has one or ``description`` is false.
    """

    def make(tree: Mapping[str, Any], name: str = "bids", description: bool = True) -> Path:
        root = tmp_path / name
        root.mkdir(parents=True, exist_ok=True)
        if description and "dataset_description.json" not in tree:
            tree = {
                "dataset_description.json": {"Name": "Test", "BIDSVersion": "1.10.0"},
                **tree,
            }
        _write_tree(root, tree, make_image)
        return root

    return make


def _write_tree(
    folder: Path, tree: Mapping[str, Any], make_image: Callable[..., nib.Nifti1Image]
) -> None:
    for name, value in tree.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(value, Mapping) and path.suffix == ".json":
            path.write_text(json.dumps(value, indent=2), encoding="utf-8")
        elif isinstance(value, Mapping):
            path.mkdir(exist_ok=True)
            _write_tree(path, value, make_image)
        elif isinstance(value, list):
            path.write_text(_tsv(value), encoding="utf-8")
        elif isinstance(value, str):
            path.write_text(value, encoding="utf-8")
        elif isinstance(value, bytes):
            path.write_bytes(value)
        elif value is None and name.endswith((".nii", ".nii.gz")):
            make_image("LPS", (8, 9, 10), "int16", path=path)
        elif isinstance(value, nib.spatialimages.SpatialImage):
            nib.save(value, path)
        else:
            raise TypeError(f"do not know how to write {type(value).__name__} as {path.name}")


def _tsv(rows: Sequence[Any]) -> str:
    if rows and isinstance(rows[0], Mapping):
        columns = list(dict.fromkeys(key for row in rows for key in row))
        rows = [columns, *([row.get(column, "n/a") for column in columns] for row in rows)]
    return "".join("\t".join(str(cell) for cell in row) + "\n" for row in rows)

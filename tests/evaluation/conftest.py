# SPDX-License-Identifier: Apache-2.0
"""Small images for the whole app, and painted heads with a stub of it."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from bmex_bids.evaluation import benchmark, subjects
from bmex_bids.evaluation.app import STRUCTURE, Networks, Passed
from bmex_bids.evaluation.benchmark import Settings
from bmex_bids.evaluation.subjects import Subject

#: FreeSurfer numbers of the phantom's tissues, of its ventricles, and of what is outside
FLUID, CORTEX, WHITE, VENTRICLES, OUTSIDE = 24, 3, 2, 4, 258


def label_map(phantom, thicker=0):
    """A head's tissues as a label map of 1 mm; ``thicker`` voxels are added to its ventricles."""
    labels = np.array([0, FLUID, CORTEX, WHITE], np.int32)[phantom.tissues]
    labels[(labels == 0) & (np.asarray(phantom.image.dataobj) > 200)] = OUTSIDE
    middle = tuple(slice(n // 4, n - n // 4) for n in labels.shape)
    labels[middle][labels[middle] == FLUID] = VENTRICLES
    if thicker:
        from scipy.ndimage import binary_dilation

        labels[binary_dilation(labels == VENTRICLES, iterations=thicker)] = VENTRICLES
    return labels


class Here:
    """A pool that works in this process."""

    def __init__(self, jobs):
        self.jobs = jobs

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return False

    def submit(self, function, *arguments):
        from concurrent.futures import Future

        future = Future()
        future.set_result(function(*arguments))
        return future


@pytest.fixture
def pool_here(monkeypatch):
    """Units of a run are done in this process."""
    monkeypatch.setattr(benchmark, "_pool", Here)


@pytest.fixture
def painted(tmp_path, tiny_records, head_phantom, monkeypatch, pool_here):
    """Three painted heads with ventricles of three sizes, and an app of one line."""
    table = {}
    phantom = head_phantom(spacing=1.0, size=0.28)
    for number in range(3):
        labels = nib.Nifti1Image(label_map(phantom, number), np.diag([-1, -1, 1, 1.0]))
        nib.save(labels, tmp_path / f"map{number}.nii.gz")
        name = f"painted-{number}"
        table[name] = Subject(f"map{number}.nii.gz", 300, "painted", 5 + number, "map")
    monkeypatch.setattr(subjects, "PAINTED", table)

    def app(settings, image, clean, data):
        labels = subjects.read_labels(settings.data / subjects.subject_of(image).path)
        mask = np.isin(labels, [FLUID, CORTEX, WHITE, VENTRICLES])
        before = np.where(mask, data, 0).astype(np.float32)
        after = np.where(mask, (data + clean.data) / 2, 0).astype(np.float32)
        size = float((labels == VENTRICLES).sum()) / 1e6
        structures = np.array([("ventricles", size)], STRUCTURE)
        tissues = np.where(mask, 1 + (before > 330) + (before > 490), 0).astype(np.uint8)
        return Passed(
            before, before, after, mask, after, mask, tissues, tissues, clean.affine, structures
        )

    monkeypatch.setattr(benchmark, "pass_through", app)
    by = {record.kind: record for record in tiny_records}
    networks = Networks(by["enhance"], by["strip"], device="cpu")
    from bmex_bids.network.weights import registry

    monkeypatch.setattr(registry, "select", lambda kind, **_: getattr(networks, kind))
    return Settings(tmp_path, tmp_path / "out", networks, images=tuple(table))


@pytest.fixture
def settings(tmp_path, tiny_records, head_phantom, monkeypatch):
    """Two tiny images, a stripped brain and a head, and untrained weights."""
    phantom = head_phantom(spacing=2.0, size=0.28)  # as large as a young fetus
    nib.save(phantom.brain, tmp_path / "brain.nii.gz")
    nib.save(phantom.image, tmp_path / "head.nii.gz")
    two = {
        "one": Subject("brain.nii.gz", 5, "fetus", 1, contrast="T2w"),
        "two": Subject("head.nii.gz", 5, "fetus", 2, "head", "T2w"),
    }
    for module in (benchmark, subjects):
        monkeypatch.setattr(module, "SUBJECTS", two)
    by = {record.kind: record for record in tiny_records}
    return Settings(
        data=tmp_path,
        out=tmp_path / "out",
        networks=Networks(by["enhance"], by.get("strip", by["enhance"]), device="cpu"),
        images=("one",),
        cells=("clean", "noise 2.5%"),
    )

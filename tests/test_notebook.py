# SPDX-License-Identifier: Apache-2.0
"""The notebook of the documentation runs from its first cell to its last."""

from __future__ import annotations

import pickle
from pathlib import Path

import nbformat
import nibabel as nib
import numpy as np
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).resolve().parents[1] / "docs" / "enhance.ipynb"

#: a small brain in the template's place, and a small network
SMALL = """import pickle
from pathlib import Path
import nibabel, nilearn.datasets
from bmex_bids.network.weights import registry
records = pickle.loads(Path("records").read_bytes())
registry.bundled = lambda: records
nilearn.datasets.load_mni152_template = lambda resolution: nibabel.load("brain.nii.gz")"""


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_notebook_runs(tiny_records, brain, tmp_path, monkeypatch):
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    (tmp_path / "records").write_bytes(pickle.dumps(tiny_records))
    values = np.asarray(brain().dataobj, np.float32)
    image = nib.Nifti1Image(values / values.max(), brain().affine)
    nib.save(image, tmp_path / "brain.nii.gz")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (cell,) = (cell for cell in notebook.cells if "30 * 12" in cell.source)
    cell.source = cell.source.replace("30 * 12", "0.5")  # the small brain is a newborn's
    notebook.cells.insert(0, nbformat.v4.new_code_cell(SMALL))
    NotebookClient(notebook, timeout=1000, resources={"metadata": {"path": tmp_path}}).execute()
    shown = [out for cell in notebook.cells for out in cell.get("outputs", ())]
    pages = [out["data"]["text/html"] for out in shown if "text/html" in out.get("data", {})]
    assert any("data:image/png;base64," in page for page in pages)
    texts = [out["data"]["text/plain"] for out in shown if "data" in out]
    assert any("tct_before" in text for text in texts)
    assert any("image_desc-enhanced_T1w.nii.gz" in text for text in texts)


def test_the_notebook_is_stored_without_results():
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    assert [cell.outputs for cell in cells if cell.cell_type == "code" and cell.outputs] == []

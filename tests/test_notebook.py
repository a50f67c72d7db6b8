# SPDX-License-Identifier: Apache-2.0
"""The notebook of the documentation runs from its first cell to its last."""

from __future__ import annotations

import pickle
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).resolve().parents[1] / "docs" / "enhance.ipynb"

TINY = """import pickle
from pathlib import Path
from bmex_bids.network.weights import registry
records = pickle.loads(Path({path!r}).read_bytes())
registry.bundled = lambda: records"""


@pytest.mark.slow
def test_the_notebook_runs(tiny_records, tmp_path, monkeypatch):
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    (tmp_path / "records").write_bytes(pickle.dumps(tiny_records))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    cell = nbformat.v4.new_code_cell(TINY.format(path=str(tmp_path / "records")))
    notebook.cells.insert(0, cell)
    NotebookClient(
        notebook, timeout=240, resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    shown = [out for cell in notebook.cells for out in cell.get("outputs", ())]
    pages = [out["data"]["text/html"] for out in shown if "text/html" in out.get("data", {})]
    assert any("data:image/png;base64," in page for page in pages)
    texts = [out["data"]["text/plain"] for out in shown if "data" in out]
    assert any("tct_before" in text for text in texts)
    assert any("image_desc-enhanced_T1w.nii.gz" in text for text in texts)


def test_the_notebook_is_stored_without_results():
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    assert [cell.outputs for cell in cells if cell.cell_type == "code" and cell.outputs] == []

# SPDX-License-Identifier: Apache-2.0
"""What is given to a package index: built from a checkout, installed without it."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from bmex_bids import __version__

ROOT = Path(__file__).resolve().parents[1]
#: what neither a wheel nor an sdist may bring along
FOREIGN = ("tests/", "docs/", ".git/", ".venv/")


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """Run a program without this environment's paths; its output."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**clean, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The sdist of a checkout, and the wheel that is built from the sdist alone."""
    folder = tmp_path_factory.mktemp("dist")
    source = folder / "source"
    source.mkdir()
    archive = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, capture_output=True, check=True)
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
        tar.extractall(source, filter="data")
    code = f"from setuptools import build_meta as b; b.build_sdist({str(folder)!r})"
    run(sys.executable, "-W", "ignore", "-c", code, cwd=source)
    sdist = folder / f"bmex_bids-{__version__}.tar.gz"
    with tarfile.open(sdist) as tar:
        tar.extractall(folder / "unpacked", filter="data")
    code = code.replace("build_sdist", "build_wheel")
    run(
        sys.executable, "-W", "ignore", "-c", code,
        cwd=folder / "unpacked" / f"bmex_bids-{__version__}",
    )  # fmt: skip
    return sdist, folder / f"bmex_bids-{__version__}-py3-none-any.whl"


@pytest.mark.slow
def test_sdist_and_wheel_hold_the_package_and_nothing_else(built):
    sdist, wheel = built
    with tarfile.open(sdist) as tar:
        packed = {name.partition("/")[2] for name in tar.getnames()}
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    tracked = subprocess.run(
        ["git", "ls-files", "bmex_bids", "boilerplate"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    inside = {
        name.replace("boilerplate/", "bmex_bids/boilerplate/", 1)
        if name.startswith("boilerplate/")
        else name
        for name in tracked
    }
    assert inside <= names
    assert {name for name in names if ".dist-info/" not in name} == inside
    assert set(tracked) <= packed
    assert not [name for name in packed | names if name.startswith(FOREIGN)]
    assert {"LICENSE", "README.md", "setup.cfg", "pyproject.toml"} <= packed


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_wheel_installs_in_a_clean_environment_and_the_demo_runs(built, tmp_path):
    """Needs a package index, as ``pip`` is configured to find it."""
    _, wheel = built
    run(sys.executable, "-m", "venv", tmp_path / "env", cwd=tmp_path)
    python = tmp_path / "env" / "bin" / "python"
    pip = [python, "-m", "pip", "install", "-qq", "--disable-pip-version-check", "--no-compile"]
    run(*pip, "-c", ROOT / "constraints.txt", wheel, cwd=tmp_path)
    where = run(python, "-c", "import bmex_bids; print(bmex_bids.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(tmp_path / "env")
    run(python.with_name("bmex-demo"), tmp_path / "demo", cwd=tmp_path, HOME=str(tmp_path))
    assert list((tmp_path / "demo").rglob("*_desc-enhanced_T1w.nii.gz"))

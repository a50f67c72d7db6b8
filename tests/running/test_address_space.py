# SPDX-License-Identifier: Apache-2.0
"""Limits of address space, in processes of their own: a limit cannot be taken back."""

import subprocess
import sys

import pytest

from bmex_bids.exceptions import EnvironmentProblem
from bmex_bids.running import address_space

GIB = 2**30


def under(size: int, code: str) -> str:
    """What a process prints that limits its address space, then runs a line."""
    lines = f"import resource; resource.setrlimit(resource.RLIMIT_AS, ({size}, {size}))\n{code}"
    done = subprocess.run(
        [sys.executable, "-c", lines], capture_output=True, text=True, timeout=100, check=False
    )
    return done.stdout + done.stderr


def test_without_a_limit_nothing_is_loaded_or_refused(monkeypatch):
    monkeypatch.setattr(address_space, "limit", lambda: None)
    monkeypatch.setattr(address_space, "LIBRARIES", ("no_such_library",))
    address_space.check()
    address_space.load_libraries()


def test_the_least_is_enough_and_a_byte_less_is_not(monkeypatch):
    monkeypatch.setattr(address_space, "limit", lambda: address_space.LEAST)
    address_space.check()
    monkeypatch.setattr(address_space, "limit", lambda: address_space.LEAST - 1)
    with pytest.raises(EnvironmentProblem, match=r"at least 2 GiB of address space.*ulimit -v"):
        address_space.check()


def test_all_libraries_fit_into_the_least():
    code = (
        "from bmex_bids.running import address_space as a, execution\n"
        "a.check(); a.load_libraries()\n"
        "import sys; print(all(name in sys.modules for name in a.LIBRARIES))"
    )
    assert under(address_space.LEAST, code) == "True\n"


def test_a_run_under_a_small_limit_ends_at_once_and_says_why(tmp_path):
    """Found by the campaign: at 85 % of what it needed a run hung in the loading of OpenBLAS."""
    (tmp_path / "bids").mkdir()
    (tmp_path / "bids" / "dataset_description.json").write_text("{}")
    flags = [str(tmp_path / "bids"), str(tmp_path / "out"), "participant"]
    said = under(GIB, f"from bmex_bids.cli.run import main; print(main({flags!r}))")
    assert "got a limit of 1.00 GiB" in said
    assert said.startswith("5\n")
    assert not (tmp_path / "out").exists()


def test_one_image_under_a_small_limit_ends_at_once_and_says_why(tmp_path):
    (tmp_path / "head.nii.gz").write_bytes(b"never read")
    flags = [str(tmp_path / "head.nii.gz"), str(tmp_path / "out.nii.gz"), "--age-months", "18"]
    said = under(GIB, f"from bmex_bids.cli.enhance import main; print(main({flags!r}))")
    assert "got a limit of 1.00 GiB" in said
    assert said.startswith("5\n")

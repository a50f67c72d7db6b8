# SPDX-License-Identifier: Apache-2.0
"""The pages as a site: every page has its place, every link leads somewhere."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]


def named(entry) -> list[str]:
    """The pages of a part of the navigation."""
    if isinstance(entry, str):
        return [entry]
    if isinstance(entry, dict):
        return [page for part in entry.values() for page in named(part)]
    return [page for part in entry for page in named(part)]


def test_the_navigation_has_every_page_once():
    pages = named(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    assert sorted(pages) == sorted(path.name for path in (ROOT / "docs").glob("*.md"))


def build(source: Path, site: Path) -> subprocess.CompletedProcess[str]:
    pytest.importorskip("mkdocs")
    pytest.importorskip("material")
    # the words of `make docs`, up to the folder of the site
    words = re.search(r"/mkdocs (build .*--site-dir) ", (ROOT / "Makefile").read_text())
    assert words
    command = [sys.executable, "-m", "mkdocs", *words[1].split(), str(site)]
    return subprocess.run(
        command,
        cwd=source,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_the_site_is_built_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path):
    done = build(ROOT, tmp_path / "site")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "WARNING" not in done.stderr
    page = (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
    assert (
        re.findall(
            r'<(?:script|img)[^>]* src="(?:https?:)?//[^"]*|<link[^>]*rel="stylesheet"'
            r'[^>]*href="(?:https?:)?//[^"]*',
            page,
        )
        == []
    )
    assert (tmp_path / "site" / "enhance.ipynb").is_file()


@pytest.mark.slow
def test_a_link_that_leads_nowhere_ends_the_build(tmp_path):
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    with (tmp_path / "docs" / "usage.md").open("a", encoding="utf-8") as page:
        page.write("\n[nowhere](nowhere.md)\n")
    done = build(tmp_path, tmp_path / "site")
    assert done.returncode != 0
    assert "nowhere.md" in done.stderr

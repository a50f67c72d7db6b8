# SPDX-License-Identifier: Apache-2.0
"""File systems that refuse what others do: CIFS, exFAT, object stores, eCryptfs."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

KINDS = ("chmod", "links", "utime", "over", "rename")


def refuse(patch: pytest.MonkeyPatch, home: Path, *kinds: str) -> None:
    """From now on, calls of this process below ``home`` are refused.

    Parameters
    ----------
    kinds : ``chmod``; ``links``, hard and symbolic; ``utime``; ``over``, to rename over a file;
        ``rename``, any
    """

    def within(path: object) -> bool:
        return isinstance(path, str | os.PathLike) and Path(path).is_relative_to(home)

    def guard(name: str, which: int = 0, only_over: bool = False) -> None:
        original = getattr(os, name)

        def call(*paths, **more):
            path = paths[which] if which < len(paths) else None
            if within(path) and not (only_over and not os.path.lexists(path)):
                raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), str(path))
            return original(*paths, **more)

        patch.setattr(os, name, call)

    for kind in kinds:
        if kind == "chmod":
            guard("chmod")
        elif kind == "links":
            guard("link", 1)
            guard("symlink", 1)
        elif kind == "utime":
            guard("utime")
        elif kind in ("over", "rename"):
            guard("replace", 1, only_over=kind == "over")
            guard("rename", 1, only_over=kind == "over")

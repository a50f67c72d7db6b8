# SPDX-License-Identifier: Apache-2.0
"""A complete file takes the place of another one, also where the file system cannot do it at once."""

from __future__ import annotations

import contextlib
import errno
import shutil
from pathlib import Path

#: what file systems say that cannot rename over a file, or not at all
REFUSED = {
    errno.EPERM,
    errno.EACCES,
    errno.EEXIST,
    errno.EINVAL,
    errno.ENOSYS,
    errno.EOPNOTSUPP,
    errno.EXDEV,
}


def put_in_place(temporary: Path, target: Path) -> None:
    """Rename a complete file, over the old one if there is one.

    Some file systems refuse to rename over a file (exFAT and CIFS drivers), or to rename at all
    (object stores).  There the old file is removed first, or the new one is copied; a process that
    is killed at this moment leaves no file, or half of one, which its checksum tells.
    """
    try:
        temporary.replace(target)
    except OSError as error:
        if error.errno not in REFUSED or target.is_dir():
            raise
        try:
            _put_stepwise(temporary, target)
        except OSError:
            raise error from None


def _put_stepwise(temporary: Path, target: Path) -> None:
    if not target.exists():
        shutil.copyfile(temporary, target)
        with contextlib.suppress(OSError):
            temporary.unlink()
        return
    # kept aside, so that nothing is lost where the new one cannot take its place
    aside = temporary.with_name(f"{temporary.name}.old")
    try:
        target.rename(aside)
    except OSError:  # no renaming at all
        shutil.copyfile(temporary, target)
        temporary.unlink()
        return
    try:
        temporary.rename(target)
    except OSError:
        aside.rename(target)
        raise
    aside.unlink()

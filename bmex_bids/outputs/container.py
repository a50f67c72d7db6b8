# SPDX-License-Identifier: Apache-2.0
"""Which container image runs this code, as the image itself says through the environment.

The image sets ``BMEX_CONTAINER_TYPE``, ``_TAG``, ``_REVISION`` (of the source) and ``_CREATED``
when it is built; who runs it may add ``BMEX_CONTAINER_URI``.  Outside an image none is set.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from bmex_bids import __version__

#: keys of BIDS (``GeneratedBy.Container``: the first three) and of ours → variable
VARIABLES = {
    "Type": "BMEX_CONTAINER_TYPE",
    "Tag": "BMEX_CONTAINER_TAG",
    "URI": "BMEX_CONTAINER_URI",
    "Revision": "BMEX_CONTAINER_REVISION",
    "Created": "BMEX_CONTAINER_CREATED",
}
#: set by the runtimes that make one file of an image, whatever the image was built with
FILE_RUNTIMES = {"APPTAINER_CONTAINER": "apptainer", "SINGULARITY_CONTAINER": "singularity"}


def container(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """The image's type, tag, source revision and date; empty outside an image.

    >>> container({"BMEX_CONTAINER_TYPE": "docker", "BMEX_CONTAINER_TAG": "bmex_bids:1.0"})
    {'Type': 'docker', 'Tag': 'bmex_bids:1.0'}
    """
    environ = os.environ if environ is None else environ
    found = {key: environ[name] for key, name in VARIABLES.items() if environ.get(name)}
    if "Type" in found:  # else it is somebody else's image with this package in it
        for name, runtime in FILE_RUNTIMES.items():
            if environ.get(name):
                found["Type"] = runtime
                break
    return found


def version_line(program: str, environ: Mapping[str, str] | None = None) -> str:
    """What ``--version`` prints: the package's version, and the image where there is one.

    >>> version_line(
    ...     "bmex", {"BMEX_CONTAINER_TAG": "bmex_bids:1.0", "BMEX_CONTAINER_TYPE": "docker"}
    ... )
    ... # doctest: +ELLIPSIS
    'bmex ... (docker image bmex_bids:1.0)'
    """
    image = container(environ)
    words = [f"{image.get('Type', '')} image {image.get('Tag', '')}".strip()] if image else []
    words += [f"{key.lower()} {image[key]}" for key in ("Revision", "Created") if key in image]
    return f"{program} {__version__}" + (f" ({', '.join(words)})" if words else "")

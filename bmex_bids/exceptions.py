# SPDX-License-Identifier: Apache-2.0
"""Errors of bmex_bids, and the exit code each of them means.

A message says three things: what was expected, what came, and what to do next.

::

    BmexError                 1   something failed
    ├── StepError               a step of the workflow failed; the code of its reason
    ├── UsageError            2   the command line asks for something impossible
    ├── NoInputError          4   the dataset holds no image that can be processed
    ├── EnvironmentProblem    5   the machine, not the data, stands in the way
    │   ├── DeviceError       5     the requested device is not there
    │   ├── WeightsError      5     weights missing, damaged or of another network
    │   ├── TemplateError     5     files of a template are missing
    │   └── OutputError       5     the output cannot be written
    └── ImageProblem          1   one image cannot be processed; the others can
        ├── ImageError        1     unreadable, not 3D, empty, not finite, broken geometry
        ├── MaskError         1     no plausible brain mask
        ├── MemoryLimitError  1     it needs more memory than there is
        └── AgeError          1     no usable age
"""

from __future__ import annotations


class BmexError(Exception):
    """Base class of every error raised on purpose by this package."""

    exit_code = 1


class StepError(BmexError):
    """A step of the workflow failed; the exit code is that of what it raised."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code

    def __reduce__(self) -> tuple[type[StepError], tuple[str, int]]:
        return type(self), (str(self), self.exit_code)


class UsageError(BmexError):
    """The command line asks for something impossible."""

    exit_code = 2


class NoInputError(BmexError):
    """The dataset holds no image that can be processed."""

    exit_code = 4


class EnvironmentProblem(BmexError):
    """The machine, not the data, stands in the way."""

    exit_code = 5


class DeviceError(EnvironmentProblem):
    """The requested compute device is not available."""


class WeightsError(EnvironmentProblem):
    """Network weights are missing, damaged or belong to another network."""


class TemplateError(EnvironmentProblem):
    """Files of a template are missing."""


class OutputError(EnvironmentProblem):
    """The output directory cannot be written."""


class ImageProblem(BmexError):
    """One image cannot be processed; the others can."""


class ImageError(ImageProblem):
    """An image is unreadable, not three-dimensional, empty or not finite."""


class MaskError(ImageProblem):
    """No plausible brain mask could be made or was given."""


class AgeError(ImageProblem):
    """No usable age was found for an image."""


class MemoryLimitError(ImageProblem):
    """An image needs more memory than there is, even in the smallest pieces."""

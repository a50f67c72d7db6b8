# SPDX-License-Identifier: Apache-2.0
"""What all nodes have in common."""

from __future__ import annotations

from typing import Any

from nipype.interfaces.base import SimpleInterface

from bmex_bids.common.failure import Failure


class Step(SimpleInterface):
    """An interface whose result says why it failed; Nipype keeps only the text of a traceback."""

    def work(self, folder: str) -> None:
        """Read the inputs, write files into ``folder``, and set the outputs in ``_results``."""
        raise NotImplementedError

    def _run_interface(self, runtime: Any) -> Any:
        try:
            self.work(runtime.cwd)
        except Exception as error:
            runtime.failure = Failure.of(error)
            raise
        return runtime

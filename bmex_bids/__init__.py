# SPDX-License-Identifier: Apache-2.0
"""bmex_bids: brain MRI in, enhanced brain MRI out, from the fetus to the adult.

One stage, one word, in every layer:

===============  ===========  ==============  ===========  ===========  ===========  ==============
data flow →      collect      preprocess      enhance      quality      outputs      report
===============  ===========  ==============  ===========  ===========  ===========  ==============
plain Python     inputs/      imaging/        network/     metrics/     outputs/     reports/
one Nipype node  –            interfaces/     interfaces/  interfaces/  interfaces/  interfaces/
                              preprocess      enhance      quality      outputs      reportlets
wiring           workflows/   workflows/      workflows/   inside       workflows/   workflows/
                 base         preprocess      enhance      enhance      outputs      report
===============  ===========  ==============  ===========  ===========  ===========  ==============

``cli`` is the only layer that prints or exits; :func:`enhance` of ``api`` is the same for
notebooks.  ``degrade``, ``training`` and ``evaluation`` make and judge the weights.  Importing
this package loads nothing heavy.
"""

from __future__ import annotations

import importlib
from typing import Any

from bmex_bids.exceptions import BmexError

__version__ = "0.1.0"
__all__ = ["BmexError", "Enhanced", "__version__", "collect", "enhance", "plan", "select"]

#: public functions and where they live; loaded when first asked for
_HOMES = {
    "collect": "bmex_bids.inputs.collect",
    "plan": "bmex_bids.inputs.plan",
    "select": "bmex_bids.network.weights.registry",
    "enhance": "bmex_bids.api",
    "Enhanced": "bmex_bids.api",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)

# SPDX-License-Identifier: Apache-2.0
"""``python -m bmex_bids`` is ``bmex``."""

from __future__ import annotations

import sys

from bmex_bids.cli.run import main

if __name__ == "__main__":
    sys.exit(main())

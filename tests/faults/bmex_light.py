# SPDX-License-Identifier: Apache-2.0
"""``bmex`` with pictures of a fifth of the resolution, which take most of the time of small images.

Every picture is drawn, so that an odd image can still spoil one; nothing else is changed.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    from nireports.reportlets import utils

    from bmex_bids.cli.run import main

    utils.extract_svg.__defaults__ = (60, *utils.extract_svg.__defaults__[1:])
    sys.exit(main())

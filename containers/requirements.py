# SPDX-License-Identifier: Apache-2.0
"""Print what setup.cfg asks for, one requirement a line.

An image's layer of dependencies depends on this list and on constraints.txt, and on nothing else
of setup.cfg: a new version or a new command does not install torch again.
"""

import configparser
import sys
from pathlib import Path

config = configparser.ConfigParser()
config.read_string(Path(sys.argv[1]).read_text(encoding="utf-8"))
lines = config["options"]["install_requires"].splitlines()
sys.stdout.write("".join(f"{line.strip()}\n" for line in lines if line.strip()))

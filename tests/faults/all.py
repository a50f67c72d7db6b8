# SPDX-License-Identifier: Apache-2.0
"""Every campaign, one after the other, then the tables of all cases (``RESULTS/cases.md``).

::

    python tests/faults/all.py RESULTS [--quick]

``--quick`` runs some cases of each kind.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
CAMPAIGNS = ("killed", "machine", "names", "many", "bad_images", "security")


def main(argv: Sequence[str] | None = None) -> int:
    """Run all; the report's exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args(argv)
    options.results.mkdir(parents=True, exist_ok=True)
    quick = ["--quick"] if options.quick else []
    for name in CAMPAIGNS:
        table = options.results / f"{name}.tsv"
        table.unlink(missing_ok=True)
        command = [sys.executable, str(HERE / f"{name}.py"), str(options.results), *quick]
        subprocess.run(command, check=False)
        if not table.exists():
            print(f"the campaign {name} wrote no table", file=sys.stderr)
            return 1
    command = [sys.executable, str(HERE / "report.py"), str(options.results)]
    return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())

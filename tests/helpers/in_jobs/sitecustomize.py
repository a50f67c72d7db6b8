# SPDX-License-Identifier: Apache-2.0
"""Python reads this at its start in the jobs of tests: the network is tiny, the pictures are few.

``BMEX_TEST_RECORDS`` names a JSON file of weight records.  What ``tests/app/conftest.py`` does in
the process of a test, this does in a job's.
"""

import json
import os
from pathlib import Path

if "BMEX_TEST_RECORDS" in os.environ:
    from bmex_bids.interfaces import reportlets
    from bmex_bids.network.weights import registry
    from bmex_bids.outputs import pictures

    records = []
    for table in json.loads(Path(os.environ["BMEX_TEST_RECORDS"]).read_text()):
        table["path"] = Path(table["path"])
        table |= {key: tuple(value) for key, value in table.items() if isinstance(value, list)}
        records.append(registry.WeightRecord(**table))
    registry.bundled = lambda: records
    pictures.PICTURES = {"summary": pictures.PICTURES["summary"]}
    reportlets.drawings = lambda: {"summary": reportlets.write_summary}

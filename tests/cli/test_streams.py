# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import io
import subprocess
import sys

import pytest

from bmex_bids.cli.streams import Forgiving

SCRIPT = """
import faulthandler, sys
from bmex_bids.cli.streams import forgiving
with forgiving():
    faulthandler.enable()  # as nipype does: it wants a stream
    for number in range(3000):
        print("image", number, "\\u2192 done", flush=True)
    print("complaint \\u2192", file=sys.stderr)
    open(sys.argv[1], "w").write("done")
"""


@pytest.mark.parametrize(
    "how", ['"$@" | head -1', '"$@" > /dev/full', '"$@" >&- 2>&-', '"$@" <&- >&- 2>&-']
)
def test_nobody_who_listens_is_no_reason_to_stop(tmp_path, how):
    mark = tmp_path / "mark"
    command = [sys.executable, "-c", SCRIPT, str(mark)]
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {how}", "bash", *command],
        capture_output=True,
        text=True,
        env={"PYTHONIOENCODING": "ascii", "PYTHONPATH": ":".join(sys.path)},
        check=False,
    )
    assert (done.returncode, mark.read_text()) == (0, "done")
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_a_sign_that_the_encoding_does_not_have():
    raw = io.BytesIO()
    stream = Forgiving(io.TextIOWrapper(raw, encoding="ascii"))
    print("age → month", file=stream, flush=True)
    assert raw.getvalue() == b"age ? month\n"
    stream.close()
    print("more", file=stream, flush=True)  # closed: no error

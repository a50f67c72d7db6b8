# SPDX-License-Identifier: Apache-2.0
"""See, before anything is downloaded, that pip chose the build of torch that was asked for.

    pip install --dry-run --report - torch | python torch_build.py cpu

The name torch stands for builds without and with CUDA, and which of them pip takes depends on the
index. A CUDA build in the image for processors costs gigabytes; the other way round, no GPU is
ever used. Ends with 2 and says what to do where the build is the wrong one.
"""

from __future__ import annotations

import json
import sys
from typing import Any

WANTED = {"cpu": False, "cuda": True}
HINT = (
    "give the address of an index that has it with --build-arg TORCH_INDEX=... (make image "
    "TORCH_INDEX=...); the installation page of PyTorch names it: pytorch.org/get-started/locally"
)


def has_cuda(report: dict[str, Any]) -> bool:
    """Whether what pip would install needs NVIDIA's libraries, or says so in torch's version."""
    packages = [item["metadata"] for item in report["install"]]
    version = next(p["version"] for p in packages if p["name"].lower() == "torch")
    return "+cu" in version or any(p["name"].lower().startswith("nvidia-") for p in packages)


def judge(wanted: str, report: dict[str, Any]) -> str:
    """What is wrong, or nothing."""
    if wanted not in WANTED:
        return f"expected TORCH=cpu or TORCH=cuda, got {wanted!r}"
    found = has_cuda(report)
    if found == WANTED[wanted]:
        return ""
    names = {True: "with CUDA", False: "without CUDA"}
    return f"expected a build of torch {names[not found]}, pip found one {names[found]}; {HINT}"


if __name__ == "__main__":
    fault = judge(sys.argv[1], json.load(sys.stdin))
    if fault:
        sys.stderr.write(f"torch_build.py: {fault}\n")
        sys.exit(2)

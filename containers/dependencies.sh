#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Install everything but bmex_bids itself, at the pinned versions, into TARGET, and throw away what
# only those need who develop these libraries. For Dockerfile and Singularity.def alike; run in a
# folder that holds requirements.txt (made by requirements.py), constraints.txt and torch_build.py.
#
#   TORCH        cpu (default) or cuda
#   TORCH_INDEX  one more package index to look for torch in
#   TARGET       the virtual environment to make
set -eu
TARGET=${TARGET:-/opt/bmex}
TORCH=${TORCH:-cpu}
TORCH_INDEX=${TORCH_INDEX:-}
export PIP_CACHE_DIR=/tmp/pip PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PIP_ROOT_USER_ACTION=ignore

python3 -m venv --without-pip "$TARGET"
pip() { python3 -m pip --python "$TARGET/bin/python" "$@"; }
set -- --quiet --constraint constraints.txt
[ -z "$TORCH_INDEX" ] || set -- "$@" --extra-index-url "$TORCH_INDEX"
pip install "$@" --dry-run --report report.json torch
python3 torch_build.py "$TORCH" < report.json
pip install "$@" torch
pip install --quiet --constraint constraints.txt --requirement requirements.txt

# The libraries' own tests, headers and static libraries. Compiled modules (__pycache__) stay:
# without them every start of the program compiles torch anew.
cd "$TARGET"/lib/python3*/site-packages
rm -rf torch/include torch/share torch/test
find torch/bin -type f ! -name torch_shm_manager -delete # tests, protoc; the one left is used
for package in matplotlib nibabel networkx nilearn nipype pandas prov scipy skimage sklearn sympy traits; do
    [ -d "$package" ] && find "$package" -type d -name tests -prune -exec rm -rf {} +
done
find . -name '*.a' -delete
find . -name '*.pyi' -delete
rm -rf "$PIP_CACHE_DIR"
chmod -R a+rX "$TARGET"

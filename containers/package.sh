#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Install bmex_bids itself, weights included, into PREFIX, for the environment TARGET that
# dependencies.sh made; run in a folder that holds the source. With PREFIX apart from TARGET, what
# is installed can be copied over TARGET as a small layer of its own.
set -eu
TARGET=${TARGET:-/opt/bmex}
PREFIX=${PREFIX:-$TARGET}
export PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PIP_ROOT_USER_ACTION=ignore

python3 -m pip --python "$TARGET/bin/python" install --quiet --no-deps --prefix "$PREFIX" .

# TemplateFlow makes its (empty) folder when it is first imported: make it while we may write.
mkdir -p "$PREFIX/share/templateflow"
TEMPLATEFLOW_HOME="$PREFIX/share/templateflow" TEMPLATEFLOW_AUTOUPDATE=false NO_ET=1 \
    "$TARGET/bin/python" -W ignore -c 'import templateflow.api'
chmod -R a+rX "$PREFIX"

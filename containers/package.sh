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
# Templates for --output-spaces, whose licences allow copies with their notice (LICENSE in their
# folders). Without their archive the image is built all the same, and says what it lacks.
for template in $(echo "${TEMPLATES:-}" | tr , " "); do
    TEMPLATEFLOW_HOME="$PREFIX/share/templateflow" TEMPLATEFLOW_AUTOUPDATE=false NO_ET=1 \
        "$TARGET/bin/python" -W ignore -c 'from templateflow.cli import main; main()' \
        get "$template" --res 1 --res 2 -s T1w -s T2w -s mask > /dev/null ||
        echo "template $template could not be fetched: not in this image" >&2
done
chmod -R a+rX "$PREFIX"

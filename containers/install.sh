#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The steps that Dockerfile and Singularity.def share. Run in a folder that holds
# constraints.txt, setup.cfg and, for the second step, the whole source.
#
#   install.sh dependencies   everything but bmex_bids itself, at the pinned versions
#   install.sh package        bmex_bids, and what it needs to find when it runs
#
# TORCH=cpu (default) or cuda; TORCH_CPU_INDEX: an index with torch's CPU-only builds (the one that
# PyTorch's installation page names), without which the package index decides which build comes;
# TARGET: the virtual environment to make.
set -eu
TARGET=${TARGET:-/opt/bmex}
TORCH=${TORCH:-cpu}
TORCH_CPU_INDEX=${TORCH_CPU_INDEX:-}
export PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1

dependencies() {
    python3 -m venv "$TARGET"
    case $TORCH in
        cpu) extra=${TORCH_CPU_INDEX:+--extra-index-url $TORCH_CPU_INDEX} ;;
        cuda) extra= ;;
        *) echo "install.sh: expected TORCH=cpu or TORCH=cuda, got '$TORCH'" >&2; exit 2 ;;
    esac
    # shellcheck disable=SC2086 # two words on purpose
    PIP_RETRIES=2 "$TARGET/bin/pip" install --quiet -c constraints.txt $extra torch
    if [ "$TORCH" = cpu ]; then
        "$TARGET/bin/python" -c 'import sys, torch; torch.version.cuda and print(
            "install.sh: a CUDA build of torch came although TORCH=cpu was asked for; it works, but "
            "the image is gigabytes larger: give TORCH_CPU_INDEX", file=sys.stderr)'
    fi
    "$TARGET/bin/python" -c 'import configparser
config = configparser.ConfigParser()
config.read("setup.cfg")
print(config["options"]["install_requires"])' > /tmp/requirements.txt
    "$TARGET/bin/pip" install --quiet -c constraints.txt -r /tmp/requirements.txt
    rm /tmp/requirements.txt
}

package() {
    "$TARGET/bin/pip" install --quiet --no-deps .
    # TemplateFlow makes its folder when it is first imported: do it now, while we may write.
    mkdir -p "$TARGET/share/templateflow"
    TEMPLATEFLOW_HOME="$TARGET/share/templateflow" TEMPLATEFLOW_AUTOUPDATE=false NO_ET=1 \
        "$TARGET/bin/python" -W ignore -c 'import templateflow.api'
    # Nobody installs into the finished image.
    "$TARGET/bin/pip" uninstall --quiet --yes pip
    chmod -R a+rX "$TARGET"
    "$TARGET/bin/bmex" --version
}

case ${1:-} in
    dependencies | package) "$1" ;;
    *) sed -n '3,11p' "$0"; exit 2 ;;
esac

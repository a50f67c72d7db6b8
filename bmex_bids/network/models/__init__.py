# SPDX-License-Identifier: Apache-2.0
"""The architectures: plain torch modules, and nothing of how they are run."""

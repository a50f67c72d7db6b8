# SPDX-License-Identifier: Apache-2.0
"""Running a plan: what is done to which image, the machine's share, the workflow engine, progress."""

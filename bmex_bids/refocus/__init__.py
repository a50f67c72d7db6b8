# SPDX-License-Identifier: Apache-2.0
"""Undo periodic head motion of a 3-D scan, found from its magnitude image alone.

``kspace`` moves an image as the head moved, and back; ``search`` finds the motion; ``refocus``
joins them and decides whether the result is taken.
"""

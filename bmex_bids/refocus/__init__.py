# SPDX-License-Identifier: Apache-2.0
"""Undo faults of the read-out, found from the magnitude image alone.

``thick`` sharpens slices thicker than voxels.  ``lines`` mends uneven lines and spikes of k-space.
Of periodic head motion in a 3-D scan, ``kspace`` moves an image as the head moved, and back;
``search`` finds the motion.  ``refocus`` joins them and decides whether the result is taken.
"""

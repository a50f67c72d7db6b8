# SPDX-License-Identifier: Apache-2.0
"""Simulated image degradation: motion, blur, low resolution, noise, bias, contrast and ghosts.

Drawing and acting are separate.  :func:`bmex_bids.degrade.levels.draw_level` (one kind at a named
level) and :func:`bmex_bids.degrade.recipe.draw` (what training draws) throw the dice and return a
:class:`~bmex_bids.degrade.recipe.Recipe`, plain numbers that can be written as JSON;
:meth:`Recipe.apply` does the deterministic rest, so that any degraded image can be made again.
"""

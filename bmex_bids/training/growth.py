# SPDX-License-Identifier: Apache-2.0
"""Begin with trained weights, in a network of the same shape or a larger one.

A larger network computes at first what the smaller one did.  Blocks that the file does not have are
the identity (their last convolution is zero).  Channels that it does not have begin at random, and
no trained channel listens to them yet: the weights that lead from a new channel to an old one are
zero.  Those learn from the first step on, since the new channels have values.
(Net2Net: Chen, Goodfellow & Shlens, ICLR 2016, with zeros for its copies.)
"""

from __future__ import annotations

import logging
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from bmex_bids.exceptions import UsageError
from bmex_bids.network.models.compact import CompactBMEX

LOGGER = logging.getLogger(__name__)
State = dict[str, Tensor]


def start(model: nn.Module, path: Path) -> list[str]:
    """Fill a network with trained weights, and return the names that the file does not have.

    The network may have more channels and more blocks than the file's, and no tissue module where the
    file has one (the ablation).  UsageError where the file is of another kind of network, or of a
    larger one.
    """
    try:
        state = {name: value.float() for name, value in load_file(str(path)).items()}
    except (OSError, SafetensorError) as error:
        raise UsageError(
            f"expected weights as safetensors in {path}, got: {error}; check --start-from"
        ) from error
    if any(name.startswith("members.") for name in state):
        raise UsageError(
            f"expected weights of one network in {path}, got several networks; start from one of "
            "them (names without members.0.)"
        )
    wanted = model.state_dict()
    if isinstance(model, CompactBMEX) and model.tissue is None:
        state = without_tissues(state)
    surplus = sorted(set(state) - set(wanted))
    if surplus:
        raise UsageError(
            f"expected weights of a network with no more blocks than this one in {path}, got "
            f"{len(surplus)} surplus tensors (first: {surplus[0]}); raise --blocks, or check "
            "--start-from"
        )
    if not state:
        raise UsageError(f"expected weights in {path}, got none; check --start-from")
    transposed = {
        f"{name}.weight"
        for name, layer in model.named_modules()
        if isinstance(layer, nn.ConvTranspose3d)
    }
    for name, value in state.items():
        if value.dim() != wanted[name].dim() or any(
            a > b for a, b in zip(value.shape, wanted[name].shape, strict=True)
        ):
            raise UsageError(
                f"expected weights of a network no larger than this one in {path}, got "
                f"{name} {tuple(value.shape)} for {tuple(wanted[name].shape)}; check --width and "
                "--start-from"
            )
    grown = {
        name: _grown(value, wanted[name], inputs=0 if name in transposed else 1)
        for name, value in state.items()
    }
    missing = model.load_state_dict(grown, strict=False).missing_keys
    return list(missing)


def begin(model: nn.Module, path: Path | None) -> None:
    """:func:`start`, and a line in the log, where there is a file; else the model stays."""
    if path is not None:
        missing = start(model, path)
        LOGGER.info("from %s; %d tensors are new", path, len(missing))


def _grown(trained: Tensor, drawn: Tensor, *, inputs: int) -> Tensor:
    """``drawn`` with ``trained`` as its first channels; ``inputs`` is the axis of a weight's inputs."""
    grown = drawn.clone()
    if trained.dim() > 1:
        old = [slice(None)] * trained.dim()
        old[1 - inputs] = slice(0, trained.shape[1 - inputs])
        grown[tuple(old)] = 0  # of all inputs: those that are trained follow
    grown[tuple(slice(0, n) for n in trained.shape)] = trained
    return grown


def without_tissues(state: State) -> State:
    """The enhancement network alone, fed with no tissues; as it is where there are none.

    The first of the stem's inputs are the image's, eight of each channel (see
    :func:`bmex_bids.network.models.compact.unshuffle`).
    """
    kept = {name: value for name, value in state.items() if not name.startswith("tissue.")}
    stem = "enhance.stem.weight"
    if stem in kept:
        kept[stem] = kept[stem][:, : 8 * 2].clone()
    return kept

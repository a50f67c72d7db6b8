# SPDX-License-Identifier: Apache-2.0
"""Read weight files into networks: one table of file formats, one of networks.

Nothing is ever unpickled but tensors (``weights_only=True``), so a weight file cannot run code.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bmex_bids.exceptions import WeightsError
from bmex_bids.network.bmex import BMEX
from bmex_bids.network.caffe import caffe_state
from bmex_bids.network.compact import CompactBMEX, HalfUNet, Members
from bmex_bids.network.lifespanstrip import LifespanStrip

State = Mapping[str, Tensor]


def from_published(name: str) -> str:
    """The name of a published BME-X tensor in :class:`~bmex_bids.network.bmex.BMEX`.

    >>> from_published("conv4_1_recon.weight"), from_published("bn2.running_var")
    ('recon.conv4_1.weight', 'tissue.bn2.running_var')
    >>> from_published("conv1_con.bias")
    'conv1_con.bias'
    """
    layer, _, kind = name.rpartition(".")
    if layer.endswith("_con"):
        return name
    if layer.endswith("_recon"):
        return f"recon.{layer.removesuffix('_recon')}.{kind}"
    return f"tissue.{layer}.{kind}"


@dataclass(frozen=True)
class Variant:
    """How a family of weight files becomes a network."""

    build: Callable[[State], nn.Module]  # makes the empty network; sizes are read from the tensors
    rename: Callable[[str], str]


def _published(state: State) -> nn.Module:
    return BMEX(width=_width(state, "conv1.weight"))


def _caffe(state: State) -> nn.Module:
    return BMEX(width=_width(state, "tissue.conv1.weight"), caffe=True)


def _lifespanstrip(state: State) -> nn.Module:
    return LifespanStrip(width=_width(state, "conv1.weight"))


def _width(state: State, key: str) -> int:
    width = _channels(state, key)
    if width < 4 or width % 4:
        raise WeightsError(
            f"expected a base width that is a multiple of 4 in {key!r}, got {width}; "
            "is this a file of another network?"
        )
    return width


def _compact(state: State) -> nn.Module:
    """The compact network; of a file with several, ``members.0.…``, all of them."""
    count = len({name.split(".")[1] for name in state if name.startswith("members.")})
    if not count:
        return _one_compact(state)
    prefixes = [f"members.{k}." for k in range(count)]
    return Members(
        _one_compact({n.removeprefix(p): tensor for n, tensor in state.items() if n.startswith(p)})
        for p in prefixes
    )


def _one_compact(state: State) -> CompactBMEX:
    tissue = state.get("tissue.stem.weight")
    blocks = sum(
        1 for key in state if key.startswith("enhance.enc1.") and key.endswith("conv1.weight")
    )
    return CompactBMEX(
        width=_channels(state, "enhance.stem.weight"),
        tissue_width=0 if tissue is None else _channels(state, "tissue.stem.weight"),
        blocks=blocks,
    )


def _strip(state: State) -> HalfUNet:
    return HalfUNet(
        1,
        1,
        _channels(state, "stem.weight"),
        blocks=sum(name.startswith("enc1.") and name.endswith("conv1.weight") for name in state),
        norm="mid.0.norm1.weight" in state,
    )


def _channels(state: State, key: str) -> int:
    if key not in state:
        raise WeightsError(
            f"expected a tensor named {key!r} in the weight file, found {len(state)} others; "
            "is this a file of another network?"
        )
    if state[key].ndim == 0:
        raise WeightsError(f"expected an array of weights named {key!r}, got one number")
    return int(state[key].shape[0])


VARIANTS: Mapping[str, Variant] = {
    "bmex-pytorch": Variant(_published, from_published),
    "bmex-caffe": Variant(_caffe, lambda name: name),  # named when the file is read
    "lifespanstrip": Variant(_lifespanstrip, lambda name: name),
    "bmex-compact": Variant(_compact, lambda name: name),
    "bmex-strip": Variant(_strip, lambda name: name),
}


def _pickled(path: Path) -> Any:
    """A bare state dict, or one under the key ``state_dict``."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        return state["state_dict"]
    return state


#: ending of a file's name → what reads its tensors
FORMATS: Mapping[str, Callable[[Path], Any]] = {
    ".pt": _pickled,
    ".pth": _pickled,
    ".safetensors": lambda path: load_file(str(path)),
    ".caffemodel": caffe_state,
}


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a weight file by their names, as they are in it (see :data:`FORMATS`).

    Raises WeightsError for a missing or damaged file, one of another kind, and for a pickle that
    holds anything but tensors.
    """
    if not path.is_file():
        raise WeightsError(f"expected a weight file at {path}, found none")
    reader = FORMATS.get(path.suffix)
    if reader is None:
        raise WeightsError(
            f"expected a weight file with the ending {', '.join(FORMATS)}, got {path.name}"
        )
    try:
        state = reader(path)
    except WeightsError:
        raise
    except Exception as error:  # damage makes an unpickler raise anything
        raise WeightsError(_refusal(path, error)) from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise WeightsError(
            f"expected a dictionary of tensors in {path}, got {type(state).__name__}"
        )
    return {str(name): tensor for name, tensor in state.items()}


def _refusal(path: Path, error: Exception) -> str:
    wanted = re.search(r"GLOBAL (\S+)", str(error))
    if isinstance(error, pickle.UnpicklingError) and wanted:
        return (
            f"{path} cannot be read as network weights: it asks to run {wanted[1]}, and a weight "
            "file may hold nothing but tensors; nothing of it was run. Fetch it from its "
            "publisher, and do not open it with anything else"
        )
    brief = str(error).split("\n")[0]
    return (
        f"{path} cannot be read as network weights ({type(error).__name__}: {brief}); it is "
        "damaged, or holds more than tensors, which is refused; fetch it again"
    )


def read_state(path: Path) -> dict[str, Tensor]:
    """As :func:`read_tensors`, but float32 (counters stay whole numbers)."""
    return {k: v.float() if v.is_floating_point() else v for k, v in read_tensors(path).items()}


def convert(source: Path, target: Path) -> int:
    """Write the tensors of a weight file as safetensors, unchanged; return how many there are.

    Names stay as they are in the file; those of a ``.caffemodel`` become ours.  The caller checks
    that nothing is at ``target``.
    """
    state = {name: tensor.contiguous() for name, tensor in read_tensors(source).items()}
    save_file(_unshared(state), str(target))
    return len(state)


def _unshared(state: State) -> dict[str, Tensor]:
    """Tensors that share memory are copied, since safetensors holds each one by itself."""
    seen: set[int] = set()
    result = {}
    for name, tensor in state.items():
        place = tensor.untyped_storage().data_ptr()
        result[name] = tensor.clone() if place in seen else tensor
        seen.add(place)
    return result


def _fault(name: str, tensor: Tensor) -> str:
    """Why a tensor can be no weight; empty where it can."""
    if tensor.layout != torch.strided or tensor.is_quantized:
        return f"{tensor.layout}, not dense"
    if not tensor.is_floating_point():
        return "" if name.endswith("num_batches_tracked") else f"{tensor.dtype}, not a float"
    if not bool(tensor.isfinite().all()):
        return "not finite"
    return "below zero" if name.endswith("running_var") and bool((tensor < 0).any()) else ""


def load_network(path: Path, variant: str) -> nn.Module:
    """The network of a weight file, in evaluation mode, float32, on the CPU.

    Missing, surplus or misshapen tensors raise a WeightsError that names them, and so do those that are
    no weights: not dense and real, not finite, a variance below zero.
    """
    if variant not in VARIANTS:
        raise WeightsError(f"expected a network variant of {sorted(VARIANTS)}, got {variant!r}")
    state = read_state(path)
    unsound = [
        f"{name} ({fault})" for name, tensor in state.items() if (fault := _fault(name, tensor))
    ]
    if unsound:
        raise WeightsError(
            f"expected dense tensors of finite numbers in {path.name}, got {', '.join(unsound[:5])}"
            f"{' …' if len(unsound) > 5 else ''}; fetch it again"
        )
    with torch.device("meta"):  # shapes only: the tensors of the file become the network's
        network = VARIANTS[variant].build(state)
    renamed = {VARIANTS[variant].rename(name): tensor for name, tensor in state.items()}
    expected = network.state_dict()
    missing = sorted(set(expected) - set(renamed))
    surplus = sorted(set(renamed) - set(expected))
    shapes = [
        f"{name} {tuple(renamed[name].shape)} instead of {tuple(expected[name].shape)}"
        for name in sorted(set(expected) & set(renamed))
        if renamed[name].shape != expected[name].shape
    ]
    if missing or surplus or shapes:
        raise WeightsError(
            f"{path.name} does not fit the network {variant!r}: "
            + "; ".join(
                f"{label} {', '.join(names[:5])}{' …' if len(names) > 5 else ''}"
                for label, names in (
                    ("missing", missing),
                    ("surplus", surplus),
                    ("misshapen", shapes),
                )
                if names
            )
        )
    network.load_state_dict(renamed, assign=True)
    return network.eval()

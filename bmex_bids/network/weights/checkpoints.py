# SPDX-License-Identifier: Apache-2.0
"""Read weight files into networks.

Nothing is ever unpickled but tensors (``weights_only=True``), so a weight file cannot run code.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bmex_bids.exceptions import OutputError, WeightsError
from bmex_bids.network.models.shapes import State
from bmex_bids.network.variants import VARIANTS
from bmex_bids.network.weights.caffe import caffe_state

Kind = TypeVar("Kind", bound=nn.Module)


def _pickled(path: Path) -> Any:
    """A bare state dict, or one under a key that is usual, without the prefix of ``DataParallel``."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    if isinstance(state, dict):
        inner = (state.get(key) for key in ("state_dict", "model_state_dict"))
        state = next((one for one in inner if isinstance(one, dict)), state)
        if state and all(str(name).startswith(PARALLEL) for name in state):
            state = {name.removeprefix(PARALLEL): tensor for name, tensor in state.items()}
    return state


#: end of the names of counters of training steps, which nothing here reads
COUNTER = "num_batches_tracked"
#: before each name where a network was saved as it trained on several GPUs
PARALLEL = "module."
#: ending of a file's name → what reads its tensors
FORMATS: Mapping[str, Callable[[Path], Any]] = {
    ".pt": _pickled,
    ".pth": _pickled,
    ".safetensors": lambda path: load_file(str(path)),
    ".caffemodel": caffe_state,
}


def read_tensors(path: Path, ending: str | None = None) -> dict[str, Tensor]:
    """Tensors of a weight file by their names, as they are in it (see :data:`FORMATS`).

    ``ending`` says what it is where its name does not.

    Raises WeightsError for a missing or damaged file, one of another kind, and for a pickle that
    holds anything but tensors.
    """
    if not path.is_file():
        raise WeightsError(f"expected a weight file at {path}, found none")
    reader = FORMATS.get(ending or path.suffix)
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


def read_state(path: Path, ending: str | None = None) -> dict[str, Tensor]:
    """As :func:`read_tensors`, but float32 (counters stay whole numbers)."""
    tensors = read_tensors(path, ending)
    return {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}


def convert(source: Path, target: Path) -> int:
    """Write the tensors of a weight file as safetensors, unchanged; return how many there are.

    Names stay as they are in the file; those of a ``.caffemodel`` become ours.  It is read back and
    compared; where it differs, or cannot be written, that is an OutputError.
    """
    state = {name: tensor.contiguous() for name, tensor in read_tensors(source).items()}
    try:
        save_file(_unshared(state), str(target))
        back = load_file(str(target))
    except (SafetensorError, OSError) as error:
        raise OutputError(
            f"expected to write {len(state)} tensors, got: {error}; free some space or choose another "
            "place"
        ) from error
    if back.keys() != state.keys() or not all(_same(back[name], state[name]) for name in state):
        raise OutputError(f"expected what was written to read back as {source}, and it did not")
    return len(state)


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are the same to the last bit, numbers that are none included."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))


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
    if tensor.is_meta:
        return "a shape without numbers"
    if tensor.layout != torch.strided or tensor.is_quantized:
        return f"{tensor.layout}, not dense"
    if not tensor.is_floating_point():
        return "" if name.endswith(COUNTER) else f"{tensor.dtype}, not a float"
    if not bool(tensor.isfinite().all()):
        return "not finite"
    return "below zero" if name.endswith("running_var") and bool((tensor < 0).any()) else ""


def load_network_as(path: Path, variant: str, kind: type[Kind], does: str) -> Kind:
    """:func:`load_network`; a TypeError where it is another kind of network.

    ``does`` stands in the message: "expected a network ``does``".
    """
    network = load_network(path, variant)
    if not isinstance(network, kind):
        raise TypeError(f"expected a network {does}, got {type(network).__name__}")
    return network


def load_network(path: Path, variant: str, ending: str | None = None) -> nn.Module:
    """The network of a weight file, in evaluation mode, float32, on the CPU.

    ``ending`` as for :func:`read_tensors`.  Counters of training steps may be missing.

    Missing, surplus or misshapen tensors raise a WeightsError that names them, and so do those that are
    no weights: not dense and real, not finite, a variance below zero.
    """
    if variant not in VARIANTS:
        raise WeightsError(f"expected a network variant of {sorted(VARIANTS)}, got {variant!r}")
    state = read_state(path, ending)
    unsound = [
        f"{name} ({fault})" for name, tensor in state.items() if (fault := _fault(name, tensor))
    ]
    if unsound:
        raise WeightsError(
            f"expected dense tensors of finite numbers in {path.name}, got {', '.join(unsound[:5])}"
            f"{' …' if len(unsound) > 5 else ''}; fetch it again"
        )
    with torch.device("meta"):  # shapes only: the tensors of the file become the network's
        network: nn.Module = resolve_name(VARIANTS[variant].build)(state)
    rename = VARIANTS[variant].rename
    renamed = dict(state)
    if rename is not None:
        new_name = resolve_name(rename)
        renamed = {new_name(name): tensor for name, tensor in state.items()}
    expected = network.state_dict()
    counters = {name for name in expected if name.endswith(COUNTER)}
    renamed |= {name: torch.tensor(0) for name in counters - set(renamed)}
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

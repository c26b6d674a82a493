"""Weights files on disk to named tensors, without running any code that they may hold."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch

from edgetune.core.errors import WeightsError, first_line
from edgetune.models.weights_file import SAFETENSORS, ZIP, check_weights_file, shown_name

StateDict: TypeAlias = dict[str, torch.Tensor]

# What torch.load and the unpickler under it raise on damaged bytes.
_READ_ERRORS = (
    OSError, RuntimeError, ValueError, EOFError, LookupError, TypeError, AttributeError, AssertionError, OverflowError,
    MemoryError, struct.error, pickle.UnpicklingError, zipfile.BadZipFile,
)  # fmt: skip
# In the order in which they are looked for: averaged weights are taken only where there are no others.
_WRAPPER_KEYS = (
    "state_dict", "model_state_dict", "model", "model_state", "net", "ema_state_dict", "state_dict_ema", "model_ema",
    "ema",
)  # fmt: skip
_PREFIXES = ("module.", "_orig_mod.")
_COUNTER = "n_averaged"  # beside the tensors of torch.optim.swa_utils.AveragedModel

_REFUSED = re.compile(r"(?:Unsupported global: GLOBAL|unsupported GLOBAL) ([\w.]+)")
_PREAMBLE = "WeightsUnpickler error:"
_READABLE_PROTOCOL = 2  # of torch.load(weights_only=True), and what torch.save writes
_NAMED = 3


def read_state_dict(path: Path) -> StateDict:
    """Reads `.pth`, `.pt` or `.safetensors`, taking off the wrappers that training scripts put around weights.

    Raises:
        WeightsError: the file is missing, damaged, another kind of file, holds code, holds no named tensors, or tensors
            that are not plain arrays.
    """
    kind = check_weights_file(path)
    try:
        with warnings.catch_warnings():  # of pickles by other protocols, and of sparse tensors
            warnings.simplefilter("ignore")
            content = _read(path, kind)
    except _READ_ERRORS as error:
        names = _refused_names(path, kind, error)
        if names:
            raise _holds_code(path, names) from error
        protocol = _pickle_protocol(path, kind)
        if protocol > _READABLE_PROTOCOL:
            raise WeightsError(
                f"the weights file {path} was saved with pickle protocol {protocol}, expected {_READABLE_PROTOCOL}.",
                hint="save it with PyTorch's own protocol: torch.save(model.state_dict(), 'weights.pth')",
            ) from error
        raise WeightsError(
            f"the weights file {path} cannot be read; it is damaged, cut short at {path.stat().st_size} bytes or "
            f"changed: {_reason(error)}.",
            hint="fetch the file again and compare its size or sha256 with the publisher's",
        ) from error
    state = _strip_prefixes(_unwrap(content, path))
    for name, tensor in state.items():
        _check_plain(name, tensor, path)
    return state


def _read(path: Path, kind: str) -> Any:
    if kind == SAFETENSORS:
        import safetensors
        import safetensors.torch

        try:
            return safetensors.torch.load_file(path)
        except safetensors.SafetensorError as error:
            raise ValueError(str(error)) from error
    # An open file, as torch.load takes a path's suffix for the format.
    with torch.serialization.safe_globals(_records()), path.open("rb") as stream:
        return torch.load(stream, map_location="cpu", weights_only=True)


def _records() -> list[Any]:
    """What training scripts keep beside the weights: their arguments and a best accuracy. None of it is code."""
    scalar = np.float64(0).__reduce__()[0]
    dtypes = [type(np.dtype(code)) for code in ("f2", "f4", "f8", "i4", "i8", "u1", "?")]
    names = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
    return [argparse.Namespace, np.dtype, *dtypes, *((scalar, name) for name in names)]


def _refused_names(path: Path, kind: str, error: Exception) -> list[str]:
    """The classes and functions that a pickle would have called, those of PyTorch itself last."""
    if not isinstance(error, pickle.UnpicklingError):
        return []
    names = _REFUSED.findall(str(error))
    if names and kind == ZIP:
        with torch.serialization.safe_globals(_records()):
            names = torch.serialization.get_unsafe_globals_in_checkpoint(path) or names
    return sorted(names, key=lambda name: (name.startswith("torch."), name))


def _pickle_protocol(path: Path, kind: str) -> int:
    """As the first opcode of the pickle says; 0 where there is none."""
    if kind == SAFETENSORS:
        return 0
    with contextlib.suppress(*_READ_ERRORS):
        if kind != ZIP:
            with path.open("rb") as stream:
                return stream.read(2)[1]
        with zipfile.ZipFile(path) as archive:
            name = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
            with archive.open(name) as stream:
                head = stream.read(2)
        return head[1] if head.startswith(pickle.PROTO) else 0
    return 0


def _holds_code(path: Path, names: list[str]) -> WeightsError:
    shown = ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
    if any(name.startswith(("torch.nn.modules.", "torchvision.models.", "timm.models.")) for name in names):
        return WeightsError(
            f"the weights file {path} holds a whole pickled model, which is code ({shown}); it was not run.",
            hint="where the file comes from, save the tensors alone: torch.save(model.state_dict(), 'weights.pth')",
        )
    return WeightsError(
        f"the weights file {path} holds code beside tensors ({shown}); it was not run.",
        hint="ask whoever made it for a state dict alone, or a .safetensors; do not open the file with other tools",
    )


def _reason(error: Exception) -> str:
    """The first line that says something: torch puts advice in front of the unpickler's own words."""
    text = str(error)
    if "Weights only load failed" in text:
        lines = [line.strip() for line in text.splitlines()[1:]]
        said = (line for line in lines if line and not line.startswith("(") and not line.endswith(_PREAMBLE))
        text = next(said, "the pickle in it is broken")
    return (next(iter(text.splitlines()), "") or first_line(error)).rstrip(". ")


def _unwrap(content: Any, path: Path) -> StateDict:
    for _ in range(3):
        if not isinstance(content, Mapping):
            break
        if content and all(isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in content.items()):
            return dict(content)
        inner = next((content[key] for key in _WRAPPER_KEYS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            break
        content = inner
    found = (
        f"a mapping with the keys {sorted(map(shown_name, content))[:6]}"
        if isinstance(content, Mapping)
        else f"a {type(content).__name__}"
    )
    raise WeightsError(
        f"the weights file {path} holds no state dict, but {found}.",
        hint="save one with torch.save(model.state_dict(), 'weights.pth')",
    )


def _strip_prefixes(state: StateDict) -> StateDict:
    state = {name: tensor for name, tensor in state.items() if name != _COUNTER}
    while True:
        prefix = next((each for each in _PREFIXES if state and all(name.startswith(each) for name in state)), None)
        if prefix is None:
            return state
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}


def _check_plain(name: str, tensor: torch.Tensor, path: Path) -> None:
    if tensor.is_nested or tensor.layout != torch.strided:
        what = "sparse or nested"
    elif tensor.is_quantized:
        what = "quantized"
    elif tensor.is_meta:
        what = "without values (on the meta device)"
    elif tensor.is_complex():
        what = "complex"
    else:
        return
    raise WeightsError(
        f"the weights file {path} holds the tensor {shown_name(name)}, which is {what}.",
        hint="save the weights as plain floating-point tensors",
    )


def tensor_bytes(tensor: torch.Tensor) -> bytes:
    """The tensor's values as they lie in memory, row-major; equal bytes mean bit-identical tensors, NaN included."""
    return tensor.detach().cpu().resolve_neg().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def digest_of_tensors(state: Mapping[str, torch.Tensor]) -> str:
    """The sha256 over every tensor's name, dtype, shape and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest()

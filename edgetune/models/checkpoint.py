"""Weights files on disk to named tensors, without running any code that they may hold."""

from __future__ import annotations

import hashlib
import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch

from edgetune.core.errors import WeightsError, first_line

StateDict: TypeAlias = dict[str, torch.Tensor]

# What torch.load and the unpickler under it raise on damaged bytes.
_READ_ERRORS = (
    OSError, RuntimeError, ValueError, EOFError, LookupError, TypeError, AttributeError, AssertionError, OverflowError,
    MemoryError, struct.error, pickle.UnpicklingError, zipfile.BadZipFile,
)  # fmt: skip
_WRAPPER_KEYS = ("state_dict", "model_state_dict", "model", "model_state", "net")
_PREFIXES = ("module.", "_orig_mod.")


def read_state_dict(path: Path) -> StateDict:
    """Reads `.pth`, `.pt` or `.safetensors`, taking off the wrappers that training scripts put around weights.

    Raises:
        WeightsError: the file is missing, damaged, or holds no named tensors.
    """
    if not path.is_file():
        raise WeightsError(
            f"the weights file {path} does not exist.", hint="give the path of a .pth, .pt or .safetensors"
        )
    try:
        content = _read(path)
    except _READ_ERRORS as error:
        raise WeightsError(
            f"the weights file {path} ({path.stat().st_size} bytes) cannot be read; it is damaged, cut short, "
            f"or no weights file: {first_line(error)}",
            hint="fetch the file again and compare its size or sha256 with the publisher's",
        ) from error
    return _strip_prefixes(_unwrap(content, path))


def _read(path: Path) -> Any:
    if path.suffix == ".safetensors":
        import safetensors
        import safetensors.torch

        try:
            return safetensors.torch.load_file(path)
        except safetensors.SafetensorError as error:
            raise ValueError(str(error)) from error
    return torch.load(path, map_location="cpu", weights_only=True)


def _unwrap(content: Any, path: Path) -> StateDict:
    for _ in range(3):
        if not isinstance(content, Mapping):
            break
        if content and all(isinstance(value, torch.Tensor) for value in content.values()):
            return {str(name): tensor for name, tensor in content.items()}
        inner = next((content[key] for key in _WRAPPER_KEYS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            break
        content = inner
    found = (
        f"a mapping with the keys {sorted(map(str, content))[:6]}" if isinstance(content, Mapping) else type(content)
    )
    raise WeightsError(f"the weights file {path} holds no state dict, but {found}.")


def _strip_prefixes(state: StateDict) -> StateDict:
    for prefix in _PREFIXES:
        if state and all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def tensor_bytes(tensor: torch.Tensor) -> bytes:
    """The tensor's values as they lie in memory, row-major; equal bytes mean bit-identical tensors, NaN included."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def digest_of_tensors(state: Mapping[str, torch.Tensor]) -> str:
    """The sha256 over every tensor's name, dtype, shape and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest()

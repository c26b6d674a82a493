"""Builds and drives `stub_cuda.c`, which plays NVIDIA's driver where no GPU is."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from edgetune.core.tensors import Array

_SOURCE = Path(__file__).with_name("stub_cuda.c")


class CudaStub:
    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self._library = ctypes.CDLL(self.path)
        self._library.stub_log.restype = ctypes.c_char_p
        self._library.stub_memory.argtypes = (ctypes.c_ulonglong, ctypes.c_size_t)
        self._library.stub_memory.restype = ctypes.c_void_p
        self._library.stub_run.argtypes = (ctypes.c_ulonglong,)

    def reset(self) -> None:
        self._library.stub_reset()

    def note(self, line: str) -> None:
        self._library.stub_note(line.encode())

    @property
    def calls(self) -> list[str]:
        """Every call with its numbers, and every note, in order."""
        text: bytes = self._library.stub_log()
        return text.decode().splitlines()

    def calls_of(self, name: str) -> list[str]:
        return [call for call in self.calls if call.split()[0] == name]

    @property
    def live(self) -> int:
        """Allocations, streams and context references that were not given back."""
        return int(self._library.stub_live())

    def context_is_current(self) -> bool:
        return bool(self._library.stub_context_is_current())

    def run(self, stream: int) -> bool:
        """Lets the GPU reach the work that comes next on the stream: the copies before it are done."""
        return bool(self._library.stub_run(stream))

    def array(self, address: int, shape: tuple[int, ...], dtype: str) -> Array:
        """The GPU's memory at `address` as an array; fails where it is not allocated."""
        size_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        memory = self._library.stub_memory(address, size_bytes)
        assert memory is not None, f"{size_bytes} bytes at {address:#x} are not one allocation"
        return np.ctypeslib.as_array((ctypes.c_uint8 * size_bytes).from_address(memory)).view(dtype).reshape(shape)


def compile_library(source: Path, library: Path) -> Path:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler (cc) to build the stand-in for libcuda.so.1")
    command = [compiler, "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", str(library), str(source)]
    subprocess.run(command, check=True)
    return library


def build_stub(folder: Path) -> CudaStub:
    return CudaStub(compile_library(_SOURCE, folder / "libcuda.so.1"))

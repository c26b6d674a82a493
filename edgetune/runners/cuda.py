"""NVIDIA's driver API through ctypes: what GPU is here, device memory, copies and streams.

Only `libcuda.so.1` is loaded, which the driver brings, on x86 and on Jetson alike; no toolkit and no package is needed.
Signatures are those of CUDA Driver API, chapters Error Handling, Initialization, Version Management, Device
Management, Primary Context Management, Context Management, Memory Management and Stream Management. Where cuda.h maps
a name onto `_v2`, the library's symbol is the `_v2` one: the plain one is the 32-bit function of CUDA 3.
"""

from __future__ import annotations

import contextlib
import ctypes
import re
from collections.abc import Iterator
from ctypes import POINTER, byref, c_char_p, c_int, c_size_t, c_uint, c_ulonglong, c_void_p
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgetune.core.errors import EngineError
from edgetune.core.tensors import Array

LIBRARY = "libcuda.so.1"

_KERNEL_DRIVER = Path("/proc/driver/nvidia/version")
# CUdevice and every enum are int; CUdeviceptr is unsigned long long; CUcontext and CUstream are pointers.
_FUNCTIONS: dict[str, tuple[Any, ...]] = {
    "cuGetErrorName": (c_int, POINTER(c_char_p)),
    "cuGetErrorString": (c_int, POINTER(c_char_p)),
    "cuInit": (c_uint,),
    "cuDriverGetVersion": (POINTER(c_int),),
    "cuDeviceGet": (POINTER(c_int), c_int),
    "cuDeviceGetName": (c_char_p, c_int, c_int),
    "cuDeviceGetAttribute": (POINTER(c_int), c_int, c_int),
    "cuDeviceTotalMem_v2": (POINTER(c_size_t), c_int),
    "cuDevicePrimaryCtxRetain": (POINTER(c_void_p), c_int),
    "cuDevicePrimaryCtxRelease_v2": (c_int,),
    "cuCtxGetCurrent": (POINTER(c_void_p),),
    "cuCtxSetCurrent": (c_void_p,),
    "cuMemAlloc_v2": (POINTER(c_ulonglong), c_size_t),
    "cuMemFree_v2": (c_ulonglong,),
    "cuMemcpyHtoDAsync_v2": (c_ulonglong, c_void_p, c_size_t, c_void_p),
    "cuMemcpyDtoHAsync_v2": (c_void_p, c_ulonglong, c_size_t, c_void_p),
    "cuStreamCreate": (POINTER(c_void_p), c_uint),
    "cuStreamDestroy_v2": (c_void_p,),
    "cuStreamSynchronize": (c_void_p,),
}
_OUT_OF_MEMORY = 2
_OTHER_HINT = "edgetune doctor tells what this machine has"
_HINTS = {_OUT_OF_MEMORY: "build the engine for a smaller --max-batch, or end other programs that use the GPU"}
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*
_STREAM_NON_BLOCKING = 1  # it does not wait for work that others put on the default stream
_NAME_BYTES = 256


@dataclass(frozen=True)
class GpuIdentity:
    """`compute_capability` as "8.6". `driver` is the kernel driver's version, as "580.65.06", where it can be read,
    else the newest CUDA version that the driver knows, as "13000".
    """

    name: str
    compute_capability: str
    driver: str
    memory_bytes: int


def gpu_identity(library: str = LIBRARY) -> GpuIdentity | None:
    """The first GPU that this process may use, or None where no driver or no GPU is. Makes no CUDA context."""
    try:
        return CudaDriver(library).identity()
    except EngineError:
        return None


class CudaDriver:
    """The driver's library, loaded and initialised. `device` counts the GPUs that `CUDA_VISIBLE_DEVICES` leaves."""

    def __init__(self, library: str = LIBRARY, device: int = 0) -> None:
        """Raises `EngineError` where the driver is missing, too old, or sees no such GPU."""
        self._functions = _load(library)
        self.call("cuInit", 0)
        found = c_int()
        self.call("cuDeviceGet", byref(found), device)
        self.device = found.value

    def call(self, name: str, *arguments: Any, detail: str = "") -> None:
        """Raises `EngineError` with the driver's own words when the function does not return CUDA_SUCCESS."""
        code = self._functions[name](*arguments)
        if code:
            words = self._text("cuGetErrorString", code)
            raise EngineError(
                f"the CUDA driver's {name}{detail} failed with {self._text('cuGetErrorName', code) or 'error'} ({code})"
                f"{f': {words}' if words else ''}.",
                hint=_HINTS.get(code, _OTHER_HINT),
            )

    def _text(self, function: str, code: int) -> str:
        text = c_char_p()
        self._functions[function](code, byref(text))
        return (text.value or b"").decode(errors="replace")

    def identity(self) -> GpuIdentity:
        """Raises `EngineError`."""
        name, memory_bytes = ctypes.create_string_buffer(_NAME_BYTES), c_size_t()
        self.call("cuDeviceGetName", name, _NAME_BYTES, self.device)
        self.call("cuDeviceTotalMem_v2", byref(memory_bytes), self.device)
        capability = f"{self._attribute(_CAPABILITY_MAJOR)}.{self._attribute(_CAPABILITY_MINOR)}"
        driver = _kernel_driver() or self._cuda_version()
        return GpuIdentity(name.value.decode(errors="replace"), capability, driver, memory_bytes.value)

    def _attribute(self, attribute: int) -> int:
        value = c_int()
        self.call("cuDeviceGetAttribute", byref(value), attribute, self.device)
        return value.value

    def _cuda_version(self) -> str:
        version = c_int()
        self.call("cuDriverGetVersion", byref(version))
        return str(version.value)


def _load(library: str) -> dict[str, Any]:
    try:
        driver = ctypes.CDLL(library)
    except OSError as error:
        raise EngineError(
            f"the NVIDIA driver cannot be loaded: {error}.", hint="engines run where an NVIDIA GPU and its driver are"
        ) from error
    functions = {}
    for name, argtypes in _FUNCTIONS.items():
        function = getattr(driver, name, None)
        if function is None:
            raise EngineError(f"{library} has no {name}: the NVIDIA driver is too old.", hint="CUDA 11 or newer")
        function.argtypes, function.restype = argtypes, c_int
        functions[name] = function
    return functions


def _kernel_driver() -> str:
    """From a line like "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.129.03  Thu Oct 19 18:56:32 UTC 2023"."""
    try:
        text = _KERNEL_DRIVER.read_text(errors="replace")
    except OSError:
        return ""
    match = re.search(r"^NVRM version:.*?\s(\d+(?:\.\d+)+)\s", text, re.MULTILINE)
    return match[1] if match else ""


class CudaContext:
    """The GPU's primary context, shared with every library of this process that uses the GPU, and work in it.

    A context is current for one thread at a time: whatever needs it runs inside `current`. Addresses are integers;
    streams too.
    """

    def __init__(self, driver: CudaDriver) -> None:
        self._driver = driver
        handle = c_void_p()
        driver.call("cuDevicePrimaryCtxRetain", byref(handle), driver.device)
        self._handle: int | None = handle.value

    def close(self) -> None:
        """Gives the context back, once; another call does nothing."""
        handle, self._handle = self._handle, None
        if handle is not None:
            self._driver.call("cuDevicePrimaryCtxRelease_v2", self._driver.device)

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        """Makes the context this thread's own inside the block, and then the one that was before."""
        before = c_void_p()
        self._driver.call("cuCtxGetCurrent", byref(before))
        self._driver.call("cuCtxSetCurrent", self._handle)
        try:
            yield
        finally:
            self._driver.call("cuCtxSetCurrent", before)

    def alloc(self, size_bytes: int) -> int:
        """Raises `EngineError`, with a hint where the memory is too small."""
        address = c_ulonglong()
        self._driver.call("cuMemAlloc_v2", byref(address), size_bytes, detail=f" of {size_bytes} bytes")
        return address.value

    def free(self, address: int) -> None:
        self._driver.call("cuMemFree_v2", address)

    def copy_in(self, address: int, array: Array, stream: int) -> None:
        """Copies a C-contiguous array to the GPU; it must stay alive and unchanged until the stream is synchronised."""
        self._driver.call("cuMemcpyHtoDAsync_v2", address, _data(array), array.nbytes, stream)

    def copy_out(self, array: Array, address: int, stream: int) -> None:
        """Fills a C-contiguous array from the GPU; it holds the values once the stream is synchronised."""
        self._driver.call("cuMemcpyDtoHAsync_v2", _data(array), address, array.nbytes, stream)

    def create_stream(self) -> int:
        stream = c_void_p()
        self._driver.call("cuStreamCreate", byref(stream), _STREAM_NON_BLOCKING)
        return stream.value or 0

    def destroy_stream(self, stream: int) -> None:
        self._driver.call("cuStreamDestroy_v2", stream)

    def synchronize(self, stream: int) -> None:
        """Waits for the stream's work. Raises `EngineError` when any of it failed."""
        self._driver.call("cuStreamSynchronize", stream)


def _data(array: Array) -> int:
    if not array.flags.c_contiguous:
        raise ValueError(f"an array of shape {array.shape} and strides {array.strides} is not contiguous.")
    return int(array.ctypes.data)

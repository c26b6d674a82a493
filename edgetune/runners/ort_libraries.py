"""The shared libraries that a provider stands on: loaded before ONNX Runtime asks for them, or named as missing.

ONNX Runtime itself writes the first missing one to its log and goes on with the CPU.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib
import importlib.util
import io
import mmap
import re
import struct
import sys
from pathlib import Path
from typing import Any

from edgetune.core.errors import MissingDependencyError, ModelError, first_line
from edgetune.runners.ort_providers import CPU, CUDA, TENSORRT_EP, TENSORRT_RTX_EP, EpChoice, provider_label

PLUGIN_MODULE = "onnxruntime_ep_nv_tensorrt_rtx"
PLUGIN_PACKAGE = "onnxruntime-ep-nv-tensorrt-rtx-cu13"
_PROVIDER_FILES = {CUDA: "libonnxruntime_providers_cuda.so", TENSORRT_EP: "libonnxruntime_providers_tensorrt.so"}

_ELF64_LITTLE = b"\x7fELF\x02\x01"
_PT_LOAD, _PT_DYNAMIC = 1, 2
_DT_NULL, _DT_NEEDED, _DT_STRTAB = 0, 1, 5


def import_ort() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependencyError(
            "ONNX Runtime is not installed.",
            hint="pip install 'edgetune[cpu]' for a CPU, or 'edgetune[gpu]' for an NVIDIA GPU, never both",
        ) from error
    return onnxruntime


def ort_errors() -> tuple[type[BaseException], ...]:
    """ONNX Runtime's exceptions have no common root but `Exception`; these are the ones it raises."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    names = ("Fail", "InvalidArgument", "InvalidProtobuf", "InvalidGraph", "NoSuchFile", "NoModel", "NotImplemented",
             "RuntimeException", "EPFail", "EngineError", "ModelLoaded", "ModelRequiresCompilation")  # fmt: skip
    return (RuntimeError, ValueError, *(getattr(state, name) for name in names if hasattr(state, name)))


def prepare_provider(ort: Any, ep: EpChoice) -> None:
    """Loads what the provider needs, so that a session opens with it or not at all.

    Raises:
        MissingDependencyError: ONNX Runtime or its plugin does not have the provider, or libraries are missing.
    """
    if ep.name == CPU:
        return
    if ep.is_plugin:
        library = _plugin_library()
    else:
        _check_offered(ort, ep)
        _preload(ort)
        library = Path(ort.__file__).parent / "capi" / _PROVIDER_FILES[ep.name]
    missing = missing_libraries(library)
    if missing:
        raise MissingDependencyError(
            f"{ep.name} was asked for, but {ep.ort_name} of ONNX Runtime {ort.__version__} cannot start here: "
            f"{', '.join(missing)} cannot be loaded.",
            hint=_remedy(missing, library),
        )


def plugin_device(ort: Any, ep: EpChoice) -> Any:
    """The plugin's first device.

    Raises:
        ModelError: the plugin cannot be registered, or finds no GPU.
    """
    try:
        _register(ort, ep.ort_name)
    except ort_errors() as error:
        raise ModelError(
            f"{ep.name} was asked for, but ONNX Runtime {ort.__version__} cannot register it: {first_line(error)}",
            hint="edgetune doctor tells which providers are usable here",
        ) from error
    devices = [device for device in ort.get_ep_devices() if device.ep_name == ep.ort_name]
    if not devices:
        raise ModelError(
            f"{provider_label(ep.ort_name)} was asked for, and finds no GPU that it can use.",
            hint="it needs compute capability 8.6, 8.9, or 12.0 and newer; cuda and tensorrt-ep run on others",
        )
    return min(devices, key=lambda device: int(device.ep_options.get("device_id", 0)))


def missing_libraries(library: Path) -> tuple[str, ...]:
    """Those that `library` needs and the loader cannot find, once the ones beside it and TensorRT's are loaded."""
    folders = (library.parent, *_package_folders("tensorrt_libs"))
    return tuple(name for name in needed_libraries(library) if not _loads(name, folders))


def needed_libraries(library: Path) -> tuple[str, ...]:
    """The NEEDED entries of a 64-bit ELF file; none of one that is of another kind, damaged or not there."""
    if not library.is_file() or library.stat().st_size == 0:
        return ()
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        try:
            return _needed(content) if content[:6] == _ELF64_LITTLE else ()
        except (struct.error, StopIteration, UnicodeDecodeError):
            return ()


def _needed(content: mmap.mmap) -> tuple[str, ...]:
    table, entry_size, entries = *struct.unpack_from("<Q", content, 32), *struct.unpack_from("<HH", content, 54)
    loads: list[tuple[int, int, int]] = []
    dynamic = (0, 0)
    for index in range(entries):
        kind, _, offset, address, _, size = struct.unpack_from("<IIQQQQ", content, table + index * entry_size)
        if kind == _PT_LOAD:
            loads.append((address, offset, size))
        elif kind == _PT_DYNAMIC:
            dynamic = (offset, size)
    names, strings = [], 0
    for tag, value in struct.iter_unpack("<QQ", content[dynamic[0] : dynamic[0] + dynamic[1] // 16 * 16]):
        if tag == _DT_NULL:
            break
        if tag == _DT_NEEDED:
            names.append(value)
        elif tag == _DT_STRTAB:
            strings = next(offset + value - start for start, offset, size in loads if start <= value < start + size)
    return tuple(content[strings + name : content.find(b"\0", strings + name)].decode() for name in names)


def _loads(name: str, folders: tuple[Path, ...]) -> bool:
    """Loaded for the whole process: the provider that needs it then finds it by name, wherever it came from.

    Packages hold some under longer names, as the plugin its `libcudart.so.13.4.36`.
    """
    for candidate in (name, *(str(path) for folder in folders for path in sorted(folder.glob(f"{name}*")))):
        with contextlib.suppress(OSError):
            ctypes.CDLL(candidate, mode=ctypes.RTLD_GLOBAL)
            return True
    return False


def _package_folders(package: str) -> tuple[Path, ...]:
    spec = importlib.util.find_spec(package)
    return tuple(Path(place) for place in (spec.submodule_search_locations or ())) if spec else ()


def _preload(ort: Any) -> None:
    """CUDA and cuDNN from NVIDIA's pip packages, where they are: the loader does not look there by itself."""
    if hasattr(ort, "preload_dlls"):
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does not find
            ort.preload_dlls()


def _check_offered(ort: Any, ep: EpChoice) -> None:
    offered = ort.get_available_providers()
    if ep.ort_name not in offered:
        raise MissingDependencyError(
            f"{ep.name} was asked for, but ONNX Runtime {ort.__version__} here has {', '.join(offered)}, and no "
            f"{ep.ort_name}.",
            hint="pip uninstall onnxruntime, then pip install 'edgetune[gpu]': never both",
        )


def _plugin_library() -> Path:
    """Importing the plugin's package loads what it brings, and makes the links that its libraries look for."""
    try:
        return Path(importlib.import_module(PLUGIN_MODULE).get_library_path())
    except (ImportError, OSError) as error:
        raise MissingDependencyError(
            f"{TENSORRT_RTX_EP} was asked for, but ONNX Runtime's plugin for it cannot be used: {first_line(error)}.",
            hint=f"pip install {PLUGIN_PACKAGE} beside ONNX Runtime",
        ) from error


@functools.cache
def _register(ort: Any, name: str) -> None:
    """Once a process: ONNX Runtime refuses a second time."""
    ort.register_execution_provider_library(name, str(_plugin_library()))


def _remedy(missing: tuple[str, ...], library: Path) -> str:
    """What to install for each kind of library that is missing. Versions are those the provider was linked against."""
    steps = []
    driver = [name for name in missing if name.startswith(("libcuda.", "libnvidia-"))]
    tensorrt = [name for name in missing if name.startswith(("libnvinfer", "libnvonnxparser"))]
    toolkit = [name for name in missing if name not in (*driver, *tensorrt)]
    if driver:
        steps.append("install the NVIDIA driver")
    if toolkit:
        steps.append("pip install 'onnxruntime-gpu[cuda,cudnn]'")
    if tensorrt:
        cuda = next((_major(name) for name in needed_libraries(library) if name.startswith("libcudart")), 13)
        steps.append(f"pip install 'tensorrt-cu{cuda}<{_major(tensorrt[0]) + 1}'")
    return "; ".join(steps) + ("" if sys.platform == "linux" else f"; {library.name} must be for this system")


def _major(name: str) -> int:
    found = re.search(r"\.so\.(\d+)", name)
    return int(found.group(1)) if found else 0

"""Versions of the libraries that a result may depend on."""

from __future__ import annotations

import platform
from importlib import metadata

_LIBRARIES = ("edgetune", "numpy", "pillow", "torch", "torchvision", "timm", "onnx", "onnxscript", "onnxruntime",
              "onnxruntime-gpu", "scikit-learn", "safetensors", "tensorrt", "tensorrt-cu12-bindings",
              "tensorrt-cu13-bindings", "tensorrt-rtx-cu13-bindings")  # fmt: skip


def edgetune_version() -> str:
    return installed_version("edgetune") or "unknown"


def installed_version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def library_versions() -> dict[str, str]:
    """Python's version and those of the installed libraries, without importing one of them."""
    found = {name: installed_version(name) for name in _LIBRARIES}
    return {"python": platform.python_version(), **{name: version for name, version in found.items() if version}}

"""Exported backbones on disk; looked up without PyTorch, which takes seconds to import."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from edgetune.core.errors import ModelError
from edgetune.core.files import cache_root, sha256_of_bytes, sha256_of_file, write_bytes_atomic
from edgetune.core.fingerprint import fingerprint
from edgetune.core.versions import installed_version

# To be raised whenever the same backbone is exported in another form, or for another opset.
_REVISION = 3


def exporter_version() -> str:
    """What an exported graph depends on besides weights and preprocessing."""
    return f"torch {installed_version('torch')}, onnxscript {installed_version('onnxscript')}, revision {_REVISION}"


def cached_graph(key: Mapping[str, str], export: Callable[[], bytes]) -> Path:
    """The ONNX file for `key`, which identifies backbone and preprocessing; `export` makes it where there is none yet.

    The exporter's version is added to the key. The file's name ends in its own sha256, so that a damaged file is
    noticed and exported anew.

    Raises:
        ModelError: the file cannot be written, for instance because the disk is full.
    """
    name = fingerprint({**key, "exporter": exporter_version()})
    folder = cache_root() / "graphs"
    for path in sorted(folder.glob(f"{name}-*.onnx")):
        if _is_intact(path):
            return path
    content = export()
    path = folder / f"{name}-{sha256_of_bytes(content)}.onnx"
    try:
        write_bytes_atomic(path, content)
    except OSError as error:
        raise ModelError(
            f"the exported backbone, {len(content)} bytes, cannot be written to {folder}: {error.strerror or error}.",
            hint="make room or set EDGETUNE_CACHE to another folder",
        ) from error
    return path


def _is_intact(path: Path) -> bool:
    try:
        return sha256_of_file(path) == path.stem.partition("-")[2]
    except OSError:  # gone, or not ours to read
        return False

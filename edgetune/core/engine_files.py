"""The engine cache: one folder an engine, named by the fingerprint of all that the engine depends on.

An engine is a cache, not an artifact: it fits one backend version and one kind of GPU, and can always be built again
from the bundle's ONNX file. Beside it lies a sidecar, which can be read where no GPU is.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from edgetune.core.config import from_dict, to_dict
from edgetune.core.engine_record import (
    AMPERE_PLUS,
    SAME_COMPUTE_CAPABILITY,
    EngineHost,
    EngineKey,
    EngineParity,
    EngineRecord,
)
from edgetune.core.errors import ConfigError, EngineError, EngineMismatchError
from edgetune.core.files import (
    cache_root,
    canonical_json,
    pretty_json,
    sha256_of_bytes,
    sha256_of_file,
    write_bytes_atomic,
)

ENGINE_NAME = "model.engine"
SIDECAR_NAME = "engine.json"
SIDECAR_SCHEMA_VERSION = 1

_REBUILD = "build it again with edgetune build"


def engine_cache(chosen: Path | None = None) -> Path:
    return chosen if chosen is not None else cache_root() / "engines"


def sidecar_bytes(record: EngineRecord) -> bytes:
    """The sidecar's content, closed by a digest of itself."""
    return _with_digest(to_dict(record))


def _with_digest(content: dict[str, Any]) -> bytes:
    return pretty_json({**content, "digest": sha256_of_bytes(canonical_json(content))})


def read_sidecar(folder: Path) -> EngineRecord:
    """Raises `EngineError` when it is missing, damaged, or of another schema version."""
    path = folder / SIDECAR_NAME
    try:
        text = path.read_bytes()
        content = json.loads(text)
        if not isinstance(content, dict):
            raise EngineError(f"{path} is not a JSON object.", hint=_REBUILD)
        version = content.get("schema_version")
        if version != SIDECAR_SCHEMA_VERSION:
            message = f"{path} has schema version {version!r}, this edgetune reads {SIDECAR_SCHEMA_VERSION}."
            raise EngineError(message, hint=_REBUILD)
        content.pop("digest", None)
        if _with_digest(content) != text:
            raise EngineError(f"{path} was changed after it was written: its digest does not match.", hint=_REBUILD)
        record = from_dict(EngineRecord, content, str(path))
    except FileNotFoundError as error:
        raise EngineError(f"the engine's sidecar {path} does not exist.", hint=_REBUILD) from error
    except (OSError, ConfigError, ValueError, RecursionError) as error:
        raise EngineError(f"the engine's sidecar {path} cannot be used: {error}", hint=_REBUILD) from error
    return record


def load_engine(folder: Path, host: EngineHost) -> tuple[EngineRecord, bytes]:
    """The sidecar and the engine's bytes, both intact and made for this host.

    Raises:
        EngineError: a file is missing or was changed.
        EngineMismatchError: the engine was built for another backend, version, GPU or driver.
    """
    record, engine = read_sidecar(folder), _read_engine(folder)
    _check_bytes(folder, record, len(engine), sha256_of_bytes(engine))
    check_host(record.key, host)
    return record, engine


def check_engine(folder: Path) -> EngineRecord:
    """Reads the sidecar and compares every byte of the engine with it. Raises `EngineError`."""
    record, path = read_sidecar(folder), folder / ENGINE_NAME
    try:
        _check_bytes(folder, record, path.stat().st_size, sha256_of_file(path))
    except OSError as error:
        raise _unreadable(folder, error) from error
    return record


def _read_engine(folder: Path) -> bytes:
    try:
        return (folder / ENGINE_NAME).read_bytes()
    except OSError as error:
        raise _unreadable(folder, error) from error


def _unreadable(folder: Path, error: OSError) -> EngineError:
    if isinstance(error, FileNotFoundError):
        return EngineError(f"{folder} has a sidecar and no engine ({ENGINE_NAME}).", hint=_REBUILD)
    return EngineError(f"{folder / ENGINE_NAME} cannot be read: {error.strerror or error}.", hint=_REBUILD)


def _check_bytes(folder: Path, record: EngineRecord, size_bytes: int, sha256: str) -> None:
    if (size_bytes, sha256) != (record.size_bytes, record.sha256):
        raise EngineError(
            f"{folder / ENGINE_NAME} was changed after it was built: {size_bytes} bytes whose sha256 is not "
            f"{record.sha256[:12]}... ({record.size_bytes} bytes).",
            hint=_REBUILD,
        )


def check_host(key: EngineKey, host: EngineHost) -> None:
    """Raises `EngineMismatchError`, with one sentence that names both sides, unless the engine fits this host."""
    reason = host_mismatch(key, host)
    if reason:
        raise EngineMismatchError(reason, hint=_REBUILD)


def host_mismatch(key: EngineKey, host: EngineHost) -> str:
    """Why an engine is not for this host, in one sentence that names both sides; empty where it is."""
    built, options = key.host, key.options
    pairs = [("backend", built.backend, host.backend)]
    if not (options.version_compatible and _is_newer(built.backend_version, host.backend_version)):
        pairs.append((f"{built.backend} version", built.backend_version, host.backend_version))
    if built.gpu:
        pairs += _gpu_pairs(built, host, options.hardware_compatible)
    for what, then, now in pairs:
        if then != now:
            return f"the engine was built for {what} {then or 'none'}, and this machine has {now or 'none'}."
    if not built.gpu and options.targets and _sm(host) not in options.targets:
        return (
            f"the engine was compiled for {', '.join(options.targets)}, and this machine has {_sm(host) or 'no GPU'}."
        )
    if not host.gpu:
        return f"the engine was built for {built.gpu or 'an NVIDIA GPU'}, and this machine has no GPU."
    return ""


def _gpu_pairs(built: EngineHost, host: EngineHost, compatible: str | None) -> list[tuple[str, str, str]]:
    if compatible == AMPERE_PLUS:
        return [("a GPU of compute capability", "8.0 or newer", "8.0 or newer" if _is_ampere(host) else host.gpu)]
    pairs = [("compute capability", built.compute_capability, host.compute_capability)]
    if compatible == SAME_COMPUTE_CAPABILITY:
        return pairs
    return [*pairs, ("GPU", built.gpu, host.gpu), ("driver", built.driver, host.driver)]


def _is_ampere(host: EngineHost) -> bool:
    return _numbers(host.compute_capability) >= (8, 0)


def _is_newer(built: str, here: str) -> bool:
    return _numbers(here) >= _numbers(built)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def _sm(host: EngineHost) -> str:
    return f"sm{host.compute_capability.replace('.', '')}" if host.compute_capability else ""


def find_engines(cache: Path, onnx_sha256: str) -> list[tuple[Path, EngineRecord]]:
    """Engines of one ONNX file, newest first. Folders whose sidecar cannot be read are left out, and hidden ones, in
    which an engine is being built.
    """
    found: list[tuple[Path, EngineRecord]] = []
    for folder in sorted(cache.glob("[!.]*/")) if cache.is_dir() else []:
        try:
            record = read_sidecar(folder)
        except EngineError:
            continue
        if record.key.onnx_sha256 == onnx_sha256:
            found.append((folder, record))
    return sorted(found, key=lambda item: item[1].created, reverse=True)


def record_parity(folder: Path, parity: EngineParity, measured_sha256: str) -> EngineRecord:
    """Writes the engine's own verdict into its sidecar.

    Raises:
        EngineError: that cannot be read or written, or another engine than the measured one is there by now.
    """
    record = read_sidecar(folder)
    if record.sha256 != measured_sha256:
        raise EngineError(f"the engine in {folder} was replaced while it was judged.", hint="run parity again")
    record = dataclasses.replace(record, parity=parity)
    try:
        write_bytes_atomic(folder / SIDECAR_NAME, sidecar_bytes(record))
    except OSError as error:
        raise EngineError(
            f"the engine's verdict cannot be written into {folder}: {error.strerror or error}.",
            hint="run it as the user who built the engine, or with an --engine-cache of yours",
        ) from error
    return record

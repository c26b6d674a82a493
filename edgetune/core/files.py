"""Whole files or none: digests, atomic writes, and output folders that appear complete."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgetune.core.errors import DataError, EdgetuneError, OutputExistsError

_CHUNK_BYTES = 1 << 20

# What numpy raises on a damaged .npz.
ARCHIVE_ERRORS = (
    OSError, ValueError, KeyError, TypeError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


def sha256_of_bytes(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def sha256_of_file(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def canonical_json(value: Any) -> bytes:
    """The one spelling of a JSON value that digests are taken of: sorted keys, no NaN, UTF-8."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False).encode()


def pretty_json(value: Any) -> bytes:
    return json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False).encode() + b"\n"


def read_json(path: Path) -> Any:
    """Raises `DataError` when the file is missing or is not JSON."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist.") from error
    except (ValueError, OSError, RecursionError) as error:
        raise DataError(f"{path} cannot be read as JSON: {error}.") from error


def printable(text: str) -> str:
    """The text as valid UTF-8: file names may hold bytes that are none, which come out as escapes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def write_bytes_atomic(path: Path, data: bytes) -> None:
    """Writes a temporary file beside `path`, flushes it to disk, and renames it over `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{secrets.token_hex(8)}.partial"
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        raise


def cache_root() -> Path:
    """The user's cache folder for edgetune: `EDGETUNE_CACHE`, else `XDG_CACHE_HOME`, else `~/.cache`."""
    chosen = os.environ.get("EDGETUNE_CACHE")
    if chosen:
        return Path(chosen)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgetune"
    except RuntimeError:  # a container's user may have no home
        return Path(tempfile.gettempdir()) / "edgetune-cache"


# Hidden siblings that this process is using now; another process with our id, in a container long gone, left others.
_in_use: set[Path] = set()


def _sibling(path: Path, kind: str) -> Path:
    return path.parent / f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.{kind}"


def _is_abandoned(leftover: Path, pid: int) -> bool:
    if pid == os.getpid():
        return leftover not in _in_use
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _clear_leftovers(path: Path) -> None:
    """Removes what killed processes left beside `path`; an output moved aside and never replaced comes back."""
    name = re.compile(re.escape(f".{path.name}.") + r"(\d+)-[0-9a-f]{8}\.(partial|replaced)")
    for leftover in sorted(path.parent.iterdir()):
        match = name.fullmatch(leftover.name)
        if match is None or not _is_abandoned(leftover, int(match[1])):
            continue
        if match[2] == "replaced" and not path.exists():
            os.replace(leftover, path)
        else:
            shutil.rmtree(leftover)


def check_output(path: Path, marker: str, *, force: bool) -> None:
    """Refuses an output that exists, unless `force` is set and it is empty or one of ours (it holds `marker`).

    Raises:
        OutputExistsError: the output may not be replaced.
    """
    if not path.exists() and not path.is_symlink():
        return
    is_ours = path.is_dir() and ((path / marker).is_file() or not any(path.iterdir()))
    if not is_ours:
        raise OutputExistsError(
            f"{path} exists and is not a folder that edgetune wrote (it holds no {marker}).",
            hint="choose another --out; --force replaces only edgetune's own folders",
        )
    if not force and any(path.iterdir()):
        raise OutputExistsError(f"{path} exists already.", hint="choose another --out, or replace it with --force")


@contextlib.contextmanager
def output_folder(path: Path, marker: str, *, force: bool) -> Iterator[Path]:
    """Yields a hidden folder beside `path` that becomes `path` when the block ends without an error.

    A process killed inside the block leaves only the hidden folder, and the next call removes it.

    Raises:
        OutputExistsError: see `check_output`.
        EdgetuneError: the disk refused to take the files.
    """
    if path.is_symlink() and not path.exists():
        check_output(path, marker, force=force)  # a link to nowhere is somebody's; it is refused
    path = path.resolve()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _clear_leftovers(path)
        check_output(path, marker, force=force)
        partial = _sibling(path, "partial")
        _in_use.add(partial)
        partial.mkdir()
    except OSError as error:
        raise EdgetuneError(f"{path} cannot be written: {error.strerror or error}.") from error
    try:
        yield partial
        _flush_tree(partial)
        check_output(path, marker, force=force)  # again: something may have appeared there meanwhile
        _swap_in(partial, path)
    except OSError as error:
        raise EdgetuneError(f"{path} could not be written, and nothing was left half done: {error}.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        _in_use.discard(partial)


def _flush_tree(folder: Path) -> None:
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            with file.open("rb") as stream:
                os.fsync(stream.fileno())


def _swap_in(partial: Path, path: Path) -> None:
    if not path.exists():
        os.replace(partial, path)
        return
    aside = _sibling(path, "replaced")
    os.replace(path, aside)
    os.replace(partial, path)
    shutil.rmtree(aside)

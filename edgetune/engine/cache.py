"""Into the engine cache and out of it: one build at a time for each engine, and nothing half written."""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path

from edgetune.core.engine_files import SIDECAR_NAME, check_engine, sidecar_bytes
from edgetune.core.engine_record import EngineKey, EngineRecord
from edgetune.core.errors import EngineError
from edgetune.core.files import output_folder
from edgetune.core.progress import Progress, no_progress

_POLL_S = 0.2


@contextlib.contextmanager
def engine_lock(
    cache: Path, fingerprint: str, *, timeout_s: float | None = None, progress: Progress = no_progress
) -> Iterator[None]:
    """Waits until no other process builds this engine. The system frees the lock when its holder dies, however.

    Raises:
        EngineError: the cache folder cannot be written, or the other build goes on for longer than `timeout_s`.
    """
    try:
        cache.mkdir(parents=True, exist_ok=True)
        handle = os.open(cache / f".{fingerprint}.lock", os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise EngineError(
            f"the engine cache {cache} cannot be written: {error.strerror or error}.",
            hint="name a folder of yours with --engine-cache",
        ) from error
    try:
        deadline = math.inf if timeout_s is None else time.monotonic() + timeout_s
        while not _try_lock(handle):
            if time.monotonic() > deadline:
                raise EngineError(
                    f"another process has been building this engine for more than {timeout_s:g} s.",
                    hint="wait for it, or end it; raise --timeout",
                )
            progress("another build", 0, 1)
            time.sleep(_POLL_S)
        yield
    finally:
        os.close(handle)


def _try_lock(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def find_intact(folder: Path, key: EngineKey) -> EngineRecord | None:
    """The engine of this key if it is there; None if there is none.

    Raises:
        EngineError: what is there is damaged, or is another engine's.
    """
    if not folder.exists():
        return None
    record = check_engine(folder)
    if record.key != key:
        raise EngineError(f"{folder} holds an engine of another fingerprint than its name.")
    return record


@contextlib.contextmanager
def new_engine(folder: Path) -> Iterator[Path]:
    """A hidden folder that becomes `folder` when the block ends without an error; an older engine is replaced."""
    if folder.exists() and not folder.is_dir():
        raise EngineError(f"{folder} is in the way: a file where the engine's folder belongs.", hint="remove it")
    with output_folder(folder, SIDECAR_NAME, force=True) as partial:
        yield partial


def write_sidecar(folder: Path, record: EngineRecord) -> None:
    (folder / SIDECAR_NAME).write_bytes(sidecar_bytes(record))

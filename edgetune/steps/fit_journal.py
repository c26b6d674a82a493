"""A fit that was cut short leaves its options beside its output; `--resume` goes on with the very same ones.

There is no other state to save: features are in the cache block by block, and everything after them is computed anew
from a seed, bit for bit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgetune.core.errors import DataError, EdgetuneError, OutputExistsError, UsageError
from edgetune.core.files import pretty_json, read_json, write_bytes_atomic
from edgetune.core.run import RUN_NAME, Run, load_run

# They say how to run, not what comes out.
_FREE = ("force", "resume")


def recorded(options: dict[str, Any]) -> dict[str, Any]:
    """The options that decide the result, as `run.json` keeps them."""
    return {name: value for name, value in options.items() if name not in _FREE}


@contextlib.contextmanager
def journal(out: Path, options: dict[str, Any]) -> Iterator[None]:
    """Keeps the options beside `out` while a fit runs. An error that the fit itself reports, or its success, removes
    them: only a process that was killed leaves them. After an error the folders above `out` are gone again as well,
    where there were none before.

    Raises:
        EdgetuneError: the folder around `out` cannot be written.
    """
    path = _path(out)
    made = [folder for folder in path.parents if not folder.exists()]
    try:
        write_bytes_atomic(path, pretty_json({"options": recorded(options)}))
    except OSError as error:
        raise EdgetuneError(f"{path.parent} cannot be written: {error.strerror or error}.") from error
    try:
        yield
    except Exception:
        path.unlink(missing_ok=True)
        for folder in made:  # deepest first, and only those that are empty
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise
    path.unlink(missing_ok=True)


def finished_run(out: Path, options: dict[str, Any]) -> Run | None:
    """The run at `out` where it is complete and has these options; None where there is something left to do.

    Raises:
        OutputExistsError: the run at `out` was fitted with other options.
        UsageError: the fit that was cut short had other options.
        RunError: the run at `out` is damaged.
    """
    if (out / RUN_NAME).is_file():
        run = load_run(out)
        changed = _changed(recorded(run.options), recorded(options))
        if changed:
            raise OutputExistsError(
                f"{out} is a finished run with other options: {changed}.",
                hint="choose another --out, or replace it with --force and without --resume",
            )
        return run
    begun = _begun(out)
    changed = "" if begun is None else _changed(begun, recorded(options))
    if changed:
        raise UsageError(
            f"--resume: the fit of {out} that was cut short had other options: {changed}.",
            hint="give the same options, or start anew without --resume",
        )
    return None


def _begun(out: Path) -> dict[str, Any] | None:
    path = _path(out)
    if not path.is_file():
        return None
    try:
        content = read_json(path)
    except DataError:
        return None
    options = content.get("options") if isinstance(content, dict) else None
    return options if isinstance(options, dict) else None


def _changed(before: dict[str, Any], now: dict[str, Any]) -> str:
    """Each option that differs, with what it was and is; empty where none does."""
    names = [name for name in dict.fromkeys([*now, *before]) if before.get(name) != now.get(name)]
    return ", ".join(f"{name} was {before.get(name)!r}, is {now.get(name)!r}" for name in names)


def _path(out: Path) -> Path:
    absolute = out.absolute()
    return absolute.parent / f".{absolute.name}.fit.json"

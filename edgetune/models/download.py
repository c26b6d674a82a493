"""Files from the network, whole and checked or not at all."""

from __future__ import annotations

import contextlib
import http.client
import os
import secrets
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from edgetune.core.errors import WeightsError, first_line
from edgetune.core.files import sha256_of_file
from edgetune.core.progress import Progress, no_progress
from edgetune.models.weights_file import describe_page

STAGE = "download"
TIMEOUT_S = 30.0

_CHUNK_BYTES = 1 << 18
_PEEK_BYTES = 1 << 14
_ABANDONED_S = 3600.0  # a download that lives has written within the timeout


@dataclass(frozen=True)
class RemoteFile:
    """Where a file is published, where it goes, and how the sha256 of its bytes begins."""

    url: str
    path: Path
    sha256_prefix: str


def fetch(remote: RemoteFile, *, progress: Progress = no_progress, timeout_s: float = TIMEOUT_S) -> tuple[str, ...]:
    """Makes sure that the file is there and whole; returns sentences about what had to be mended.

    A file that is there but damaged is fetched again, and kept beside the new one as `NAME.damaged`. `timeout_s` is
    for the connection and for each pause of the server. Progress counts bytes.

    Raises:
        WeightsError: the file cannot be had; the message says why, the hint where to put it.
    """
    if _is_whole(remote):
        return ()
    was_damaged = remote.path.exists()
    partial = remote.path.parent / f".{remote.path.name}.{secrets.token_hex(8)}.partial"
    try:
        remote.path.parent.mkdir(parents=True, exist_ok=True)
        _clear_abandoned(remote.path)
        _download(remote.url, partial, progress, timeout_s)
        _check_digest(remote, partial)
        return _put_in_place(remote, partial)
    except (OSError, http.client.HTTPException, ValueError) as error:
        if _is_whole(remote):  # another process has finished meanwhile
            return ()
        raise _failed(remote, error, was_damaged) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


class _NotTheFile(ValueError):
    """The server answered with something else than the file."""


def _is_whole(remote: RemoteFile) -> bool:
    return remote.path.is_file() and sha256_of_file(remote.path).startswith(remote.sha256_prefix)


def _clear_abandoned(path: Path) -> None:
    """Removes what killed processes left of this file."""
    for leftover in path.parent.glob(f".{path.name}.*.partial"):
        with contextlib.suppress(OSError):
            if time.time() - leftover.stat().st_mtime > _ABANDONED_S:
                leftover.unlink()


def _download(url: str, partial: Path, progress: Progress, timeout_s: float) -> None:
    with _opener().open(url, timeout=timeout_s) as answer, partial.open("xb") as stream:
        total = _content_length(answer)
        done = _copy(answer, stream, total, progress)
        if total is not None and done != total:
            raise _NotTheFile(f"the connection ended after {done} of {total} bytes")
        progress(STAGE, done, done)
        stream.flush()
        os.fsync(stream.fileno())


def _copy(answer: Any, stream: IO[bytes], total: int | None, progress: Progress) -> int:
    done = 0
    while chunk := answer.read(_CHUNK_BYTES):
        stream.write(chunk)
        done += len(chunk)
        if total is not None and done < total:
            progress(STAGE, done, total)
    return done


def _content_length(answer: Any) -> int | None:
    text = answer.headers.get("Content-Length", "")
    return int(text) if text.isdecimal() else None


def _check_digest(remote: RemoteFile, partial: Path) -> None:
    found = sha256_of_file(partial)
    if found.startswith(remote.sha256_prefix):
        return
    with partial.open("rb") as stream:
        page = describe_page(stream.read(_PEEK_BYTES))
    what = f"what came is {page}" if page else f"the sha256 of the {partial.stat().st_size} bytes that came is {found}"
    raise _NotTheFile(f"{what}, expected one that begins with {remote.sha256_prefix}" if not page else what)


def _put_in_place(remote: RemoteFile, partial: Path) -> tuple[str, ...]:
    if _is_whole(remote):
        return ()
    if not remote.path.exists():
        os.replace(partial, remote.path)
        return ()
    aside = move_aside(remote.path)
    os.replace(partial, remote.path)
    return (damaged_note(remote.path, remote.sha256_prefix, aside),)


def damaged_note(path: Path, sha256_prefix: str, aside: Path) -> str:
    return (
        f"{path} was damaged (its sha256 did not begin with {sha256_prefix}): it was moved to {aside.name} and "
        "fetched again"
    )


def move_aside(path: Path) -> Path:
    """Renames the file to `NAME.damaged`, or `NAME.damaged.2` and so on where older ones are kept."""
    number = 1
    while True:
        aside = path.with_name(f"{path.name}.damaged" + (f".{number}" if number > 1 else ""))
        try:
            os.close(os.open(aside, os.O_CREAT | os.O_EXCL | os.O_WRONLY))  # nobody else can take the name now
        except FileExistsError:
            number += 1
            continue
        os.replace(path, aside)
        return aside


def _failed(remote: RemoteFile, error: Exception, was_damaged: bool) -> WeightsError:
    damaged = (
        f"{remote.path} is damaged: its sha256 does not begin with {remote.sha256_prefix}. " if was_damaged else ""
    )
    return WeightsError(
        f"{damaged}{remote.path.name} could not be downloaded from {remote.url}: {_reason(error)}.",
        hint=f"fetch {remote.url} elsewhere and put it at {remote.path}, or give --weights FILE",
    )


def why_unreachable(url: str, timeout_s: float = TIMEOUT_S) -> str:
    """Why no server answers for the URL; empty where one does, whatever it says."""
    try:
        with _opener().open(url, timeout=timeout_s):
            return ""
    except urllib.error.HTTPError as error:
        error.close()
        return ""
    except (OSError, http.client.HTTPException, ValueError) as error:
        return _reason(error)


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        error.close()
        return f"the server answered HTTP {error.code} {error.reason}".rstrip()
    if isinstance(error, urllib.error.URLError):
        return f"no connection ({_words(error.reason)})"
    if isinstance(error, TimeoutError):
        return "the server stopped sending"
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename} cannot be written ({error.strerror})"
    return _words(error)


def _words(reason: object) -> str:
    if isinstance(reason, TimeoutError):
        return "timed out"
    if isinstance(reason, OSError) and reason.strerror:
        return reason.strerror
    return (first_line(reason) if isinstance(reason, BaseException) else str(reason)).rstrip(". ")


class _WebRedirects(urllib.request.HTTPRedirectHandler):
    """Redirects lead to the web and nowhere else: urllib would follow them to FTP."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        if urlsplit(newurl).scheme not in ("http", "https"):
            raise _NotTheFile(f"the server sends us to {newurl!r}, which is no web address")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener() -> urllib.request.OpenerDirector:
    """Opens http and https, through the proxies that the environment names; no files and no FTP."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(), urllib.request.HTTPHandler(), urllib.request.HTTPSHandler(), _WebRedirects(),
        urllib.request.HTTPDefaultErrorHandler(), urllib.request.HTTPErrorProcessor(), urllib.request.UnknownHandler(),
    ):  # fmt: skip
        opener.add_handler(handler)
    opener.addheaders = [("User-Agent", "edgetune")]
    return opener

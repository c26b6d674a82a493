"""The server's log on stderr: one line a record, as text or as JSON, whatever clients put into it."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Literal, TextIO

FIELD_CHARACTERS = 256
# A traceback is of use as a whole; its end, which names the error, is kept.
_TRACE_CHARACTERS = 4096

# Warnings and errors that one line of code may write in a while: a client that keeps failing must not fill the disk.
_BURST = 20
_WHILE_S = 10.0

_UVICORN_LOGGERS = ("uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi")
_OWN_ATTRIBUTES = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}

Format = Literal["text", "json"]

if TYPE_CHECKING:
    _TextHandler = logging.StreamHandler[TextIO]
else:
    _TextHandler = logging.StreamHandler  # takes no type argument before Python 3.11


@dataclass(frozen=True)
class Access:
    """One answered request, for the access log; `path` without its query, `client` an address."""

    method: str
    path: str
    status: int
    duration_ms: float
    client: str
    request_id: str


def configure_logging(log_format: Format, level: str, stream: TextIO | None = None) -> None:
    """Everything that is logged in this process goes to stderr (`stream`) in one format, uvicorn's lines too.

    `level` is the standard library's name of a level; give uvicorn `log_config=None`, or it sets up its own.
    """
    handler = _Handler(stream or sys.stderr)
    handler.setFormatter(_JsonFormatter() if log_format == "json" else _TextFormatter())
    handler.addFilter(RepeatLimit())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in _UVICORN_LOGGERS:
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.setLevel(logging.NOTSET)
        logger.propagate = True


def access(logger: logging.Logger, entry: Access) -> None:
    """One line of the access log, at level INFO."""
    if logger.isEnabledFor(logging.INFO):
        logger.info("request", extra=asdict(entry))


class RepeatLimit(logging.Filter):
    """Lets each line of code write 20 warnings or errors in 10 s; the first one after says how many it left out, as
    `suppressed`. Lines below a warning pass.
    """

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._now_s = now_s
        self._seen: dict[tuple[str, int], tuple[float, int]] = {}  # as many keys as the code has lines that log

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING:
            return True
        key, now = (record.pathname, record.lineno), self._now_s()
        since, count = self._seen.get(key, (now, 0))
        if now - since >= _WHILE_S:
            if count > _BURST:
                record.suppressed = count - _BURST
            since, count = now, 0
        self._seen[key] = (since, count + 1)
        return count < _BURST


class _Handler(_TextHandler):
    """A log that cannot be written is no reason to fail or to write elsewhere."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the library's name
        del record


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return json.dumps({"ts": _timestamp(record), **_fields(record)}, separators=(",", ":"))


class _TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = _fields(record)
        words = [_timestamp(record), fields.pop("level"), _printable(fields.pop("event"))]
        words += [f"{_printable(key)}={_text_value(value)}" for key, value in fields.items()]
        return " ".join(words)


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    """The level, the event, then what the caller gave as `extra`, and the exception; strings are cut."""
    fields: dict[str, Any] = {"level": record.levelname, "event": _cut(_message(record)), "logger": record.name}
    for key, value in vars(record).items():
        if key not in _OWN_ATTRIBUTES and key not in fields and key != "ts":
            fields[_cut(key)] = _plain(value)
    if record.exc_info and record.exc_info[0] is not None:
        fields["exception"] = logging.Formatter().formatException(record.exc_info)[-_TRACE_CHARACTERS:]
    return fields


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:  # noqa: BLE001 - a line whose arguments do not fit is still worth its words
        return str(_plain(record.msg))


def _plain(value: Any) -> Any:
    """Numbers, booleans and None as they are, all else as a cut string; JSON has no NaN and no infinity."""
    if value is None or isinstance(value, bool) or (isinstance(value, int) and abs(value) < 1 << 64):
        return value
    if isinstance(value, float) and abs(value) < float("inf"):
        return round(value, 6)
    try:
        return _cut(str(value))
    except Exception:  # noqa: BLE001 - an object that cannot be written must not cost the line
        return f"<{type(value).__name__}>"


def _cut(text: str) -> str:
    return text if len(text) <= FIELD_CHARACTERS else text[: FIELD_CHARACTERS - 1] + "\u2026"


def _text_value(value: Any) -> str:
    if not isinstance(value, str):
        return json.dumps(value)
    is_word = value.isascii() and value.isprintable() and not any(mark in value for mark in ' "=\\') and value
    return value if is_word else json.dumps(value)


def _printable(text: str) -> str:
    """Control, formatting and unpaired characters as escapes, so that no text begins a line or hides a part of one."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else _escape(letter) for letter in text)


def _escape(letter: str) -> str:
    return letter.encode("unicode_escape").decode("ascii")


def _timestamp(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, timezone.utc)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")

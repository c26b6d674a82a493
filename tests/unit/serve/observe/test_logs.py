"""One line a record, whatever it holds: hostile strings, exceptions, odd values, and too many of them."""

from __future__ import annotations

import io
import json
import logging
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from edgetune.serve.observe.logs import Access, Format, RepeatLimit, access, configure_logging

logger = logging.getLogger("edgetune.serve.test")

HOSTILE = ["a\nlevel=ERROR forged", "\x1b[2J\x1b[31mred", "x\r\x00\x7f\x85", "\u2028\u2029", "\u202egnp.exe",
           "\ud800 unpaired", "\u0085next", '"quoted" = \\']  # fmt: skip


class Log:
    """Sets logging up as the server does, into a string."""

    def __init__(self, log_format: Format, level: str = "info") -> None:
        self.stream = io.StringIO()
        configure_logging(log_format, level, self.stream)

    @property
    def lines(self) -> list[str]:
        return self.stream.getvalue().split("\n")[:-1]

    @property
    def entries(self) -> list[dict[str, Any]]:
        return [json.loads(line, parse_constant=_refuse) for line in self.lines]


def _refuse(word: str) -> None:
    raise AssertionError(f"{word} is no JSON")


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def test_a_json_line_by_hand() -> None:
    log = Log("json")
    record = logging.makeLogRecord({"name": "edgetune.serve.app", "levelno": logging.INFO, "levelname": "INFO",
                                    "msg": "%s is %d", "args": ("x", 7), "created": 1700000000.1236,
                                    "request_id": "r1", "size": 12, "share": 0.5, "none": None,
                                    "yes": True})  # fmt: skip
    logging.getLogger().handle(record)
    assert log.lines == [
        '{"ts":"2023-11-14T22:13:20.123Z","level":"INFO","event":"x is 7","logger":"edgetune.serve.app",'
        '"request_id":"r1","size":12,"share":0.5,"none":null,"yes":true}'
    ]


def test_a_text_line_by_hand() -> None:
    log = Log("text")
    record = logging.makeLogRecord({"name": "edgetune.serve.app", "levelno": logging.INFO, "levelname": "INFO",
                                    "msg": "loaded caf\u00e9", "created": 1700000000.0, "request_id": "r1",
                                    "words": "two words", "empty": "", "size": 12})  # fmt: skip
    logging.getLogger().handle(record)
    assert log.lines == [
        "2023-11-14T22:13:20.000Z INFO loaded caf\u00e9 logger=edgetune.serve.app request_id=r1 "
        'words="two words" empty="" size=12'
    ]


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
@pytest.mark.parametrize("log_format", ["text", "json"])
def test_nothing_a_client_sends_begins_a_line_or_reaches_the_terminal(log_format: Format, text: str) -> None:
    log = Log(log_format)
    logger.warning("refused %s", text, extra={"path": text, f"key {text}": 1})
    (line,) = log.lines
    assert line.isprintable()
    if log_format == "json":
        (entry,) = log.entries
        assert (entry["event"], entry["path"]) == (f"refused {text}", text)
    else:
        assert line[25:].startswith("WARNING refused ")


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_strings_are_cut(log_format: Format) -> None:
    log = Log(log_format)
    logger.info("e" * 10_000, extra={"path": "p" * 10_000, "k" * 10_000: 1, "list": ["x" * 10_000]})
    (line,) = log.lines
    assert len(line) < 4 * 256 + 200
    assert "e" * 255 in line
    assert "e" * 256 not in line
    assert "p" * 256 not in line


def _log_exception(message: str) -> None:
    def fail() -> None:
        raise ValueError(message)

    try:
        fail()
    except ValueError:
        logger.exception("internal error")


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_an_exception_is_one_field(log_format: Format) -> None:
    log = Log(log_format)
    _log_exception("first\nsecond")
    (line,) = log.lines
    assert "ValueError: first\\nsecond" in line
    if log_format == "json":
        assert log.entries[0]["exception"].startswith("Traceback (most recent call last):\n")


def test_a_long_traceback_keeps_its_end() -> None:
    log = Log("json")
    _log_exception("x" * 100_000 + "the end")
    assert len(log.entries[0]["exception"]) == 4096
    assert log.entries[0]["exception"].endswith("the end")


class _Unwritable:
    def __str__(self) -> str:
        raise RuntimeError("no")


def test_odd_values_and_arguments_cost_no_line() -> None:
    log = Log("json")
    logger.info("odd", extra={"nan": float("nan"), "inf": float("-inf"), "object": _Unwritable(), "huge": 10**9999,
                              "level": "forged", "event": "forged", "ts": "forged", "bytes": b"\x00"})  # fmt: skip
    logger.info(_Unwritable())
    root = logging.getLogger()
    root.handle(logging.makeLogRecord({"levelno": logging.INFO, "msg": "%d of %d", "args": ("x",)}))
    root.handle(logging.makeLogRecord({"levelno": logging.INFO, "msg": "none", "exc_info": (None, None, None)}))
    first, second, third, fourth = log.entries
    assert (first["nan"], first["inf"], first["object"], first["huge"]) == ("nan", "-inf", "<_Unwritable>", "<int>")
    assert (first["level"], first["event"], first["bytes"]) == ("INFO", "odd", "b'\\x00'")
    assert first["ts"] != "forged"
    assert (second["event"], third["event"]) == ("<_Unwritable>", "%d of %d")
    assert "exception" not in fourth


def test_levels_and_uvicorns_lines() -> None:
    uvicorn = logging.getLogger("uvicorn.error")
    own = io.StringIO()
    uvicorn.addHandler(logging.StreamHandler(own))
    log = Log("json", "warning")
    uvicorn.info("Started")
    uvicorn.warning("Invalid HTTP request received.")
    logger.info("quiet")
    assert [entry["event"] for entry in log.entries] == ["Invalid HTTP request received."]
    assert log.entries[0]["logger"] == "uvicorn.error"
    assert own.getvalue() == ""


def test_the_access_log() -> None:
    log = Log("json")
    access(logger, Access("GET", "/v2", 200, 1.23456789, "127.0.0.1", "r1"))
    (entry,) = log.entries
    assert entry.pop("ts")
    assert entry == {"level": "INFO", "event": "request", "logger": "edgetune.serve.test", "method": "GET",
                     "path": "/v2", "status": 200, "duration_ms": 1.234568, "client": "127.0.0.1",
                     "request_id": "r1"}  # fmt: skip
    quiet = Log("json", "warning")
    access(logger, Access("GET", "/v2", 200, 1.0, "127.0.0.1", "r1"))
    assert quiet.lines == []


def test_repeated_warnings_are_limited_by_their_line_of_code() -> None:
    now = 0.0
    limit = RepeatLimit(lambda: now)

    def passes(line: int, level: int = logging.WARNING) -> bool:
        return limit.filter(logging.makeLogRecord({"pathname": "a.py", "lineno": line, "levelno": level}))

    assert [passes(1) for _ in range(50)] == [True] * 20 + [False] * 30
    assert passes(2)
    assert all(passes(1, logging.INFO) for _ in range(50))
    now = 9.9
    assert not passes(1, logging.ERROR)
    now = 10.0
    record = logging.makeLogRecord({"pathname": "a.py", "lineno": 1, "levelno": logging.WARNING})
    assert limit.filter(record)
    assert vars(record)["suppressed"] == 31
    assert [passes(1) for _ in range(20)] == [True] * 19 + [False]


def test_the_limit_is_in_place() -> None:
    log = Log("json")
    for index in range(100):
        logger.warning("refused %d", index)
    assert len(log.lines) == 20


def test_a_closed_stream_hurts_nobody(capsys: pytest.CaptureFixture[str]) -> None:
    log = Log("text")
    log.stream.close()
    logger.error("unheard")
    assert capsys.readouterr() == ("", "")


def test_stderr_is_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("text", "INFO", sys.stderr)
    logger.info("heard")
    assert " INFO heard logger=edgetune.serve.test\n" in capsys.readouterr().err

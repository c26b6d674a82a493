from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from edgetune.core.config import from_dict, read_toml, to_dict
from edgetune.core.errors import ConfigError


@dataclass(frozen=True)
class Point:
    x: float
    y: float = 0.0


@dataclass(frozen=True)
class Record:
    name: str
    count: int
    flag: bool
    share: float | None
    pair: tuple[int, str]
    points: tuple[Point, ...]
    table: dict[str, Point]
    anything: dict[str, Any]
    note: str = "none"


RECORD = Record("n", 3, True, None, (1, "a"), (Point(1.0), Point(2.0, 3.0)), {"p": Point(4.0)}, {"k": [1, {"z": None}]})
PLAIN: dict[str, Any] = {
    "name": "n",
    "count": 3,
    "flag": True,
    "share": None,
    "pair": [1, "a"],
    "points": [{"x": 1.0, "y": 0.0}, {"x": 2.0, "y": 3.0}],
    "table": {"p": {"x": 4.0, "y": 0.0}},
    "anything": {"k": [1, {"z": None}]},
    "note": "none",
}


def test_a_record_becomes_plain_json() -> None:
    assert to_dict(RECORD) == PLAIN


def test_plain_json_becomes_the_record() -> None:
    assert from_dict(Record, PLAIN, "record") == RECORD


def test_keys_with_a_default_may_be_absent() -> None:
    assert from_dict(Point, {"x": 1.5}, "point") == Point(1.5, 0.0)


def test_a_whole_number_is_taken_for_a_float() -> None:
    point = from_dict(Point, {"x": 2}, "point")
    assert point == Point(2.0)
    assert type(point.x) is float


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"extra": 1, "other": 2}, "where has unknown keys ['extra', 'other'] and lacks []"),
    ({"name": 5}, "where.name is 5, expected <class 'str'>"),
    ({"name": None}, "where.name is None"),
    ({"count": 1.0}, "where.count is 1.0, expected <class 'int'>"),
    ({"count": True}, "where.count is True, expected <class 'int'>"),
    ({"flag": 1}, "where.flag is 1, expected <class 'bool'>"),
    ({"share": "0.5"}, "where.share is '0.5', expected <class 'float'>"),
    ({"share": True}, "where.share is True"),
    ({"pair": [1]}, "where.pair has 1 items, expected 2"),
    ({"pair": [1, 2]}, "where.pair[1] is 2, expected <class 'str'>"),
    ({"pair": "1a"}, "where.pair is '1a'"),
    ({"points": {}}, "where.points is {}"),
    ({"points": [{"x": 1.0}, {"x": "1"}]}, "where.points[1].x is '1'"),
    ({"points": [{"y": 1.0}]}, "where.points[0] has unknown keys [] and lacks ['x']"),
    ({"points": [7]}, "where.points[0] is a int, not a JSON object"),
    ({"table": {"p": {"x": None}}}, "where.table.p.x is None"),
    ({"table": []}, "where.table is []"),
    ({"anything": 1}, "where.anything is 1"),
]


@pytest.mark.parametrize(("changes", "words"), WRONG, ids=[str(changes) for changes, _ in WRONG])
def test_a_wrong_value_is_named_with_its_place(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        from_dict(Record, {**PLAIN, **changes}, "where")


def test_missing_keys_are_named() -> None:
    with pytest.raises(ConfigError, match=re.escape("where has unknown keys [] and lacks ['count', 'name']")):
        from_dict(Record, {key: value for key, value in PLAIN.items() if key not in {"name", "count"}}, "where")


@pytest.mark.parametrize("data", [[], "text", None, 3], ids=["list", "text", "null", "number"])
def test_what_is_no_object_is_refused(data: Any) -> None:
    with pytest.raises(ConfigError, match=r"where is a \w+, not a JSON object"):
        from_dict(Record, data, "where")


def test_a_number_too_large_for_a_float_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"where\.x"):
        from_dict(Point, {"x": 10**400}, "where")


class TestToml:
    def test_tables_are_read(self, tmp_path: Path) -> None:
        path = tmp_path / "a.toml"
        path.write_text('name = "é"\n[point]\nx = 1\n[[rows]]\nshare = inf\n', encoding="utf-8")
        assert read_toml(path) == {"name": "é", "point": {"x": 1}, "rows": [{"share": float("inf")}]}
        path.write_text("")
        assert read_toml(path) == {}

    @pytest.mark.parametrize("content", [b"name", b"[a]\n[a]\n", b"x = \xff", b"x = 1\r\ry = 2", b"\x00"])
    def test_what_is_no_toml_is_refused(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "a.toml"
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=r"a\.toml is no TOML file that can be read: "):
            read_toml(path)

    def test_a_file_that_cannot_be_read_is_named(self, tmp_path: Path) -> None:
        for path in (tmp_path / "nothing", tmp_path):
            with pytest.raises(ConfigError, match=re.escape(f"{path} is no TOML file that can be read")):
                read_toml(path)

    def test_nesting_without_end_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "a.toml"
        path.write_text("x = " + "[" * 100_000)
        with pytest.raises(ConfigError, match="is no TOML file"):
            read_toml(path)

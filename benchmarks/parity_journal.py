"""A file of JSON lines that grows by one record a piece of work, so that a stopped benchmark goes on where it was."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Record = dict[str, Any]


class Journal:
    """Records by their `name`; of two with the same name the later counts."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._records: dict[str, Record] = {}
        if path.is_file():
            lines = path.read_text().splitlines()
            records = [_parse(line) for line in lines]
            self._records = {record["name"]: record for record in records if record is not None}

    def get(self, name: str) -> Record | None:
        return self._records.get(name)

    def records(self, names: Sequence[str]) -> list[Record]:
        """Those that are there, in the order of `names`."""
        return [self._records[name] for name in names if name in self._records]

    def add(self, record: Record) -> None:
        """`record` has a `name`. It is on the disk when this returns."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a") as stream:
            stream.write(json.dumps(record) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        self._records[record["name"]] = record


def is_done(record: Record | None) -> bool:
    """Whether there is a record, and of no failure: what could not be done is tried again."""
    return record is not None and not record.get("error")


def _parse(line: str) -> Record | None:
    """None for the half line that a killed process leaves."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and "name" in record else None


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows)]
    return "\n".join(lines) + "\n"


def shown(value: float | None, form: str, *, missing: str = "-") -> str:
    return missing if value is None else format(value, form)

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgetune.core.errors import RunError
from edgetune.core.files import sha256_of_bytes
from edgetune.core.preprocess import PreprocessSpec
from edgetune.core.run import (
    HEAD_NAME,
    RUN_NAME,
    BackboneRecord,
    FeaturesRecord,
    HeadRecord,
    Run,
    Skipped,
    Split,
    SplitFile,
    load_run,
    write_run,
)

HEAD = b"the head's bytes"


def _run() -> Run:
    return Run(
        schema_version=1,
        task="classification",
        created="2026-01-02T03:04:05+00:00",
        options={"seed": 0, "weights": None, "l2": [1.0, 2.0]},
        versions={"python": "3.11"},
        classes=("ant", "bée"),
        preprocess=PreprocessSpec(256, 224, "bicubic", (0.5, 0.25, 0.125), (1.0, 1.0, 2.0)),
        backbone=BackboneRecord("net", "/w.pt", "a" * 64, "b" * 64, 1280, 300, 100),
        features=FeaturesRecord("onnxruntime CPU", "fp32", 1, 2),
        head=HeadRecord("linear", 0.1, 5, sha256_of_bytes(HEAD)),
        split=Split("/data", (SplitFile("ant/1.jpg", "c" * 64, 0),), (), (Skipped("x.txt", "no image"),)),
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_run(tmp_path, _run())
    (tmp_path / HEAD_NAME).write_bytes(HEAD)
    return tmp_path


def _edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads((folder / RUN_NAME).read_text())
    change(content)
    (folder / RUN_NAME).write_text(json.dumps(content))


def test_a_run_comes_back_as_it_was_written(folder: Path) -> None:
    assert load_run(folder) == _run()


def test_the_record_is_readable_json(folder: Path) -> None:
    text = (folder / RUN_NAME).read_text(encoding="utf-8")
    content = json.loads(text)
    assert "bée" in text
    assert content["split"]["skipped"] == [{"path": "x.txt", "reason": "no image"}]
    assert content["preprocess"]["mean"] == [0.5, 0.25, 0.125]


def test_a_folder_without_a_record_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"is not a run: it has no run\.json") as caught:
        load_run(tmp_path)
    assert "edgetune fit" in caught.value.hint


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda run: run.update(schema_version=2), r"run\.json has schema version 2, this edgetune reads 1"),
        (lambda run: run.pop("schema_version"), "has schema version None"),
        (lambda run: run.update(schema_version=True), "schema_version is True"),
        (lambda run: run.update(extra=1), r"damaged.*unknown keys \['extra'\]"),
        (lambda run: run.pop("head"), r"damaged.*lacks \['head'\]"),
        (lambda run: run["head"].update(l2="1"), r"damaged.*head\.l2 is '1'"),
        (lambda run: run["split"]["train"][0].update(label=1.5), r"damaged.*split\.train\[0\]\.label is 1\.5"),
        (lambda run: run["preprocess"].update(crop_size=999), "damaged.*crop_size is 999 px"),
    ],
    ids=[
        "newer",
        "no version",
        "version true",
        "extra key",
        "no head",
        "l2 as text",
        "label as float",
        "crop too large",
    ],
)
def test_an_edited_record_is_refused(folder: Path, change: Callable[[dict[str, Any]], object], words: str) -> None:
    _edit(folder, change)
    with pytest.raises(RunError, match=words):
        load_run(folder)


@pytest.mark.parametrize(
    "data",
    [b"", b"[]", b'{"schema_version": 1', b"\xff", b"[" * 100_000],
    ids=["empty", "list", "cut", "bytes", "deep"],
)
def test_a_damaged_record_is_refused(folder: Path, data: bytes) -> None:
    (folder / RUN_NAME).write_bytes(data)
    with pytest.raises(RunError, match=r"run's record is damaged|has schema version None"):
        load_run(folder)


def test_a_missing_head_is_noticed(folder: Path) -> None:
    (folder / HEAD_NAME).unlink()
    with pytest.raises(RunError, match=rf"{HEAD_NAME} is missing or was changed after the fit") as caught:
        load_run(folder)
    assert "fit again" in caught.value.hint


def test_a_changed_head_is_noticed(folder: Path) -> None:
    (folder / HEAD_NAME).write_bytes(HEAD[:-1] + b"?")
    with pytest.raises(RunError, match="is missing or was changed after the fit"):
        load_run(folder)

"""A cache with damaged, foreign and half engines in it: each is rebuilt, and what was wrong is said in one line."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from edgetune.core.engine_files import ENGINE_NAME, SIDECAR_NAME, check_engine, read_sidecar, sidecar_bytes
from tests.building import TARGET, build_data, folders, good_file, needs_rtx

pytestmark = [pytest.mark.e2e, needs_rtx]

_Damage = Callable[[Path], None]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `good.onnx` and `cache`, which holds its engine."""
    folder = tmp_path_factory.mktemp("built")
    build_data(good_file(folder), *TARGET, "--engine-cache", folder / "cache")
    return folder


@pytest.fixture
def copy(built: Path, tmp_path: Path) -> Path:
    shutil.copytree(built, tmp_path / "copy")
    return tmp_path / "copy"


def _change_a_byte(folder: Path) -> None:
    content = bytearray((folder / ENGINE_NAME).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / ENGINE_NAME).write_bytes(content)


def _truncate(folder: Path) -> None:
    content = (folder / ENGINE_NAME).read_bytes()
    (folder / ENGINE_NAME).write_bytes(content[: len(content) // 2])


def _set_schema(folder: Path) -> None:
    content = json.loads((folder / SIDECAR_NAME).read_bytes())
    (folder / SIDECAR_NAME).write_text(json.dumps({**content, "schema_version": 99}))


def _tell_another_story(folder: Path) -> None:
    text = (folder / SIDECAR_NAME).read_text()
    (folder / SIDECAR_NAME).write_text(text.replace('"fp32": 0', '"fp32": 1'))


def _of_other_options(folder: Path) -> None:
    record = read_sidecar(folder)
    options = dataclasses.replace(record.key.options, max_batch=2)
    key = dataclasses.replace(record.key, options=options)
    (folder / SIDECAR_NAME).write_bytes(sidecar_bytes(dataclasses.replace(record, key=key)))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (_change_a_byte, "model.engine was changed after it was built: "),
        (_truncate, "model.engine was changed after it was built: "),
        (lambda folder: (folder / ENGINE_NAME).unlink(), "has a sidecar and no engine (model.engine)."),
        (lambda folder: (folder / SIDECAR_NAME).unlink(), "engine.json does not exist."),
        (lambda folder: (folder / SIDECAR_NAME).write_bytes(b"{]"), "engine.json cannot be used: Expecting"),
        (lambda folder: (folder / SIDECAR_NAME).write_bytes(b"[]"), "engine.json is not a JSON object."),
        (_set_schema, "engine.json has schema version 99, this edgetune reads 1."),
        (_tell_another_story, "engine.json was changed after it was written: its digest does not match."),
        (_of_other_options, "holds an engine of another fingerprint than its name."),
    ],
    ids=[
        "one byte changed", "truncated", "no engine", "no sidecar", "garbage sidecar", "a list", "schema version 99",
        "changed sidecar", "another engine's sidecar",
    ],
)  # fmt: skip
def test_a_damaged_engine_is_rebuilt_with_a_note(damage: _Damage, says: str, copy: Path) -> None:
    (name,) = folders(copy / "cache")
    damage(copy / "cache" / name)
    words = (copy / "good.onnx", *TARGET, "--engine-cache", copy / "cache")
    data = build_data(*words)
    assert not data["reused"]
    (note,) = data["messages"]
    assert note.startswith("rebuilt: ")
    assert says in note
    assert folders(copy / "cache") == [name]
    assert check_engine(copy / "cache" / name).sha256 == data["sha256"]


def _with_version(copy: Path, version: str) -> str:
    """Makes the engine one of another version, in a folder of that fingerprint; gives the folder's name."""
    (old,) = [copy / "cache" / name for name in folders(copy / "cache")]
    record = read_sidecar(old)
    host = dataclasses.replace(record.key.host, backend_version=version)
    key = dataclasses.replace(record.key, host=host)
    (old / SIDECAR_NAME).write_bytes(sidecar_bytes(dataclasses.replace(record, key=key)))
    old.rename(old.parent / key.fingerprint)
    return key.fingerprint


def test_an_engine_of_another_version_is_kept_and_said_not_to_fit(copy: Path) -> None:
    version = read_sidecar(copy / "cache" / folders(copy / "cache")[0]).key.host.backend_version
    other = _with_version(copy, "1.0.0.1")
    data = build_data(copy / "good.onnx", *TARGET, "--engine-cache", copy / "cache")
    assert not data["reused"]
    (note,) = data["messages"]
    assert note.startswith(f"{other} in the cache does not fit: ")
    assert "1.0.0.1" in note
    assert version in note
    assert folders(copy / "cache") == sorted([other, Path(data["folder"]).name])


def test_engines_of_other_options_are_no_news(copy: Path) -> None:
    words = (copy / "good.onnx", "--engine-cache", copy / "cache")
    for more in (("--max-batch", "2"), ("--rebuild",)):
        data = build_data(*words, *TARGET, *more)
        assert not data["reused"]
        assert data["messages"] == []
    assert len(folders(copy / "cache")) == 2

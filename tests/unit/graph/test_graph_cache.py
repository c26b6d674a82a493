"""Exported graphs on disk: made once, found without PyTorch, made anew when damaged."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgetune.core.errors import ModelError
from edgetune.graph.graph_cache import cached_graph

_FIND = """
import sys
from edgetune.graph.graph_cache import cached_graph

def export():
    raise SystemExit("exported again")

print(cached_graph({"backbone": "a"}, export).name)
loaded = {"torch", "onnx", "timm", "torchvision"} & set(sys.modules)
assert not loaded, loaded
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGETUNE_CACHE", str(tmp_path))
    return tmp_path


def _never() -> bytes:
    raise AssertionError("the graph was exported again")


def test_a_graph_is_exported_once() -> None:
    path = cached_graph({"backbone": "a"}, lambda: b"graph")
    assert path.read_bytes() == b"graph"
    assert cached_graph({"backbone": "a"}, _never) == path


@pytest.mark.parametrize("damage", [b"", b"grap", b"graph, and more"], ids=["empty", "cut", "longer"])
def test_a_damaged_graph_is_exported_anew(damage: bytes) -> None:
    path = cached_graph({"backbone": "a"}, lambda: b"graph")
    path.write_bytes(damage)
    assert cached_graph({"backbone": "a"}, lambda: b"graph").read_bytes() == b"graph"


def test_another_key_is_another_graph() -> None:
    first = cached_graph({"backbone": "a", "preprocess": "x"}, lambda: b"one")
    second = cached_graph({"backbone": "a", "preprocess": "y"}, lambda: b"two")
    assert first != second
    assert (first.read_bytes(), second.read_bytes()) == (b"one", b"two")


def test_another_exporter_makes_another_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    cached_graph({"backbone": "a"}, lambda: b"old")
    monkeypatch.setattr("edgetune.graph.graph_cache.installed_version", lambda name: "99")
    assert cached_graph({"backbone": "a"}, lambda: b"new").read_bytes() == b"new"


def test_it_is_found_without_pytorch(cache: Path) -> None:
    path = cached_graph({"backbone": "a"}, lambda: b"graph")
    environment = {**os.environ, "EDGETUNE_CACHE": str(cache)}
    done = subprocess.run([sys.executable, "-c", _FIND], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == path.name


def test_a_disk_that_refuses_is_named(cache: Path) -> None:
    (cache / "graphs").touch()
    with pytest.raises(ModelError, match=r"the exported backbone, 5 bytes, cannot be written to .*graphs") as caught:
        cached_graph({"backbone": "a"}, lambda: b"graph")
    assert "EDGETUNE_CACHE" in caught.value.hint


def test_a_graph_that_cannot_be_read_is_exported_anew() -> None:
    path = cached_graph({"backbone": "a"}, lambda: b"graph")
    path.with_name(f"{path.name.partition('-')[0]}-0.onnx").mkdir()  # found first
    assert cached_graph({"backbone": "a"}, _never) == path

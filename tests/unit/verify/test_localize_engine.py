"""Prefixes built by an executor that gets one layer wrong."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgetune.core.tensors import LOGITS_OUTPUT
from edgetune.graph.blocks import BlockGraph, articulation_points
from edgetune.graph.fp16_emulation import emulate_fp16
from edgetune.runners.ort_runner import OrtRunner
from edgetune.verify.localize import LocalizeJob, localize
from tests.unit.quantize.small_graphs import SmallGraph, images
from tests.unit.verify.planted import PICTURES, change, half, integers, network, write


def _deep(layers: int) -> onnx.ModelProto:
    graph = SmallGraph(seed=5)
    data = graph.conv("c0", graph.image(), (3, 8), 3)
    for number in range(1, layers):
        data = graph.node("Relu", [data], f"r{number}")
        data = graph.conv(f"c{number}", data, (8, 8), 3)
    graph.gemm(LOGITS_OUTPUT, graph.mean("features", data), (8, 4))
    return graph.model()


class _Executor:
    """Negates the weights of one layer wherever a prefix has it, and counts what it is asked to open."""

    def __init__(self, weight: str, *, emulates: bool = False) -> None:
        self.weight = weight
        self.opened = 0
        self._emulates = emulates

    def __call__(self, content: bytes) -> OrtRunner:
        self.opened += 1
        model = onnx.load_from_string(content)
        if self.weight in {entry.name for entry in model.graph.initializer}:
            change(self.weight, np.negative)(model)
        return OrtRunner((emulate_fp16(model) if self._emulates else model).SerializeToString())


@pytest.mark.parametrize("depth", [0, 1, 7, 15])
def test_the_layer_is_found_with_few_builds(tmp_path: Path, depth: int) -> None:
    path, executor = write(_deep(16), tmp_path / "model.onnx"), _Executor(f"c{depth}.w")
    found = localize(LocalizeJob(path, "fp32", images=images(4), open_runner=executor))
    assert found.culprit == f"c{depth}", found.explanation
    assert executor.opened <= 1 + math.ceil(math.log2(19))
    assert f"{executor.opened} builds" in found.explanation


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_inside_a_residual_block(tmp_path: Path, precision: str) -> None:
    """All is computed through the Add, so the branch is only looked into when the Add is the first that is wrong."""
    model = {"fp32": network, "fp16": half}[precision]() if precision != "int8" else integers("tensorrt")[0]
    path = write(model, tmp_path / "model.onnx")
    executor = _Executor("c3.w_q" if precision == "int8" else "c3.w", emulates=precision == "fp16")
    found = localize(LocalizeJob(path, precision, images=PICTURES, open_runner=executor))
    assert (found.culprit, found.option) == ("c3", "" if precision == "fp32" else "--keep-float c3"), found.explanation


def test_an_executor_that_is_right_has_no_culprit_and_one_build(tmp_path: Path) -> None:
    path, executor = write(_deep(16), tmp_path / "model.onnx"), _Executor("no such weight")
    found = localize(LocalizeJob(path, "fp32", images=images(4), open_runner=executor))
    assert (found.culprit, executor.opened) == ("", 1)
    assert "gives what its file says" in found.explanation


def test_points_that_everything_goes_through() -> None:
    graph = BlockGraph(network())
    assert articulation_points(graph, graph.resting_points()) == (
        "x", "r1", "sum", "r4", "r5", "features", "logits",
    )  # fmt: skip

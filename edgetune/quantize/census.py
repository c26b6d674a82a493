"""Which operators ONNX Runtime really runs: a layer that was meant to be integers shows here, and nowhere else."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

import onnx

from edgetune.runners.ort_runner import write_optimised

_INTEGER_LAYERS = ("QLinearConv", "QGemm", "QLinearMatMul")
_FLOAT_LAYERS = ("Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul")


def count_operators(model: Path | bytes) -> dict[str, int]:
    """Operators of the optimised graph on this machine's CPU, most frequent first."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "optimised.onnx"
        write_optimised(model, path)
        graph = onnx.load(path).graph
    return dict(Counter(node.op_type for node in graph.node).most_common())


def fused_layers(operators: dict[str, int]) -> tuple[int, int]:
    """How many convolutions and matrix products run as integers, and how many in float."""
    integers = sum(operators.get(name, 0) for name in _INTEGER_LAYERS)
    return integers, sum(operators.get(name, 0) for name in _FLOAT_LAYERS)

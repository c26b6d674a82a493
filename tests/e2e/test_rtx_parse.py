"""Graphs for TensorRT are read and built by a real TensorRT: TensorRT for RTX builds engines without a GPU.

Engines cannot run here; what a builder decided is read from the list of layers that it logs. Each build has a
process of its own, because a mistake in a graph can crash the library.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from edgetune.core.engine_record import TENSORRT_RTX
from edgetune.quantize.lint import lint
from edgetune.quantize.lint_view import GraphView
from edgetune.runners.trt_library import installed_backends
from tests.unit.quantize.qdq_breaks import Break, float_weight, image_transposed_first, rewire, set_to
from tests.unit.quantize.qdq_graphs import good, put_constant, sort

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(
        TENSORRT_RTX not in installed_backends(),
        reason="TensorRT for RTX is not installed; pip install 'edgetune[tensorrt-rtx]'",
    ),
]

_ARTIFACT = "model.int8.tensorrt.onnx"

# Prints one line of JSON: what the parser objected to, whether an engine came out, and its layers.
_BUILD = """
import json, sys
from edgetune.runners.trt_library import load_library
trt = load_library("tensorrt-rtx").module

class Log(trt.ILogger):
    def __init__(self):
        trt.ILogger.__init__(self)
        self.lines = []
    def log(self, severity, message):
        self.lines.append(message)

log = Log()
builder = trt.Builder(log)
network = builder.create_network(0)
parser = trt.OnnxParser(network, log)
if not parser.parse(open(sys.argv[1], "rb").read()):
    error = parser.get_error(0)
    print(json.dumps({"refused": error.node_name(), "reason": error.desc()}))
    sys.exit()
config = builder.create_builder_config()
config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, 1 << 30)
config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
profile = builder.create_optimization_profile()
image = network.get_input(0)
profile.set_shape(image.name, *[(batch, *tuple(image.shape)[1:]) for batch in (1, 8, 32)])
assert config.add_optimization_profile(profile) >= 0
engine = builder.build_serialized_network(network, config)
layers = [line for text in log.lines if text.startswith("Layers:") for line in text.splitlines()[1:]]
print(json.dumps({"built": engine is not None, "input": [image.name, image.dtype.name], "layers": layers}))
"""


def _build(path: Path) -> dict[str, Any]:
    command = [sys.executable, "-c", _BUILD, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, f"the builder ended with {done.returncode}: {done.stderr[-2000:]}"
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def _convolution_types(answer: dict[str, Any]) -> list[str]:
    """The type that each convolution of an engine reads."""
    assert answer.get("built"), answer
    layers = [line for line in answer["layers"] if "LayerType: correlation" in line]
    return [line.split("Datatype: ", 1)[1].split(",", 1)[0] for line in layers]


def _quantized_convolutions(model: onnx.ModelProto) -> int:
    view = GraphView(model)
    return sum(view.quantized(node) for node in view.of_type("Conv"))


def test_every_quantized_convolution_of_the_bundle_becomes_an_int8_one(small_bundle: Path) -> None:
    path = small_bundle / _ARTIFACT
    if not path.is_file():
        pytest.skip(f"the bundle has no {_ARTIFACT}")
    model = onnx.load(path)
    assert lint(model, "tensorrt") == ()
    answer = _build(path)
    assert _quantized_convolutions(model) > 0
    assert _convolution_types(answer).count("Int8") == _quantized_convolutions(model)
    assert answer["input"] == ["image", "UINT8"]


def test_a_graph_that_keeps_the_rules_has_only_int8_convolutions(tmp_path: Path) -> None:
    path = tmp_path / "good.onnx"
    onnx.save(good("tensorrt"), path)
    assert _convolution_types(_build(path)) == ["Int8", "Int8"]


def _int32_bias(model: onnx.ModelProto) -> None:
    put_constant(model, "i", np.ones(4, np.int32), 2**-13)
    rewire("b", 2, "dq_i")(model)


def _vector_of_one(model: onnx.ModelProto) -> None:
    set_to("c_scale", np.full(1, 2**-6, np.float32))(model)
    set_to("c_zero", np.zeros(1, np.int8))(model)


@pytest.mark.parametrize(
    ("node", "spoil"),
    [
        ("q_s", set_to("s_zero", np.int8(3))),
        ("q_s", set_to("s_scale", np.float32(0))),
        ("dq_w1", set_to("w1_scale", np.array([1, 1, -1, 1], np.float32))),
        ("dq_i", _int32_bias),
        ("transpose", image_transposed_first),
    ],
    ids=["zero point", "scale 0", "negative scale", "int32 bias", "uint8 image read by a Transpose"],
)
def test_tensorrt_refuses_what_the_rules_forbid(node: str, spoil: Break, tmp_path: Path) -> None:
    answer, rules = _spoiled(spoil, tmp_path)
    assert rules
    assert answer["refused"] == node, answer


@pytest.mark.parametrize("spoil", [_vector_of_one, float_weight("b", "w2")], ids=["a vector of one", "float weight"])
def test_tensorrt_runs_in_float_what_the_rules_forbid(spoil: Break, tmp_path: Path) -> None:
    answer, rules = _spoiled(spoil, tmp_path)
    assert rules
    assert "Float" in _convolution_types(answer)


def _spoiled(spoil: Break, folder: Path) -> tuple[dict[str, Any], set[str]]:
    """What TensorRT makes of a spoiled graph, and the rules that it breaks."""
    model = good("tensorrt")
    spoil(model)
    sort(model)
    onnx.save(model, folder / "spoiled.onnx")
    return _build(folder / "spoiled.onnx"), {finding.rule for finding in lint(model, "tensorrt")}

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from edgetune.core.errors import ModelError
from edgetune.core.onnx_scan import scan_precision
from tests.unit.quantize.qdq_graphs import good


def _graph(weights: np.ndarray, operator: str = "Add") -> onnx.ModelProto:
    constant = numpy_helper.from_array(weights, "w")
    values = [helper.make_tensor_value_info(name, constant.data_type, ["n", 2]) for name in ("x", "y")]
    graph = helper.make_graph(
        [helper.make_node(operator, ["x", "w"], ["y"], alpha=3, beta=0.5)], "g", values[:1], values[1:], [constant],
        doc_string="QuantizeLinear",
    )  # fmt: skip
    return helper.make_model(graph, doc_string="QuantizeLinear", producer_name="DequantizeLinear")


@pytest.mark.parametrize(
    ("model", "precision"),
    [
        (_graph(np.ones(2, np.float32)), "fp32"),
        (_graph(np.ones(2, np.float16)), "fp16"),
        (_graph(np.ones(2, np.float32), "MatMulInteger"), "int8"),
        (_graph(np.ones(20_000, np.float32)), "fp32"),
        (good("tensorrt"), "int8"),
        (good("cpu-x86"), "int8"),
    ],
    ids=["float", "half", "integers", "long weights", "Q/DQ tensorrt", "Q/DQ cpu"],
)
def test_operators_and_weights_tell_the_precision_and_texts_do_not(
    tmp_path: Path, model: onnx.ModelProto, precision: str
) -> None:
    onnx.save(model, tmp_path / "m.onnx")
    assert scan_precision(tmp_path / "m.onnx") == precision


def test_weights_beside_the_file_are_not_needed(tmp_path: Path) -> None:
    model = _graph(np.ones(2000, np.float16))
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="w.bin")
    (tmp_path / "w.bin").unlink()
    assert scan_precision(tmp_path / "m.onnx") == "fp16"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"text and no graph",
        b"\xff" * 64,
        b"\x3a\x7f\x0a",
        b"\x3a\x02\x0a\x09",
        b"\x3a" + b"\x80" * 12,
    ],
    ids=["empty", "text", "ones", "cut off", "cut off inside", "endless number"],
)
def test_what_is_no_graph_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(ModelError, match=r"m\.onnx (is not an ONNX file|holds no ONNX graph)"):
        scan_precision(tmp_path / "m.onnx")


def test_every_cut_of_a_file_is_an_error_or_an_answer(tmp_path: Path) -> None:
    content = good("tensorrt").SerializeToString()
    for length in range(1, len(content), 37):
        (tmp_path / "m.onnx").write_bytes(content[:length])
        try:
            assert scan_precision(tmp_path / "m.onnx") in ("fp32", "fp16", "int8")
        except ModelError as error:
            assert "m.onnx" in error.message

"""What the server answers: names, shapes and values, as JSON and as binary."""

from __future__ import annotations

import json
import math
import struct
from typing import Any

import numpy as np
import pytest

from edgetune.core.tensors import Array
from edgetune.serve.errors import RequestError
from edgetune.serve.wire.v2_request import InferRequest, WantedOutput
from edgetune.serve.wire.v2_response import encode_infer_response
from edgetune.serve.wire.v2_tensors import BINARY_HEADER

LOGITS = np.array([[1.5, -2.0]], np.float32)
FEATURES = np.array([[0.25, 0.5, 4.0]], np.float32)
RESULTS: dict[str, Array] = {"features": FEATURES, "logits": LOGITS}
CLASSES = ("ant", "bee")


def _floats(values: list[float]) -> bytes:
    """Little-endian, as the protocol wants them."""
    return struct.pack(f"<{len(values)}f", *values)


def _encode(
    *outputs: WantedOutput, results: dict[str, Array] | None = None, identifier: str | None = None
) -> tuple[dict[str, Any], bytes, dict[str, str]]:
    """The JSON, the bytes after it, and the headers."""
    request = InferRequest(identifier, {}, (), outputs, None)
    body, headers = encode_infer_response(request, RESULTS if results is None else results, "net", "1", CLASSES)
    length = int(headers.get(BINARY_HEADER, len(body)))
    return json.loads(body[:length]), body[length:], headers


def _json(name: str, top: int = 0) -> WantedOutput:
    return WantedOutput(name, False, top)


def _binary(name: str, top: int = 0) -> WantedOutput:
    return WantedOutput(name, True, top)


def test_json_answers_hold_names_shapes_and_values() -> None:
    message, tail, headers = _encode(_json("logits"), _json("features"), identifier="é")
    assert headers == {"content-type": "application/json"}
    assert tail == b""
    assert message == {
        "model_name": "net",
        "model_version": "1",
        "id": "é",
        "outputs": [
            {"name": "logits", "datatype": "FP32", "shape": [1, 2], "data": [1.5, -2.0]},
            {"name": "features", "datatype": "FP32", "shape": [1, 3], "data": [0.25, 0.5, 4.0]},
        ],
    }


def test_an_answer_has_an_id_where_the_request_has_one() -> None:
    assert "id" not in _encode(_json("logits"))[0]
    assert _encode(_json("logits"), identifier="")[0]["id"] == ""


def test_floats_have_the_digits_that_they_need_and_no_more() -> None:
    values = np.array([[0.1, 1 / 3, 3.4028235e38, 1e-45]], np.float32)
    request = InferRequest(None, {}, (), (_json("x"),), None)
    body, _ = encode_infer_response(request, {"x": values}, "net", "1", ())
    assert b'"data":[0.1,0.33333334,3.4028235e' in body
    np.testing.assert_array_equal(np.array(json.loads(body)["outputs"][0]["data"], np.float32), values[0])


def test_binary_answers_follow_the_json_in_order() -> None:
    message, tail, headers = _encode(_binary("logits"), _binary("features"), identifier="7")
    assert headers["content-type"] == "application/octet-stream"
    assert message["id"] == "7"
    assert [entry["parameters"] for entry in message["outputs"]] == [{"binary_data_size": 8}, {"binary_data_size": 12}]
    assert "data" not in message["outputs"][0]
    assert tail == _floats([1.5, -2.0, 0.25, 0.5, 4.0])


def test_binary_and_json_mix() -> None:
    message, tail, _ = _encode(_json("logits"), _binary("features"), _json("logits", 1))
    logits, features, best = message["outputs"]
    assert logits["data"] == [1.5, -2.0]
    assert "data" not in features
    assert best["data"] == ["1.500000:0:ant"]
    assert tail == _floats([0.25, 0.5, 4.0])


def test_arrays_that_are_views_are_written_in_row_major_order() -> None:
    results: dict[str, Array] = {"logits": np.array([[1, 2], [3, 4]], np.float32).T}
    assert _encode(_binary("logits"), results=results)[1] == _floats([1, 3, 2, 4])
    assert _encode(_json("logits"), results=results)[0]["outputs"][0]["data"] == [1, 3, 2, 4]


@pytest.mark.parametrize("top", [0, 1], ids=["numbers", "classes"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf], ids=["NaN", "infinity", "minus infinity"])
def test_what_json_cannot_carry_is_an_error_in_json_and_fine_as_binary(value: float, top: int) -> None:
    results: dict[str, Array] = {"logits": np.array([[value, 1.0]], np.float32)}
    words = "^output 'logits' holds NaN or infinity, which JSON cannot carry; ask for binary_data$"
    with pytest.raises(RequestError, match=words) as caught:
        _encode(_json("logits", top), results=results)
    assert caught.value.status == 500
    assert caught.value.reason == "nonfinite"
    tail = _encode(_binary("logits", top), results=results)[1]
    best = "inf:0:ant" if value == math.inf else "1.000000:1:bee"
    assert tail == (bytes([len(best), 0, 0, 0]) + best.encode() if top else _floats([value, 1.0]))


@pytest.mark.parametrize(
    ("dtype", "datatype"),
    [("uint8", "UINT8"), ("int8", "INT8"), ("uint16", "UINT16"), ("int64", "INT64"), ("uint64", "UINT64"),
     ("float64", "FP64"), ("bool", "BOOL")],
)  # fmt: skip
def test_datatypes_have_the_names_of_the_protocol(dtype: str, datatype: str) -> None:
    (entry,) = _encode(_json("x"), results={"x": np.ones(2, dtype)})[0]["outputs"]
    assert entry["datatype"] == datatype
    assert entry["data"] == [1, 1]
    assert type(entry["data"][0]) is {"bool": bool, "float64": float}.get(dtype, int)


def test_half_floats_go_as_binary_only() -> None:
    results: dict[str, Array] = {"x": np.array([[1.0]], np.float16)}
    message, tail, _ = _encode(_binary("x"), results=results)
    assert message["outputs"][0]["datatype"] == "FP16"
    assert tail == b"\x00\x3c"
    with pytest.raises(
        RequestError, match="output 'x' is FP16, which JSON cannot carry; ask for binary_data"
    ) as caught:
        _encode(_json("x"), results=results)
    assert caught.value.status == 400


@pytest.mark.parametrize(("dtype", "count"), [("uint8", 2 << 20), ("float32", 1 << 20), ("float32", 300_000)])
def test_large_answers_are_for_binary(dtype: str, count: int) -> None:
    """The last is over the limit only once it is written: a third has nine digits."""
    results: dict[str, Array] = {"x": (np.ones((1, count)) / (3 if dtype == "float32" else 1)).astype(dtype)}
    results["x"] = np.concatenate([results["x"], results["x"]])
    with pytest.raises(RequestError, match="bytes of JSON, over the limit of 4194304; ask for binary_data") as caught:
        _encode(_json("x"), results=results)
    assert caught.value.status == 400
    assert len(_encode(_binary("x"), results=results)[1]) == results["x"].nbytes


def test_an_answer_far_too_large_for_json_is_not_even_begun() -> None:
    results: dict[str, Array] = {"x": np.broadcast_to(np.uint8(1), (1 << 20, 1 << 20))}  # a terabyte, if it were copied
    with pytest.raises(RequestError, match="at least 2199023255552 bytes of JSON"):
        _encode(_json("x"), results=results)


def _best(results: dict[str, Array], name: str, top: int) -> Any:
    (entry,) = _encode(_json(name, top), results=results)[0]["outputs"]
    assert entry["datatype"] == "BYTES"
    return entry["shape"], entry["data"]


@pytest.mark.parametrize(
    ("row", "dtype", "expected"),
    [
        ([0.5, 2.25, -1.0, 2.25], "float32", ["2.250000:1", "2.250000:3", "0.500000:0", "-1.000000:2"]),
        ([0.1, 1e10, -0.0, 0.0], "float32", ["10000000000.000000:1", "0.100000:0", "-0.000000:2", "0.000000:3"]),
        ([1e-7, 0.25, 1e15, 5.0], "float64", ["1000000000000000.000000:2", "5.000000:3", "0.250000:1", "0.000000:0"]),
        ([0, 255, 7, 7], "uint8", ["255:1", "7:2", "7:3", "0:0"]),
        ([-128, 127, 0, 0], "int8", ["127:1", "0:2", "0:3", "-128:0"]),
        ([2**64 - 1, 0, 2**64 - 2, 1], "uint64", [f"{2**64 - 1}:0", f"{2**64 - 2}:2", "1:3", "0:1"]),
        ([-(2**63), 2**63 - 1, 2**63 - 2, 0], "int64", [f"{2**63 - 1}:1", f"{2**63 - 2}:2", "0:3", f"{-(2**63)}:0"]),
        ([0.5, 1.0, 2.0, 0.25], "float16", ["2.000000:2", "1.000000:1", "0.500000:0", "0.250000:3"]),
    ],
)  # fmt: skip
def test_the_best_classes_come_first_and_equal_ones_in_their_order(
    row: list[Any], dtype: str, expected: list[str]
) -> None:
    results: dict[str, Array] = {"x": np.array([row], dtype)}
    for top in (1, 3, 4, 1_000_000):
        count = min(top, 4)
        assert _best(results, "x", top) == ([1, count], expected[:count])


def test_many_equal_classes_keep_their_order() -> None:
    row = np.arange(2000) % 3
    expected = [f"{value}:{index}" for value in (2, 1, 0) for index in range(value, 2000, 3)]
    for dtype, zeros in (("int16", ""), ("float32", ".000000")):
        results: dict[str, Array] = {"x": row.astype(dtype)[np.newaxis]}
        assert _best(results, "x", 2000)[1] == [text.replace(":", f"{zeros}:") for text in expected]


def test_each_item_has_its_own_best_classes_with_labels() -> None:
    results: dict[str, Array] = {"logits": np.array([[1, 2], [4, 3]], np.float32), "features": FEATURES}
    texts = ["2.000000:1:bee", "4.000000:0:ant"]
    assert _best(results, "logits", 1) == ([2, 1], texts)
    message, tail, _ = _encode(_binary("logits", 1), results=results)
    assert tail == b"".join(bytes([14, 0, 0, 0]) + text.encode() for text in texts)
    assert message["outputs"][0]["parameters"] == {"binary_data_size": 36}


def test_labels_belong_to_the_logits_or_to_what_stands_in_their_place() -> None:
    two: Array = np.array([[1, 2]], np.float32)
    assert _best({"logits": LOGITS, "features": two}, "features", 1)[1] == ["2.000000:1"]
    assert _best({"scores": two}, "scores", 1)[1] == ["2.000000:1:bee"]
    assert _best({"scores": FEATURES}, "scores", 1)[1] == ["4.000000:2"]
    assert _best({"logits": FEATURES}, "logits", 1)[1] == ["4.000000:2"]


def test_nan_comes_last_among_classes() -> None:
    results: dict[str, Array] = {"x": np.array([[math.nan, -math.inf, 3.0]], np.float32)}
    tail = _encode(_binary("x", 3), results=results)[1]
    texts = (b"3.000000:2", b"-inf:1", b"nan:0")
    assert tail == b"".join(len(text).to_bytes(4, "little") + text for text in texts)


def test_a_million_classes_at_most_are_written() -> None:
    results: dict[str, Array] = {"x": np.zeros((4, 250_001), np.uint8)}
    with pytest.raises(RequestError, match="output 'x': 1000004 classes are asked for, at most 1000000"):
        _encode(_binary("x", 1_000_000), results=results)

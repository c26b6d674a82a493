"""What the server answers: names, shapes and values, as JSON and as binary."""

from __future__ import annotations

import json
import math
import struct

import numpy as np
import pytest

from edgetune.core.tensors import Array, TensorSpec
from edgetune.serve.schemas import BINARY_HEADER, InferRequest, RequestError, datatype_of, encode_infer_response

LOGITS = np.array([[1.5, -2.0]], np.float32)
FEATURES = np.array([[0.25, 0.5, 4.0]], np.float32)
RESULTS: dict[str, Array] = {"features": FEATURES, "logits": LOGITS}


def _floats(values: list[float]) -> bytes:
    """Little-endian, as the protocol wants them."""
    return struct.pack(f"<{len(values)}f", *values)


def _request(identifier: str | None = None, **outputs: bool) -> InferRequest:
    return InferRequest(identifier, {}, outputs)


def test_json_answers_hold_names_shapes_and_values() -> None:
    body, headers = encode_infer_response(_request("é", logits=False, features=False), RESULTS, "net", "1")
    assert headers == {"content-type": "application/json"}
    assert json.loads(body) == {
        "model_name": "net",
        "model_version": "1",
        "id": "é",
        "outputs": [
            {"name": "logits", "datatype": "FP32", "shape": [1, 2], "data": [1.5, -2.0]},
            {"name": "features", "datatype": "FP32", "shape": [1, 3], "data": [0.25, 0.5, 4.0]},
        ],
    }


def test_an_answer_without_an_id_has_none() -> None:
    body, _ = encode_infer_response(_request(logits=False), RESULTS, "net", "1")
    assert "id" not in json.loads(body)


def test_binary_answers_follow_the_json_in_order() -> None:
    request = _request("7", logits=True, features=True)
    body, headers = encode_infer_response(request, RESULTS, "net", "1")
    length = int(headers[BINARY_HEADER])
    assert headers["content-type"] == "application/octet-stream"
    message = json.loads(body[:length])
    assert message["id"] == "7"
    assert [entry["parameters"] for entry in message["outputs"]] == [{"binary_data_size": 8}, {"binary_data_size": 12}]
    assert "data" not in message["outputs"][0]
    np.testing.assert_array_equal(
        np.frombuffer(body[length:], "<f4"), np.array([1.5, -2.0, 0.25, 0.5, 4.0], np.float32)
    )


def test_binary_and_json_mix() -> None:
    body, headers = encode_infer_response(_request(logits=False, features=True), RESULTS, "net", "1")
    length = int(headers[BINARY_HEADER])
    logits, features = json.loads(body[:length])["outputs"]
    assert logits["data"] == [1.5, -2.0]
    assert "data" not in features
    assert body[length:] == _floats([0.25, 0.5, 4.0])


def test_arrays_that_are_views_are_written_in_row_major_order() -> None:
    results: dict[str, Array] = {"logits": np.array([[1, 2], [3, 4]], np.float32).T}
    body, headers = encode_infer_response(_request(logits=True), results, "net", "1")
    np.testing.assert_array_equal(
        np.frombuffer(body[int(headers[BINARY_HEADER]) :], "<f4"), np.array([1, 3, 2, 4], np.float32)
    )


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf], ids=["NaN", "infinity", "minus infinity"])
def test_what_json_cannot_carry_is_an_error_in_json_and_fine_as_binary(value: float) -> None:
    results: dict[str, Array] = {"logits": np.array([[value, 1.0]], np.float32)}
    with pytest.raises(
        RequestError, match="'logits' holds NaN or infinity, which JSON cannot carry; ask for binary"
    ) as caught:
        encode_infer_response(_request(logits=False), results, "net", "1")
    assert caught.value.status == 500
    body, headers = encode_infer_response(_request(logits=True), results, "net", "1")
    np.testing.assert_array_equal(
        np.frombuffer(body[int(headers[BINARY_HEADER]) :], "<f4"), np.array([value, 1.0], np.float32)
    )


@pytest.mark.parametrize(
    ("dtype", "datatype"),
    [
        ("uint8", "UINT8"),
        ("int8", "INT8"),
        ("int64", "INT64"),
        ("float16", "FP16"),
        ("float64", "FP64"),
        ("bool", "BOOL"),
    ],
)
def test_datatypes_have_the_names_of_the_protocol(dtype: str, datatype: str) -> None:
    assert datatype_of(TensorSpec("x", dtype, ())) == datatype
    body, _ = encode_infer_response(_request(x=False), {"x": np.ones(2, dtype)}, "net", "1")
    (entry,) = json.loads(body)["outputs"]
    assert entry["datatype"] == datatype
    assert entry["data"] == [1, 1]

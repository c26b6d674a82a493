"""The wire against the protocol's best known client, which writes the requests and reads the answers here."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgetune.core.tensors import Array, TensorSpec
from edgetune.serve.wire.compression import deflate, inflate
from edgetune.serve.wire.v2_request import InferRequest, WireContract, parse_infer_request
from edgetune.serve.wire.v2_response import encode_infer_response
from edgetune.serve.wire.v2_tensors import BINARY_HEADER, DATATYPES

tritonclient = pytest.importorskip("tritonclient.http")

RNG = np.random.default_rng(7)
CLASSES = ("ant", "bee", "wäspe")


def _sample(dtype: str) -> Array:
    kind = np.dtype(dtype)
    if dtype == "bool":
        return RNG.integers(0, 2, (2, 3)).astype(np.bool_)
    if kind.kind == "f":
        return RNG.standard_normal((2, 3)).astype(dtype)
    limits = np.iinfo(dtype)
    array = RNG.integers(limits.min, limits.max, (2, 3), dtype, endpoint=True)
    array[0, :2] = limits.min, limits.max
    return array


def _contract(dtype: str) -> WireContract:
    spec = TensorSpec("x", dtype, (None, 3))
    return WireContract((spec,), (TensorSpec("y", dtype, (None, 3)),), None, CLASSES)


def _input(array: Array, name: str = "x", *, binary: bool = True, datatype: str = "") -> Any:
    entry = tritonclient.InferInput(name, list(array.shape), datatype or DATATYPES[array.dtype.name])
    return entry.set_data_from_numpy(array, binary_data=binary)


def _parse(contract: WireContract, inputs: list[Any], outputs: list[Any] | None = None, **options: Any) -> InferRequest:
    body, length = tritonclient.InferenceServerClient.generate_request_body(inputs, outputs=outputs, **options)
    header = None if length is None else str(length)
    return parse_infer_request(body, header, "application/octet-stream", contract)


def _read(request: InferRequest, results: dict[str, Array], encoding: str = "") -> Any:
    body, headers = encode_infer_response(request, results, "net", "1", CLASSES)
    length = headers.get(BINARY_HEADER)
    return tritonclient.InferenceServerClient.parse_response_body(
        deflate(body, encoding), header_length=length and int(length), content_encoding=encoding or None
    )


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
@pytest.mark.parametrize("dtype", sorted(DATATYPES))
def test_tensors_of_every_datatype_arrive_and_return(dtype: str, binary: bool) -> None:
    if dtype == "float16" and not binary:
        pytest.skip("JSON carries no FP16")
    array = _sample(dtype)
    outputs = [tritonclient.InferRequestedOutput("y", binary_data=binary)]
    request = _parse(_contract(dtype), [_input(array, binary=binary)], outputs, request_id="é-1")
    assert request.feed["x"].dtype == np.dtype(dtype)
    np.testing.assert_array_equal(request.feed["x"], array)
    result = _read(request, {"y": array})
    np.testing.assert_array_equal(result.as_numpy("y"), array)
    assert result.as_numpy("y").dtype == np.dtype(dtype)
    assert result.get_response()["id"] == "é-1"
    assert ("data" in result.get_output("y")) is not binary


@pytest.mark.parametrize("encoding", ["", "gzip", "deflate"])
def test_a_json_request_that_names_no_output_is_answered_in_bytes(encoding: str) -> None:
    request = _parse(_contract("float32"), [_input(_sample("float32"), binary=False)])
    (wanted,) = request.outputs
    assert wanted.binary
    values: Array = np.array([[np.nan, np.inf, -0.0]], np.float32)
    np.testing.assert_array_equal(_read(request, {"y": values}, encoding).as_numpy("y"), values)


def test_what_the_client_compresses_is_read() -> None:
    array = _sample("float32")
    body, length = tritonclient.InferenceServerClient.generate_request_body([_input(array)])
    import gzip
    import zlib

    for encoding, packed in (("gzip", gzip.compress(body)), ("deflate", zlib.compress(body))):
        request = parse_infer_request(inflate(packed, encoding, 1 << 20), str(length), "", _contract("float32"))
        np.testing.assert_array_equal(request.feed["x"], array)


def test_options_of_the_client() -> None:
    request = _parse(_contract("uint8"), [_input(_sample("uint8"))], timeout=2_000_000, parameters={"own": 1})
    assert request.timeout_us == 2_000_000
    assert request.id is None
    assert request.count == 2


def test_binary_and_json_inputs_and_outputs_mix() -> None:
    specs = (TensorSpec("a", "int64", (None, 3)), TensorSpec("b", "bool", (None, 3)))
    contract = WireContract(specs, (TensorSpec("c", "float16", (None, 2)), TensorSpec("d", "int8", (None,))), None, ())
    a, b = _sample("int64"), _sample("bool")
    outputs = [tritonclient.InferRequestedOutput("d", binary_data=False), tritonclient.InferRequestedOutput("c")]
    request = _parse(contract, [_input(b, "b"), _input(a, "a", binary=False)], outputs)
    np.testing.assert_array_equal(request.feed["a"], a)
    np.testing.assert_array_equal(request.feed["b"], b)
    c, d = np.array([[1, 2], [3, 4]], np.float16), np.array([-5, 6], np.int8)
    result = _read(request, {"c": c, "d": d})
    np.testing.assert_array_equal(result.as_numpy("c"), c)
    np.testing.assert_array_equal(result.as_numpy("d"), d)


IMAGES = WireContract(
    (TensorSpec("image", "uint8", (None, 4, 4, 3)),), (TensorSpec("logits", "float32", (None, 3)),), "image", CLASSES
)


@pytest.mark.parametrize("shape", [(2,), (2, 1)])
def test_image_files_travel_as_bytes(shape: tuple[int, ...]) -> None:
    files = []
    for form in ("PNG", "JPEG"):
        stream = io.BytesIO()
        Image.new("RGB", (5, 5), (200, 10, 10)).save(stream, form)
        files.append(stream.getvalue())
    array = np.array(files, np.object_).reshape(shape)
    request = _parse(IMAGES, [_input(array, "image", datatype="BYTES")])
    assert [bytes(file) for file in request.files] == files
    assert request.count == 2


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
def test_classes_come_with_labels(binary: bool) -> None:
    outputs = [tritonclient.InferRequestedOutput("logits", binary_data=binary, class_count=2)]
    request = _parse(IMAGES, [_input(np.zeros((2, 4, 4, 3), np.uint8), "image")], outputs)
    result = _read(request, {"logits": np.array([[0.5, -1, 2], [9, 8, 7]], np.float32)})
    texts = [[text.decode() if binary else text for text in row] for row in result.as_numpy("logits").tolist()]
    assert texts == [["2.000000:2:wäspe", "0.500000:0:ant"], ["9.000000:0:ant", "8.000000:1:bee"]]
    assert result.get_output("logits")["datatype"] == "BYTES"

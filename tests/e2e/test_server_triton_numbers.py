"""Tensors of every datatype, through the standard client and a real model that turns their columns around."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest

from edgetune.core.tensors import Array
from tests.served_models import NUMBERS, serving_onnx, turning_model

triton = pytest.importorskip("tritonclient.http", reason="the standard client, tritonclient[http], is not installed")
utils = pytest.importorskip("tritonclient.utils", reason="the standard client, tritonclient[http], is not installed")
pytestmark = pytest.mark.e2e

BINARY_ONLY = "float16"
# Two items of three values each; the middle column stays where it is.
VALUES: dict[str, list[list[Any]]] = {
    "bool": [[True, False, False], [False, True, True]],
    "uint8": [[0, 1, 255], [2, 128, 127]],
    "int8": [[-128, -1, 127], [0, 1, 2]],
    "int32": [[-(2**31), 2**31 - 1, 0], [1, -1, 7]],
    "int64": [[-(2**63), 2**63 - 1, 2**53 + 1], [0, -1, 1]],
    "float16": [[65504.0, -0.0, 0.5], [6e-8, -65504.0, 1.0]],
    "float32": [[3.4028235e38, -0.0, 1e-45], [0.1, -1.0, 16777217.0]],
    "float64": [[1.7976931348623157e308, 5e-324, -0.0], [0.1, 1 / 3, 2.0**53]],
}
KINDS = {"bool": "BOOL", "uint8": "UINT8", "int8": "INT8", "int32": "INT32", "int64": "INT64", "float16": "FP16",
         "float32": "FP32", "float64": "FP64"}  # fmt: skip


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving_onnx(turning_model(), tmp_path_factory.mktemp("numbers") / "bundle", "numbers") as address:
        yield address


@pytest.fixture
def client(address: str) -> Iterator[Any]:
    with triton.InferenceServerClient(urlsplit(address).netloc) as client:
        yield client


def _arrays() -> dict[str, Array]:
    return {name: np.array(VALUES[name], name) for name in NUMBERS}


def _entry(name: str, array: Array, *, binary: bool = True) -> Any:
    return triton.InferInput(name, list(array.shape), KINDS[name]).set_data_from_numpy(array, binary_data=binary)


def _entries(json: set[str], **changed: Array) -> list[Any]:
    """All inputs, those in `json` as JSON; in another order than the model's."""
    arrays = _arrays() | changed
    return [_entry(name, arrays[name], binary=name not in json) for name in reversed(NUMBERS)]


def _same(found: Array, expected: Array) -> None:
    """Bit by bit, so that -0.0 is not 0.0."""
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    assert found.tobytes() == np.ascontiguousarray(expected).tobytes()


def test_the_metadata_name_every_datatype(client: Any) -> None:
    told = client.get_model_metadata("numbers")
    assert {entry["name"]: entry["datatype"] for entry in told["inputs"]} == KINDS
    assert all(entry["shape"] == [-1, 3] for entry in told["inputs"] + told["outputs"])
    config = client.get_model_config("numbers")
    assert {entry["name"]: entry["data_type"] for entry in config["input"]} == {
        name: f"TYPE_{kind}" for name, kind in KINDS.items()
    }


@pytest.mark.parametrize("there", ["binary", "json", "both"])
@pytest.mark.parametrize("back", ["binary", "json", "both"])
def test_every_datatype_goes_there_and_back(client: Any, there: str, back: str) -> None:
    able = [name for name in NUMBERS if name != BINARY_ONLY]
    into = {"binary": set(), "json": set(able), "both": set(able[::2])}[there]
    out: set[str] = {"binary": set(), "json": set(able), "both": set(able[1::2])}[back]
    outputs = [triton.InferRequestedOutput(f"{name}_turned", binary_data=name not in out) for name in NUMBERS]
    result = client.infer("numbers", _entries(into), outputs=outputs)
    for name, array in _arrays().items():
        _same(result.as_numpy(f"{name}_turned"), array[:, ::-1])
        assert ("data" in result.get_output(f"{name}_turned")) is (name in out)


@pytest.mark.parametrize("name", ["float16", "float32", "float64"])
def test_nan_and_infinity_travel_as_bytes(client: Any, name: str) -> None:
    odd = np.array([[np.nan, np.inf, -np.inf], [0, 1, 2]], name)
    result = client.infer("numbers", _entries(set(), **{name: odd}))
    _same(result.as_numpy(f"{name}_turned"), odd[:, ::-1])


def test_nan_in_json_is_refused_in_and_out(client: Any) -> None:
    odd = np.array([[np.nan, 0, 1], [0, 1, 2]], np.float32)
    with pytest.raises(utils.InferenceServerException, match="not valid JSON") as caught:
        client.infer("numbers", _entries({"float32"}, float32=odd))
    assert caught.value.status() == "400"
    outputs = [triton.InferRequestedOutput("float32_turned", binary_data=False)]
    with pytest.raises(utils.InferenceServerException, match="'float32_turned' holds NaN or infinity") as caught:
        client.infer("numbers", _entries(set(), float32=odd), outputs=outputs)
    assert caught.value.status() == "500"


def test_fp16_is_refused_as_json_in_and_out(client: Any) -> None:
    with pytest.raises(utils.InferenceServerException, match="input 'float16' is FP16, which JSON cannot carry"):
        client.infer("numbers", _entries({"float16"}))
    outputs = [triton.InferRequestedOutput("float16_turned", binary_data=False)]
    with pytest.raises(
        utils.InferenceServerException, match="output 'float16_turned' is FP16, which JSON cannot carry"
    ):
        client.infer("numbers", _entries(set()), outputs=outputs)


@pytest.mark.parametrize("name", NUMBERS)
def test_bf16_is_refused_for_every_input(client: Any, name: str) -> None:
    entries = _entries(set())
    entry = triton.InferInput(name, [2, 3], "BF16")
    entry._raw_data, entry._parameters = bytes(12), {"binary_data_size": 12}
    entries[len(NUMBERS) - 1 - NUMBERS.index(name)] = entry
    with pytest.raises(utils.InferenceServerException) as caught:
        client.infer("numbers", entries)
    assert caught.value.message() == f"input {name!r} is 'BF16', expected {KINDS[name]}"
    assert caught.value.status() == "400"


def test_bools_are_0_or_1(client: Any) -> None:
    entry = _entry("bool", np.array(VALUES["bool"], np.bool_))
    entry._raw_data = b"\0\1\2\0\0\0"
    with pytest.raises(utils.InferenceServerException, match="input 'bool' holds the byte 2, BOOL is 0 or 1"):
        client.infer("numbers", [entry, *_entries(set())[:-1]])


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("bool", 1, "expected true or false"),
        ("uint8", 256, r"'data' holds 256, expected integers in 0\.\.255"),
        ("int8", -129, r"'data' holds -129, expected integers in -128\.\.127"),
        ("int32", 2**31, "'data' holds 2147483648"),
        ("int64", 2**63, "'data' holds 9223372036854775808"),
        ("int64", 1.5, r"'data' holds 1\.5, expected integers"),
        ("float32", 1e39, "expected numbers that FP32 holds"),
        ("float64", True, "'data' holds true"),
        ("float64", "1", "'data' holds '1'"),
    ],
)
def test_values_that_the_datatype_does_not_hold(client: Any, name: str, value: object, words: str) -> None:
    entries = _entries({name})
    (entry,) = [entry for entry in entries if entry.name() == name]
    entry._data[0] = value
    with pytest.raises(utils.InferenceServerException, match=words) as caught:
        client.infer("numbers", entries)
    assert caught.value.status() == "400"


def test_inputs_of_different_batches_are_refused(client: Any) -> None:
    with pytest.raises(utils.InferenceServerException, match=r"the inputs hold \[1, 2\] items, expected one number"):
        client.infer("numbers", _entries(set(), int8=np.zeros((1, 3), np.int8)))


def test_classes_of_whole_numbers_and_of_bools(client: Any) -> None:
    outputs = [triton.InferRequestedOutput("int64_turned", class_count=2)]
    result = client.infer("numbers", _entries(set()), outputs=outputs)
    best = [[text.decode() for text in row] for row in result.as_numpy("int64_turned").tolist()]
    assert best == [["9223372036854775807:1", "9007199254740993:0"], ["1:0", "0:2"]]
    with pytest.raises(utils.InferenceServerException, match="which has no best classes"):
        client.infer("numbers", _entries(set()), outputs=[triton.InferRequestedOutput("bool_turned", class_count=1)])


@pytest.mark.parametrize("count", [1, 8, 33, 256])
def test_all_inputs_of_a_large_batch_are_cut_alike(client: Any, count: int) -> None:
    rng = np.random.default_rng(count)
    arrays = {name: rng.integers(0, 2, (count, 3)).astype(name) for name in NUMBERS}
    result = client.infer("numbers", _entries(set(), **arrays))
    for name, array in arrays.items():
        _same(result.as_numpy(f"{name}_turned"), array[:, ::-1])

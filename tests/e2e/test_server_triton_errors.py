"""What the server refuses arrives at the standard client as its own exception, with our words and status."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest

from edgetune.serve.service import Service
from edgetune.serve.settings import Limits, ServeSettings
from tests.served_models import colour_answers, colour_bundle, encoded, serving_colours

triton = pytest.importorskip("tritonclient.http", reason="the standard client, tritonclient[http], is not installed")
utils = pytest.importorskip("tritonclient.utils", reason="the standard client, tritonclient[http], is not installed")
pytestmark = pytest.mark.e2e

MODEL = "colours"
Served = tuple[str, Service, threading.Event]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    bundle = colour_bundle(tmp_path_factory.mktemp("errors") / "bundle")
    with serving_colours(bundle, ServeSettings()) as served:
        yield served


@pytest.fixture
def client(served: Served) -> Iterator[Any]:
    with triton.InferenceServerClient(urlsplit(served[0]).netloc) as client:
        yield client


def _tensor(shape: tuple[int, ...] = (1, 4, 4, 3), dtype: str = "uint8", name: str = "image", **options: Any) -> Any:
    array = np.full(shape, 7, dtype)
    kind = utils.np_to_triton_dtype(array.dtype)
    return triton.InferInput(name, list(shape), kind).set_data_from_numpy(array, **options)


def _bytes(*files: bytes, shape: tuple[int, ...] = (-1,), binary: bool = True) -> Any:
    array = np.array(files, np.object_).reshape(shape)
    return triton.InferInput("image", list(array.shape), "BYTES").set_data_from_numpy(array, binary_data=binary)


def _bfloat() -> Any:
    entry = triton.InferInput("image", [1, 4, 4, 3], "BF16")
    entry._raw_data = bytes(96)
    entry._parameters["binary_data_size"] = 96
    return entry


def _in_shared_memory() -> Any:
    return triton.InferInput("image", [1, 4, 4, 3], "UINT8").set_shared_memory("region", 48)


def _to_shared_memory() -> Any:
    output = triton.InferRequestedOutput("logits")
    output.set_shared_memory("region", 20)
    return output


def _wanted(name: str = "logits", **options: Any) -> Any:
    return triton.InferRequestedOutput(name, **options)


IMAGE = encoded(np.zeros((4, 4, 3), np.uint8))
# Inputs that are wrong, each with the status and our words.
INPUTS: dict[str, tuple[Callable[[], list[Any]], int, str]] = {
    "name": (lambda: [_tensor(name="picture")], 400, "the inputs are ['picture'], expected ['image']"),
    "none": (list, 400, "the inputs are [], expected ['image']"),
    "twice": (lambda: [_tensor(), _tensor()], 400, "the inputs are ['image', 'image'], expected ['image']"),
    "datatype": (lambda: [_tensor(dtype="float32")], 400, "'FP32', expected UINT8, or BYTES for image files"),
    "bf16": (lambda: [_bfloat()], 400, "'BF16', expected UINT8, or BYTES for image files"),
    "rank": (lambda: [_tensor((4, 4, 3))], 400, "'image' has shape [4, 4, 3], expected [-1, 4, 4, 3]"),
    "side": (lambda: [_tensor((2, 4, 5, 3))], 400, "has shape [2, 4, 5, 3], expected [-1, 4, 4, 3]"),
    "no items": (lambda: [_tensor((0, 4, 4, 3))], 400, "has shape [0, 4, 4, 3], expected [-1, 4, 4, 3]"),
    "too many": (lambda: [_tensor((257, 4, 4, 3))], 400, "'image' holds 257 items, at most 256 are served"),
    "too many files": (lambda: [_bytes(*[IMAGE] * 257)], 400, "'image' holds 257 items, at most 256 are served"),
    "size, binary": (lambda: [_tensor().set_shape([2, 4, 4, 3])], 400, "for input 'image': 48 bytes, expected 96"),
    "size, json": (lambda: [_tensor(binary_data=False).set_shape([2, 4, 4, 3])], 400, "48 values, expected 96"),
    "files as json": (lambda: [_bytes(b"text", binary=False)], 400, "JSON cannot carry image files"),
    "files' shape": (lambda: [_bytes(IMAGE, IMAGE, shape=(1, 2))], 400, "shape [1, 2], expected [n] or [n, 1]"),
    "no image": (lambda: [_bytes(IMAGE, b"no image")], 400, "not an image"),
    "empty image": (lambda: [_bytes(b"")], 400, "element 0 announces 0 bytes"),
    "shared memory": (lambda: [_in_shared_memory()], 501, "shared memory is not supported"),
    "much json": (lambda: [_tensor((60_000, 4, 4, 3), binary_data=False)], 413, "send tensors as binary data"),
    "large body": (lambda: [_tensor((360_000, 4, 4, 3))], 413, "over the limit of 16777216 bytes"),
}
# The same for everything else.
OPTIONS: dict[str, tuple[Callable[[], dict[str, Any]], int, str]] = {
    "version": (lambda: {"model_version": "2"}, 404, "model 'colours' has no version '2', only 1"),
    "version in words": (lambda: {"model_version": "x"}, 404, "model 'colours' has no version 'x', only 1"),
    "unknown output": (
        lambda: {"outputs": [_wanted("y")]},
        400,
        "'y' is unknown; the model has ['features', 'logits']",
    ),
    "output twice": (lambda: {"outputs": [_wanted(), _wanted()]}, 400, "output 'logits' is asked for twice"),
    "shared memory": (lambda: {"outputs": [_to_shared_memory()]}, 501, "shared memory is not supported"),
    "classes": (lambda: {"outputs": [_wanted(class_count=2_000_000)]}, 400, "is 2000000, expected a number of classes"),
    "no classes": (lambda: {"outputs": [_wanted(class_count=-1)]}, 400, "'classification' is -1"),
    "long id": (lambda: {"request_id": "é" * 257}, 400, "'id' has 257 characters, at most 256 are echoed"),
    "priority": (lambda: {"priority": 1}, 400, "the parameter 'priority' is 1, it is not supported"),
    "sequence": (lambda: {"sequence_id": 5, "sequence_start": True}, 400, "the parameter 'sequence_id' is 5"),
    "sequence in words": (lambda: {"sequence_id": "s"}, 400, "the parameter 'sequence_id' is 's'"),
    "timeout below 0": (lambda: {"timeout": -1}, 400, "the parameter 'timeout' is -1, expected microseconds"),
    "timeout in words": (lambda: {"timeout": "soon"}, 400, "the parameter 'timeout' is 'soon'"),
    "encoding": (lambda: {"headers": {"Content-Encoding": "br"}}, 415, "the content encoding 'br' is not supported"),
    "not gzip": (lambda: {"headers": {"Content-Encoding": "gzip"}}, 400, "the gzip body is damaged"),
}


def _refused(client: Any, status: int, words: str, inputs: list[Any], options: dict[str, Any]) -> None:
    """And the next request is served, over the same connection or another."""
    with pytest.raises(utils.InferenceServerException) as caught:
        client.infer(MODEL, inputs, **options)
    assert words in caught.value.message()
    assert caught.value.status() == str(status)
    np.testing.assert_allclose(client.infer(MODEL, [_tensor()]).as_numpy("features"), [[7, 7, 7]])


@pytest.mark.parametrize("fault", INPUTS)
def test_inputs_that_are_wrong(client: Any, fault: str) -> None:
    inputs, status, words = INPUTS[fault]
    _refused(client, status, words, inputs(), {})


@pytest.mark.parametrize("fault", OPTIONS)
def test_options_that_are_wrong(client: Any, fault: str) -> None:
    options, status, words = OPTIONS[fault]
    _refused(client, status, words, [_tensor()], options())


@pytest.mark.parametrize("name", ["cats", "a b", "ü", "x" * 300])
def test_another_model_is_unknown_everywhere(client: Any, name: str) -> None:
    asks: list[Callable[[], object]] = [
        lambda: client.infer(name, [_tensor()]),
        lambda: client.get_model_metadata(name),
        lambda: client.get_model_config(name),
        lambda: client.get_inference_statistics(name),
    ]
    for ask in asks:
        with pytest.raises(utils.InferenceServerException) as caught:
            ask()
        assert caught.value.status() == "404"
        assert caught.value.message() == f"unknown model {name[:64]!r}; this server has 'colours'"


def test_another_version_is_unknown_everywhere(client: Any) -> None:
    for ask in (client.get_model_metadata, client.get_model_config, client.get_inference_statistics):
        with pytest.raises(utils.InferenceServerException, match="model 'colours' has no version '2', only 1"):
            ask(MODEL, "2")


UNSUPPORTED: dict[str, Callable[[Any], object]] = {
    "load": lambda client: client.load_model(MODEL),
    "load with files": lambda client: client.load_model(MODEL, config="{}", files={"file:1/model.onnx": b"x"}),
    "unload": lambda client: client.unload_model(MODEL),
    "unload dependents": lambda client: client.unload_model(MODEL, unload_dependents=True),
    "system memory status": lambda client: client.get_system_shared_memory_status(),
    "system memory region": lambda client: client.get_system_shared_memory_status("r"),
    "system memory register": lambda client: client.register_system_shared_memory("r", "/r", 64),
    "system memory unregister": lambda client: client.unregister_system_shared_memory("r"),
    "system memory unregister all": lambda client: client.unregister_system_shared_memory(),
    "cuda memory status": lambda client: client.get_cuda_shared_memory_status(),
    "cuda memory register": lambda client: client.register_cuda_shared_memory("r", b"aGFuZGxl", 0, 64),
    "cuda memory unregister": lambda client: client.unregister_cuda_shared_memory(),
    "trace": lambda client: client.get_trace_settings(),
    "trace of the model": lambda client: client.get_trace_settings(MODEL),
    "trace update": lambda client: client.update_trace_settings(settings={"trace_level": "TIMESTAMPS"}),
    "trace update of the model": lambda client: client.update_trace_settings(MODEL, settings={"trace_rate": "1"}),
    "log": lambda client: client.get_log_settings(),
    "log update": lambda client: client.update_log_settings({"log_file": "/tmp/x"}),
}


@pytest.mark.parametrize("call", UNSUPPORTED)
def test_what_is_not_supported_says_so(client: Any, call: str) -> None:
    with pytest.raises(utils.InferenceServerException) as caught:
        UNSUPPORTED[call](client)
    assert caught.value.status() in {"404", "501"}
    assert "exception occurred in the client" not in caught.value.message()
    assert client.infer(MODEL, [_tensor()]).as_numpy("logits").shape == (1, 5)


def test_a_short_timeout_ends_under_load_and_a_long_one_does_not(served: Served) -> None:
    address, service, gate = served
    pixels = np.full((1, 4, 4, 3), 9, np.uint8)
    before = service.stats.rejections["deadline"]
    with triton.InferenceServerClient(urlsplit(address).netloc, concurrency=8) as client:
        entry = triton.InferInput("image", [1, 4, 4, 3], "UINT8").set_data_from_numpy(pixels)
        gate.clear()
        try:
            long = [client.async_infer(MODEL, [entry], timeout=30_000_000) for _ in range(6)]
            with pytest.raises(utils.InferenceServerException, match=r"not ready within 0\.02 s") as caught:
                client.infer(MODEL, [entry], timeout=20_000)
            assert caught.value.status() == "504"
            with pytest.raises(utils.InferenceServerException, match="not ready within 1e-06 s"):
                client.infer(MODEL, [entry], timeout=1)
        finally:
            gate.set()
        for handle in long:
            result = handle.get_result(timeout=30)
            np.testing.assert_allclose(result.as_numpy("logits"), colour_answers(pixels)[1], rtol=1e-5)
    assert service.stats.rejections["deadline"] == before + 2


def test_a_full_server_says_so(tmp_path: Path) -> None:
    settings = ServeSettings(limits=Limits(max_requests=2, admission_wait_s=0.05))
    with (
        serving_colours(colour_bundle(tmp_path / "bundle"), settings) as (address, _, gate),
        triton.InferenceServerClient(urlsplit(address).netloc, concurrency=4) as client,
    ):
        gate.clear()
        try:
            held = [client.async_infer(MODEL, [_tensor()]) for _ in range(2)]
            with pytest.raises(utils.InferenceServerException, match="busy with 2 requests; try again") as caught:
                client.infer(MODEL, [_tensor()])
            assert caught.value.status() == "503"
        finally:
            gate.set()
        assert [handle.get_result(timeout=30).as_numpy("logits").shape for handle in held] == [(1, 5)] * 2

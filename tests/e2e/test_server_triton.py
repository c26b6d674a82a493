"""The standard client, over real sockets: everything it offers that the server has, with answers worked out apart."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
from PIL import Image

from edgetune.core.tensors import FEATURES_OUTPUT, LOGITS_OUTPUT
from tests.served_models import CLASSES, Pixels, colour_answers, colour_bundle, encoded
from tests.serving import running_server

triton = pytest.importorskip("tritonclient.http", reason="the standard client, tritonclient[http], is not installed")
utils = pytest.importorskip("tritonclient.utils", reason="the standard client, tritonclient[http], is not installed")
pytestmark = pytest.mark.e2e

MODEL = "colours"
RNG = np.random.default_rng(3)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    bundle = colour_bundle(tmp_path_factory.mktemp("triton") / "bundle")
    with running_server(bundle, "--model-name", MODEL) as address:
        yield address


@pytest.fixture
def client(address: str) -> Iterator[Any]:
    with triton.InferenceServerClient(urlsplit(address).netloc) as client:
        yield client


@pytest.fixture
def answers(client: Any, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The HTTP answers to the client's POSTs, as they come."""
    seen: list[Any] = []
    post = client._post

    def recording(*arguments: Any, **options: Any) -> Any:
        seen.append(post(*arguments, **options))
        return seen[-1]

    monkeypatch.setattr(client, "_post", recording)
    return seen


def _pixels(count: int) -> Pixels:
    return RNG.integers(0, 256, (count, 4, 4, 3), np.uint8)


def _images(pixels: Pixels, *, binary: bool = True) -> Any:
    return triton.InferInput("image", list(pixels.shape), "UINT8").set_data_from_numpy(pixels, binary_data=binary)


def _files(files: list[bytes], shape: tuple[int, ...] = (-1,)) -> Any:
    array = np.array(files, np.object_).reshape(shape)
    return triton.InferInput("image", list(array.shape), "BYTES").set_data_from_numpy(array)


def _wanted(name: str = LOGITS_OUTPUT, *, binary: bool = True, top: int = 0) -> Any:
    return triton.InferRequestedOutput(name, binary_data=binary, class_count=top)


def _check(result: Any, pixels: Pixels) -> None:
    features, logits = colour_answers(pixels)
    np.testing.assert_allclose(result.as_numpy(FEATURES_OUTPUT), features, rtol=1e-5, atol=1e-3)
    np.testing.assert_allclose(result.as_numpy(LOGITS_OUTPUT), logits, rtol=1e-5, atol=1e-3)


def test_health(client: Any) -> None:
    assert client.is_server_live() is True
    assert client.is_server_ready() is True
    assert client.is_model_ready(MODEL) is True
    assert client.is_model_ready(MODEL, "1") is True
    assert client.is_model_ready(MODEL, "2") is False
    assert client.is_model_ready("cats") is False


def test_server_metadata_and_the_index_of_models(client: Any) -> None:
    index = [{"name": MODEL, "version": "1", "state": "READY", "reason": ""}]
    assert client.get_model_repository_index() == index
    told = client.get_server_metadata()
    assert told["name"] == "edgetune"
    assert {"binary_tensor_data", "classification", "model_repository", "statistics", "model_configuration",
            "schedule_policy", "parameters"} == set(told["extensions"])  # fmt: skip


@pytest.mark.parametrize("version", ["", "1"])
def test_model_metadata(client: Any, version: str) -> None:
    told = client.get_model_metadata(MODEL, version)
    assert (told["name"], told["versions"], told["platform"]) == (MODEL, ["1"], "onnxruntime_onnx")
    assert told["inputs"] == [{"name": "image", "datatype": "UINT8", "shape": [-1, 4, 4, 3]}]
    assert told["outputs"] == [
        {"name": "features", "datatype": "FP32", "shape": [-1, 3]},
        {"name": "logits", "datatype": "FP32", "shape": [-1, 5]},
    ]
    assert told["parameters"]["classes"] == list(CLASSES)


@pytest.mark.parametrize("version", ["", "1"])
def test_model_config(client: Any, version: str) -> None:
    told = client.get_model_config(MODEL, version)
    assert (told["name"], told["platform"], told["max_batch_size"]) == (MODEL, "onnxruntime_onnx", 256)
    (image,) = told["input"]
    assert (image["name"], image["data_type"], image["dims"]) == ("image", "TYPE_UINT8", [4, 4, 3])
    assert [(entry["name"], entry["data_type"], entry["dims"]) for entry in told["output"]] == [
        ("features", "TYPE_FP32", [3]),
        ("logits", "TYPE_FP32", [5]),
    ]


def test_statistics_grow_by_what_was_sent(client: Any) -> None:
    def told() -> Any:
        (entry,) = client.get_inference_statistics(MODEL)["model_stats"]
        assert client.get_inference_statistics()["model_stats"] == [entry]
        assert client.get_inference_statistics(MODEL, "1")["model_stats"] == [entry]
        return entry

    before = told()
    for count in (1, 1, 5):
        client.infer(MODEL, [_images(_pixels(count))])
    client.infer(MODEL, [_files([encoded(image) for image in _pixels(2)])])
    with pytest.raises(utils.InferenceServerException, match="not an image"):
        client.infer(MODEL, [_files([b"no image"])])
    after = told()

    def grown(key: str) -> int:
        return int(after["inference_stats"][key]["count"] - before["inference_stats"][key]["count"])

    assert (after["name"], after["version"]) == (MODEL, "1")
    assert after["inference_count"] - before["inference_count"] == 1 + 1 + 5 + 2
    assert {key: grown(key) for key in after["inference_stats"]} == {
        "success": 4, "fail": 1, "queue": 4, "compute_input": 4, "compute_infer": 4, "compute_output": 4,
        "cache_hit": 0, "cache_miss": 0,
    }  # fmt: skip
    assert len({after["inference_stats"][f"compute_{part}"]["count"] for part in ("input", "infer", "output")}) == 1
    assert after["inference_stats"]["compute_infer"]["ns"] > before["inference_stats"]["compute_infer"]["ns"]
    assert abs(after["last_inference"] - time.time() * 1e3) < 60_000
    batches = after["batch_stats"]
    assert sum(batch["compute_infer"]["count"] for batch in batches) == after["execution_count"]
    assert sum(batch["batch_size"] * batch["compute_infer"]["count"] for batch in batches) == after["inference_count"]
    for batch in batches:
        assert batch["compute_input"]["count"] == batch["compute_infer"]["count"] == batch["compute_output"]["count"]


@pytest.mark.parametrize("into", [True, False], ids=["binary in", "json in"])
@pytest.mark.parametrize("features", [True, False], ids=["binary features", "json features"])
@pytest.mark.parametrize("logits", [True, False], ids=["binary logits", "json logits"])
def test_binary_and_json_in_all_mixes(client: Any, into: bool, features: bool, logits: bool) -> None:
    pixels = _pixels(3)
    outputs = [_wanted(LOGITS_OUTPUT, binary=logits), _wanted(FEATURES_OUTPUT, binary=features)]
    result = client.infer(MODEL, [_images(pixels, binary=into)], outputs=outputs)
    _check(result, pixels)
    assert [entry["name"] for entry in result.get_response()["outputs"]] == ["logits", "features"]
    assert ("data" in result.get_output("logits")) is not logits
    assert ("data" in result.get_output("features")) is not features
    assert (result.get_response()["model_name"], result.get_response()["model_version"]) == (MODEL, "1")
    assert "id" not in result.get_response()


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
def test_without_outputs_all_come_as_bytes(client: Any, binary: bool) -> None:
    pixels = _pixels(2)
    result = client.infer(MODEL, [_images(pixels, binary=binary)], model_version="1")
    _check(result, pixels)
    assert all("binary_data_size" in entry["parameters"] for entry in result.get_response()["outputs"])


def test_only_what_is_asked_for_comes(client: Any) -> None:
    result = client.infer(MODEL, [_images(_pixels(1))], outputs=[_wanted(FEATURES_OUTPUT)])
    assert result.as_numpy(LOGITS_OUTPUT) is None


@pytest.mark.parametrize("count", [1, 2, 3, 7, 8, 9, 16, 17, 33, 255, 256])
def test_every_batch_comes_whole_and_in_order(client: Any, count: int) -> None:
    pixels = _pixels(count)
    _check(client.infer(MODEL, [_images(pixels)]), pixels)


@pytest.mark.parametrize("shape", [(-1,), (-1, 1)], ids=["[n]", "[n, 1]"])
def test_image_files_give_what_their_pixels_give(client: Any, shape: tuple[int, ...]) -> None:
    sent = _pixels(12)
    files = [encoded(image, "JPEG" if number % 2 else "PNG") for number, image in enumerate(sent)]
    decoded = np.stack([np.asarray(Image.open(io.BytesIO(file)).convert("RGB")) for file in files])
    np.testing.assert_array_equal(decoded[::2], sent[::2])
    by_files = client.infer(MODEL, [_files(files, shape)])
    by_pixels = client.infer(MODEL, [_images(decoded)])
    _check(by_files, decoded)
    np.testing.assert_array_equal(by_files.as_numpy(LOGITS_OUTPUT), by_pixels.as_numpy(LOGITS_OUTPUT))


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
@pytest.mark.parametrize("top", [1, 3, 5, 9])
def test_classes_come_best_first_with_their_labels(client: Any, top: int, binary: bool) -> None:
    pixels = _pixels(3)
    outputs = [_wanted(binary=binary, top=top), _wanted(FEATURES_OUTPUT, binary=not binary)]
    result = client.infer(MODEL, [_images(pixels)], outputs=outputs)
    features, logits = colour_answers(pixels)
    found = [[_text(value) for value in row] for row in result.as_numpy(LOGITS_OUTPUT).tolist()]
    assert result.get_output(LOGITS_OUTPUT)["datatype"] == "BYTES"
    assert result.get_output(LOGITS_OUTPUT)["shape"] == [3, min(top, 5)]
    for row, texts in zip(logits.tolist(), found, strict=True):
        best = sorted(range(5), key=row.__getitem__, reverse=True)[:top]
        parts = [text.split(":", 2) for text in texts]
        assert [(int(index), label) for _, index, label in parts] == [(index, CLASSES[index]) for index in best]
        values = [float(value) for value, _, _ in parts]
        np.testing.assert_allclose(values, [row[index] for index in best], rtol=1e-5, atol=1e-3)
        assert all(len(value.partition(".")[2]) == 6 for value, _, _ in parts)
    np.testing.assert_allclose(result.as_numpy(FEATURES_OUTPUT), features, rtol=1e-5)


def test_an_output_that_has_no_labels_tells_values_and_indices(client: Any) -> None:
    pixels = np.zeros((1, 4, 4, 3), np.uint8) + np.array([7, 30, 10], np.uint8)
    result = client.infer(MODEL, [_images(pixels)], outputs=[_wanted(FEATURES_OUTPUT, top=2)])
    assert [_text(value) for value in result.as_numpy(FEATURES_OUTPUT)[0]] == ["30.000000:1", "10.000000:2"]


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value


@pytest.mark.parametrize("identifier", ["7", "größe ✓ 火🔥", "x" * 256, 'a"b\\c\n'], ids=["7", "utf8", "long", "odd"])
@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
def test_request_ids_come_back(client: Any, identifier: str, binary: bool) -> None:
    pixels = _pixels(1)
    outputs = [_wanted(binary=binary), _wanted(FEATURES_OUTPUT, binary=binary)]
    result = client.infer(MODEL, [_images(pixels, binary=binary)], request_id=identifier, outputs=outputs)
    assert result.get_response()["id"] == identifier
    _check(result, pixels)


@pytest.mark.parametrize("there", [None, "gzip", "deflate"])
@pytest.mark.parametrize("back", [None, "gzip", "deflate"])
@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
def test_compression(client: Any, answers: list[Any], there: str | None, back: str | None, binary: bool) -> None:
    pixels = _pixels(128)  # 4 kB of answer, which is worth compressing
    outputs = [_wanted(binary=binary), _wanted(FEATURES_OUTPUT, binary=binary)]
    result = client.infer(
        MODEL, [_images(pixels, binary=binary)], outputs=outputs,
        request_compression_algorithm=there, response_compression_algorithm=back,
    )  # fmt: skip
    _check(result, pixels)
    assert answers[-1].get("Content-Encoding") == back


def test_parameters_of_ones_own_and_a_long_timeout_change_nothing(client: Any) -> None:
    pixels = _pixels(2)
    own = {"number": 1, "share": 0.5, "text": "é", "flag": True}
    _check(client.infer(MODEL, [_images(pixels)], parameters=own, timeout=30_000_000), pixels)
    _check(client.infer(MODEL, [_images(pixels)], timeout=1 << 60), pixels)


def test_headers_and_query_parameters(client: Any, answers: list[Any]) -> None:
    pixels, query = _pixels(1), {"a": "b c", "several": [1, 2]}
    headers = {"X-Request-ID": "trace-7", "X-Own": "1"}
    _check(client.infer(MODEL, [_images(pixels)], headers=headers, query_params=query), pixels)
    assert answers[-1].get("X-Request-ID") == "trace-7"
    assert client.is_server_ready(query_params=query) is True
    assert client.get_model_metadata(MODEL, headers={"X-Own": "1"}, query_params=query)["name"] == MODEL
    assert client.get_model_repository_index(query_params=query)[0]["name"] == MODEL


@pytest.mark.parametrize("encoding", ["identity", "gzip", "deflate"])
@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
def test_bodies_made_and_read_without_its_connection(address: str, binary: bool, encoding: str) -> None:
    pixels, kind = _pixels(64), triton.InferenceServerClient
    body, length = kind.generate_request_body([_images(pixels, binary=binary)], request_id="é")
    assert (length is None) is not binary
    of_length = {} if length is None else {"Inference-Header-Content-Length": str(length)}
    headers = {"Accept-Encoding": encoding, **of_length}
    with httpx.stream("POST", f"{address}/v2/models/{MODEL}/infer", content=body, headers=headers) as answer:
        content = b"".join(answer.iter_raw())
    head = int(answer.headers["inference-header-content-length"])
    used = answer.headers.get("content-encoding")
    assert (used or "identity") == encoding
    result = kind.parse_response_body(content, header_length=head, content_encoding=used)
    _check(result, pixels)
    assert result.get_response()["id"] == "é"


def test_many_requests_in_flight_each_get_their_own_answer(address: str) -> None:
    batches = [_pixels(1 + number % 4) for number in range(96)]
    with triton.InferenceServerClient(urlsplit(address).netloc, concurrency=8) as client:
        waiting = [
            client.async_infer(MODEL, [_images(pixels)], request_id=str(number), timeout=30_000_000)
            for number, pixels in enumerate(batches)
        ]
        for number, (pixels, handle) in enumerate(zip(batches, waiting, strict=True)):
            result = handle.get_result(timeout=30)
            assert result.get_response()["id"] == str(number)
            _check(result, pixels)

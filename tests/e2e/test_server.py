"""The server over real sockets: the standard client, the limits, and the errors."""

from __future__ import annotations

import io
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
from PIL import Image

from edgetune.core.bundle import load_bundle
from edgetune.core.golden import load_golden
from tests.serving import running_server

pytestmark = pytest.mark.e2e
FLOAT = "model.onnx"


@pytest.fixture(scope="module")
def address(small_bundle: Path) -> Iterator[str]:
    with running_server(small_bundle, "--artifact", FLOAT, "--model-name", "digits") as address:
        yield address


@pytest.fixture
def client(address: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=address, timeout=30) as client:
        yield client


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
def test_tritonclient_gets_the_golden_logits(address: str, small_bundle: Path, binary: bool) -> None:
    triton = pytest.importorskip("tritonclient.http")
    golden, _ = load_golden(load_bundle(small_bundle))
    connection = triton.InferenceServerClient(urlsplit(address).netloc)
    assert connection.is_server_live()
    assert connection.is_server_ready()
    assert connection.is_model_ready("digits")
    assert "binary_tensor_data" in connection.get_server_metadata()["extensions"]
    assert connection.get_model_metadata("digits")["inputs"][0]["shape"] == [-1, 224, 224, 3]
    images = triton.InferInput("image", list(golden.pixels.shape), "UINT8")
    images.set_data_from_numpy(golden.pixels, binary_data=binary)
    wanted = [triton.InferRequestedOutput("logits", binary_data=binary)]
    result = connection.infer("digits", [images], request_id="7", outputs=wanted)
    np.testing.assert_allclose(result.as_numpy("logits"), golden.logits[FLOAT], rtol=1e-4, atol=1e-4)
    assert result.get_response()["id"] == "7"
    assert result.get_response()["model_version"] == "1"
    connection.close()


def test_tritonclient_reads_our_errors(address: str) -> None:
    triton = pytest.importorskip("tritonclient.http")
    utils = pytest.importorskip("tritonclient.utils")
    connection = triton.InferenceServerClient(urlsplit(address).netloc)
    images = triton.InferInput("image", [1, 8, 8, 3], "UINT8")
    images.set_data_from_numpy(np.zeros((1, 8, 8, 3), np.uint8))
    with pytest.raises(utils.InferenceServerException, match=r"shape \[1, 8, 8, 3\], expected \[-1, 224, 224, 3\]"):
        connection.infer("digits", [images])
    with pytest.raises(utils.InferenceServerException, match="unknown model 'cats'"):
        connection.infer("cats", [images])
    connection.close()


def test_image_bytes_become_a_label(client: httpx.Client, photos: Path) -> None:
    for name in ("0", "1", "7"):
        body = min((photos / name).iterdir()).read_bytes()
        answer = client.post("/v1/classify?top=2", content=body).json()
        assert answer["predictions"][0]["label"] == name
        assert len(answer["predictions"]) == 2
        assert answer["artifact"] == FLOAT
        assert "logits" not in answer


def _huge_png() -> bytes:
    stream = io.BytesIO()
    Image.new("1", (9000, 9000)).save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "words"),
    [
        ("POST", "/v1/classify", b"", 400, "empty"),
        ("POST", "/v1/classify", b"GIF89a not supported", 400, "not an image"),
        ("POST", "/v1/classify", _huge_png(), 400, "over the limit of 25000000 pixels"),
        ("POST", "/v1/classify", b"x" * (16 * 1024 * 1024 + 1), 413, "over the limit of 16777216 bytes"),
        ("POST", "/v1/classify?top=0", b"x", 400, "'top'"),
        ("POST", "/v1/classify?top=many", b"x", 400, "'top'"),
        ("GET", "/v1/classify", b"", 405, "Method Not Allowed"),
        ("GET", "/nothing", b"", 404, "Not Found"),
        ("GET", "/v2/models/digits/versions/2", b"", 404, "no version '2'"),
        ("POST", "/v2/models/digits/infer", b"{", 400, "not valid JSON"),
        ("POST", "/v2/models/digits/infer", b"{}", 400, "'inputs'"),
        ("POST", "/v2/models/..%2f..%2fetc/infer", b"{}", 404, "error"),
    ],
    ids=["empty", "gif", "bomb", "large", "top 0", "top word", "get", "unknown path", "version", "json", "no inputs",
         "traversal"],
)  # fmt: skip
def test_bad_requests_get_an_error_object(
    client: httpx.Client, method: str, path: str, body: bytes, status: int, words: str
) -> None:
    answer = client.request(method, path, content=body)
    assert answer.status_code == status
    assert list(answer.json()) == ["error"]
    assert words in answer.text
    assert "Traceback" not in answer.text
    assert client.get("/v2/health/ready").status_code == 200


def test_a_chunked_body_is_counted_while_it_arrives(client: httpx.Client) -> None:
    chunks = (b"x" * 65536 for _ in range(400))  # 26 MB without a Content-Length
    assert client.post("/v1/classify", content=chunks).status_code == 413


def test_a_client_that_leaves_does_not_hurt_the_next(client: httpx.Client, address: str, photos: Path) -> None:
    parts = urlsplit(address)
    for _ in range(40):
        with socket.create_connection((parts.hostname, parts.port or 80)) as connection:
            connection.sendall(b"POST /v1/classify HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nhalf")
    time.sleep(0.2)
    body = next((photos / "7").iterdir()).read_bytes()
    assert client.post("/v1/classify", content=body).status_code == 200


def test_a_flood_is_answered_or_refused_and_the_server_stays_well(client: httpx.Client, photos: Path) -> None:
    body = next((photos / "7").iterdir()).read_bytes()
    with ThreadPoolExecutor(64) as pool:
        answers = list(pool.map(lambda _: client.post("/v1/classify", content=body), range(128)))
    codes = {answer.status_code for answer in answers}
    assert codes <= {200, 503}
    assert 200 in codes
    assert all(answer.headers["retry-after"] == "1" for answer in answers if answer.status_code == 503)
    labels = {answer.json()["predictions"][0]["label"] for answer in answers if answer.status_code == 200}
    assert labels == {"7"}
    assert client.post("/v1/classify", content=body).status_code == 200


def test_large_requests_follow_one_another_on_a_connection(client: httpx.Client) -> None:
    headers = {"Inference-Header-Content-Length": "0"}
    body = bytes(16 * 224 * 224 * 3)
    assert [client.post("/v2/models/digits/infer", content=body, headers=headers).status_code for _ in range(8)] == [
        200
    ] * 8


def test_a_batch_gives_the_same_as_its_items(client: httpx.Client, small_bundle: Path) -> None:
    golden, _ = load_golden(load_bundle(small_bundle))

    def logits(pixels: np.ndarray) -> np.ndarray:
        headers = {"Inference-Header-Content-Length": "0"}
        answer = client.post("/v2/models/digits/infer", content=pixels.tobytes(), headers=headers)
        head = int(answer.headers["inference-header-content-length"])
        return np.frombuffer(answer.content[head:], np.float32).reshape(len(pixels), -1)

    together = logits(golden.pixels)
    alone = np.concatenate([logits(golden.pixels[index : index + 1]) for index in range(len(golden.pixels))])
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-4)

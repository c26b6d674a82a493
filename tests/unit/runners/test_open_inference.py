"""The client's side of the protocol: what is sent, and what is believed of the answers."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from edgetune.core.errors import ModelError, TensorError
from edgetune.core.tensors import Array, TensorSpec
from edgetune.runners.open_inference import answer_bytes, encode_infer
from edgetune.runners.server_runner import ServerRunner
from tests.unit.runners.raw_server import METADATA, Request, answer, http, serving

IMAGES = np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3)
FEED = {"image": IMAGES}
# Numbers that fewer than 9 digits, or a wrong rounding, would change; the smallest and the largest of float32.
HARD = np.array(
    [0.1, 1 / 3, np.pi, -0.0, 16777217, 1e-45, 1.17549435e-38, -3.4028235e38, 1.0000001, 2.7182817], np.float32
)


class TestRequests:
    def test_a_binary_one_is_tritonclients(self) -> None:
        triton = pytest.importorskip("tritonclient.http")
        tensors = []
        feed: dict[str, Array] = {"image": IMAGES[:, ::-1], "scale": HARD.reshape(2, 5), "on": np.array([True, False])}
        for (name, array), datatype in zip(feed.items(), ("UINT8", "FP32", "BOOL"), strict=True):
            tensors.append(triton.InferInput(name, list(array.shape), datatype))
            tensors[-1].set_data_from_numpy(array)
        wanted = [triton.InferRequestedOutput("logits", binary_data=True)]
        theirs, length = triton.InferenceServerClient.generate_request_body(tensors, outputs=wanted)
        ours, headers = encode_infer(feed, [TensorSpec("logits", "float32", (None, 2))], binary=True)
        own_length = int(headers["Inference-Header-Content-Length"])
        assert json.loads(ours[:own_length]) == json.loads(theirs[:length])
        assert ours[own_length:] == theirs[length:]

    def test_json_holds_the_values_in_order(self) -> None:
        body, headers = encode_infer(FEED, [TensorSpec("logits", "float32", (None, 2))], binary=False)
        assert headers == {"Content-Type": "application/json"}
        assert json.loads(body) == {
            "inputs": [{"name": "image", "shape": [2, 2, 2, 3], "datatype": "UINT8", "data": list(range(24))}],
            "outputs": [{"name": "logits", "parameters": {"binary_data": False}}],
        }

    @pytest.mark.parametrize("wire", ["json", "binary"])
    def test_float32_comes_back_to_the_last_bit(self, wire: str) -> None:
        """Through a server that sends each number back as it was written."""

        def echo(request: Request) -> Iterator[bytes]:
            length = int(request.headers.get("inference-header-content-length", len(request.body)))
            message = json.loads(request.body[:length])
            output = {**message["inputs"][0], "name": "logits"}
            head = json.dumps({"outputs": [output]}).encode()
            binary = {"Inference_Header_Content_Length": str(len(head))} if wire == "binary" else {}
            yield http(head + request.body[length:], **binary)

        shape = [-1, len(HARD)]
        model = {
            "name": "m",
            "inputs": [{"name": "x", "datatype": "FP32", "shape": shape}],
            "outputs": [{"name": "logits", "datatype": "FP32", "shape": shape}],
        }
        with serving(echo, model=http(model)) as server, ServerRunner(server.url, wire=wire) as runner:
            logits = runner.infer({"x": HARD[np.newaxis]})["logits"]
        assert logits.tobytes() == HARD.tobytes()
        assert logits.flags.writeable

    def test_nan_goes_as_bytes_only(self) -> None:
        feed: dict[str, Array] = {"x": np.array([[1, np.nan]], np.float32)}
        body, _ = encode_infer(feed, [], binary=True)
        assert body.endswith(struct.pack("<ff", 1, np.nan))
        with pytest.raises(TensorError, match="input 'x' holds NaN or infinity, which JSON cannot carry"):
            encode_infer(feed, [], binary=False)


def _spec(**changes: Any) -> dict[str, Any]:
    return {**METADATA["outputs"][0], **changes}


class TestBadMetadata:
    @pytest.mark.parametrize(
        ("reply", "words"),
        [
            (http(b"<html>hello</html>"), r"the answer is no JSON: .*it begins b'<html>hello</html>'"),
            (http([1]), "the answer is a JSON list, expected an object"),
            (http({"models": "m"}), "the models are 'm', expected a list of names"),
            (http({"models": [""]}), r"the models are \[''\]"),
            (http(b"[" * 60_000), "the answer is no JSON"),
            (http(b"\xff\xfe\xfd"), "the answer is no JSON"),
            (http(b"9" * 5000), "the answer is no JSON"),
            (http(b"", "404 Not Found"), "HTTP 404: without a word"),
            (http(b" " * (5 << 20)), "at most 4194304 were expected"),
        ],
        ids=["html", "list", "no list", "no name", "deep", "no text", "digits", "404", "large"],
    )
    def test_of_the_server(self, reply: bytes, words: str) -> None:
        with serving(server=reply) as server, pytest.raises(ModelError, match=words) as caught:
            ServerRunner(server.url).__enter__()
        assert server.url in caught.value.message
        assert len(caught.value.message.splitlines()) == 1

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"name": "n"}, "the model is 'n', expected 'm'"),
            ({"outputs": []}, r"outputs are \[\], expected one or more names, each once"),
            ({"outputs": [_spec(), _spec()]}, r"outputs are \['logits', 'logits'\]"),
            ({"outputs": ["logits"]}, "'outputs' is .*expected a list of objects"),
            ({"outputs": [_spec(name=None)]}, r"outputs\[0\]: the name is None"),
            ({"outputs": [_spec(datatype="BYTES")]}, r"outputs\[0\]: the datatype is 'BYTES', expected one of BOOL"),
            ({"outputs": [_spec(datatype=["FP32"])]}, r"the datatype is \['FP32'\]"),
            ({"outputs": [_spec(shape=[-2])]}, r"the shape is \[-2\], expected sizes above 0, or -1 for any"),
            ({"outputs": [_spec(shape=[True])]}, r"the shape is \[True\]"),
            ({"inputs": None}, "'inputs' is None"),
            ({"parameters": {"verdict": 1}}, "verdict is 1, expected a string"),
            ({"parameters": {"classes": [1]}}, r"classes is \[1\], expected a list of strings"),
            ({"parameters": {"max_batch": 0}}, "max_batch is 0, expected a number above 0"),
            ({"parameters": {"max_batch": True}}, "max_batch is True"),
            ({"parameters": {"preprocess": {"crop_size": 9}}}, "parameters: preprocess .*lacks"),
        ],
        ids=str,
    )
    def test_of_the_model(self, changes: dict[str, Any], words: str) -> None:
        with serving(model=http({**METADATA, **changes})) as server, pytest.raises(ModelError, match=words) as caught:
            ServerRunner(server.url).__enter__()
        assert server.url in caught.value.message


def _binary(message: Any, tail: bytes, length: str = "") -> bytes:
    head = json.dumps(message).encode()
    return http(head + tail, Inference_Header_Content_Length=length or str(len(head)))


def _sized(size: Any) -> dict[str, Any]:
    """A message for one image, whose logits follow as bytes."""
    message = answer([0.0, 0.0], parameters={"binary_data_size": size})
    del message["outputs"][0]["data"]
    return message


TWO_FLOATS = struct.pack("<ff", 1.5, -2.0)


class TestAnswers:
    def _infer(self, reply: bytes, images: Array = IMAGES[:1]) -> Array:
        with serving(reply) as server, ServerRunner(server.url, timeout_s=5) as runner:
            try:
                return runner.infer({"image": images})["logits"]
            except (ModelError, TensorError) as error:
                assert server.url in error.message
                assert len(error.message.splitlines()) == 1
                assert len(error.message) < 700
                raise

    @pytest.mark.parametrize(
        "reply",
        [
            http(answer([1.5, -2.0])),
            http(answer([1.5, -2.0], data=[[1.5, -2]])),
            _binary(_sized(8), TWO_FLOATS),
            http({"outputs": answer([1.5, -2.0])["outputs"], "more": None}),
        ],
        ids=["flat", "nested", "bytes", "without a name"],
    )
    def test_good_ones(self, reply: bytes) -> None:
        logits = self._infer(reply)
        np.testing.assert_array_equal(logits, np.array([[1.5, -2.0]], np.float32))
        assert logits.dtype == np.float32

    def test_bytes_carry_nan_for_the_gate_to_judge(self) -> None:
        logits = self._infer(_binary(_sized(8), struct.pack("<ff", np.nan, np.inf)))
        np.testing.assert_array_equal(logits, np.array([[np.nan, np.inf]], np.float32))

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"name": "scores"}, r"the outputs are \['scores'\], expected \['logits'\]"),
            ({"name": None}, r"the outputs are \[None\]"),
            ({"datatype": "FP64"}, "output 'logits' is 'FP64', expected 'FP32'"),
            ({"shape": [1, 3]}, r"output 'logits' has the shape \[1, 3\], expected \[1, 2\]"),
            ({"shape": [2, 2], "data": [1, 2, 3, 4]}, r"the shape \[2, 2\], expected \[1, 2\]"),
            ({"shape": [2]}, r"the shape \[2\]"),
            ({"shape": [True, 2]}, r"the shape \[True, 2\]"),
            ({"shape": "1,2"}, "the shape '1,2'"),
            ({"data": [1.0]}, "output 'logits' holds 1 values, expected 2"),
            ({"data": [1.0, 2.0, 3.0]}, "holds 3 values, expected 2"),
            ({"data": []}, "holds 0 values, expected 2"),
            ({"data": "1,2"}, "neither 'data' nor 'binary_data_size'"),
            ({"data": [1.0, "2"]}, "holds '2', expected float32 numbers"),
            ({"data": [1.0, None]}, "holds None, expected float32 numbers"),
            ({"data": [1.0, True]}, "holds True, expected float32 numbers"),
            ({"data": [[[1.0]], [[2.0]]]}, r"holds \[1.0\], expected float32 numbers"),
            ({"data": [1.0, 1e39]}, "a number that is too large for float32"),
            ({"data": [1.0, 10**400]}, "a number that is too large for float32"),
        ],
        ids=str,
    )
    def test_another_tensor_than_the_metadata_says(self, changes: dict[str, Any], words: str) -> None:
        with pytest.raises(ModelError, match=words):
            self._infer(http(answer([1.5, -2.0], **changes)))

    @pytest.mark.parametrize(
        ("reply", "words"),
        [
            (http(b"null"), "the answer is a JSON NoneType, expected an object"),
            (http({}), "'outputs' is None, expected a list of objects"),
            (http({"outputs": []}), r"the outputs are \[\], expected \['logits'\]"),
            (http({"outputs": answer([1, 2])["outputs"] * 2}), r"the outputs are \['logits', 'logits'\]"),
            (http({**answer([1.5, -2.0]), "model_name": "cats"}), "model 'cats' answers, expected 'm'"),
            (http(b'{"outputs": [{"data": [NaN, 1.0]}]}'), "the answer holds NaN, which is no JSON"),
            (http(b'{"outputs": [{"data": [-Infinity]}]}'), "the answer holds -Infinity, which is no JSON"),
            (http(b'{"outputs"'), "the answer is no JSON"),
            (_binary(_sized(8), TWO_FLOATS[:7]), "is announced with 8 bytes and 7 came, expected 8"),
            (_binary(_sized(4), TWO_FLOATS), "is announced with 4 bytes and 8 came, expected 8"),
            (_binary(_sized(True), TWO_FLOATS), "is announced with True bytes"),
            (_binary(_sized(8), TWO_FLOATS + b"!"), "1 bytes follow the last output, expected none"),
            (_binary(_sized(8), TWO_FLOATS, "-3"), "inference-header-content-length is '-3', expected 0 to the"),
            (_binary(_sized(8), TWO_FLOATS, "9999"), "inference-header-content-length is '9999'"),
            (_binary(_sized(8), TWO_FLOATS, "20"), "the answer is no JSON"),
            (http(b" " * 100_000), "the answer has 100000 bytes, at most 65616 were expected"),
            (http({"error": "no such luck."}, "500 Oops"), r"infer\): HTTP 500: no such luck\.$"),
            (http({"error": "busy"}, "503 Busy", Retry_After="0"), "HTTP 503: busy"),
        ],
        ids=["null", "empty", "none", "twice", "other model", "nan", "infinity", "half", "short", "size", "bool",
             "long", "negative", "header", "in the head", "large", "500", "503"],
    )  # fmt: skip
    def test_what_is_no_answer(self, reply: bytes, words: str) -> None:
        with pytest.raises(ModelError, match=words):
            self._infer(reply)

    @pytest.mark.parametrize("status", ["400 Bad Request", "413 Too Large"])
    def test_a_feed_that_the_server_refuses(self, status: str) -> None:
        with pytest.raises(TensorError, match=r": too dark\.$"):
            self._infer(http({"error": "too dark"}, status))


def test_what_an_answer_may_weigh() -> None:
    """64 KiB and 40 bytes a number; never more than 64 MiB, whatever the metadata says."""
    assert answer_bytes([TensorSpec("logits", "float32", (None, 1000))], 8) == 65536 + 8 * 1000 * 40
    assert answer_bytes([TensorSpec("a", "float32", (None, 2)), TensorSpec("b", "float32", (3,))], 1) == 65536 + 5 * 40
    assert answer_bytes([TensorSpec("logits", "float32", (None, None))], 8) == 1 << 26
    assert answer_bytes([TensorSpec("logits", "float32", (None, 10**30))], 8) == 1 << 26

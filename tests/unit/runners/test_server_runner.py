"""The runners of a running server: a real edgetune process, and servers that answer wrongly."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgetune.core.bundle import MANIFEST_NAME
from edgetune.core.errors import AddressError, ImageError, ModelError, TensorError, UsageError
from edgetune.core.files import sha256_of_file
from edgetune.core.preprocess import preprocess_image
from edgetune.core.tensors import LOGITS_OUTPUT, TensorSpec
from edgetune.core.versions import edgetune_version
from edgetune.runners.base import FileRunner, Runner, infer_images
from edgetune.runners.ort_runner import OrtRunner
from edgetune.runners.served_model import RemoteModel
from edgetune.runners.server_runner import ServerImages, ServerRunner
from tests.unit.runners.conftest import MeanServer
from tests.unit.runners.mean_bundle import FP32, SPEC
from tests.unit.runners.raw_server import METADATA, Request, answer, http, serving

IMAGES = np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3)
FEED = {"image": IMAGES}
LOGITS = ([1.5, -2.0], [0.1, 3e-8])


def _png(seed: int) -> bytes:
    stream = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (9 + seed, 13, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


class TestRealServer:
    def test_every_way_gives_what_onnx_runtime_gives_here(self, mean_server: MeanServer) -> None:
        files = [_png(seed) for seed in range(5)]
        pixels = np.stack([preprocess_image(data, SPEC) for data in files])
        with OrtRunner(mean_server.bundle.path / FP32, threads=1) as local:
            expected = infer_images(local, pixels, LOGITS_OUTPUT)
        assert len(np.unique(expected[:, 0])) == 5  # no two files alike, so that an exchange would show
        for wire in ("json", "binary"):
            with ServerRunner(mean_server.url, wire=wire) as runner:
                np.testing.assert_allclose(infer_images(runner, pixels, LOGITS_OUTPUT), expected, rtol=1e-6, atol=1e-5)
        with ServerImages(mean_server.url) as images:
            logits = np.stack([images.classify(data) for data in files])
        np.testing.assert_allclose(logits, expected, rtol=1e-6, atol=1e-5)
        assert logits.dtype == np.float32

    def test_json_and_binary_agree_to_the_last_bit(self, mean_server: MeanServer) -> None:
        pixels = np.random.default_rng(0).integers(0, 256, (40, 4, 4, 3), dtype=np.uint8)
        with ServerRunner(mean_server.url, wire="json") as one, ServerRunner(mean_server.url, wire="binary") as other:
            np.testing.assert_array_equal(
                one.infer({"image": pixels})["logits"], other.infer({"image": pixels})["logits"]
            )

    def test_it_says_which_bundle_it_serves(self, mean_server: MeanServer) -> None:
        artifact = mean_server.bundle.artifact(FP32)
        with ServerRunner(mean_server.url) as runner, ServerImages(mean_server.url) as images:
            assert runner.served == images.served
            assert runner.served == RemoteModel(
                url=mean_server.url,
                name="mean",
                inputs=(TensorSpec("image", "uint8", (None, 4, 4, 3)),),
                outputs=(TensorSpec("logits", "float32", (None, 2)),),
                server=f"edgetune {edgetune_version()}",
                artifact=FP32,
                artifact_sha256=artifact.sha256,
                bundle_digest=sha256_of_file(mean_server.bundle.path / MANIFEST_NAME),
                verdict="PASS",
                runner="onnxruntime CPU",
                classes=("a", "b"),
                preprocess=SPEC,
                max_batch=256,
                max_body_bytes=16 << 20,
                max_json_bytes=4 << 20,
            )

    def test_an_unknown_model_is_told_in_the_servers_words(self, mean_server: MeanServer) -> None:
        with pytest.raises(ModelError, match="HTTP 404: unknown model 'cats'; this server has 'mean'") as caught:
            ServerRunner(mean_server.url, model="cats").__enter__()
        assert mean_server.url in caught.value.message

    def test_too_many_at_once_never_leave(self, mean_server: MeanServer) -> None:
        with ServerRunner(mean_server.url) as runner:
            for count in (0, 257):
                with pytest.raises(TensorError, match=rf"the batch is {count}, server http.* takes 1 to 256\."):
                    runner.infer({"image": np.zeros((count, 4, 4, 3), np.uint8)})

    @pytest.mark.parametrize(
        ("data", "words"),
        [
            (b"", "HTTP 400: the body is empty"),
            (b"GIF89a", "HTTP 400: the file is not an image that can be read"),
            (b"x" * (17 << 20), "HTTP 413: the body is over the limit of 16777216 bytes"),
        ],
        ids=["empty", "gif", "large"],
    )
    def test_a_file_that_the_server_refuses(self, mean_server: MeanServer, data: bytes, words: str) -> None:
        with ServerImages(mean_server.url) as images:
            with pytest.raises(ImageError, match=words) as caught:
                images.classify(data)
            assert mean_server.url in caught.value.message
            assert images.classify(_png(0)).shape == (2,)  # and the next one is served

    def test_both_are_what_the_protocols_say(self, mean_server: MeanServer) -> None:
        runner: Runner = ServerRunner(mean_server.url)
        images: FileRunner = ServerImages(mean_server.url)
        assert runner.name == f"server {mean_server.url} (binary)"
        assert images.name == f"server {mean_server.url} (image bytes)"
        with pytest.raises(ModelError, match="with block"):
            images.classify(b"")

    def test_tritonclient_reads_the_same_logits(self, mean_server: MeanServer) -> None:
        triton = pytest.importorskip("tritonclient.http")
        pixels = np.random.default_rng(1).integers(0, 256, (3, 4, 4, 3), dtype=np.uint8)
        connection = triton.InferenceServerClient(mean_server.url.removeprefix("http://"))
        tensor = triton.InferInput("image", [3, 4, 4, 3], "UINT8")
        tensor.set_data_from_numpy(pixels)
        expected = connection.infer("mean", [tensor]).as_numpy("logits")
        connection.close()
        with ServerRunner(mean_server.url) as runner:
            np.testing.assert_array_equal(runner.infer({"image": pixels})["logits"], expected)


def _model(**parameters: Any) -> bytes:
    return http({**METADATA, "parameters": parameters})


def test_an_unknown_wire() -> None:
    with pytest.raises(UsageError, match="the wire 'grpc' is not known; known: binary, json"):
        ServerRunner("http://host", wire="grpc")


class TestLimits:
    @pytest.mark.parametrize(
        ("wire", "parameters", "expected"),
        [
            ("binary", {}, None),
            ("binary", {"max_batch": 3}, 3),
            ("binary", {"max_body_bytes": 4096 + 12 * 5 + 11}, 5),
            ("json", {"max_body_bytes": 4096 + 12 * 4 * 5 + 47}, 5),
            ("json", {"max_body_bytes": 1 << 20, "max_json_bytes": 4096 + 12 * 4 * 3 + 47}, 3),
            ("binary", {"max_body_bytes": 4096 + 12 * 5, "max_json_bytes": 4097}, 5),
            ("json", {"max_batch": 2, "max_body_bytes": 1 << 20}, 2),
            ("binary", {"max_body_bytes": 10}, 1),
        ],
        ids=["none", "items", "bytes", "digits", "text", "text not sent", "both", "less than one"],
    )
    def test_a_batch_is_as_large_as_the_server_takes(
        self, wire: str, parameters: dict[str, int], expected: int | None
    ) -> None:
        with serving(model=_model(**parameters)) as server, ServerRunner(server.url, wire=wire) as runner:
            assert (runner.min_batch, runner.max_batch) == (1, expected)

    @pytest.mark.parametrize(
        ("config", "expected"),
        [
            (http({"name": "m", "max_batch_size": 8}), 8),
            (http({"name": "m", "max_batch_size": 0}), 1),
            (http({"name": "m"}), None),
            (http({"max_batch_size": "8"}), None),
            (http({"max_batch_size": True}), None),
            (http({"max_batch_size": -1}), None),
            (http(b"<html>"), None),
            (http({"error": "unknown"}, "404 Not Found"), None),
            (http({"error": "broken"}, "500 Oops"), None),
            (http({}, "302 Found", Location="/"), None),
        ],
        ids=["some", "no batches", "no size", "text", "bool", "below", "no JSON", "404", "500", "redirect"],
    )
    def test_another_servers_configuration_tells_the_largest_batch(self, config: bytes, expected: int | None) -> None:
        with serving(config=config) as server, ServerRunner(server.url) as runner:
            assert (runner.min_batch, runner.max_batch) == (1, expected)

    def test_images_go_in_batches_as_the_configuration_says(self) -> None:
        def one(request: Request) -> Iterator[bytes]:
            assert b'"shape":[1,2,2,3]' in request.body
            yield http(answer([1.0, 2.0]))

        config = http({"max_batch_size": 0})
        with serving(one, config=config) as server, ServerRunner(server.url) as runner:
            assert infer_images(runner, np.zeros((3, 2, 2, 3), np.uint8), "logits").shape == (3, 2)

    def test_edgetunes_own_server_is_not_asked_for_its_configuration(self) -> None:
        with serving(model=_model(max_batch=3)) as server, ServerRunner(server.url):
            assert [request.path for request in server.requests] == ["/v2", "/v2/models/m"]

    def test_a_runner_may_be_kept_to_less(self) -> None:
        with serving(model=_model(max_batch=3)) as server, ServerRunner(server.url) as runner:
            for batch, expected in ((8, 3), (2, 2)):
                runner.keep_to(batch)
                assert runner.max_batch == expected

    def test_the_largest_batch_keeps_the_body_within_the_limit(self) -> None:
        """White images have the most digits; the body with its head must not pass what the server takes."""

        def count(request: Request) -> Iterator[bytes]:
            assert len(request.body) <= 40_000
            rows = json.loads(request.body)["inputs"][0]["shape"][0]
            yield http(answer(*[[1.0, 2.0]] * rows))

        images = np.full((1000, 2, 2, 3), 255, np.uint8)
        model = _model(max_body_bytes=40_000)
        with serving(count, model=model) as server, ServerRunner(server.url, wire="json") as runner:
            assert infer_images(runner, images, "logits").shape == (1000, 2)
            assert len(server.requests) == 3 + -(-1000 // (runner.max_batch or 1))

    def test_a_model_of_one_batch_only(self) -> None:
        """As an engine without a profile on Triton."""
        fixed = [{**METADATA["inputs"][0], "shape": [4, 2, 2, 3]}]
        given = [{**METADATA["outputs"][0], "shape": [4, 2]}]
        rows = [[float(index), 0.0] for index in range(4)]
        model, config = http({**METADATA, "inputs": fixed, "outputs": given}), http({"max_batch_size": 0})
        with serving(http(answer(*rows)), model=model, config=config) as server, ServerRunner(server.url) as runner:
            runner.keep_to(1)
            assert (runner.min_batch, runner.max_batch) == (4, 4)
            assert infer_images(runner, IMAGES, "logits").tolist() == [[0, 0], [1, 0]]


class TestOtherServers:
    def test_without_our_keys_the_rest_is_empty(self) -> None:
        with serving(http(answer(*LOGITS))) as server, ServerRunner(server.url) as runner:
            served = runner.served
            assert (served.server, served.artifact, served.bundle_digest, served.classes) == ("raw 7", "", "", ())
            assert (served.preprocess, served.max_batch) == (None, None)
            np.testing.assert_array_equal(runner.infer(FEED)["logits"], np.array(LOGITS, np.float32))

    def test_tritons_index_tells_the_model(self) -> None:
        triton = http({"name": "triton", "version": "2.60", "extensions": ["model_repository"]})
        index = http([{"name": "old", "state": "UNAVAILABLE"}, {"name": "m", "version": "1", "state": "READY"}])
        with serving(server=triton, index=index) as server, ServerRunner(server.url) as runner:
            assert runner.served.name == "m"
            assert server.requests[1].method == "POST"

    def test_a_named_model_is_not_looked_for(self) -> None:
        with serving(server=http({"name": "kserve"})) as server, ServerRunner(server.url, model="m") as runner:
            assert runner.served.name == "m"

    @pytest.mark.parametrize(
        ("server", "words"),
        [
            ({}, "does not say which models it serves"),
            ({"models": []}, "serves 0 models, expected one: none"),
            ({"models": ["m", "cats"]}, "serves 2 models, expected one: cats, m"),
        ],
    )
    def test_one_of_several_is_not_guessed(self, server: dict[str, Any], words: str) -> None:
        with serving(server=http(server)) as raw, pytest.raises(UsageError, match=words) as caught:
            ServerRunner(raw.url).__enter__()
        assert raw.url in caught.value.message
        assert caught.value.hint == "name the model"


class TestSameServer:
    def test_a_closed_connection_is_made_again_and_the_model_asked_for(self) -> None:
        with serving(http(answer(*LOGITS)), keeps=False) as server, ServerRunner(server.url) as runner:
            for _ in range(2):
                np.testing.assert_array_equal(runner.infer(FEED)["logits"], np.array(LOGITS, np.float32))
        assert [request.path for request in server.requests].count("/v2/models/m") == 3

    def test_another_model_behind_the_address_is_noticed(self) -> None:
        told = iter([_model(bundle_digest="aaa"), _model(bundle_digest="bbb")])
        with (
            serving(http(answer(*LOGITS)), model=lambda _: [next(told)], keeps=False) as server,
            ServerRunner(server.url) as runner,
            pytest.raises(ModelError, match=r"serves something else .*bundle_digest was aaa, and is bbb now") as caught,
        ):
            runner.infer(FEED)
        assert server.url in caught.value.message

    def test_a_connection_that_stays_is_not_questioned(self) -> None:
        with serving(http(answer(*LOGITS))) as server, ServerRunner(server.url) as runner:
            for _ in range(3):
                runner.infer(FEED)
        asked = ["/v2", "/v2/models/m", "/v2/models/m/config"]
        assert [request.path for request in server.requests] == [*asked, *["/v2/models/m/infer"] * 3]

    def test_a_server_that_went_away(self) -> None:
        with serving(http(answer(*LOGITS)), keeps=False) as server, ServerRunner(server.url) as runner:
            server.__exit__()
            with pytest.raises(AddressError, match="nothing listens at"):
                runner.infer(FEED)


class TestImages:
    @pytest.mark.parametrize(
        ("reply", "words"),
        [
            (http({"predictions": []}), "'logits' is None, expected a list of numbers"),
            (http([1.0, 2.0]), "'logits' is None"),
            (http({"logits": [1.0, "2"]}), "expected a list of numbers"),
            (http({"logits": [1.0, False]}), "expected a list of numbers"),
            (http({"logits": [1.0]}), "1 logits came, expected 2"),
            (http({"logits": [1.0, 1e39]}), "a number that is too large for float32"),
            (http(b'{"logits": [NaN, 1.0]}'), "NaN, which is no JSON"),
            (http(b" " * 100_000), "the answer has 100000 bytes, at most 65616"),
            (http({"error": "gone"}, "404 Not Found"), "HTTP 404: gone"),
        ],
        ids=["no logits", "list", "text", "bool", "count", "overflow", "nan", "large", "404"],
    )
    def test_what_is_no_answer(self, reply: bytes, words: str) -> None:
        model = _model(classes=["a", "b"])
        with serving(classify=reply, model=model) as server, ServerImages(server.url) as images:
            with pytest.raises(ModelError, match=words) as caught:
                images.classify(b"an image")
            assert server.requests[-1].body == b"an image"
            assert server.url in caught.value.message

    def test_the_logits_of_a_server_that_does_not_tell_its_classes(self) -> None:
        with serving(classify=http({"logits": [0.1, 1 / 3, -0.0]})) as server, ServerImages(server.url) as images:
            np.testing.assert_array_equal(images.classify(b"x"), np.array([0.1, 1 / 3, -0.0], np.float32))

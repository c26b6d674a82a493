"""The standard client's asyncio form, which sends other headers than the other one does."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest

from tests.served_models import CLASSES, Pixels, colour_answers, colour_bundle, encoded
from tests.serving import running_server

aio = pytest.importorskip("tritonclient.http.aio", reason="tritonclient[http] with aiohttp is not installed")
utils = pytest.importorskip("tritonclient.utils", reason="tritonclient[http] is not installed")
pytestmark = pytest.mark.e2e

MODEL = "colours"
RNG = np.random.default_rng(5)
Ask = Callable[[Any], Awaitable[Any]]
Run = Callable[[Ask], Any]


@pytest.fixture(
    scope="module", params=["[batching]", "[batching]\nsize = 4\ndelay_s = 0.002"], ids=["one by one", "batched"]
)
def address(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server as it is on a CPU, and one that puts requests together as on a GPU."""
    bundle = colour_bundle(tmp_path_factory.mktemp("aio") / "bundle")
    config = bundle.parent / "serve.toml"
    config.write_text(request.param)
    with running_server(bundle, "--model-name", MODEL, "--config", str(config)) as address:
        yield address


@pytest.fixture
def run(address: str) -> Run:
    """Asks with a client in an event loop, within 30 s."""

    def run(ask: Ask) -> Any:
        async def main() -> Any:
            async with aio.InferenceServerClient(urlsplit(address).netloc) as client:
                return await asyncio.wait_for(ask(client), 30)

        return asyncio.run(main())

    return run


def _pixels(count: int) -> Pixels:
    return RNG.integers(0, 256, (count, 4, 4, 3), np.uint8)


def _images(pixels: Pixels, *, binary: bool = True) -> Any:
    return aio.InferInput("image", list(pixels.shape), "UINT8").set_data_from_numpy(pixels, binary_data=binary)


def _outputs(*, binary: bool) -> list[Any]:
    return [aio.InferRequestedOutput(name, binary_data=binary) for name in ("features", "logits")]


def _check(result: Any, pixels: Pixels) -> None:
    features, logits = colour_answers(pixels)
    np.testing.assert_allclose(result.as_numpy("features"), features, rtol=1e-5, atol=1e-3)
    np.testing.assert_allclose(result.as_numpy("logits"), logits, rtol=1e-5, atol=1e-3)


def test_pages(run: Run) -> None:
    async def ask(client: Any) -> None:
        assert await client.is_server_live() is True
        assert await client.is_server_ready() is True
        assert await client.is_model_ready(MODEL) is True
        assert await client.is_model_ready(MODEL, "1") is True
        assert await client.is_model_ready("cats") is False
        assert (await client.get_server_metadata())["name"] == "edgetune"
        assert (await client.get_model_metadata(MODEL))["versions"] == ["1"]
        assert (await client.get_model_config(MODEL))["max_batch_size"] == 256
        assert [entry["state"] for entry in await client.get_model_repository_index()] == ["READY"]

    run(ask)


def test_statistics_grow_by_what_was_sent(run: Run) -> None:
    async def ask(client: Any) -> None:
        (before,) = (await client.get_inference_statistics())["model_stats"]
        for count in (1, 4):
            await client.infer(MODEL, [_images(_pixels(count))])
        (after,) = (await client.get_inference_statistics(MODEL))["model_stats"]
        assert after["inference_count"] - before["inference_count"] == 5
        stats = after["inference_stats"]
        assert stats["success"]["count"] - before["inference_stats"]["success"]["count"] == 2
        assert len({stats[key]["count"] for key in ("compute_input", "compute_infer", "compute_output")}) == 1

    run(ask)


@pytest.mark.parametrize("there", [True, False], ids=["binary in", "json in"])
@pytest.mark.parametrize("back", [True, False, None], ids=["binary out", "json out", "no outputs"])
@pytest.mark.parametrize("count", [1, 200])
def test_binary_and_json(run: Run, there: bool, back: bool | None, count: int) -> None:
    """Two hundred images make an answer that is compressed, which this client always offers to take."""
    pixels = _pixels(count)
    outputs = None if back is None else _outputs(binary=back)
    result = run(lambda client: client.infer(MODEL, [_images(pixels, binary=there)], outputs=outputs, request_id="é"))
    _check(result, pixels)
    assert result.get_response()["id"] == "é"
    assert ("data" in result.get_output("logits")) is (back is False)


@pytest.mark.parametrize("there", [None, "gzip", "deflate"])
@pytest.mark.parametrize("back", [None, "gzip", "deflate"])
@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
def test_compression(run: Run, there: str | None, back: str | None, binary: bool) -> None:
    pixels = _pixels(128)

    async def ask(client: Any) -> Any:
        return await client.infer(
            MODEL, [_images(pixels, binary=binary)], outputs=_outputs(binary=binary),
            request_compression_algorithm=there, response_compression_algorithm=back,
        )  # fmt: skip

    _check(run(ask), pixels)


def test_image_files_and_classes(run: Run) -> None:
    pixels = np.zeros((2, 4, 4, 3), np.uint8)
    pixels[0, ..., 2], pixels[1, ..., 0] = 200, 100
    files = np.array([encoded(image) for image in pixels], np.object_)
    entry = aio.InferInput("image", [2], "BYTES").set_data_from_numpy(files)
    outputs = [aio.InferRequestedOutput("logits", class_count=1)]
    result = run(lambda client: client.infer(MODEL, [entry], outputs=outputs))
    found = [text.decode() for text in result.as_numpy("logits").ravel()]
    assert found == [f"200.000000:2:{CLASSES[2]}", f"100.000000:0:{CLASSES[0]}"]


def test_many_at_once_each_get_their_own_answer(run: Run) -> None:
    batches = [_pixels(1 + number % 5) for number in range(100)]

    async def ask(client: Any) -> list[Any]:
        places = asyncio.Semaphore(24)

        async def one(number: int) -> Any:
            async with places:
                return await client.infer(MODEL, [_images(batches[number])], request_id=str(number))

        return list(await asyncio.gather(*map(one, range(len(batches)))))

    for number, result in enumerate(run(ask)):
        assert result.get_response()["id"] == str(number)
        _check(result, batches[number])


FAULTS: dict[str, tuple[Ask, str, str]] = {
    "model": (lambda client: client.infer("cats", [_images(_pixels(1))]), "404", "unknown model 'cats'"),
    "version": (lambda client: client.infer(MODEL, [_images(_pixels(1))], "2"), "404", "has no version '2'"),
    "shape": (lambda client: client.infer(MODEL, [_images(RNG.integers(0, 9, (1, 4, 3, 3), np.uint8))]), "400",
              "has shape [1, 4, 3, 3], expected [-1, 4, 4, 3]"),
    "too many": (lambda client: client.infer(MODEL, [_images(_pixels(257))]), "400", "at most 256 are served"),
    "priority": (lambda client: client.infer(MODEL, [_images(_pixels(1))], priority=3), "400", "'priority' is 3"),
    "sequence": (lambda client: client.infer(MODEL, [_images(_pixels(1))], sequence_id=3), "400", "'sequence_id' is 3"),
    "metadata": (lambda client: client.get_model_metadata("cats"), "404", "unknown model 'cats'"),
    "large body": (lambda client: client.infer(MODEL, [_images(np.zeros((360_000, 4, 4, 3), np.uint8))]), "413",
                   "over the limit of 16777216 bytes"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_is_told(run: Run, fault: str) -> None:
    call, status, words = FAULTS[fault]

    async def ask(client: Any) -> None:
        with pytest.raises(utils.InferenceServerException) as caught:
            await call(client)
        assert words in caught.value.message()
        assert caught.value.status() == status
        pixels = _pixels(1)
        _check(await client.infer(MODEL, [_images(pixels)]), pixels)

    run(ask)


UNSUPPORTED: dict[str, Ask] = {
    "load": lambda client: client.load_model(MODEL),
    "unload": lambda client: client.unload_model(MODEL),
    "system memory": lambda client: client.register_system_shared_memory("r", "/r", 64),
    "system memory status": lambda client: client.get_system_shared_memory_status(),
    "system memory unregister": lambda client: client.unregister_system_shared_memory(),
    "cuda memory": lambda client: client.register_cuda_shared_memory("r", b"aGFuZGxl", 0, 64),
    "cuda memory status": lambda client: client.get_cuda_shared_memory_status(),
    "trace": lambda client: client.get_trace_settings(MODEL),
    "trace update": lambda client: client.update_trace_settings(settings={"trace_rate": "1"}),
    "log": lambda client: client.get_log_settings(),
    "log update": lambda client: client.update_log_settings({"log_verbose_level": 1}),
}


@pytest.mark.parametrize("call", UNSUPPORTED)
def test_what_is_not_supported_says_so(run: Run, call: str) -> None:
    async def ask(client: Any) -> None:
        with pytest.raises(utils.InferenceServerException) as caught:
            await UNSUPPORTED[call](client)
        assert caught.value.status() in {"404", "501"}
        assert "exception occurred in the client" not in caught.value.message()
        assert await client.is_server_ready() is True

    run(ask)

"""Our own client against our own server: all that it reads is there, and both image files and tensors come through."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edgetune.core.errors import ImageError, TensorError
from edgetune.core.files import sha256_of_file
from edgetune.core.tensors import IMAGE_INPUT, TensorSpec
from edgetune.core.versions import edgetune_version
from edgetune.runners.server_runner import BINARY, WIRES, ServerImages, ServerRunner
from tests.served_models import (
    CLASSES,
    NUMBERS,
    SPEC,
    Pixels,
    colour_answers,
    colour_bundle,
    encoded,
    serving_onnx,
    turning_model,
)
from tests.serving import running_server

pytestmark = pytest.mark.e2e

RNG = np.random.default_rng(11)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return colour_bundle(tmp_path_factory.mktemp("client") / "bundle")


@pytest.fixture(scope="module")
def address(bundle: Path) -> Iterator[str]:
    with running_server(bundle, "--model-name", "colours") as address:
        yield address


def _pixels(count: int) -> Pixels:
    return RNG.integers(0, 256, (count, 4, 4, 3), np.uint8)


@pytest.mark.parametrize("model", ["", "colours"], ids=["the only one", "by name"])
def test_what_the_server_says_of_itself(address: str, bundle: Path, model: str) -> None:
    with ServerRunner(address, model=model) as runner:
        served = runner.served
        assert runner.min_batch == 1
        assert runner.max_batch == 256
    assert served.url == address
    assert served.name == "colours"
    assert served.server == f"edgetune {edgetune_version()}"
    assert served.artifact == "model.onnx"
    assert served.artifact_sha256 == sha256_of_file(bundle / "model.onnx")
    assert served.bundle_digest == sha256_of_file(bundle / "manifest.json")
    assert served.verdict == "PASS"
    assert served.runner == "onnxruntime CPU"
    assert served.classes == CLASSES
    assert served.preprocess == SPEC
    assert served.max_batch == 256
    assert served.max_body_bytes == 16 << 20
    assert served.max_json_bytes == 4 << 20
    assert served.inputs == (TensorSpec("image", "uint8", (None, 4, 4, 3)),)
    assert served.outputs == (TensorSpec("features", "float32", (None, 3)), TensorSpec("logits", "float32", (None, 5)))


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("count", [1, 3, 17, 256])
def test_tensors(address: str, wire: str, count: int) -> None:
    pixels = _pixels(count)
    with ServerRunner(address, wire=wire) as runner:
        outputs = runner.infer({IMAGE_INPUT: pixels})
    features, logits = colour_answers(pixels)
    np.testing.assert_allclose(outputs["features"], features, rtol=1e-5, atol=1e-3)
    np.testing.assert_allclose(outputs["logits"], logits, rtol=1e-5, atol=1e-3)
    assert {array.dtype.name for array in outputs.values()} == {"float32"}


def test_tensors_of_every_datatype(tmp_path: Path) -> None:
    feed = {name: RNG.integers(0, 2, (5, 3)).astype(name) for name in NUMBERS}
    with (
        serving_onnx(turning_model(), tmp_path / "bundle", "numbers") as address,
        ServerRunner(address, wire=BINARY) as runner,
    ):
        outputs = runner.infer(feed)
    for name in NUMBERS:
        np.testing.assert_array_equal(outputs[f"{name}_turned"], feed[name][:, ::-1])
        assert outputs[f"{name}_turned"].dtype == np.dtype(name)


def test_what_the_server_would_refuse_is_told_before_it_is_sent(address: str) -> None:
    with ServerRunner(address) as runner, pytest.raises(TensorError, match="the batch is 257"):
        runner.infer({IMAGE_INPUT: _pixels(257)})


def test_image_files(address: str) -> None:
    pixels = _pixels(2)
    with ServerImages(address) as images:
        assert images.served.classes == CLASSES
        found = [images.classify(encoded(image)) for image in pixels]
        with pytest.raises(ImageError, match="not an image"):
            images.classify(b"no image")
        found.append(images.classify(encoded(pixels[0])))
    logits = colour_answers(pixels)[1]
    np.testing.assert_allclose(np.stack(found), [logits[0], logits[1], logits[0]], rtol=1e-5, atol=1e-3)
    assert {array.dtype.name for array in found} == {"float32"}

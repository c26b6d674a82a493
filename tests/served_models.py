"""Small models for tests of the server, whose answers can be worked out by hand, and ways to serve them."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from edgetune.core.bundle import SCHEMA_VERSION, Artifact, Bundle, Manifest, RunOrigin, load_bundle, write_manifest
from edgetune.core.files import sha256_of_file
from edgetune.core.golden import GoldenSet, write_golden
from edgetune.core.preprocess import PreprocessSpec
from edgetune.core.tensors import FEATURES_OUTPUT, IMAGE_INPUT, LOGITS_OUTPUT, Array, Feed
from edgetune.graph.compose import set_metadata
from edgetune.runners.choice import Choice
from edgetune.runners.from_bundle import SelfTest
from edgetune.runners.ort_runner import OrtRunner
from edgetune.serve.model import ServedModel, open_model
from edgetune.serve.service import Service
from edgetune.serve.settings import Batching, ServeSettings
from tests.serving_thread import serving_in_thread

Pixels = npt.NDArray[np.uint8]

SIDE = 4
SPEC = PreprocessSpec(SIDE, SIDE, "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
CLASSES = ("red", "green", "blue", "grün & weiß", "a:b c")
# Features are the mean colour; a class's logit is the features times its row.
WEIGHT = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0.5, 0.25], [-1, -1, 0]], np.float32)

_NUMBERS = {
    "bool": TensorProto.BOOL, "uint8": TensorProto.UINT8, "int8": TensorProto.INT8, "int32": TensorProto.INT32,
    "int64": TensorProto.INT64, "float16": TensorProto.FLOAT16, "float32": TensorProto.FLOAT,
    "float64": TensorProto.DOUBLE,
}  # fmt: skip
NUMBERS = tuple(_NUMBERS)
WIDTH = 3
NO_BATCHING = Batching()


def colour_answers(pixels: Pixels) -> tuple[Array, Array]:
    """The features `(N, 3)` and logits `(N, 5)` that the colour model must give, in float64."""
    features = pixels.astype(np.float64).mean((1, 2))
    return features, features @ WEIGHT.T.astype(np.float64)


def colour_model() -> onnx.ModelProto:
    """uint8 `image` (N, 4, 4, 3) to float32 `features` (N, 3) and `logits` (N, 5)."""
    nodes = [
        helper.make_node("Cast", [IMAGE_INPUT], ["float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["float", "axes"], [FEATURES_OUTPUT], keepdims=0),
        helper.make_node("Gemm", [FEATURES_OUTPUT, "weight"], [LOGITS_OUTPUT], transB=1),
    ]
    constants = [numpy_helper.from_array(np.array([1, 2]), "axes"), numpy_helper.from_array(WEIGHT, "weight")]
    image = helper.make_tensor_value_info(IMAGE_INPUT, TensorProto.UINT8, ["batch", SIDE, SIDE, 3])
    outputs = [
        helper.make_tensor_value_info(FEATURES_OUTPUT, TensorProto.FLOAT, ["batch", 3]),
        helper.make_tensor_value_info(LOGITS_OUTPUT, TensorProto.FLOAT, ["batch", len(CLASSES)]),
    ]
    model = onnx_model(nodes, [image], outputs, constants)
    set_metadata(model, CLASSES, SPEC)
    return model


def turning_model() -> onnx.ModelProto:
    """An input `(N, 3)` of each of `NUMBERS`, under its name; output `NAME_turned` has its columns in reverse."""
    indices = numpy_helper.from_array(np.arange(WIDTH)[::-1].copy(), "indices")
    nodes = [helper.make_node("Gather", [name, "indices"], [f"{name}_turned"], axis=1) for name in NUMBERS]
    shape: list[str | int | None] = ["batch", WIDTH]
    inputs = [helper.make_tensor_value_info(name, kind, shape) for name, kind in _NUMBERS.items()]
    outputs = [helper.make_tensor_value_info(f"{name}_turned", kind, shape) for name, kind in _NUMBERS.items()]
    return onnx_model(nodes, inputs, outputs, [indices])


def onnx_model(
    nodes: list[Any], inputs: list[Any], outputs: list[Any], constants: Sequence[Any] = ()
) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "served", inputs, outputs, list(constants))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def encoded(pixels: Pixels, form: str = "PNG") -> bytes:
    """One image `(H, W, 3)` as a file; JPEG as good as it gets."""
    stream = io.BytesIO()
    options = {"quality": 100, "subsampling": 0} if form == "JPEG" else {}
    Image.fromarray(pixels).save(stream, form, **options)
    return stream.getvalue()


def colour_bundle(folder: Path) -> Path:
    """A whole bundle of the colour model, which `edgetune serve` takes."""
    folder.mkdir()
    file = folder / "model.onnx"
    onnx.save(colour_model(), file)
    pixels = np.full((1, SIDE, SIDE, 3), (10, 20, 30), np.uint8)
    logits = {file.name: colour_answers(pixels)[1].astype(np.float32)}
    write_golden(folder, GoldenSet(("0.png",), pixels, logits), {"0.png": encoded(pixels[0])})
    write_manifest(folder, _manifest(file))
    return folder


def _manifest(file: Path) -> Manifest:
    artifact = Artifact(file.name, "onnx", "fp32", "any", sha256_of_file(file), file.stat().st_size, "PASS", 1.0)
    origin = RunOrigin("run", "0")
    return Manifest(SCHEMA_VERSION, "classification", CLASSES, SPEC, origin, "colour", "0", "now", (artifact,), {})


@contextlib.contextmanager
def serving_onnx(model: onnx.ModelProto, folder: Path, name: str, batching: Batching = NO_BATCHING) -> Iterator[str]:
    """The address of a server of any ONNX model, in a thread; `folder` is made for it."""
    folder.mkdir()
    file = folder / "model.onnx"
    onnx.save(model, file)
    bundle = Bundle(folder, _manifest(file))
    choice = Choice(bundle.manifest.artifacts[0], "the only one")
    tested = SelfTest(0, 0, 0.0, "none")
    with OrtRunner(file, threads=1) as runner:
        served = ServedModel(bundle, "0" * 64, choice, runner, tested, contextlib.nullcontext())
        with serving_in_thread(served, ServeSettings(batching=batching), name) as (address, _):
            yield address


@dataclass(frozen=True)
class GatedModel(ServedModel):
    """A served model whose runs wait until `gate` is set, 30 s at most."""

    gate: threading.Event

    def infer(self, feed: Feed) -> dict[str, Array]:
        if not self.gate.wait(30):
            raise TimeoutError("the test left the gate shut")
        return super().infer(feed)


@contextlib.contextmanager
def serving_colours(bundle: Path, settings: ServeSettings) -> Iterator[tuple[str, Service, threading.Event]]:
    """The colour model in a thread of this process, as `colours`, with its gate open."""
    with open_model(load_bundle(bundle).path, settings) as model:
        parts = {field.name: getattr(model, field.name) for field in dataclasses.fields(model)}
        gate = threading.Event()
        gate.set()
        with serving_in_thread(GatedModel(**parts, gate=gate), settings, "colours") as (address, service):
            yield address, service, gate

"""A bundle of one layer with any verdicts, for tests of what is chosen and of how it starts."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import onnx
from PIL import Image

from edgetune.core.bundle import SCHEMA_VERSION, Artifact, Bundle, Manifest, RunOrigin, load_bundle, write_manifest
from edgetune.core.files import sha256_of_file
from edgetune.core.golden import GoldenSet, write_golden
from edgetune.core.preprocess import PreprocessSpec
from edgetune.graph.compose import set_metadata
from tests.unit.runners.test_contract import mean_model

SPEC = PreprocessSpec(4, 4, "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
COLOUR = (10, 20, 30)
# The model is the mean colour times [[1, 0, -1], [0.5, 0.5, 0.5]].
LOGITS = np.array([[-20.0, 30.0]], dtype=np.float32)
FP32, FP16 = "model.onnx", "model.fp16.onnx"
INT8, ARM, TENSORRT = "model.int8.cpu-x86.onnx", "model.int8.cpu-arm.onnx", "model.int8.tensorrt.onnx"

_KINDS = {
    FP32: ("fp32", "any"), FP16: ("fp16", "tensorrt"), INT8: ("int8", "cpu-x86"), ARM: ("int8", "cpu-arm"),
    TENSORRT: ("int8", "tensorrt"),
}  # fmt: skip
_NO_FIELDS = b"\x1a\x00"  # an empty producer_version once more: protobuf keeps the last


def _with_metadata(content: bytes) -> bytes:
    model = onnx.load_from_string(content)
    set_metadata(model, ("a", "b"), SPEC)
    serialized: bytes = model.SerializeToString()
    return serialized


def mean_bundle(folder: Path, verdicts: dict[str, str], logits: np.ndarray = LOGITS, pixel: int = 10) -> Bundle:
    folder.mkdir()
    for name in verdicts:
        (folder / name).write_bytes(_with_metadata(mean_model()) + _NO_FIELDS * len(name))  # no two files alike
    stream = io.BytesIO()
    Image.new("RGB", (4, 4), COLOUR).save(stream, "PNG")
    pixels = np.full((1, 4, 4, 3), COLOUR, dtype=np.uint8)
    pixels[0, 0, 0, 0] = pixel
    golden = GoldenSet(("0.png",), pixels, dict.fromkeys(verdicts, logits))
    write_golden(folder, golden, {"0.png": stream.getvalue()})
    artifacts = tuple(
        Artifact(name, "onnx", *_KINDS[name], sha256_of_file(file), file.stat().st_size, verdict, 1.0)
        for name, verdict, file in ((name, verdict, folder / name) for name, verdict in verdicts.items())
    )
    manifest = Manifest(
        SCHEMA_VERSION, "classification", ("a", "b"), SPEC, RunOrigin("run", "0"), "mean", "0", "now", artifacts, {}
    )
    write_manifest(folder, manifest)
    return load_bundle(folder)

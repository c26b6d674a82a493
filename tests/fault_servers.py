"""Servers with one fault: the real application over a real socket, which prepares images, names classes or answers in
its own way. Tensors that are sent ready-made are answered as they should be.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from edgetune.core.bundle import Bundle
from edgetune.core.preprocess import PreprocessSpec, decode_image, preprocess_image
from edgetune.core.tensors import LOGITS_OUTPUT, Array, Feed, softmax
from edgetune.serve.model import ServedModel, open_model
from edgetune.serve.settings import Limits, ServeSettings
from tests.serving_thread import serving_in_thread

Pixels = npt.NDArray[np.uint8]
Prepare = Callable[[bytes, PreprocessSpec], Pixels]
Answer = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]


def healthy(data: bytes, spec: PreprocessSpec) -> Pixels:
    return preprocess_image(data, spec)


def without_antialias(data: bytes, spec: PreprocessSpec) -> Pixels:
    """Samples the picture at points, as most GPU and camera code does, where Pillow takes the mean of what shrinks."""
    image = decode_image(data)
    ratio = min(image.size) / spec.resize_size
    size = tuple(max(spec.resize_size, round(side / ratio)) for side in image.size)
    at_points = image.transform(
        (size[0], size[1]), Image.Transform.AFFINE, (ratio, 0, 0, 0, ratio, 0), Image.Resampling.BICUBIC
    )
    return preprocess_image(_lossless(at_points), spec)


def off_centre(data: bytes, spec: PreprocessSpec) -> Pixels:
    """The crop is 16 px too far down and to the right."""
    wide = dataclasses.replace(spec, crop_size=spec.resize_size)
    square = preprocess_image(data, wide)
    start = (spec.resize_size - spec.crop_size) // 2 + 16
    return np.ascontiguousarray(square[start : start + spec.crop_size, start : start + spec.crop_size])


def bgr(data: bytes, spec: PreprocessSpec) -> Pixels:
    return np.ascontiguousarray(preprocess_image(data, spec)[..., ::-1])


def exif_ignored(data: bytes, spec: PreprocessSpec) -> Pixels:
    with Image.open(io.BytesIO(data)) as image:
        return preprocess_image(_lossless(image.convert("RGB")), spec)


def squashed(data: bytes, spec: PreprocessSpec) -> Pixels:
    """The whole picture pressed into the square, and nothing cropped."""
    image = decode_image(data).resize((spec.crop_size, spec.crop_size), Image.Resampling.BICUBIC)
    return np.array(image)


def transposed(data: bytes, spec: PreprocessSpec) -> Pixels:
    return np.ascontiguousarray(preprocess_image(data, spec).swapaxes(0, 1))


def recompressed(data: bytes, spec: PreprocessSpec) -> Pixels:
    """A proxy on the way saves the picture as a poor JPEG once more."""
    stream = io.BytesIO()
    decode_image(data).save(stream, "JPEG", quality=30)
    return preprocess_image(stream.getvalue(), spec)


def _lossless(image: Image.Image) -> bytes:
    """Without EXIF; PNG keeps every pixel."""
    stream = io.BytesIO()
    clean = Image.fromarray(np.asarray(image))
    clean.save(stream, "PNG", compress_level=1)
    return stream.getvalue()


def as_they_are(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return logits


def probabilities(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return softmax(logits).astype(np.float32)


class PreviousAnswer:
    """Every image is answered with the logits of the one before it, as a server does that mixes up its requests."""

    def __init__(self) -> None:
        self._before: npt.NDArray[np.float32] | None = None

    def __call__(self, logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        answer = self._before if self._before is not None else logits
        self._before = logits
        return answer


@dataclass(frozen=True)
class FaultyModel(ServedModel):
    """A served model with another way to prepare an image file, and to answer it; ready-made tensors are answered as
    they should be.
    """

    prepare: Prepare
    answer: Answer
    files: threading.local

    def preprocess(self, data: bytes | memoryview, limits: Limits) -> Pixels:
        self.files.is_next = True
        return self.prepare(bytes(data), self.bundle.manifest.preprocess)[np.newaxis]

    def infer(self, feed: Feed) -> dict[str, Array]:
        outputs = super().infer(feed)
        if not getattr(self.files, "is_next", False):
            return outputs
        self.files.is_next = False
        return {**outputs, LOGITS_OUTPUT: self.answer(outputs[LOGITS_OUTPUT][0])[np.newaxis]}


@contextlib.contextmanager
def faulty_server(
    bundle: Path, prepare: Prepare = healthy, answer: Answer = as_they_are, *, classes: tuple[str, ...] | None = None
) -> Iterator[str]:
    """The address of a server of the bundle's model.onnx on a free port, in a thread; `classes` are told instead of the
    bundle's.
    """
    settings = ServeSettings(artifact="model.onnx", allow_failed=True)
    with open_model(bundle, settings) as model:
        parts = {field.name: getattr(model, field.name) for field in dataclasses.fields(model)}
        if classes is not None:
            parts["bundle"] = Bundle(bundle, dataclasses.replace(model.bundle.manifest, classes=classes))
        faulty = FaultyModel(**parts, prepare=prepare, answer=answer, files=threading.local())
        with serving_in_thread(faulty, settings, bundle.resolve().name) as (address, _):
            yield address

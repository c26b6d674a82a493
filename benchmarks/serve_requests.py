"""The requests that the server's benchmarks send, and how the logits are read from their answers."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from benchmarks.serve_load import Template, post
from benchmarks.serve_processes import ask
from edgetune.core.bundle import load_bundle
from edgetune.core.preprocess import preprocess_image

Pixels = npt.NDArray[np.uint8]
Logits = npt.NDArray[np.float32]
Headers = dict[str, str]

_LENGTH = "inference-header-content-length"


@dataclass(frozen=True)
class Call:
    """`parse` reads logits from an answer; of one that tells none, `checked_path` is asked for them instead."""

    path: str
    body: bytes
    headers: Headers
    parse: Callable[[bytes, Headers], Logits]
    checked_path: str = ""

    def template(self, **options: Any) -> Template:
        return Template(post(self.path, self.body, self.headers), **options)

    def logits(self, port: int) -> Logits:
        """Asks once; raises `RuntimeError` for anything but 200."""
        status, body, headers = ask(port, "POST", self.checked_path or self.path, self.body, self.headers)
        if status != 200:
            raise RuntimeError(f"{self.path} answered {status}: {body[:300]!r}")
        return self.parse(body, headers)

    def steady_answer(self, port: int) -> bytes | None:
        """The body that answers this call; None where it differs from one answer to the next, for instance by an id."""
        bodies = {ask(port, "POST", self.path, self.body, self.headers)[1] for _ in range(3)}
        return bodies.pop() if len(bodies) == 1 else None


def read_image(bundle: Path, image: Path | None) -> tuple[Pixels, bytes]:
    """The file's bytes, of the bundle's first golden image if none is given, and its pixels `(1, H, W, 3)`."""
    body = (image or bundle / "golden" / "0.jpg").read_bytes()
    return preprocess_image(body, load_bundle(bundle).manifest.preprocess)[np.newaxis], body


def binary_call(model: str, pixels: Pixels) -> Call:
    """JSON head and binary tensors both ways."""
    head = json.dumps({
        "inputs": [{"name": "image", "shape": list(pixels.shape), "datatype": "UINT8",
                    "parameters": {"binary_data_size": pixels.nbytes}}],
        "outputs": [{"name": "logits", "parameters": {"binary_data": True}}],
    }).encode()  # fmt: skip
    headers = {"Inference-Header-Content-Length": str(len(head)), "Content-Type": "application/octet-stream"}
    return Call(f"/v2/models/{model}/infer", head + pixels.tobytes(), headers, _v2_binary)


def raw_call(model: str, pixels: Pixels) -> Call:
    return Call(f"/v2/models/{model}/infer", pixels.tobytes(), {"Inference-Header-Content-Length": "0"}, _v2_binary)


def json_call(model: str, pixels: Pixels) -> Call:
    entry = {"name": "image", "shape": list(pixels.shape), "datatype": "UINT8", "data": pixels.ravel().tolist()}
    body = json.dumps({"inputs": [entry]}, separators=(",", ":")).encode()
    return Call(f"/v2/models/{model}/infer", body, {"Content-Type": "application/json"}, _v2_json)


def classify_call(image: bytes) -> Call:
    path = "/v1/classify"
    return Call(path, image, {"Content-Type": "image/jpeg"}, _classified, f"{path}?logits=1")


def plain_call(path: str, body: bytes) -> Call:
    """For the peers: raw body in, raw logits out."""
    return Call(
        path, body, {"Content-Type": "application/octet-stream"}, lambda answer, _: np.frombuffer(answer, "<f4")
    )


def sized_jpegs(image: bytes, sides: tuple[int, ...]) -> list[bytes]:
    """The image with its longer side as each of `sides`, in pixels."""
    made = []
    for side in sides:
        picture = Image.open(io.BytesIO(image)).convert("RGB")
        scale = side / max(picture.size)
        stream = io.BytesIO()
        picture.resize((round(picture.width * scale), round(picture.height * scale))).save(stream, "JPEG", quality=85)
        made.append(stream.getvalue())
    return made


def faulty_templates(model: str, pixels: Pixels, image: bytes, weight: int) -> list[Template]:
    """Requests that are refused: what answers one with anything but 400 or 404 is counted as wrong."""
    whole = binary_call(model, pixels)
    noise = random.Random(0).randbytes(4096)
    faulty = [
        classify_call(noise),
        classify_call(image[: len(image) // 100]),
        Call(whole.path, whole.body[:-7], whole.headers, whole.parse),
        Call(whole.path, b'{"inputs": [', {}, whole.parse),
        binary_call(model, pixels[:, :8, :8]),
    ]
    unknown = binary_call("no-such-model", pixels)
    return [call.template(status=400, weight=weight) for call in faulty] + [unknown.template(status=404, weight=weight)]


def _v2_binary(body: bytes, headers: Headers) -> Logits:
    return np.frombuffer(body[int(headers[_LENGTH]) :], "<f4")


def _v2_json(body: bytes, _: Headers) -> Logits:
    return np.array(json.loads(body)["outputs"][0]["data"], np.float32)


def _classified(body: bytes, _: Headers) -> Logits:
    return np.array(json.loads(body)["logits"], np.float32)

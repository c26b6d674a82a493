"""What every server of the comparison computes, and the bare loop too: the same graph, session options and decoder.

Needs numpy, Pillow and ONNX Runtime beside edgetune's sources, so that peers can run it in their own environments.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgetune.core.bundle import load_bundle
from edgetune.core.preprocess import preprocess_image
from edgetune.core.tensors import IMAGE_INPUT, LOGITS_OUTPUT
from edgetune.runners.ort_runner import OrtRunner

BUNDLE, ARTIFACT, POOL = "SERVE_BENCHMARK_BUNDLE", "SERVE_BENCHMARK_ARTIFACT", "SERVE_BENCHMARK_POOL"


class Work:
    """One session with one thread, which any number of threads may share."""

    def __init__(self, bundle: Path, artifact: str) -> None:
        self._spec = load_bundle(bundle).manifest.preprocess
        self._runner = OrtRunner(bundle / artifact, threads=1)
        self._runner.__enter__()

    def infer(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Pixels `(N, H, W, 3)` to logits `(N, classes)`."""
        logits: npt.NDArray[np.float32] = self._runner.infer({IMAGE_INPUT: pixels})[LOGITS_OUTPUT]
        return logits

    def decode(self, body: bytes) -> npt.NDArray[np.uint8]:
        return preprocess_image(body, self._spec)[np.newaxis]

    def tensor(self, body: bytes) -> bytes:
        """Raw pixels of one image or several to raw logits."""
        size = self._spec.crop_size
        return self.infer(np.frombuffer(body, np.uint8).reshape(-1, size, size, 3)).tobytes()

    def jpeg(self, body: bytes) -> bytes:
        return self.infer(self.decode(body)).tobytes()


def work_from_environment() -> Work:
    return Work(Path(os.environ[BUNDLE]), os.environ[ARTIFACT])

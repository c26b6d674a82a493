"""Whether a difference between two FP32 models is rounding: both against the same model in double precision."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from edgetune.core.preprocess import preprocess_image
from edgetune.core.run import HEAD_NAME, Run
from edgetune.core.tensors import LOGITS_OUTPUT
from edgetune.heads.head import load_head
from edgetune.models.head import Classifier, FeatureExtractor
from edgetune.parity.metrics import sqnr_db
from edgetune.runners.base import infer_images
from edgetune.runners.ort_runner import OrtRunner
from edgetune.verify.reference import load_run_backbone

_IMAGES = 32
Logits = npt.NDArray[np.float64]


def rounding_figures(run_folder: Path, run: Run, model: Path) -> dict[str, float | None]:
    """SQNR in dB of PyTorch and of the ONNX file against PyTorch in FP64, over some of the validation images.

    Also `cancellation_db`, how much larger the features are than their spread over the images: the head subtracts what
    they have in common, and its logits have that much less precision than the features.
    """
    root = Path(run.split.root)
    files = run.split.val[:: max(1, len(run.split.val) // _IMAGES)][:_IMAGES]
    pixels = np.stack([preprocess_image((root / file.path).read_bytes(), run.preprocess) for file in files])
    head = load_head(run_folder / HEAD_NAME)
    extractor = FeatureExtractor(load_run_backbone(run).module, run.preprocess)
    classifier = Classifier(extractor, head.weight, head.bias, head.hidden).eval()
    single, features = _run(classifier, pixels), _run(extractor, pixels)
    exact = _run(classifier.double(), pixels)
    with OrtRunner(model) as runner:
        onnx = infer_images(runner, pixels, LOGITS_OUTPUT).astype(np.float64)
    spread = features - features.mean(axis=0)
    return {
        "torch_vs_fp64_db": _sqnr(exact, single),
        "onnx_vs_fp64_db": _sqnr(exact, onnx),
        "cancellation_db": sqnr_db(float(np.sum(features**2)), float(np.sum(spread**2))),
    }


def _run(module: torch.nn.Module, pixels: npt.NDArray[np.uint8]) -> Logits:
    with torch.inference_mode():
        outputs: Logits = module(torch.from_numpy(pixels)).numpy().astype(np.float64)
    return outputs


def _sqnr(exact: Logits, given: Logits) -> float | None:
    return sqnr_db(float(np.sum(exact**2)), float(np.sum((given - exact) ** 2)))

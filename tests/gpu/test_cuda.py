"""Features and fits on an NVIDIA GPU."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from edgetune.core.tensors import FEATURES_OUTPUT

torch = pytest.importorskip("torch")
pytest.importorskip("timm")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no CUDA device"),
]


@pytest.fixture(scope="module")
def shufflenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with random weights: these tests compare devices, not accuracies."""
    import torchvision.models

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "shufflenet.pth"
    torch.save(torchvision.models.shufflenet_v2_x1_0(weights=None).state_dict(), path)
    return path


@pytest.mark.parametrize(("precision", "min_sqnr_db"), [("fp32", 90.0), ("fp16", 45.0)])
def test_features_on_cuda_are_those_of_the_cpu(shufflenet: Path, precision: str, min_sqnr_db: float) -> None:
    from edgetune.models.head import FeatureExtractor
    from edgetune.models.weights import check_frozen, load_backbone
    from edgetune.runners.base import infer_images
    from edgetune.runners.torch_runner import TorchRunner

    backbone = load_backbone("shufflenet_v2_x1_0", shufflenet)
    extractor = FeatureExtractor(backbone.module, backbone.architecture.preprocess)
    images = np.random.default_rng(0).integers(0, 256, (8, 224, 224, 3), dtype=np.uint8)
    with TorchRunner(extractor, 224, FEATURES_OUTPUT) as runner:
        expected = infer_images(runner, images, FEATURES_OUTPUT).astype(np.float64)
    with TorchRunner(extractor, 224, FEATURES_OUTPUT, device="cuda", precision=precision) as runner:
        got = infer_images(runner, images, FEATURES_OUTPUT)
    assert 10 * np.log10(np.sum(expected**2) / np.sum((expected - got) ** 2)) >= min_sqnr_db
    check_frozen(backbone)


def test_a_fit_on_cuda_agrees_with_one_on_the_cpu(photos: Path, shufflenet: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("matplotlib")
    from edgetune.steps.fit import FitOptions, fit

    data = tmp_path / "data"
    shutil.copytree(photos, data)
    results = {
        device: fit(data, tmp_path / device, FitOptions(model="shufflenet_v2_x1_0", weights=shufflenet, device=device))
        for device in ("cpu", "cuda")
    }
    assert results["cuda"].run.features.precision == "fp16"
    difference = results["cuda"].metrics.top1_accuracy - results["cpu"].metrics.top1_accuracy
    assert abs(difference) <= 0.1

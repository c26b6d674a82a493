"""Features and fits on an NVIDIA GPU."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
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


@pytest.mark.parametrize(
    ("precision", "layer", "min_sqnr_db"), [("fp32", "", 90.0), ("fp16", "", 45.0), ("fp32", "stage3", 90.0)]
)
def test_features_on_cuda_are_those_of_the_cpu(
    shufflenet: Path, precision: str, layer: str, min_sqnr_db: float
) -> None:
    from edgetune.models.head import FeatureExtractor
    from edgetune.models.weights import check_frozen, load_backbone
    from edgetune.runners.base import infer_images
    from edgetune.runners.torch_runner import TorchRunner

    backbone = load_backbone("shufflenet_v2_x1_0", shufflenet, layer=layer)
    extractor = FeatureExtractor(backbone.module, backbone.architecture.preprocess)
    images = np.random.default_rng(0).integers(0, 256, (8, 224, 224, 3), dtype=np.uint8)
    with TorchRunner(extractor, 224, FEATURES_OUTPUT) as runner:
        expected = infer_images(runner, images, FEATURES_OUTPUT).astype(np.float64)
    with TorchRunner(extractor, 224, FEATURES_OUTPUT, device="cuda", precision=precision) as runner:
        got = infer_images(runner, images, FEATURES_OUTPUT)
    assert 10 * np.log10(np.sum(expected**2) / np.sum((expected - got) ** 2)) >= min_sqnr_db
    check_frozen(backbone)


def _stream_features(
    extractor: torch.nn.Module,  # type: ignore[name-defined]
    batches: Sequence[Sequence[npt.NDArray[np.uint8]]],
) -> list[npt.NDArray[np.float32]]:
    from edgetune.runners.torch_stream import TorchStream

    with TorchStream(extractor, device="cuda") as stream:
        answers = [stream.start(batch) for batch in batches]
        return [answer() for answer in answers]


def test_a_stream_on_cuda_gives_the_cpus_features_and_the_same_bits_each_time(shufflenet: Path) -> None:
    """40 batches, more than may be in flight, the last a small one; every answer is asked for at the end."""
    from edgetune.models.head import FeatureExtractor
    from edgetune.models.weights import check_frozen, load_backbone
    from edgetune.runners.base import infer_images
    from edgetune.runners.torch_runner import TorchRunner
    from edgetune.runners.torch_stream import feature_precision

    backbone = load_backbone("shufflenet_v2_x1_0", shufflenet)
    extractor = FeatureExtractor(backbone.module, backbone.architecture.preprocess)
    images = np.random.default_rng(0).integers(0, 256, (630, 224, 224, 3), dtype=np.uint8)
    batches = [list(images[first : first + 16]) for first in range(0, len(images), 16)]
    first, second = (np.concatenate(_stream_features(extractor, batches)) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    alone = _stream_features(extractor, batches[20:21])[0]
    np.testing.assert_array_equal(alone, first[320:336])
    with TorchRunner(extractor, 224, FEATURES_OUTPUT) as runner:
        expected = infer_images(runner, images[:64], FEATURES_OUTPUT).astype(np.float64)
    sqnr_db = 10 * np.log10(np.sum(expected**2) / np.sum((expected - first[:64]) ** 2))
    assert sqnr_db >= {"bf16": 30.0, "fp16": 45.0}[feature_precision("cuda")]
    check_frozen(backbone)


def test_starting_batches_on_cuda_does_not_wait_for_them(shufflenet: Path) -> None:
    """PyTorch itself raises at a hidden synchronisation between host and GPU."""
    from edgetune.models.head import FeatureExtractor
    from edgetune.models.weights import load_backbone
    from edgetune.runners.torch_stream import TorchStream

    backbone = load_backbone("shufflenet_v2_x1_0", shufflenet)
    extractor = FeatureExtractor(backbone.module, backbone.architecture.preprocess)
    images = list(np.random.default_rng(0).integers(0, 256, (16, 224, 224, 3), dtype=np.uint8))
    with TorchStream(extractor, device="cuda") as stream:
        stream.start(images)()  # cuDNN and the allocators set themselves up
        with warnings.catch_warnings():  # PyTorch warns that this does not see every kind of wait
            warnings.simplefilter("ignore")
            torch.cuda.set_sync_debug_mode("error")
        try:
            answers = [stream.start(images) for _ in range(6)]
        finally:
            torch.cuda.set_sync_debug_mode("default")
        expected, *others = [answer() for answer in answers]
    for features in others:
        np.testing.assert_array_equal(features, expected)


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
    assert results["cuda"].run.features.precision in {"bf16", "fp16"}
    difference = results["cuda"].metrics.top1_accuracy - results["cpu"].metrics.top1_accuracy
    assert abs(difference) <= 0.1

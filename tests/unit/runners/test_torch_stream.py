"""The stream on a CPU, where the same code runs without the GPU's queues; tests/gpu has it on CUDA."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest

torch = pytest.importorskip("torch")

from edgetune.core.errors import ModelError  # noqa: E402
from edgetune.runners.base import FeatureStream, infer_images  # noqa: E402
from edgetune.runners.torch_runner import TorchRunner  # noqa: E402
from edgetune.runners.torch_stream import TorchStream, feature_precision  # noqa: E402


class _Net(torch.nn.Module):  # type: ignore[misc, name-defined]
    """Two convolutions with batch norm and dropout, pooled to 16 features."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.Sequential(
            torch.nn.Conv2d(3, 12, 3, stride=2),
            torch.nn.BatchNorm2d(12),
            torch.nn.ReLU(),
            torch.nn.Dropout(0.5),
            torch.nn.Conv2d(12, 16, 3, groups=4),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:  # type: ignore[name-defined]
        pixels = images.to(torch.float32).permute(0, 3, 1, 2) / 255
        means: torch.Tensor = self.layers(pixels).mean((2, 3))  # type: ignore[name-defined]
        return means


def _images(count: int, seed: int = 0) -> list[npt.NDArray[np.uint8]]:
    return list(np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8))


def _started(stream: TorchStream, batches: Sequence[Sequence[npt.NDArray[np.uint8]]]) -> list[npt.NDArray[np.float32]]:
    answers = [stream.start(batch) for batch in batches]
    return [answer() for answer in answers]


def test_features_are_those_of_the_torch_runner() -> None:
    net, images = _Net(), _images(7)
    with TorchRunner(net, 32, "features") as runner:
        expected = infer_images(runner, np.stack(images), "features")
    with TorchStream(net) as stream:
        (features,) = _started(stream, [images])
    assert features.dtype == np.float32
    assert features.shape == (7, 16)
    np.testing.assert_allclose(features, expected, rtol=1e-5, atol=1e-6)


def test_answers_may_be_asked_for_late_and_in_any_order() -> None:
    batches = [_images(4, seed) for seed in range(12)]
    with TorchStream(_Net()) as stream:
        one_by_one = [stream.start(batch)() for batch in batches]
        answers = [stream.start(batch) for batch in batches]
        late = [answer() for answer in answers[::-1]][::-1]
    for expected, found in zip(one_by_one, late, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_a_batch_gives_the_same_bits_each_time_and_in_every_stream() -> None:
    batches = [_images(8), _images(8, 1), _images(3)]
    with TorchStream(_Net()) as first, TorchStream(_Net()) as second:
        runs = [_started(first, batches), _started(first, batches[::-1])[::-1], _started(second, batches)]
    for run in runs[1:]:
        for expected, found in zip(runs[0], run, strict=True):
            np.testing.assert_array_equal(found, expected)


def test_the_module_itself_is_left_alone() -> None:
    net = _Net().train()
    before = {name: (tensor.clone(), tensor.stride()) for name, tensor in net.state_dict().items()}
    cudnn = torch.backends.cudnn
    flags = cudnn.benchmark, cudnn.deterministic
    with TorchStream(net) as stream:
        assert (cudnn.benchmark, cudnn.deterministic) == (False, True)
        stream.start(_images(4))()
    assert (cudnn.benchmark, cudnn.deterministic) == flags
    assert net.training
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, before[name][0])
        assert tensor.stride() == before[name][1]


def test_a_stream_that_is_not_open_says_so() -> None:
    stream = TorchStream(_Net())
    with pytest.raises(ModelError, match="not open"):
        stream.start(_images(1))
    with stream:
        stream.start(_images(1))
    with pytest.raises(ModelError, match="not open"):
        stream.start(_images(1))


def test_a_failure_names_the_device() -> None:
    class Fails(torch.nn.Module):  # type: ignore[misc, name-defined]
        def forward(self, images: torch.Tensor) -> torch.Tensor:  # type: ignore[name-defined]
            raise RuntimeError("no kernel image is available\nCompile with ...")

    with TorchStream(Fails()) as stream, pytest.raises(ModelError) as caught:
        stream.start(_images(1))
    assert caught.value.message == "PyTorch failed on torch cpu: no kernel image is available"
    assert caught.value.hint == "try --device cpu"


def test_it_is_a_feature_stream_and_a_runner_is_none() -> None:
    assert isinstance(TorchStream(_Net()), FeatureStream)
    assert not isinstance(TorchRunner(_Net(), 32, "features"), FeatureStream)


def test_a_cpu_computes_in_float32() -> None:
    assert feature_precision("cpu") == "fp32"


@pytest.mark.parametrize(("has_bf16", "expected"), [(True, "bf16"), (False, "fp16")])
def test_a_gpu_computes_in_bfloat16_unless_it_would_have_to_emulate_it(
    monkeypatch: pytest.MonkeyPatch, has_bf16: bool, expected: str
) -> None:
    def is_bf16_supported(including_emulation: bool = True) -> bool:
        return has_bf16 or including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_bf16_supported)
    assert feature_precision("cuda") == expected

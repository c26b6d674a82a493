"""The stream on a CPU, where the same code runs without the GPU's queues; tests/gpu has it on CUDA."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

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


def test_for_want_of_memory_smaller_images_are_a_way_out() -> None:
    class Fails(torch.nn.Module):  # type: ignore[misc, name-defined]
        def forward(self, images: torch.Tensor) -> torch.Tensor:  # type: ignore[name-defined]
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee ...")

    with TorchStream(Fails()) as stream, pytest.raises(ModelError, match=r"allocate 2\.00 GiB\.$") as caught:
        stream.start(_images(1))
    assert caught.value.hint == "free memory of the GPU, choose a smaller --image-size, or --device cpu"


def test_the_flags_of_cudnn_come_back_after_a_failure() -> None:
    cudnn = torch.backends.cudnn
    flags = cudnn.benchmark, cudnn.deterministic
    with pytest.raises(ZeroDivisionError), TorchStream(_Net()):
        raise ZeroDivisionError
    assert (cudnn.benchmark, cudnn.deterministic) == flags


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_no_bug() -> None:
    net = _Net()
    stream = TorchStream(net, device="cuda")
    with pytest.raises(ModelError, match="PyTorch failed on torch cuda"):
        stream.__enter__()
    with pytest.raises(ModelError, match="not open"):
        stream.start(_images(1))
    assert next(net.parameters()).device.type == "cpu"


class _Queues:
    """CUDA's streams, events and pinned memory in name only: notes in `log` what is asked of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[str] = []
        self.events = 0
        empty = torch.empty

        def pinned_empty(*args: Any, pin_memory: bool = False, **options: Any) -> torch.Tensor:  # type: ignore[name-defined]
            self.log.append(f"empty {'pinned' if pin_memory else 'pageable'}")
            return empty(*args, **options)

        monkeypatch.setattr(torch, "empty", pinned_empty)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: _FakeStream("compute", self.log))
        monkeypatch.setattr(torch.cuda, "stream", self.entered)
        monkeypatch.setattr(torch.cuda, "Event", self.event)
        monkeypatch.setattr(
            torch.Tensor, "record_stream", lambda tensor, stream: self.log.append(f"keep for {stream.name}")
        )
        monkeypatch.setattr(torch.Tensor, "copy_", lambda *pair, **options: self.copy_(*pair, **options))  # noqa: PLW0108
        to = torch.Tensor.to

        def noted_to(tensor: Any, *args: Any, **options: Any) -> Any:
            if isinstance(args[0], torch.device):
                self.log.append("upload" if options == {"non_blocking": True} else "upload and wait")
            return to(tensor, *args, **options)

        monkeypatch.setattr(torch.Tensor, "to", noted_to)

    @contextlib.contextmanager
    def entered(self, stream: _FakeStream) -> Iterator[None]:
        self.log.append(f"on {stream.name}")
        yield
        self.log.append("on compute")

    def event(self, *, blocking: bool) -> _FakeEvent:
        self.events += 1
        return _FakeEvent(self.events, self.log)

    def copy_(self, target: Any, source: Any, non_blocking: bool = False) -> None:
        self.log.append(f"download{'' if non_blocking else ' and wait'}")
        target.numpy()[:] = source.numpy()


class _FakeStream:
    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log = name, log

    def wait_stream(self, other: _FakeStream) -> None:
        self.log.append(f"{self.name} after {other.name}")


class _FakeEvent:
    def __init__(self, number: int, log: list[str]) -> None:
        self.number, self.log = number, log

    def record(self, stream: _FakeStream) -> None:
        self.log.append(f"mark {self.number} on {stream.name}")

    def synchronize(self) -> None:
        self.log.append(f"wait for {self.number}")


def test_what_is_queued_on_a_gpu_is_in_order_and_never_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The network runs behind the upload, whose memory it keeps; the answer waits for the mark behind the download."""
    expected = _started(TorchStream(_Net()).__enter__(), [_images(4)])[0]
    with TorchStream(_Net()) as stream:
        queues = _Queues(monkeypatch)
        stream._uploads = _FakeStream("uploads", queues.log)  # type: ignore[assignment]
        stream._module.register_forward_hook(lambda *_: queues.log.append("network"))  # type: ignore[union-attr]
        answer = stream.start(_images(4))
        assert queues.log == [
            "empty pinned", "on uploads", "upload", "on compute", "compute after uploads", "keep for compute",
            "network", "empty pinned", "download", "mark 1 on compute",
        ]  # fmt: skip
        np.testing.assert_array_equal(answer(), expected)
        assert queues.log[-1] == "wait for 1"
        queues.log.clear()
        for _ in range(8):
            stream.start(_images(4))
        assert [line for line in queues.log if line.startswith("wait")] == ["wait for 1"]  # the ninth, for the first


def test_large_images_do_not_fill_pinned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgetune.runners.torch_stream._IN_FLIGHT_BYTES", 3 * 4 * 32 * 32 * 3 + 5)
    with TorchStream(_Net()) as stream:
        queues = _Queues(monkeypatch)
        stream._uploads = _FakeStream("uploads", queues.log)  # type: ignore[assignment]
        for _ in range(5):
            stream.start(_images(4))
        assert [line for line in queues.log if line.startswith("wait")] == ["wait for 1", "wait for 2"]


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

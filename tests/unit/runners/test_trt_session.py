"""An engine's session: what the library or its sidecar says against it, and all of it released, whatever fails."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edgetune.core.engine_record import EngineTensor
from edgetune.core.errors import EngineError
from tests.unit.core.engine_records import engine_record, write_engine
from tests.unit.runners.cuda_stub import CudaStub
from tests.unit.runners.fake_trt import (
    DataType,
    FakeTrt,
    MakeRunner,
    Tensor,
    TensorIOMode,
    expected_logits,
    random_images,
)


class TestRefusals:
    @pytest.mark.parametrize(
        ("failing", "words"),
        [
            ("runtime", r"engine cannot be loaded: CUDA initialization failure with error: 35\.$"),
            ("deserialize", r"engine cannot be loaded: The engine plan is of version 9\.$"),
            ("context", r"engine cannot be made ready to run: Requested size was 11730336 bytes\.$"),
            ("shape", r"engine refuses the shape \(8, 4, 4, 3\) of 'image': Static dimension mismatch\.$"),
            ("address", r"engine refuses the memory for 'image': Address is not aligned\.$"),
        ],
    )
    def test_what_the_library_refuses_has_its_first_error(
        self, failing: str, words: str, trt: FakeTrt, make_runner: MakeRunner, cuda_stub: CudaStub
    ) -> None:
        trt.failing = failing
        with pytest.raises(EngineError, match=words), make_runner():
            pytest.fail("it opened")
        _check_released(cuda_stub)

    def test_a_failed_execution_has_the_librarys_error(
        self, trt: FakeTrt, make_runner: MakeRunner, cuda_stub: CudaStub
    ) -> None:
        with make_runner() as runner:
            trt.failing = "execute"
            with pytest.raises(EngineError, match=r"engine failed while running: Cask convolution execution\.$"):
                runner.infer({"image": random_images(2)})
            assert cuda_stub.calls_of("cuStreamSynchronize"), "the images must outlive their copy"
            trt.failing = ""
            np.testing.assert_allclose(
                runner.infer({"image": random_images(2)})["logits"],
                expected_logits(random_images(2)),
                rtol=1e-5,
                atol=1e-3,
            )
        _check_released(cuda_stub)

    def test_without_a_reason_it_says_so(self, make_runner: MakeRunner, folder: Path, cuda_stub: CudaStub) -> None:
        write_engine(folder, engine=b"not what the library can read")
        with pytest.raises(EngineError, match=r"cannot be loaded: tensorrt gave no reason\.$"), make_runner():
            pass
        _check_released(cuda_stub)

    @pytest.mark.parametrize(
        ("tensors", "words"),
        [
            (
                [Tensor("input", TensorIOMode.INPUT, DataType.UINT8, (-1, 4, 4, 3), (1, 2, 8))],
                r"has the inputs input uint8 \('any', 4, 4, 3\), its sidecar says image uint8 \('any', 4, 4, 3\)",
            ),
            (
                [Tensor("image", TensorIOMode.INPUT, DataType.FLOAT, (-1, 4, 4, 3), (1, 2, 8))],
                "has the inputs image float32 .*, its sidecar says image uint8",
            ),
            (
                [Tensor("image", TensorIOMode.INPUT, DataType.UINT8, (-1, 3, 4, 4), (1, 2, 8))],
                r"\('any', 3, 4, 4\), its sidecar says image uint8 \('any', 4, 4, 3\)",
            ),
            (
                [Tensor("image", TensorIOMode.OUTPUT, DataType.UINT8, (-1, 4, 4, 3))],
                "has the inputs none, its sidecar says image",
            ),
            ([], "has the inputs none, its sidecar says image"),
        ],
        ids=["name", "dtype", "shape", "mode", "missing"],
    )
    def test_an_engine_unlike_its_sidecar_is_refused(
        self, tensors: list[Tensor], words: str, trt: FakeTrt, make_runner: MakeRunner, cuda_stub: CudaStub
    ) -> None:
        trt.tensors[:1] = tensors
        with pytest.raises(EngineError, match=words), make_runner():
            pass
        _check_released(cuda_stub)

    def test_an_engine_with_another_output_is_refused(
        self, trt: FakeTrt, make_runner: MakeRunner, cuda_stub: CudaStub
    ) -> None:
        trt.tensors[1] = Tensor("logits", TensorIOMode.OUTPUT, DataType.BF16, (-1, 2))
        with pytest.raises(EngineError, match=r"has the outputs logits bf16 .*, its sidecar says logits float32"):
            make_runner().__enter__()
        _check_released(cuda_stub)

    def test_an_output_larger_than_its_buffer_is_refused(
        self, trt: FakeTrt, make_runner: MakeRunner, cuda_stub: CudaStub
    ) -> None:
        trt.shapes["logits"] = (16, 2)
        with pytest.raises(EngineError, match=r"gives 'logits' the shape \(16, 2\), its sidecar says \(8, 2\)"):
            make_runner().__enter__()
        _check_released(cuda_stub)

    def test_a_size_that_is_open_beside_the_batch_is_refused(
        self, trt: FakeTrt, make_runner: MakeRunner, folder: Path, cuda_stub: CudaStub
    ) -> None:
        trt.tensors[1].shape = (-1, -1)
        write_engine(folder, engine_record(outputs=(EngineTensor("logits", "float32", (None, None)),)))
        with pytest.raises(EngineError, match="'logits' can change in more than its batch"):
            make_runner().__enter__()
        _check_released(cuda_stub)


def _check_released(stub: CudaStub) -> None:
    """Everything was given back, once, while the context was there, and in the reverse of its making."""
    assert stub.live == 0
    _check_asked_once(stub)
    order = ["drop_Context", "drop_Engine", "drop_Runtime", "cuMemFree_v2", "cuStreamDestroy_v2",
             "cuDevicePrimaryCtxRelease_v2"]  # fmt: skip
    done = [call.split()[0] for call in stub.calls if call.split()[0] in order]
    assert done == sorted(done, key=order.index)
    assert not [call for call in stub.calls if call.startswith("drop") and call.endswith("without CUDA")]


def _check_asked_once(stub: CudaStub) -> None:
    assert "freed twice or never allocated" not in stub.calls
    assert "a copy found its memory freed" not in stub.calls
    freed = Counter(stub.calls_of("cuMemFree_v2"))
    assert all(count == 1 for count in freed.values())
    assert len(stub.calls_of("cuStreamDestroy_v2")) <= 1
    assert len(stub.calls_of("cuDevicePrimaryCtxRelease_v2")) <= 1


def _use(make_runner: MakeRunner) -> None:
    with make_runner() as runner:
        runner.infer({"image": random_images(3)})
        runner.infer({"image": random_images(8)})


class TestRelease:
    def test_a_whole_life_leaves_nothing(self, make_runner: MakeRunner, cuda_stub: CudaStub) -> None:
        for _ in range(3):
            cuda_stub.reset()
            _use(make_runner)
            _check_released(cuda_stub)
            assert len(cuda_stub.calls_of("cuMemFree_v2")) == 2
            assert len(cuda_stub.calls_of("drop_Engine")) == 1

    def test_an_error_inside_the_block_releases_too(self, make_runner: MakeRunner, cuda_stub: CudaStub) -> None:
        with pytest.raises(ZeroDivisionError), make_runner():
            raise ZeroDivisionError
        _check_released(cuda_stub)

    def test_any_driver_call_may_fail(
        self, make_runner: MakeRunner, cuda_stub: CudaStub, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Every single call of a runner's life fails in turn, while the error that it gives is still looked at."""
        runner = make_runner()  # the driver is loaded here, before the calls that are counted
        cuda_stub.reset()
        _use(lambda: runner)
        names = [call.split()[0] for call in cuda_stub.calls if call.startswith("cu")]
        assert len(names) > 25
        for index, name in enumerate(names):
            cuda_stub.reset()
            monkeypatch.setenv("STUB_CUDA_FAIL", f"{name}:700:{names[:index].count(name)}")
            with pytest.raises(EngineError) as caught:
                _use(lambda: runner)
            monkeypatch.delenv("STUB_CUDA_FAIL")
            told = [str(error) for error in _chain(caught.value)]
            assert any(name in text and "CUDA_ERROR_ILLEGAL_ADDRESS" in text for text in told), told
            _check_after_failure(cuda_stub, name)

    def test_the_first_error_is_told_when_releasing_fails_as_well(
        self, trt: FakeTrt, make_runner: MakeRunner, cuda_stub: CudaStub, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """After a failed kernel a real driver fails every later call."""
        trt.failing = "execute"
        monkeypatch.setenv("STUB_CUDA_FAIL", "cuMemFree_v2:700:0")
        with pytest.raises(EngineError, match="Cask convolution execution"):
            _use(make_runner)
        assert len(cuda_stub.calls_of("cuMemFree_v2")) == 2
        assert len(cuda_stub.calls_of("cuDevicePrimaryCtxRelease_v2")) == 1


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__context__


def _check_after_failure(stub: CudaStub, name: str) -> None:
    """All was released, but for what the failed call itself was to release. Without a current context the driver
    frees nothing; it is asked to all the same, and the primary context is given back, which frees the rest.
    """
    _check_asked_once(stub)
    cannot_be_made_current = "drop_Context without CUDA" in stub.calls
    if name in ("cuMemFree_v2", "cuStreamDestroy_v2", "cuDevicePrimaryCtxRelease_v2"):
        assert stub.live == 1
    elif not cannot_be_made_current:
        assert stub.live == 0
    else:
        assert name in ("cuCtxGetCurrent", "cuCtxSetCurrent")
        assert len(stub.calls_of("cuMemFree_v2")) == 2
    retained = 0 if name == "cuDevicePrimaryCtxRetain" else 1
    assert len(stub.calls_of("cuDevicePrimaryCtxRelease_v2")) == retained
    assert not stub.context_is_current() or name == "cuCtxSetCurrent"

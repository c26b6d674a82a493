"""TrtRunner over a played TensorRT and a played GPU: right values, exact refusals, and nothing left behind.

The data really goes through the GPU's memory: the played engine finds it at the addresses that it was given.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from edgetune.core.engine_record import TENSORRT, EngineHost, EngineTensor
from edgetune.core.errors import EngineError, EngineMismatchError, MissingDependencyError, ModelError, TensorError
from edgetune.core.tensors import Array
from edgetune.runners import trt_library, trt_runner
from edgetune.runners.base import Runner, infer_images
from edgetune.runners.cuda import CudaDriver, GpuIdentity
from edgetune.runners.trt_library import TrtLibrary
from edgetune.runners.trt_runner import TrtRunner, this_host
from tests.unit.core.engine_records import (
    ENGINE,
    HOST,
    INPUTS,
    engine_record,
    host_with,
    write_engine,
)
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


class TestInference:
    def test_the_logits_of_images_worked_by_hand(self, make_runner: MakeRunner) -> None:
        images = np.zeros((2, 4, 4, 3), dtype=np.uint8)
        images[0] = (10, 20, 30)
        images[1, :2] = (200, 100, 0)  # half of the pixels
        with make_runner() as runner:
            logits = infer_images(runner, images, "logits")
        # row 0: 10 - 30, (10 + 20 + 30) / 2; row 1: 100 - 0, (100 + 50) / 2
        np.testing.assert_allclose(logits, [[-20.0, 30.0], [100.0, 75.0]], rtol=1e-6, atol=1e-4)
        assert logits.dtype == np.float32

    def test_every_batch_gets_its_own_answer(self, make_runner: MakeRunner, trt: FakeTrt) -> None:
        """Largest, smallest and between, in an order in which an older answer would show."""
        with make_runner() as runner:
            for batch in (8, 1, 3, 8, 1):
                images = random_images(batch)
                logits = runner.infer({"image": images})["logits"]
                assert logits.shape == (batch, 2)
                np.testing.assert_allclose(logits, expected_logits(images), rtol=1e-5, atol=1e-3)
        assert trt.batches == [8, 1, 3, 8, 1]  # and no image more is computed

    def test_answers_stay_after_the_next_ones(self, make_runner: MakeRunner) -> None:
        with make_runner() as runner:
            first = runner.infer({"image": random_images(3)})["logits"]
            runner.infer({"image": random_images(8)})
        np.testing.assert_allclose(first, expected_logits(random_images(3)), rtol=1e-5, atol=1e-3)

    def test_images_with_gaps_between_them_are_packed(self, make_runner: MakeRunner) -> None:
        images = random_images(8)[::2, :, ::-1]
        assert not images.flags.c_contiguous
        with make_runner() as runner:
            logits = runner.infer({"image": images})["logits"]
        np.testing.assert_allclose(logits, expected_logits(images), rtol=1e-5, atol=1e-3)

    def test_only_the_batch_is_copied(self, make_runner: MakeRunner, cuda_stub: CudaStub) -> None:
        with make_runner() as runner:
            runner.infer({"image": random_images(3)})
        assert [call.split()[2] for call in cuda_stub.calls_of("cuMemcpyHtoDAsync_v2")] == [str(3 * 4 * 4 * 3)]
        assert [call.split()[2] for call in cuda_stub.calls_of("cuMemcpyDtoHAsync_v2")] == [str(3 * 2 * 4)]
        # buffers for the largest batch, made once
        assert [call.split()[1] for call in cuda_stub.calls_of("cuMemAlloc_v2")] == [str(8 * 48), str(8 * 8)]

    def test_any_thread_may_use_it(self, make_runner: MakeRunner, cuda_stub: CudaStub) -> None:
        """One opens it, another runs it, a third closes it; none is left with the context."""
        runner = make_runner()
        answers: list[Array] = []
        for work in (
            runner.__enter__,
            lambda: answers.append(runner.infer({"image": random_images(3)})["logits"]),
            lambda: runner.__exit__(None, None, None),
        ):
            with ThreadPoolExecutor(1) as thread:
                thread.submit(work).result()
                assert thread.submit(cuda_stub.context_is_current).result() is False
        np.testing.assert_allclose(answers[0], expected_logits(random_images(3)), rtol=1e-5, atol=1e-3)
        assert cuda_stub.live == 0


class TestFeed:
    @pytest.mark.parametrize("batch", [0, 9, 100])
    def test_a_batch_outside_the_profile_is_refused(
        self, batch: int, make_runner: MakeRunner, cuda_stub: CudaStub
    ) -> None:
        with make_runner() as runner:
            before = cuda_stub.calls
            with pytest.raises(
                TensorError, match=rf"the batch is {batch}, the engine was built for 1 to 8\."
            ) as caught:
                runner.infer({"image": np.zeros((batch, 4, 4, 3), np.uint8)})
            assert cuda_stub.calls == before
            assert runner.max_batch == 8
        assert "--max-batch" in caught.value.hint

    @pytest.mark.parametrize(
        ("feed", "words"),
        [
            ({}, r"inputs \[\], the model expects \['image'\]"),
            ({"picture": np.zeros((1, 4, 4, 3), np.uint8)}, r"\['picture'\]"),
            ({"image": np.zeros((1, 4, 4, 3), np.float32)}, r"float32 .*expects uint8"),
            ({"image": np.zeros((1, 5, 4, 3), np.uint8)}, r"\(1, 5, 4, 3\).*\('any', 4, 4, 3\)"),
            ({"image": np.zeros((4, 4, 3), np.uint8)}, r"\(4, 4, 3\)"),
        ],
        ids=["nothing", "other name", "other dtype", "other size", "no batch"],
    )
    def test_a_wrong_feed_never_reaches_the_gpu(
        self, feed: dict[str, Array], words: str, make_runner: MakeRunner, cuda_stub: CudaStub
    ) -> None:
        with make_runner() as runner:
            before = cuda_stub.calls
            with pytest.raises(TensorError, match=words):
                runner.infer(feed)
            assert cuda_stub.calls == before

    def test_inputs_of_two_batches_are_refused(self, trt: FakeTrt, make_runner: MakeRunner, folder: Path) -> None:
        trt.tensors.append(Tensor("mask", TensorIOMode.INPUT, DataType.BOOL, (-1,), (2, 2, 6)))
        write_engine(folder, engine_record(inputs=(*INPUTS, EngineTensor("mask", "bool", (None,)))))
        with make_runner() as runner:
            assert runner.max_batch == 6  # the most that both take
            with pytest.raises(TensorError, match=r"batches of \[2, 3\]"):
                runner.infer({"image": random_images(3), "mask": np.zeros(2, np.bool_)})
            with pytest.raises(TensorError, match="the batch is 1, the engine was built for 2 to 6"):
                runner.infer({"image": random_images(1), "mask": np.zeros(1, np.bool_)})
            assert runner.infer({"image": random_images(3), "mask": np.zeros(3, np.bool_)})["logits"].shape == (3, 2)


class TestSpecs:
    def test_it_says_what_it_is_and_takes(self, make_runner: MakeRunner) -> None:
        runner: Runner = make_runner()
        with runner:
            assert runner.name == "tensorrt"
            (spec,) = runner.input_specs
            assert (spec.name, spec.dtype, spec.shape) == ("image", "uint8", (None, 4, 4, 3))

    def test_it_says_what_it_gives(self, make_runner: MakeRunner) -> None:
        with make_runner() as runner:
            (spec,) = runner.output_specs
            assert (spec.name, spec.dtype, spec.shape) == ("logits", "float32", (None, 2))

    def test_it_runs_only_while_open(self, make_runner: MakeRunner) -> None:
        runner = make_runner()
        for _ in range(2):
            for use in (
                lambda: runner.infer({"image": random_images(1)}), lambda: runner.output_specs, lambda: runner.max_batch
            ):  # fmt: skip
                with pytest.raises(ModelError, match="with block"):
                    use()
            with runner:
                runner.infer({"image": random_images(1)})

    def test_it_is_opened_once_at_a_time(self, make_runner: MakeRunner, cuda_stub: CudaStub) -> None:
        with make_runner() as runner:
            with pytest.raises(ModelError, match="open already"):
                runner.__enter__()
            assert runner.infer({"image": random_images(1)})["logits"].shape == (1, 2)
        assert cuda_stub.live == 0

    def test_an_engine_of_one_fixed_batch(self, trt: FakeTrt, make_runner: MakeRunner, folder: Path) -> None:
        for tensor in trt.tensors:
            tensor.shape, tensor.profile = (4, *tensor.shape[1:]), None
        with make_runner() as runner:  # the sidecar may leave the batch open
            assert runner.max_batch == 4
            np.testing.assert_allclose(
                runner.infer({"image": random_images(4)})["logits"],
                expected_logits(random_images(4)),
                rtol=1e-5,
                atol=1e-3,
            )
            with pytest.raises(TensorError, match="the batch is 3, the engine was built for 4 to 4"):
                runner.infer({"image": random_images(3)})
        fixed = (EngineTensor("image", "uint8", (4, 4, 4, 3)),), (EngineTensor("logits", "float32", (4, 2)),)
        write_engine(folder, engine_record(inputs=fixed[0], outputs=fixed[1]))
        with make_runner() as runner:  # or name it
            assert runner.infer({"image": random_images(4)})["logits"].shape == (4, 2)
            with pytest.raises(TensorError, match=r"\(3, 4, 4, 3\), the model expects uint8 \(4, 4, 4, 3\)"):
                runner.infer({"image": random_images(3)})


class TestHost:
    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"backend_version": "10.3.0"}, r"version 10\.13\.3\.9, and this machine has 10\.3\.0"),
            ({"gpu": "Tesla T4", "compute_capability": "7.5"}, r"capability 8\.6, and this machine has 7\.5"),
        ],
    )
    def test_a_mismatch_is_found_before_the_library_or_the_gpu_see_it(
        self, change: dict[str, str], words: str, folder: Path, trt: FakeTrt, cuda_stub: CudaStub
    ) -> None:
        driver, library = CudaDriver(cuda_stub.path), TrtLibrary(TENSORRT, "10.3.0", trt)
        cuda_stub.reset()
        with pytest.raises(EngineMismatchError, match=words):
            TrtRunner(folder, host=host_with(**change), library=library, driver=driver).__enter__()
        assert trt.asked == []
        assert cuda_stub.calls == []

    def test_a_changed_engine_is_never_shown_to_the_library(
        self, folder: Path, trt: FakeTrt, make_runner: MakeRunner, cuda_stub: CudaStub
    ) -> None:
        (folder / "model.engine").write_bytes(ENGINE[:-1] + b"!")
        with pytest.raises(EngineError, match="was changed after it was built"):
            make_runner().__enter__()
        assert trt.asked == []
        assert cuda_stub.live == 0

    def test_it_finds_the_host_itself(
        self, folder: Path, trt: FakeTrt, cuda_stub: CudaStub, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        library = TrtLibrary(TENSORRT, HOST.backend_version, trt)
        _install(monkeypatch, library, GpuIdentity(HOST.gpu, HOST.compute_capability, HOST.driver, 16 << 30))
        monkeypatch.setattr(trt_runner, "CudaDriver", lambda: CudaDriver(cuda_stub.path))
        with TrtRunner(folder) as runner:
            np.testing.assert_allclose(
                runner.infer({"image": random_images(3)})["logits"],
                expected_logits(random_images(3)),
                rtol=1e-5,
                atol=1e-3,
            )

    def test_an_engine_of_a_backend_that_is_not_here_is_refused(
        self, folder: Path, trt: FakeTrt, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        _install(monkeypatch, TrtLibrary("tensorrt-rtx", "1.7.1.116", trt), None)
        with pytest.raises(EngineMismatchError, match="backend tensorrt, and this machine has tensorrt-rtx"):
            TrtRunner(folder).__enter__()

    def test_without_any_backend_a_sentence_says_what_to_install(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(trt_runner, "installed_backends", lambda: ())
        monkeypatch.setattr(trt_library, "installed_backends", lambda: ())
        monkeypatch.setattr(trt_library, "_find_module", lambda _names: None)
        with pytest.raises(MissingDependencyError, match="neither TensorRT nor TensorRT-RTX is installed"):
            TrtRunner(folder).__enter__()

    def test_without_a_driver_a_sentence_says_so(
        self, folder: Path, trt: FakeTrt, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(trt_runner, "CudaDriver", lambda: CudaDriver("libcuda-not-there.so.1"))
        library = TrtLibrary(TENSORRT, HOST.backend_version, trt)
        with pytest.raises(EngineError, match="NVIDIA driver cannot be loaded"):
            TrtRunner(folder, host=HOST, library=library).__enter__()
        assert trt.asked == []

    @pytest.mark.parametrize(
        ("gpu", "host"),
        [
            (None, EngineHost(TENSORRT, "10.13.3.9", "", "", "")),
            (GpuIdentity("G", "8.7", "540.4.0", 1), EngineHost(TENSORRT, "10.13.3.9", "G", "8.7", "540.4.0")),
        ],
    )
    def test_this_host_is_the_backend_and_the_gpu(
        self, gpu: GpuIdentity | None, host: EngineHost, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        _install(monkeypatch, TrtLibrary(TENSORRT, "10.13.3.9", None), gpu)
        assert this_host() == host


def _install(monkeypatch: pytest.MonkeyPatch, library: TrtLibrary, gpu: GpuIdentity | None) -> None:
    """The only backend that is installed, and the GPU that is here."""

    def load(wanted: str = "auto") -> TrtLibrary:
        assert wanted in ("auto", library.name)
        return library

    monkeypatch.setattr(trt_runner, "installed_backends", lambda: (library.name,))
    monkeypatch.setattr(trt_runner, "load_library", load)
    monkeypatch.setattr(trt_runner, "gpu_identity", lambda: gpu)

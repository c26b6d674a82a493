"""The CUDA driver through ctypes, against a stand-in in C that knows each function's real types."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from edgetune.core.errors import EngineError
from edgetune.runners import cuda
from edgetune.runners.cuda import CudaContext, CudaDriver, GpuIdentity, gpu_identity
from tests.unit.runners.cuda_stub import CudaStub, compile_library

NO_MEMORY, NO_DEVICE, ILLEGAL_ADDRESS = 2, 100, 700
FIVE_GIB = 5 << 30


@pytest.fixture
def kernel_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the kernel's driver tells its version; nothing is there yet."""
    monkeypatch.setattr(cuda, "_KERNEL_DRIVER", tmp_path / "version")
    return tmp_path / "version"


def _fail(monkeypatch: pytest.MonkeyPatch, call: str, code: int, skip: int = 0) -> None:
    monkeypatch.setenv("STUB_CUDA_FAIL", f"{call}:{code}:{skip}")


class TestIdentity:
    def test_it_is_what_the_driver_says(self, cuda_stub: CudaStub, kernel_driver: Path) -> None:
        identity = gpu_identity(cuda_stub.path)
        # 12 GiB: a size that 32 bits do not hold
        assert identity == GpuIdentity("Stub GPU 9000", "8.6", "13000", 12 * 2**30)

    def test_it_makes_no_context(self, cuda_stub: CudaStub, kernel_driver: Path) -> None:
        for _ in range(3):
            gpu_identity(cuda_stub.path)
        assert {call.split()[0] for call in cuda_stub.calls} == {
            "cuInit", "cuDriverGetVersion", "cuDeviceGet", "cuDeviceGetName", "cuDeviceGetAttribute",
            "cuDeviceTotalMem_v2",
        }  # fmt: skip
        assert cuda_stub.live == 0

    @pytest.mark.parametrize(
        ("text", "driver"),
        [
            (
                "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.129.03  Thu Oct 19 18:56:32 UTC 2023\n",
                "535.129.03",
            ),
            ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.142  Release Build  (b@h)\n", "580.142"),
            ("NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  540.4.0  Release Build  (b@h)\n", "540.4.0"),
            ("GCC version:  gcc version 12.3.0 (Ubuntu)\n", "13000"),
            ("", "13000"),
        ],
    )
    def test_the_kernels_driver_is_told_where_it_can_be_read(
        self, text: str, driver: str, cuda_stub: CudaStub, kernel_driver: Path
    ) -> None:
        kernel_driver.write_text(text + "GCC version:  gcc version 13.3.0 (Ubuntu 13.3.0-6ubuntu2)\n")
        identity = gpu_identity(cuda_stub.path)
        assert identity is not None
        assert identity.driver == driver

    def test_no_driver_means_no_gpu(self, tmp_path: Path) -> None:
        assert gpu_identity("libcuda-that-is-not-there.so.1") is None
        (tmp_path / "text.so").write_text("no library")
        assert gpu_identity(str(tmp_path / "text.so")) is None

    @pytest.mark.parametrize(
        "call",
        [
            "cuInit",
            "cuDeviceGet",
            "cuDeviceGetName",
            "cuDeviceGetAttribute",
            "cuDeviceTotalMem_v2",
            "cuDriverGetVersion",
        ],
    )
    def test_a_driver_that_fails_means_no_gpu(
        self, call: str, cuda_stub: CudaStub, kernel_driver: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        _fail(monkeypatch, call, NO_DEVICE)
        assert gpu_identity(cuda_stub.path) is None
        monkeypatch.delenv("STUB_CUDA_FAIL")
        assert gpu_identity(cuda_stub.path) is not None

    def test_it_asks_for_nothing_but_the_driver(self, cuda_stub: CudaStub) -> None:
        """In a fresh process: neither torch, onnx nor TensorRT is imported to find the GPU."""
        code = (
            "import sys; from edgetune.runners.cuda import gpu_identity; "
            f"assert gpu_identity({cuda_stub.path!r}).name == 'Stub GPU 9000'; "
            "print([name for name in ('torch', 'onnx', 'onnxruntime', 'tensorrt') if name in sys.modules])"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "[]"


class TestDriver:
    def test_a_missing_driver_is_named(self) -> None:
        with pytest.raises(EngineError, match=r"NVIDIA driver cannot be loaded: libcuda-not-there\.so\.1"):
            CudaDriver("libcuda-not-there.so.1")

    def test_a_driver_without_a_function_is_too_old(self, tmp_path: Path) -> None:
        (tmp_path / "old.c").write_text("int cuGetErrorName, cuGetErrorString, cuInit;\n")
        library = compile_library(tmp_path / "old.c", tmp_path / "libcuda-old.so")
        with pytest.raises(EngineError, match=r"libcuda-old\.so has no cuDriverGetVersion: .* too old"):
            CudaDriver(str(library))

    def test_a_gpu_that_is_not_there_is_refused(self, cuda_stub: CudaStub) -> None:
        with pytest.raises(EngineError, match=r"cuDeviceGet failed with error \(101\)\.$"):
            CudaDriver(cuda_stub.path, device=1)

    def test_an_error_has_the_drivers_own_words(self, cuda_stub: CudaStub, monkeypatch: pytest.MonkeyPatch) -> None:
        _fail(monkeypatch, "cuInit", NO_DEVICE)
        words = r"cuInit failed with CUDA_ERROR_NO_DEVICE \(100\): no CUDA-capable device is detected\.$"
        with pytest.raises(EngineError, match=words) as caught:
            CudaDriver(cuda_stub.path)
        assert "edgetune doctor" in caught.value.hint

    def test_an_error_that_the_driver_has_no_words_for_keeps_its_number(
        self, cuda_stub: CudaStub, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        _fail(monkeypatch, "cuInit", 9999)
        with pytest.raises(EngineError, match=r"cuInit failed with error \(9999\)\.$"):
            CudaDriver(cuda_stub.path)


@pytest.fixture
def context(cuda_stub: CudaStub) -> CudaContext:
    return CudaContext(CudaDriver(cuda_stub.path))


class TestContext:
    def test_bytes_go_in_and_come_back(self, cuda_stub: CudaStub, context: CudaContext) -> None:
        sent = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
        got = np.zeros_like(sent)
        with context.current():
            stream, address = context.create_stream(), context.alloc(sent.nbytes)
            context.copy_in(address, sent, stream)
            context.copy_out(got, address, stream)
            context.synchronize(stream)
            np.testing.assert_array_equal(cuda_stub.array(address, (2, 3, 4), "float32"), sent)
            context.free(address)
            context.destroy_stream(stream)
        context.close()
        np.testing.assert_array_equal(got, sent)
        assert cuda_stub.live == 0

    def test_sizes_and_addresses_keep_their_64_bits(
        self, cuda_stub: CudaStub, context: CudaContext, tmp_path: Path
    ) -> None:
        """A sparse file stands for 5 GiB of host memory; the stand-in has no memory behind such sizes either."""
        with (tmp_path / "large").open("wb") as file:
            file.truncate(FIVE_GIB)
        large = np.memmap(tmp_path / "large", np.uint8, "r+")
        with context.current():
            stream, address = context.create_stream(), context.alloc(FIVE_GIB)
            context.copy_in(address, large, stream)
            context.copy_out(large, address, stream)
            context.synchronize(stream)
            context.free(address)
            context.destroy_stream(stream)
        context.close()
        assert address > 2**63  # above what a signed 64-bit number, or a float, would keep
        assert cuda_stub.calls_of("cuMemAlloc_v2") == ["cuMemAlloc_v2 5368709120"]
        assert cuda_stub.calls_of("cuMemcpyHtoDAsync_v2") == [f"cuMemcpyHtoDAsync_v2 {address} 5368709120"]
        assert cuda_stub.calls_of("cuMemcpyDtoHAsync_v2") == [f"cuMemcpyDtoHAsync_v2 {address} 5368709120"]
        assert cuda_stub.calls_of("cuMemFree_v2") == [f"cuMemFree_v2 {address}"]
        assert cuda_stub.live == 0

    def test_the_streams_do_not_wait_for_the_default_stream(self, cuda_stub: CudaStub, context: CudaContext) -> None:
        with context.current():
            context.destroy_stream(context.create_stream())
        assert cuda_stub.calls_of("cuStreamCreate") == ["cuStreamCreate 1"]

    def test_it_is_current_inside_the_block_only(self, cuda_stub: CudaStub, context: CudaContext) -> None:
        assert not cuda_stub.context_is_current()
        with context.current():
            assert cuda_stub.context_is_current()
            with context.current():
                assert cuda_stub.context_is_current()
            assert cuda_stub.context_is_current()
        assert not cuda_stub.context_is_current()
        with pytest.raises(EngineError, match=r"cuMemAlloc_v2 of 8 bytes failed with CUDA_ERROR_INVALID_CONTEXT"):
            context.alloc(8)

    def test_it_is_not_left_current_after_an_error(self, cuda_stub: CudaStub, context: CudaContext) -> None:
        with pytest.raises(ZeroDivisionError), context.current():
            raise ZeroDivisionError
        assert not cuda_stub.context_is_current()

    def test_each_thread_makes_it_current_for_itself(self, cuda_stub: CudaStub, context: CudaContext) -> None:
        seen = []

        def look() -> None:
            seen.append(cuda_stub.context_is_current())
            with context.current():
                seen.append(cuda_stub.context_is_current())
            seen.append(cuda_stub.context_is_current())

        with context.current():
            thread = threading.Thread(target=look)
            thread.start()
            thread.join()
        assert seen == [False, True, False]

    def test_it_is_given_back_once(self, cuda_stub: CudaStub, context: CudaContext) -> None:
        context.close()
        context.close()
        assert len(cuda_stub.calls_of("cuDevicePrimaryCtxRelease_v2")) == 1
        assert cuda_stub.live == 0

    def test_memory_that_is_not_there_comes_with_a_hint(
        self, cuda_stub: CudaStub, context: CudaContext, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        _fail(monkeypatch, "cuMemAlloc_v2", NO_MEMORY)
        words = r"cuMemAlloc_v2 of 4096 bytes failed with CUDA_ERROR_OUT_OF_MEMORY \(2\): out of memory\.$"
        with context.current(), pytest.raises(EngineError, match=words) as caught:
            context.alloc(4096)
        assert "smaller --max-batch" in caught.value.hint

    @pytest.mark.parametrize("call", ["cuMemFree_v2", "cuMemcpyHtoDAsync_v2", "cuMemcpyDtoHAsync_v2", "cuStreamCreate",
                                      "cuStreamDestroy_v2", "cuStreamSynchronize"])  # fmt: skip
    def test_every_return_code_is_looked_at(
        self, call: str, cuda_stub: CudaStub, context: CudaContext, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        _fail(monkeypatch, call, ILLEGAL_ADDRESS)
        array = np.zeros(8, np.uint8)
        words = rf"{call} failed with CUDA_ERROR_ILLEGAL_ADDRESS \(700\): an illegal memory access was encountered"
        with context.current(), pytest.raises(EngineError, match=words):
            stream, address = context.create_stream(), context.alloc(8)
            context.copy_in(address, array, stream)
            context.copy_out(array, address, stream)
            context.synchronize(stream)
            context.free(address)
            context.destroy_stream(stream)

    def test_an_array_with_gaps_is_not_copied(self, cuda_stub: CudaStub, context: CudaContext) -> None:
        with context.current():
            stream, address = context.create_stream(), context.alloc(64)
            with pytest.raises(ValueError, match="not contiguous"):
                context.copy_in(address, np.zeros((4, 4), np.uint8)[:, ::2], stream)
        assert cuda_stub.calls_of("cuMemcpyHtoDAsync_v2") == []


@pytest.mark.gpu
def test_the_real_driver_knows_its_gpu() -> None:
    identity = gpu_identity()
    if identity is None:
        pytest.skip("no NVIDIA driver, or no GPU")
    major, minor = identity.compute_capability.split(".")
    assert identity.name
    assert identity.driver
    assert int(major) >= 5
    assert int(minor) >= 0
    assert identity.memory_bytes > 2**30

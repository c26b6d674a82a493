"""What the tests of the CUDA side share: a played GPU, and a runner over a played TensorRT."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from edgetune.core.engine_record import TENSORRT
from edgetune.runners import trt_library
from edgetune.runners.cuda import CudaDriver
from edgetune.runners.trt_library import TrtLibrary
from edgetune.runners.trt_runner import TrtRunner
from tests.unit.core.engine_records import HOST, write_engine
from tests.unit.runners.cuda_stub import CudaStub, build_stub
from tests.unit.runners.fake_trt import FakeTrt, MakeRunner


@pytest.fixture(scope="session")
def built_stub(tmp_path_factory: pytest.TempPathFactory) -> CudaStub:
    return build_stub(tmp_path_factory.mktemp("stub"))


@pytest.fixture
def cuda_stub(built_stub: CudaStub, monkeypatch: pytest.MonkeyPatch) -> Iterator[CudaStub]:
    """A driver with one GPU and nothing done yet."""
    monkeypatch.delenv("STUB_CUDA_FAIL", raising=False)
    built_stub.reset()
    yield built_stub
    built_stub.reset()


@pytest.fixture
def trt(cuda_stub: CudaStub, monkeypatch: pytest.MonkeyPatch) -> FakeTrt:
    monkeypatch.setattr(trt_library, "_loggers", {})
    return FakeTrt(cuda_stub)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An engine's folder, built for `HOST`."""
    return write_engine(tmp_path / "engine")


@pytest.fixture
def make_runner(folder: Path, trt: FakeTrt, cuda_stub: CudaStub) -> MakeRunner:
    driver = CudaDriver(cuda_stub.path)
    library = TrtLibrary(TENSORRT, HOST.backend_version, trt)
    return lambda: TrtRunner(folder, host=HOST, library=library, driver=driver)

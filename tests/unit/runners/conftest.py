"""What the tests of runners share: a played GPU, a runner over a played TensorRT, and a real server."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from edgetune.core.bundle import Bundle
from edgetune.core.engine_record import TENSORRT
from edgetune.runners import trt_library
from edgetune.runners.cuda import CudaDriver
from edgetune.runners.trt_library import TrtLibrary
from edgetune.runners.trt_runner import TrtRunner
from tests.serving import running_server
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


@dataclass(frozen=True)
class MeanServer:
    """A real server process, and the bundle that it serves."""

    url: str
    bundle: Bundle


@pytest.fixture(scope="session")
def mean_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MeanServer]:
    """One process for all tests; the model is the mean colour of an image of 4 x 4 pixels times a matrix."""
    pytest.importorskip("uvicorn")
    from tests.unit.runners.mean_bundle import FP32, mean_bundle

    bundle = mean_bundle(tmp_path_factory.mktemp("served") / "mean", {FP32: "PASS"})
    with running_server(bundle.path) as url:
        yield MeanServer(url, bundle)

"""TensorRT and TensorRT-RTX: runs an engine of the cache, without torch, under the contract of every other runner."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import TracebackType

import numpy as np

from edgetune.core.engine_files import ENGINE_NAME, load_engine, read_sidecar
from edgetune.core.engine_record import TENSORRT, EngineHost
from edgetune.core.errors import EngineError, ModelError, TensorError
from edgetune.core.tensors import Array, Feed, TensorSpec, check_feed
from edgetune.runners.cuda import CudaDriver, gpu_identity
from edgetune.runners.trt_library import AUTO, TrtLibrary, installed_backends, load_library
from edgetune.runners.trt_session import EngineSession, sized


def this_host(backend: str = AUTO) -> EngineHost:
    """The installed backend and the GPU here; the GPU's fields are empty where there is none.

    Raises:
        UsageError: there is no such backend.
        MissingDependencyError: it is not installed.
    """
    return _host_of(load_library(backend))


def _host_of(library: TrtLibrary) -> EngineHost:
    gpu = gpu_identity()
    if gpu is None:
        return EngineHost(library.name, library.version, gpu="", compute_capability="", driver="")
    return EngineHost(library.name, library.version, gpu.name, gpu.compute_capability, gpu.driver)


class TrtRunner:
    """Runs the engine in `folder`, a folder of the engine cache, if it was built for this host.

    `host`, `library` and `driver` are found where they are None. One thread at a time may use a runner, and not
    always the same one.
    """

    def __init__(
        self,
        folder: Path,
        *,
        host: EngineHost | None = None,
        library: TrtLibrary | None = None,
        driver: CudaDriver | None = None,
    ) -> None:
        self._folder = folder
        self._host = host
        self._library = library
        self._driver = driver
        self._session: EngineSession | None = None
        self._input_specs: tuple[TensorSpec, ...] = ()
        self._output_specs: tuple[TensorSpec, ...] = ()

    @property
    def name(self) -> str:
        return self._host.backend if self._host is not None else TENSORRT

    @property
    def input_specs(self) -> tuple[TensorSpec, ...]:
        return self._input_specs

    @property
    def output_specs(self) -> tuple[TensorSpec, ...]:
        self._open_session()
        return self._output_specs

    @property
    def min_batch(self) -> int:
        return self._open_session().batches[0]

    @property
    def max_batch(self) -> int:
        """The most images that one call of `infer` takes."""
        return self._open_session().batches[1]

    def __enter__(self) -> TrtRunner:
        """Raises `EngineError`, or `EngineMismatchError` before the library sees an engine that is not for it."""
        if self._session is not None:
            raise ModelError(f"the TensorRT runner of {self._folder} is open already.")
        self._host = self._host or self._find_host()
        record, engine = load_engine(self._folder, self._host)
        library = self._library or load_library(self._host.backend)
        session = EngineSession(library, self._driver or CudaDriver(), str(self._folder / ENGINE_NAME))
        try:
            session.open(record, engine)
        except BaseException:
            with contextlib.suppress(EngineError):  # the first error is the one to tell
                session.close()
            raise
        self._session = session
        self._input_specs = tuple(TensorSpec(item.name, item.dtype, item.shape) for item in record.inputs)
        self._output_specs = tuple(TensorSpec(item.name, item.dtype, item.shape) for item in record.outputs)
        return self

    def _find_host(self) -> EngineHost:
        """With the backend that the engine was built for, where it is installed; else whichever is, to be refused."""
        if self._library is not None:
            return _host_of(self._library)
        backend = read_sidecar(self._folder).key.host.backend
        return this_host(backend if backend in installed_backends() else AUTO)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        session, self._session = self._session, None
        if session is None:
            return
        try:
            session.close()
        except EngineError:
            if error is None:  # after a failed kernel the driver fails every call, and the first failure matters
                raise

    def infer(self, feed: Feed) -> dict[str, Array]:
        session = self._open_session()
        check_feed(feed, self._input_specs)
        batch = self._batch_of(feed, session.batches)
        inputs = {name: np.ascontiguousarray(array) for name, array in feed.items()}
        outputs = {spec.name: np.empty(sized(spec.shape, batch), spec.dtype) for spec in self._output_specs}
        session.run(inputs, outputs)
        return outputs

    def _batch_of(self, feed: Feed, batches: tuple[int, int]) -> int:
        """The batch that all inputs share. Raises `TensorError` when it is outside the engine's profile."""
        found = {feed[spec.name].shape[0] for spec in self._input_specs if spec.shape[:1] == (None,)}
        if len(found) > 1:
            raise TensorError(f"the inputs have batches of {sorted(found)}, the engine expects one size for all.")
        smallest, largest = batches
        batch = next(iter(found), largest)
        if not smallest <= batch <= largest:
            raise TensorError(
                f"the batch is {batch}, the engine was built for {smallest} to {largest}.",
                hint="feed batches of that size, or build the engine again with another --max-batch",
            )
        return batch

    def _open_session(self) -> EngineSession:
        if self._session is None:
            raise ModelError("the TensorRT runner is not open; use it in a with block.")
        return self._session

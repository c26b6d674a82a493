"""build: from a bundle's ONNX to an engine in the cache, with proof of what is inside."""

from __future__ import annotations

import dataclasses
import datetime
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path

from edgetune.core.engine_files import ENGINE_NAME, SIDECAR_SCHEMA_VERSION, engine_cache, find_engines, host_mismatch
from edgetune.core.engine_record import TENSORRT, BuildOptions, EngineHost, EngineKey, EngineRecord
from edgetune.core.errors import EngineError
from edgetune.core.files import printable, sha256_of_file
from edgetune.core.machine import usable_cpus
from edgetune.core.progress import Progress, no_progress
from edgetune.core.versions import edgetune_version
from edgetune.engine.backend import CURRENT, check_options, known_targets
from edgetune.engine.build import run_build
from edgetune.engine.cache import engine_lock, find_intact, new_engine, write_sidecar
from edgetune.engine.layers import prove
from edgetune.engine.protocol import WorkRequest, WorkResult
from edgetune.graph.precision import convolution_precisions, int8_obstacles
from edgetune.quantize.lint import check_for_tensorrt
from edgetune.runners.trt_library import AUTO, TrtLibrary, load_library
from edgetune.runners.trt_runner import this_host
from edgetune.steps.engine_source import Batches, EngineSource, find_source, fit_batches, profiles


@dataclass(frozen=True)
class BuildRequest:
    """`options` without batches, which `batches` has as they were asked for. `cache` None is the user's cache folder;
    `rebuild` replaces an engine that is there; `timeout_s` None waits for ever.
    """

    backend: str = AUTO
    precision: str = AUTO
    batches: Batches = Batches()  # noqa: RUF009 - frozen
    options: BuildOptions = field(default_factory=BuildOptions)
    timing_cache: Path | None = None
    cache: Path | None = None
    timeout_s: float | None = None
    rebuild: bool = False
    allow_failed: bool = False


@dataclass(frozen=True)
class BuildResult:
    """`notes` say what was found on the way: an engine that no longer fits, slow placements, the backend's warnings."""

    folder: Path
    record: EngineRecord
    reused: bool
    notes: tuple[str, ...]


def build(path: Path, request: BuildRequest, *, progress: Progress = no_progress) -> BuildResult:
    """Builds an engine from a bundle or an ONNX file, or finds it in the cache.

    Raises:
        EngineError: it cannot be built here, or the build failed, crashed or took too long; the cache is as before.
        ModelError, ArtifactError, BundleError, UsageError, MissingDependencyError: as their messages say.
    """
    source = find_source(path, request.precision, allow_failed=request.allow_failed)
    smallest, best, largest = fit_batches(source.file, request.batches)
    notes = [f"{finding.node}: {finding.message}" for finding in check_for_tensorrt(source.file.model)]
    library = load_library(request.backend)
    host = this_host(library.name)
    options = dataclasses.replace(request.options, min_batch=smallest, opt_batch=best, max_batch=largest)
    check_options(library, options, request.timing_cache)
    options = _settle_targets(library, host, options)
    key = EngineKey(
        _host_of_key(host, options), source.file.sha256, source.calibration_sha256, source.precision, options
    )
    started_s = time.monotonic()
    job = _Job(source, library, key, engine_cache(request.cache), request)
    with engine_lock(job.cache, key.fingerprint, timeout_s=request.timeout_s, progress=progress):
        return job.run(notes, host, started_s, progress)


def _settle_targets(library: TrtLibrary, host: EngineHost, options: BuildOptions) -> BuildOptions:
    """TensorRT builds for the GPU that is here; TensorRT-RTX too, unless there is none or others were named."""
    wants_gpu = not library.is_rtx or options.targets == (CURRENT,)
    if wants_gpu and not host.gpu:
        what = f"--targets {CURRENT}" if library.is_rtx else f"{library.name} {library.version}"
        raise EngineError(
            f"{what} builds for the GPU of this machine, and none was found.",
            hint="build on the device, or ahead of time with --backend tensorrt-rtx --targets sm86,sm89",
        )
    if not library.is_rtx or wants_gpu:
        return options
    known = known_targets(library)
    usual = (CURRENT,) if host.gpu else _usual_targets(library)
    named = sorted(set(options.targets), key=known.index)  # in whatever order they were named, it is one engine
    return dataclasses.replace(options, targets=tuple(named) or usual)


def _usual_targets(library: TrtLibrary) -> tuple[str, ...]:
    """All that the library can compile for but Turing, for which it takes no float head."""
    return tuple(target for target in known_targets(library) if target != "sm75")


def _host_of_key(host: EngineHost, options: BuildOptions) -> EngineHost:
    """Ahead-of-time engines depend on the backend alone, and not on a GPU that happens to be here."""
    if host.backend == TENSORRT or options.targets == (CURRENT,):
        return host
    return dataclasses.replace(host, gpu="", compute_capability="", driver="")


class _Job:
    """One engine: where it comes from, where it goes, and how it gets there."""

    def __init__(
        self, source: EngineSource, library: TrtLibrary, key: EngineKey, cache: Path, request: BuildRequest
    ) -> None:
        self._source = source
        self._library = library
        self._key = key
        self.cache = cache
        self._folder = cache / key.fingerprint
        self._request = request

    def run(self, notes: list[str], host: EngineHost, started_s: float, progress: Progress) -> BuildResult:
        """Under the engine's lock: takes the intact one that is there, or builds it in what is left of the time."""
        try:
            found = None if self._request.rebuild else find_intact(self._folder, self._key)
        except EngineError as error:
            found = None
            notes.append(f"rebuilt: {error.message}")
        if found is not None:
            return BuildResult(self._folder, found, True, tuple(notes))
        notes += self._explain_others(host)
        _discard_orphan(self._folder)
        with new_engine(self._folder) as partial:
            result = run_build(
                self._work_request(partial / ENGINE_NAME), timeout_s=self._left_s(started_s), progress=progress
            )
            record = self._record(partial / ENGINE_NAME, result)
            write_sidecar(partial, record)
        return BuildResult(self._folder, record, False, (*notes, *result.warnings))

    def _left_s(self, started_s: float) -> float | None:
        timeout_s = self._request.timeout_s
        return None if timeout_s is None else max(0.1, round(timeout_s - (time.monotonic() - started_s), 1))

    def _explain_others(self, host: EngineHost) -> list[str]:
        """Why the newest engine that differs in nothing but where it was built does not do."""
        for folder, record in find_engines(self.cache, self._key.onnx_sha256):
            if record.key == self._key or dataclasses.replace(record.key, host=self._key.host) != self._key:
                continue
            reason = host_mismatch(record.key, host)
            if reason:
                return [f"{folder.name} in the cache does not fit: {reason}"]
        return []

    def _work_request(self, engine: Path) -> WorkRequest:
        file, request = self._source.file, self._request
        return WorkRequest(
            backend=self._library.name,
            onnx_path=str(file.path.absolute()),  # not resolved: data files lie beside a link, not beside its target
            onnx_sha256=file.sha256 if file.is_single else "",
            engine_path=str(engine),
            options=self._key.options,
            profiles=profiles(file, self._key.options),
            timing_cache=str(request.timing_cache.absolute()) if request.timing_cache is not None else "",
            threads=usable_cpus(),
        )

    def _record(self, engine: Path, result: WorkResult) -> EngineRecord:
        model = self._source.file.model
        return EngineRecord(
            schema_version=SIDECAR_SCHEMA_VERSION,
            created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            edgetune_version=edgetune_version(),
            key=self._key,
            artifact=printable(self._source.file.path.name),
            sha256=sha256_of_file(engine),
            size_bytes=engine.stat().st_size,
            inputs=result.inputs,
            outputs=result.outputs,
            layers=result.layers,
            proof=prove(result.layers, convolution_precisions(model), int8_obstacles(model)),
            parse_s=result.parse_s,
            build_s=result.build_s,
            peak_memory_bytes=result.peak_memory_bytes,
        )


def _discard_orphan(folder: Path) -> None:
    """Removes an engine without its sidecar, which nothing loads and nothing else would replace."""
    if folder.is_dir() and [entry.name for entry in folder.iterdir()] == [ENGINE_NAME]:
        shutil.rmtree(folder)

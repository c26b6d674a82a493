"""One adapter for building with TensorRT 10.x, TensorRT 11.x and TensorRT-RTX.

They number their enums differently and lack each other's functions, so every difference is decided by the names that
are there. Networks are always strongly typed: the precision is what the ONNX file says. API: TensorRT Python API
reference, sections Builder, Network, ONNX Parser; migration notes 10 to 11.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from edgetune.core.engine_record import AMPERE_PLUS, SAME_COMPUTE_CAPABILITY, BuildOptions, EngineLayer, EngineTensor
from edgetune.core.errors import EngineError, UsageError
from edgetune.engine.layers import LayerListError, layers_from_dump, layers_from_inspector
from edgetune.engine.phases import PhaseTree
from edgetune.engine.protocol import InputProfile
from edgetune.runners.trt_library import TrtLibrary, library_logger, numpy_dtype
from edgetune.runners.trt_log import LogRecorder, plain

CURRENT = "current"
MEMORY_HINT = "give less --workspace or a smaller --max-batch; on a Jetson, add swap"

ReportFraction = Callable[[float], None]

_HARDWARE_LEVELS = {AMPERE_PLUS: "AMPERE_PLUS", SAME_COMPUTE_CAPABILITY: "SAME_COMPUTE_CAPABILITY"}


def known_targets(library: TrtLibrary) -> tuple[str, ...]:
    """The GPUs that TensorRT-RTX compiles for ahead of time, as `sm86`; TensorRT has none."""
    if not library.is_rtx:
        return ()
    members = library.module.ComputeCapability.__members__
    return tuple(name.lower() for name in members if name.startswith("SM"))


def check_options(library: TrtLibrary, options: BuildOptions, timing_cache: Path | None = None) -> None:
    """Raises `UsageError` for an option that this backend does not know or would silently ignore."""
    if library.is_rtx:
        _refuse(library, "--optimization-level", options.optimization_level is not None)
        _refuse(library, "--hardware-compatible", options.hardware_compatible is not None)
        _refuse(library, "--version-compatible", options.version_compatible)
        _refuse(library, "--timing-cache", timing_cache is not None)
        _check_targets(library, options.targets)
        return
    _refuse(library, "--targets", bool(options.targets))
    level = _HARDWARE_LEVELS.get(options.hardware_compatible or "")
    if level is not None and not hasattr(library.module.HardwareCompatibilityLevel, level):
        raise UsageError(f"TensorRT {library.version} has no hardware compatibility {options.hardware_compatible!r}.")


def _refuse(library: TrtLibrary, option: str, given: bool) -> None:
    if given:
        raise UsageError(f"{option} means nothing to {library.name} {library.version}.", hint=f"leave {option} out")


def _check_targets(library: TrtLibrary, targets: Sequence[str]) -> None:
    known = known_targets(library)
    unknown = [target for target in targets if target not in (*known, CURRENT)]
    if unknown:
        raise UsageError(
            f"--targets {unknown[0]!r} is not known to {library.name} {library.version}.",
            hint=f"known: {', '.join(known)}, and {CURRENT} for the GPU of this machine",
        )
    if CURRENT in targets and len(targets) > 1:
        raise UsageError(f"--targets {CURRENT} stands alone.", hint="or name every GPU, as sm86,sm89")


class EngineBuilder:
    """One build: parse, configure, build. Objects of the library are kept alive here until it is over, since its
    parser and configuration do not keep what they point to.
    """

    def __init__(self, library: TrtLibrary, log: LogRecorder, threads: int) -> None:
        """Raises `EngineError` when the library has no use for this machine, for instance without a GPU."""
        self._library = library
        self._trt = library.module
        self._log = log
        self._logger = library_logger(library, log)
        try:
            self._builder = self._trt.Builder(self._logger)
        except (TypeError, RuntimeError) as error:  # the bindings' word for a constructor that returned nothing
            raise EngineError(
                f"{self._title} cannot build here: {log.first_error()}.", hint=hint_for("cuda")
            ) from error
        self._builder.max_threads = threads
        self._network = self._builder.create_network(self._network_flags())
        self._parser = self._trt.OnnxParser(self._network, self._logger)
        self._config = self._builder.create_builder_config()
        self._config.profiling_verbosity = self._trt.ProfilingVerbosity.DETAILED
        if hasattr(self._trt.BuilderFlag, "TF32"):
            self._config.clear_flag(self._trt.BuilderFlag.TF32)  # on by default, it would make FP32 10 bits wide
        self._kept: list[Any] = []

    @property
    def _title(self) -> str:
        return f"{self._library.name} {self._library.version}"

    def _network_flags(self) -> int:
        """TensorRT 10 must be told to be strongly typed; where weak typing is gone, so is the need for the flag."""
        weakly_typed = hasattr(self._trt.BuilderFlag, "FP16")
        return 1 << int(self._trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED) if weakly_typed else 0

    def parse(self, path: Path, content: bytes | None) -> None:
        """Parses `content`, or the file itself with the weights beside it. Raises `EngineError` naming the node."""
        parsed = self._parser.parse_from_file(str(path)) if content is None else self._parser.parse(content)
        if not parsed:
            raise EngineError(f"{self._title} cannot read {path.name}: {self._parser_error()}.")
        if not self._network.num_inputs or not self._network.num_outputs:
            raise EngineError(f"{path.name} holds no network: it has no inputs or no outputs.")

    def _parser_error(self) -> str:
        if not self._parser.num_errors:
            return self._log.first_error()
        error = self._parser.get_error(0)
        node = error.node_name() or "?"
        reason = plain(str(error.desc()))
        if reason in ("false", ""):
            reason = f"the operator {error.node_operator()} is not supported"
        return f"node {node!r} ({error.node_operator() or 'no operator'}): {reason}" if error.node() >= 0 else reason

    def inputs(self) -> tuple[EngineTensor, ...]:
        network = self._network
        return tuple(_tensor(network.get_input(index)) for index in range(network.num_inputs))

    def outputs(self) -> tuple[EngineTensor, ...]:
        network = self._network
        return tuple(_tensor(network.get_output(index)) for index in range(network.num_outputs))

    def configure(self, options: BuildOptions, profiles: Sequence[InputProfile]) -> None:
        """Raises `EngineError` when the library refuses a value; it logs most refusals and raises few."""
        if options.workspace_bytes is not None:
            self._config.set_memory_pool_limit(self._trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
        if options.optimization_level is not None:
            self._config.builder_optimization_level = options.optimization_level
        if options.version_compatible:
            self._config.set_flag(self._trt.BuilderFlag.VERSION_COMPATIBLE)
        if options.hardware_compatible is not None:
            level = getattr(self._trt.HardwareCompatibilityLevel, _HARDWARE_LEVELS[options.hardware_compatible])
            self._config.hardware_compatibility_level = level
        if options.targets:
            self._set_targets(options.targets)
        self._add_profile(profiles)
        if self._log.errors:
            raise EngineError(f"{self._title} refuses an option: {self._log.first_error()}.")

    def _set_targets(self, targets: Sequence[str]) -> None:
        self._config.num_compute_capabilities = len(targets)
        for index, target in enumerate(targets):
            capability = self._trt.ComputeCapability.__members__[target.upper()]
            if not self._config.set_compute_capability(capability, index):
                raise EngineError(f"{self._title} cannot compile for {target}: {self._log.first_error()}.")

    def _add_profile(self, profiles: Sequence[InputProfile]) -> None:
        """The parsed names are compared first: the library takes an unknown name, and fails much later."""
        names = {tensor.name for tensor in self.inputs()}
        unknown = [profile.name for profile in profiles if profile.name not in names]
        if unknown:
            raise EngineError(f"the profile names the input {unknown[0]!r}, the model has {', '.join(sorted(names))}.")
        if not profiles:
            return
        profile = self._builder.create_optimization_profile()
        for item in profiles:
            profile.set_shape(item.name, item.min_shape, item.opt_shape, item.max_shape)
        if self._config.add_optimization_profile(profile) < 0:
            raise EngineError(f"{self._title} refuses the batch sizes: {self._log.first_error()}.")
        self._kept.append(profile)

    def watch(self, report: ReportFraction) -> None:
        """Calls `report` with the share of the build that is done, 0 to 1, after every step."""
        monitor = _make_monitor(self._trt, report)
        self._config.progress_monitor = monitor
        self._kept.append(monitor)

    def use_timing_cache(self, content: bytes) -> None:
        """Raises `EngineError` when the content is no timing cache of this version and GPU."""
        cache = self._config.create_timing_cache(content)
        if cache is None or not self._config.set_timing_cache(cache, ignore_mismatch=False):
            raise EngineError(
                f"{self._title} refuses the timing cache: {self._log.first_error()}.", hint="remove the file"
            )
        self._kept.append(cache)

    def timing_cache(self) -> bytes:
        return bytes(self._config.get_timing_cache().serialize())

    def build(self) -> Any:
        """The serialized engine, a buffer. Raises `EngineError` with the library's first error."""
        engine = self._builder.build_serialized_network(self._network, self._config)
        if engine is None:
            reason = self._log.first_error()
            raise EngineError(f"{self._title} cannot build the engine: {reason}.", hint=hint_for(reason))
        return engine

    def layers(self, engine: Any, options: BuildOptions, profiles: Sequence[InputProfile]) -> tuple[EngineLayer, ...]:
        """The engine's kernels. TensorRT-RTX logs them while it builds; TensorRT is asked, which takes the GPU.

        A list that cannot be read is empty, with a warning: it proves nothing, but the engine may be as good as any.

        Raises:
            EngineError: TensorRT cannot load its own engine.
        """
        try:
            if self._library.is_rtx:
                return layers_from_dump(self._log.layer_dump)
            return layers_from_inspector(self._inspect(engine, options, profiles))
        except LayerListError as error:
            self._log.warnings.append(error.message)
            return ()

    def _inspect(self, engine: Any, options: BuildOptions, profiles: Sequence[InputProfile]) -> str:
        runtime = self._trt.Runtime(self._logger)
        if options.version_compatible:
            runtime.engine_host_code_allowed = True
        loaded = runtime.deserialize_cuda_engine(engine)
        context = loaded.create_execution_context() if loaded is not None else None
        if context is None:
            raise EngineError(f"{self._title} cannot load the engine that it built: {self._log.first_error()}.")
        for profile in profiles:  # without shapes, a kernel's types are "N/A due to dynamic shapes"
            context.set_input_shape(profile.name, profile.opt_shape)
        inspector = loaded.create_engine_inspector()
        inspector.execution_context = context
        return str(inspector.get_engine_information(self._trt.LayerInformationFormat.JSON))


def hint_for(reason: str) -> str:
    """The next step after the library's reason; empty where there is none to give."""
    text = reason.lower()
    if "workspace limit" in text or "requested size was" in text:
        return "give more with --workspace, or a smaller --max-batch"
    if "outofmemory" in text or "out of memory" in text:
        return MEMORY_HINT
    if "turing" in text:
        return "take an FP16 artifact for it (edgetune export --fp16, then build --precision fp16)"
    if "cuda" in text:
        return "it takes an NVIDIA GPU and its driver; edgetune doctor shows what is here"
    return ""


def _tensor(tensor: Any) -> EngineTensor:
    shape = tuple(int(size) if size >= 0 else None for size in tensor.shape)
    return EngineTensor(str(tensor.name), numpy_dtype(tensor.dtype), shape)


def _make_monitor(trt: Any, report: ReportFraction) -> Any:
    tree = PhaseTree()

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            tree.start(phase_name, parent_phase, num_steps)

        def phase_finish(self, phase_name: str) -> None:
            tree.finish(phase_name)

        def step_complete(self, phase_name: str, step: int) -> bool:
            tree.step(phase_name, step)
            report(tree.fraction())
            return True

    return Monitor()

"""What the building process is told and what it answers, as JSON: the two processes share no objects."""

from __future__ import annotations

from dataclasses import dataclass

from edgetune.core.engine_record import BuildOptions, EngineLayer, EngineTensor


@dataclass(frozen=True)
class InputProfile:
    """Shapes of one input: smallest, the one to optimise for, and largest; all equal where nothing is dynamic."""

    name: str
    min_shape: tuple[int, ...]
    opt_shape: tuple[int, ...]
    max_shape: tuple[int, ...]


@dataclass(frozen=True)
class WorkRequest:
    """`profiles` is empty for a model of fixed shapes. `onnx_sha256` guards against a file that changed meanwhile;
    empty where the model's weights lie in files of their own.
    """

    backend: str
    onnx_path: str
    onnx_sha256: str
    engine_path: str
    options: BuildOptions
    profiles: tuple[InputProfile, ...]
    timing_cache: str
    threads: int


@dataclass(frozen=True)
class WorkResult:
    inputs: tuple[EngineTensor, ...]
    outputs: tuple[EngineTensor, ...]
    layers: tuple[EngineLayer, ...]
    warnings: tuple[str, ...]
    parse_s: float
    build_s: float
    peak_memory_bytes: int

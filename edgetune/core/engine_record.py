"""What is written down about an engine: what it depends on, what is inside it, and how right it proved to be."""

from __future__ import annotations

from dataclasses import dataclass

from edgetune.core.config import to_dict
from edgetune.core.fingerprint import fingerprint

TENSORRT, TENSORRT_RTX = "tensorrt", "tensorrt-rtx"
AMPERE_PLUS, SAME_COMPUTE_CAPABILITY = "ampere-plus", "same-compute-capability"


@dataclass(frozen=True)
class EngineHost:
    """Where engines are built and run. The GPU's fields are empty where there is none."""

    backend: str
    backend_version: str
    gpu: str
    compute_capability: str
    driver: str


@dataclass(frozen=True)
class BuildOptions:
    """Options that change the engine. Batches are the profile's; None leaves a value to the backend.

    `targets` are for TensorRT-RTX, which compiles ahead of time for GPUs that are not here, as `("sm86", "sm89")`;
    `("current",)` is the one that is here. `hardware_compatible` and `version_compatible` are TensorRT's.
    """

    min_batch: int = 1
    opt_batch: int = 1
    max_batch: int = 8
    workspace_bytes: int | None = None
    optimization_level: int | None = None
    targets: tuple[str, ...] = ()
    hardware_compatible: str | None = None
    version_compatible: bool = False


@dataclass(frozen=True)
class EngineKey:
    """What the fingerprint is taken of. `host` names no GPU where the engine was compiled for `options.targets`."""

    host: EngineHost
    onnx_sha256: str
    calibration_sha256: str
    precision: str
    options: BuildOptions

    @property
    def fingerprint(self) -> str:
        return fingerprint(to_dict(self))


@dataclass(frozen=True)
class EngineTensor:
    """`dtype` is numpy's name; `shape` has None where the size is the batch's."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]


@dataclass(frozen=True)
class EngineLayer:
    """One kernel of the engine: `kind` and datatypes are the backend's words; `nodes` are the ONNX nodes in it."""

    name: str
    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[str, ...] = ()


@dataclass(frozen=True)
class PrecisionProof:
    """Convolutions by the type they read (`int8`, `fp16`, `fp32`), as the model has them and as the engine does.

    `lost` names each intended INT8 layer that runs in float, with the likely cause; `unseen` lists convolutions that
    the layer list does not show on their own, and `unproved` those of them that were meant to be INT8.
    """

    planned: dict[str, int]
    seen: dict[str, int]
    lost: dict[str, str]
    unseen: tuple[str, ...] = ()
    unproved: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        """Whether everything that was meant to be INT8 is seen to run in INT8."""
        return not self.lost and not self.unproved


@dataclass(frozen=True)
class EngineParity:
    """How far the engine itself is from PyTorch, measured on `host`."""

    host: EngineHost
    verdict: str
    images: int
    top1_agreement: float | None
    sqnr_db: float | None
    created: str


@dataclass(frozen=True)
class EngineRecord:
    """The sidecar. `artifact` is the ONNX file's name in its bundle, or the file's own."""

    schema_version: int
    created: str
    edgetune_version: str
    key: EngineKey
    artifact: str
    sha256: str
    size_bytes: int
    inputs: tuple[EngineTensor, ...]
    outputs: tuple[EngineTensor, ...]
    layers: tuple[EngineLayer, ...]
    proof: PrecisionProof
    parse_s: float
    build_s: float
    peak_memory_bytes: int
    parity: EngineParity | None = None

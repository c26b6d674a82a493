"""An engine's sidecar with everything in it, for tests that change one thing at a time."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from edgetune.core.engine_files import ENGINE_NAME, SIDECAR_NAME, SIDECAR_SCHEMA_VERSION, sidecar_bytes
from edgetune.core.engine_record import (
    TENSORRT,
    TENSORRT_RTX,
    BuildOptions,
    EngineHost,
    EngineKey,
    EngineLayer,
    EngineRecord,
    EngineTensor,
    PrecisionProof,
)
from edgetune.core.files import sha256_of_bytes

ENGINE = b"the bytes of an engine"
HOST = EngineHost(TENSORRT, "10.13.3.9", "NVIDIA RTX A4000", "8.6", "580.65.06")
RTX_ANYWHERE = EngineHost(TENSORRT_RTX, "1.7.1.116", "", "", "")
KEY = EngineKey(HOST, "a" * 64, "b" * 64, "int8", BuildOptions())
INPUTS = (EngineTensor("image", "uint8", (None, 4, 4, 3)),)
OUTPUTS = (EngineTensor("logits", "float32", (None, 2)),)


def engine_record(key: EngineKey = KEY, engine: bytes = ENGINE, **changes: Any) -> EngineRecord:
    record = EngineRecord(
        schema_version=SIDECAR_SCHEMA_VERSION,
        created="2026-01-31T12:00:00+00:00",
        edgetune_version="0.1.0",
        key=key,
        artifact="model.int8.tensorrt.onnx",
        sha256=sha256_of_bytes(engine),
        size_bytes=len(engine),
        inputs=INPUTS,
        outputs=OUTPUTS,
        layers=(EngineLayer("conv1", "correlation", ("Int8",), ("Float",), ("node_conv1",)),),
        proof=PrecisionProof(planned={"int8": 1}, seen={"int8": 1}, lost={}),
        parse_s=0.5,
        build_s=2.0,
        peak_memory_bytes=123456789,
    )
    return dataclasses.replace(record, **changes)


def write_engine(folder: Path, record: EngineRecord | None = None, engine: bytes = ENGINE) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ENGINE_NAME).write_bytes(engine)
    (folder / SIDECAR_NAME).write_bytes(sidecar_bytes(record or engine_record(engine=engine)))
    return folder


def key_with(host: EngineHost = HOST, **options: Any) -> EngineKey:
    return dataclasses.replace(KEY, host=host, options=BuildOptions(**options))


def host_with(host: EngineHost = HOST, /, **changes: Any) -> EngineHost:
    return dataclasses.replace(host, **changes)

"""An artifact on ONNX Runtime's CPU, computing as its file says."""

from __future__ import annotations

from pathlib import Path

from edgetune.runners.ort_runner import OrtRunner


def open_for_parity(path: Path, precision: str, threads: int | None = None) -> OrtRunner:
    """The runner that parity judges an artifact with: ONNX Runtime's CPU, which has to be made to round to float16.

    Raises:
        ModuleNotFoundError: onnx, which that takes, is not installed.
    """
    kind = _RoundingRunner if precision == "fp16" else OrtRunner
    return kind(model_to_judge(path, precision), threads=threads)


def model_to_judge(path: Path, precision: str) -> Path | bytes:
    """What ONNX Runtime's CPU is given for a file; see `open_for_parity`."""
    if precision != "fp16":
        return path
    from edgetune.graph.compose import read_model
    from edgetune.graph.fp16_emulation import emulate_fp16

    serialized: bytes = emulate_fp16(read_model(path)).SerializeToString()
    return serialized


class _RoundingRunner(OrtRunner):
    """Only the name differs: reports say what they measured."""

    @property
    def name(self) -> str:
        return f"{super().name}, rounding to float16"

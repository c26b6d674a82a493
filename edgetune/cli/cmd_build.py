"""edgetune build."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgetune.cli.options import PATH, ByteSize, Seconds, engine_cache_option, json_option
from edgetune.cli.render import GATE_FAILED, Outcome, progress_bars, show, table
from edgetune.core.config import to_dict
from edgetune.core.engine_record import AMPERE_PLUS, SAME_COMPUTE_CAPABILITY

if TYPE_CHECKING:
    from edgetune.core.engine_record import EngineRecord
    from edgetune.steps.build import BuildResult

_SHOWN = 5
_BATCH = click.IntRange(1, 4096)


@click.command("build")
@click.argument("source", metavar="BUNDLE|MODEL.onnx", type=PATH)
@click.option(
    "--backend", type=click.Choice(["auto", "tensorrt", "tensorrt-rtx"]), default="auto", show_default=True,
    help="What builds and runs the engine; auto takes TensorRT, else TensorRT-RTX, whichever is installed.",
)  # fmt: skip
@click.option(
    "--precision", type=click.Choice(["auto", "fp32", "fp16", "int8"]), default="auto", show_default=True,
    help="Which artifact of the bundle; auto takes INT8, else FP16, else FP32, the first that passed parity.",
)  # fmt: skip
@click.option("--min-batch", type=_BATCH, help="Smallest batch the engine takes.  [default: 1]")
@click.option("--opt-batch", type=_BATCH, help="Batch it is made fast for.  [default: --min-batch]")
@click.option("--max-batch", type=_BATCH, help="Largest batch it takes.  [default: 8]")
@click.option("--workspace", type=ByteSize(), help="Memory for the backend's scratch space, as 512MiB or 2GiB.")
@click.option(
    "--targets", metavar="LIST", default="",
    help="TensorRT-RTX: GPUs to compile for ahead of time, as sm86,sm89; current for this machine's.",
)  # fmt: skip
@click.option(
    "--hardware-compatible", type=click.Choice([AMPERE_PLUS, SAME_COMPUTE_CAPABILITY]),
    help="TensorRT: an engine for more GPUs than this one.",
)  # fmt: skip
@click.option("--version-compatible", is_flag=True, help="TensorRT: an engine that newer versions run too.")
@click.option("--timing-cache", type=PATH, help="TensorRT: a file that keeps the timings of kernels between builds.")
@click.option("--optimization-level", type=click.IntRange(0, 5), help="TensorRT: how long to look for fast kernels.")
@engine_cache_option
@click.option("--timeout", "timeout_s", type=Seconds(), help="Give up after so long.")
@click.option("--rebuild", is_flag=True, help="Build even if the cache has this engine.")
@click.option("--allow-failed", is_flag=True, help="Build from an artifact that failed parity.")
@json_option
def command(
    source: Path, backend: str, precision: str, min_batch: int | None, opt_batch: int | None, max_batch: int | None,
    workspace: int | None, targets: str, hardware_compatible: str | None, version_compatible: bool,
    timing_cache: Path | None, optimization_level: int | None, engine_cache: Path | None, timeout_s: float | None,
    rebuild: bool, allow_failed: bool, as_json: bool,
) -> None:  # fmt: skip
    """Build the TensorRT or TensorRT-RTX engine of a bundle or an ONNX file into the engine cache.

    The build needs no torch. What the engine runs in INT8 is counted and compared with the model; exit code 3: a
    layer that was meant to be INT8 runs in float.

    \b
    Example:
      edgetune build bundles/first
      edgetune build bundles/first --backend tensorrt-rtx --targets sm86,sm89
    """
    from edgetune.core.engine_record import BuildOptions
    from edgetune.steps.build import BuildRequest, build
    from edgetune.steps.engine_source import Batches

    names = tuple(dict.fromkeys(name.strip().lower() for name in targets.split(",") if name.strip()))
    options = BuildOptions(
        workspace_bytes=workspace, optimization_level=optimization_level, targets=names,
        hardware_compatible=hardware_compatible, version_compatible=version_compatible,
    )  # fmt: skip
    request = BuildRequest(
        backend, precision, Batches(min_batch, opt_batch, max_batch), options, timing_cache, engine_cache, timeout_s,
        rebuild, allow_failed,
    )  # fmt: skip
    result = build(source, request, progress=progress_bars())
    where = ["--engine-cache", str(engine_cache)] if engine_cache is not None else []
    show(_outcome(source, result, where), as_json=as_json)


def _outcome(source: Path, result: BuildResult, where: list[str]) -> Outcome:
    record, proof = result.record, result.record.proof
    data: dict[str, Any] = {"folder": str(result.folder), "reused": result.reused, **to_dict(record)}
    data["proof"]["holds"] = proof.holds
    exit_code = 0 if proof.holds else GATE_FAILED
    problems = [f"{name} {why}" for name, why in proof.lost.items()]
    problems += [f"{name} was meant to be INT8, and no kernel in the list is its own" for name in proof.unproved]
    errors = [{"code": "gate", "message": problem, "hint": ""} for problem in problems]
    is_bundle = (source / "manifest.json").is_file()
    words = ["edgetune", "info", str(result.folder)]
    if record.key.host.gpu and is_bundle:
        words = ["edgetune", "parity", str(source), "--runner", "engine", *where]
    lines = [*_lines(result), *(f"FAIL: {problem}" for problem in problems[:_SHOWN])]
    lines += [f"FAIL: {len(problems) - _SHOWN} more; --json has all"] if len(problems) > _SHOWN else []
    lines += ["", _last_line(record)]
    return Outcome("build", data, lines, result.notes, shlex.join(words), exit_code, errors)


def _lines(result: BuildResult) -> list[str]:
    record = result.record
    host, options, proof = record.key.host, record.key.options, record.proof
    made_for = host.gpu or ", ".join(options.targets)
    verb = "found in the cache" if result.reused else f"built in {record.build_s:.1f} s"
    batches = f"batch {options.min_batch} to {options.max_batch}, best at {options.opt_batch}"
    rows = [(word.upper(), str(proof.planned[word]), str(proof.seen[word])) for word in proof.planned]
    lines = [
        f"{record.artifact} -> {result.folder / 'model.engine'}",
        f"{host.backend} {host.backend_version}, {record.key.precision}, for {made_for}; {batches}",
        f"{record.size_bytes / 1e6:.1f} MB, {verb}, peak memory {record.peak_memory_bytes / 1e6:.0f} MB",
        "",
        *table(("convolutions", "in the model", "in the engine"), rows),
    ]
    if proof.unseen:
        more = " ..." if len(proof.unseen) > _SHOWN else ""
        lines.append(f"not shown on their own: {', '.join(proof.unseen[:_SHOWN])}{more}")
    return lines


def _last_line(record: EngineRecord) -> str:
    if record.parity is None:
        return "parity of the engine: not run; how right and how fast it is shows on its GPU"
    return f"parity of the engine: {record.parity.verdict} on {record.parity.images} images"

"""edgetune export."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgetune.cli.cmd_parity import gate_errors, parity_lines
from edgetune.cli.options import FOLDER, PATH, Share, force_option, json_option
from edgetune.cli.render import GATE_FAILED, Outcome, progress_bars, show
from edgetune.core.bundle import FAIL
from edgetune.core.config import to_dict
from edgetune.parity.gates import DEFAULT_MAX_DROP
from edgetune.quantize.calibrate import DEFAULT_IMAGES, DEFAULT_TARGETS, FEW_IMAGES, TargetRecord

if TYPE_CHECKING:
    from edgetune.steps.export import ExportResult
    from edgetune.steps.fp16 import Fp16Record


@click.command("export")
@click.argument("run", type=FOLDER)
@click.option("--out", type=FOLDER, required=True, help="The bundle folder to write.")
@click.option("--int8", is_flag=True, help="Also write INT8 artifacts, calibrated on training images.")
@click.option(
    "--fp16", is_flag=True,
    help="Also write a float16 artifact for TensorRT; layers beyond its range on training images stay float32.",
)  # fmt: skip
@click.option(
    "--target", "targets", multiple=True, default=DEFAULT_TARGETS, show_default=True, metavar="NAME",
    help="Where INT8 will run; may be given several times.",
)  # fmt: skip
@click.option("--data", type=FOLDER, help="Where the run's images are now, if they moved.")
@click.option(
    "--calibration-images", type=click.IntRange(1), default=DEFAULT_IMAGES, show_default=True,
    help="How many training images calibrate INT8, and show the ranges for float16, stratified by class.",
)  # fmt: skip
@click.option(
    "--calib-recipe", "recipe", type=PATH,
    help="Calibrate on the training images whose hashes this file lists, as a bundle's calibration.json does.",
)  # fmt: skip
@click.option(
    "--refit-head/--keep-head", default=True, show_default=True,
    help="Fit the INT8 head again on the features of the quantized backbone, or keep the FP32 head.",
)  # fmt: skip
@click.option(
    "--rounding/--no-rounding", default=True, show_default=True,
    help="Choose INT8 weights so that each layer's outputs stay what they were, or round them to nearest.",
)  # fmt: skip
@click.option(
    "--per-tensor",
    is_flag=True,
    help="One INT8 weight scale a layer instead of one a channel, for accelerators that know no other.",
)
@click.option(
    "--max-drop", type=Share(), default=DEFAULT_MAX_DROP, show_default=True,
    help="The accuracy an artifact may lose against PyTorch before it is marked FAIL; INT8 that loses more on "
    "held-out training images keeps its worst layers in float.",
)  # fmt: skip
@click.option(
    "--search-seconds", "search_s", type=click.FloatRange(0.0), default=300.0, show_default=True,
    help="How long to look for layers to keep in float, per target.",
)  # fmt: skip
@click.option(
    "--keep-float", "kept_float", multiple=True, metavar="LAYER",
    help="Keep this layer out of INT8 and float16; may be given several times.",
)  # fmt: skip
@force_option
@json_option
def command(
    run: Path, out: Path, int8: bool, fp16: bool, targets: tuple[str, ...], data: Path | None,
    calibration_images: int, recipe: Path | None, refit_head: bool, rounding: bool, per_tensor: bool, max_drop: float,
    search_s: float, kept_float: tuple[str, ...], force: bool, as_json: bool,
) -> None:  # fmt: skip
    """Write the bundle of RUN: ONNX, INT8 and float16 models, the proof of each, and all that a device needs.

    Every artifact is compared with the PyTorch model on the run's validation images. One that fails stays in
    the bundle, marked FAIL, and the exit code is 3.

    \b
    Example:
      edgetune export runs/first --out bundles/first --int8
    """
    from edgetune.quantize.rounding import WeightOptions
    from edgetune.steps.export import ExportOptions, export

    weights = WeightOptions(rounding=rounding, per_channel=not per_tensor)
    options = ExportOptions(
        int8, targets, data, calibration_images, recipe, refit_head, weights, max_drop, search_s, force, fp16,
        kept_float,
    )  # fmt: skip
    result = export(run, out, options, progress=progress_bars())
    show(_outcome(result), as_json=as_json)


def _outcome(result: ExportResult) -> Outcome:
    size_mb = {artifact.name: artifact.size_bytes / 1e6 for artifact in result.manifest.artifacts}
    lines = [*parity_lines(result.report), ""]
    lines += [f"{name}: {size:.1f} MB" for name, size in size_mb.items()]
    lines.append(f"report: {result.bundle_path / 'parity.html'}")
    messages = [f"skipped {file.path}: {file.reason}" for file in result.report.skipped]
    artifacts = [to_dict(artifact) for artifact in result.manifest.artifacts]
    data: dict[str, Any] = {"bundle": str(result.bundle_path), "artifacts": artifacts}
    data["parity"] = to_dict(result.report)
    if result.calibration is not None:
        images = len(result.calibration.images)
        data["calibration_images"] = images
        if images < FEW_IMAGES:
            messages.append(f"warning: only {images} calibration images; {FEW_IMAGES} or more are advisable")
        lines += [f"{record.target}: {_describe(record)}" for record in result.calibration.targets]
        messages += [_warn_of_floats(record) for record in result.calibration.targets if _runs_in_float(record)]
    if result.fp16 is not None:
        data["fp16"] = {"half_nodes": result.fp16.half_nodes, "kept_float": result.fp16.kept_float}
        lines.append(_describe_fp16(result.fp16))
    exit_code = GATE_FAILED if result.report.verdict == FAIL else 0
    next_command = shlex.join(["edgetune", "serve" if exit_code == 0 else "info", str(result.bundle_path)])
    return Outcome("export", data, lines, messages, next_command, exit_code, gate_errors(result.report))


def _describe(record: TargetRecord) -> str:
    lost = record.drops.chosen
    drop = "" if lost is None else f"; {lost:.2%} lost on {record.drops.images} held-out training images"
    return f"{record.integer_layers} integer layers, {len(record.kept_float)} in float, {record.head}{drop}"


def _describe_fp16(record: Fp16Record) -> str:
    kept = f"{len(record.kept_float)} kept in float32" + (" (fp16.json says why)" if record.kept_float else "")
    return f"float16: {record.half_nodes} operators, {kept}; ranges from {len(record.images)} training images"


def _runs_in_float(record: TargetRecord) -> bool:
    return record.fused_layers is not None and record.fused_layers < record.integer_layers


def _warn_of_floats(record: TargetRecord) -> str:
    count = f"{record.fused_layers} of {record.integer_layers}"
    return f"warning: {record.target}: only {count} integer layers run as integers in ONNX Runtime on this CPU"

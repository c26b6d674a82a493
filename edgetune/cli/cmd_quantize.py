"""edgetune quantize."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgetune.cli.options import FOLDER, PATH, force_option, json_option
from edgetune.cli.render import Outcome, progress_bars, show
from edgetune.quantize.calibrate import DEFAULT_IMAGES, FEW_IMAGES
from edgetune.quantize.targets import TARGETS

if TYPE_CHECKING:
    from edgetune.steps.quantize import QuantizeResult


@click.command("quantize")
@click.argument("model", type=PATH)
@click.option("--calib", "images", type=FOLDER, required=True, help="A folder of images like those of the camera.")
@click.option("--out", type=PATH, required=True, help="The INT8 ONNX file to write.")
@click.option("--target", default="cpu-x86", show_default=True, metavar="NAME", help=f"One of {', '.join(TARGETS)}.")
@click.option(
    "--calibration-images", type=click.IntRange(1), default=DEFAULT_IMAGES, show_default=True,
    help="How many images calibrate, at most.",
)  # fmt: skip
@click.option(
    "--rounding/--no-rounding", default=True, show_default=True,
    help="Choose weights so that each layer's outputs stay what they were, or round them to nearest.",
)  # fmt: skip
@click.option("--mean", type=float, nargs=3, help="Mean of R, G and B, of pixels in 0..1.")
@click.option("--std", type=float, nargs=3, help="Deviation of R, G and B, of pixels in 0..1.")
@click.option("--resize", type=click.IntRange(1), help="Short side in px before the crop; the input's size by default.")
@click.option(
    "--keep-float", "kept_float", multiple=True, metavar="LAYER",
    help="Do not quantize this layer; may be given several times.",
)  # fmt: skip
@force_option
@json_option
def command(
    model: Path, images: Path, out: Path, target: str, calibration_images: int, rounding: bool,
    mean: tuple[float, float, float] | None, std: tuple[float, float, float] | None, resize: int | None,
    kept_float: tuple[str, ...], force: bool, as_json: bool,
) -> None:  # fmt: skip
    """Quantize MODEL, a float32 ONNX image classifier made by any tool, to INT8.

    Models that edgetune exported know their preprocessing; others need --mean and --std, and their normalisation
    moves into the graph: the result takes uint8 images (N, H, W, 3).

    \b
    Example:
      edgetune quantize model.onnx --calib photos --out model.int8.onnx --mean 0.485 0.456 0.406 --std 0.229 0.224 0.225
    """
    from edgetune.steps.quantize import QuantizeOptions, quantize_file

    options = QuantizeOptions(
        target=target, calibration_images=calibration_images, rounding=rounding, mean=mean or None, std=std or None,
        resize=resize, force=force, kept_float=kept_float,
    )  # fmt: skip
    result = quantize_file(model, images, out, options, progress=progress_bars())
    show(_outcome(result), as_json=as_json)


def _outcome(result: QuantizeResult) -> Outcome:
    comparison = result.comparison
    sqnr = "exact" if comparison.sqnr_db is None else f"{comparison.sqnr_db:.1f} dB"
    lines = [
        f"{result.path}: {result.size_bytes / 1e6:.1f} MB, from {result.float_size_bytes / 1e6:.1f} MB",
        f"{result.integer_layers} integer layers, {len(result.kept_float)} in float; {result.images} images calibrated",
        f"against the float model on {comparison.images} of them: SQNR {sqnr}, "
        f"agreement {comparison.top1_agreement:.2%} (on other images it will be less)",
    ]
    lines += [f"  float: {layer}: {reason}" for layer, reason in result.kept_float.items()]
    messages = [f"skipped {file.path}: {file.reason}" for file in result.skipped]
    if result.images < FEW_IMAGES:
        messages.append(f"warning: only {result.images} calibration images; {FEW_IMAGES} or more are advisable")
    if result.speedup is not None:
        lines.append(f"speed here at batch 1: {result.speedup:.2f}x the float model's")
        if result.fused_layers < result.integer_layers:
            messages.append(
                f"warning: {result.integer_layers - result.fused_layers} of {result.integer_layers} integer layers run "
                "in float in ONNX Runtime on this CPU"
            )
        if result.speedup < 1.0:
            messages.append("warning: INT8 is slower than float here; ship the float model to machines like this one")
    return Outcome("quantize", result, lines, messages, f"edgetune info {result.path}")

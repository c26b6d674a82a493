"""edgetune export."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgetune.cli.cmd_parity import gate_errors, parity_lines
from edgetune.cli.options import FOLDER, Share, force_option, json_option
from edgetune.cli.render import GATE_FAILED, Outcome, progress_bars, show
from edgetune.core.bundle import FAIL
from edgetune.core.config import to_dict
from edgetune.parity.gates import DEFAULT_MAX_DROP
from edgetune.quantize.calibrate import DEFAULT_IMAGES, FEW_IMAGES, TARGETS

if TYPE_CHECKING:
    from edgetune.steps.export import ExportResult


@click.command("export")
@click.argument("run", type=FOLDER)
@click.option("--out", type=FOLDER, required=True, help="The bundle folder to write.")
@click.option("--int8", is_flag=True, help="Also write INT8 artifacts, calibrated on training images.")
@click.option(
    "--target", "targets", multiple=True, default=TARGETS, show_default=True, metavar="NAME",
    help="Where INT8 will run; may be given several times.",
)  # fmt: skip
@click.option("--data", type=FOLDER, help="Where the run's images are now, if they moved.")
@click.option(
    "--calibration-images", type=click.IntRange(1), default=DEFAULT_IMAGES, show_default=True,
    help="How many training images calibrate, stratified by class.",
)  # fmt: skip
@click.option(
    "--refit-head/--keep-head", default=True, show_default=True,
    help="Fit the INT8 head again on the features of the quantized backbone, or keep the FP32 head.",
)  # fmt: skip
@click.option(
    "--max-drop", type=Share(), default=DEFAULT_MAX_DROP, show_default=True,
    help="The accuracy an artifact may lose against PyTorch before it is marked FAIL.",
)  # fmt: skip
@force_option
@json_option
def command(
    run: Path, out: Path, int8: bool, targets: tuple[str, ...], data: Path | None, calibration_images: int,
    refit_head: bool, max_drop: float, force: bool, as_json: bool,
) -> None:  # fmt: skip
    """Write the bundle of RUN: ONNX and INT8 models, the proof of each, and all that a device needs.

    Every artifact is compared with the PyTorch model on the run's validation images. One that fails stays in
    the bundle, marked FAIL, and the exit code is 3.

    \b
    Example:
      edgetune export runs/first --out bundles/first --int8
    """
    from edgetune.steps.export import ExportOptions, export

    options = ExportOptions(int8, tuple(dict.fromkeys(targets)), data, calibration_images, refit_head, max_drop, force)
    result = export(run, out, options, progress=progress_bars())
    show(_outcome(result), as_json=as_json)


def _outcome(result: ExportResult) -> Outcome:
    size_mb = {artifact.name: artifact.size_bytes / 1e6 for artifact in result.manifest.artifacts}
    lines = [*parity_lines(result.report), ""]
    lines += [f"{name}: {size:.1f} MB" for name, size in size_mb.items()]
    lines.append(f"report: {result.bundle_path / 'parity.html'}")
    messages = [f"skipped {file.path}: {file.reason}" for file in result.report.skipped]
    if 0 < result.calibration_images < FEW_IMAGES:
        messages.append(
            f"warning: only {result.calibration_images} calibration images; {FEW_IMAGES} or more are advisable"
        )
    data = {"bundle": str(result.bundle_path), "artifacts": [to_dict(a) for a in result.manifest.artifacts],
            "parity": to_dict(result.report), "calibration_images": result.calibration_images}  # fmt: skip
    exit_code = GATE_FAILED if result.report.verdict == FAIL else 0
    next_command = shlex.join(["edgetune", "serve" if exit_code == 0 else "info", str(result.bundle_path)])
    return Outcome("export", data, lines, messages, next_command, exit_code, gate_errors(result.report))

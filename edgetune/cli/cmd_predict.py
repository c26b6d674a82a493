"""edgetune predict."""

from __future__ import annotations

from pathlib import Path

import click

from edgetune.cli.options import FOLDER, PATH, artifact_options, json_option, runner_options
from edgetune.cli.render import Outcome, show
from edgetune.runners.choice import RunnerOptions
from edgetune.steps.predict import ImagePrediction, predict


@click.command("predict")
@click.argument("bundle", type=FOLDER)
@click.argument("images", type=PATH, nargs=-1, required=True)
@click.option("--top", type=click.IntRange(1), default=3, show_default=True, help="How many labels to show.")
@artifact_options
@runner_options
@json_option
def command(
    bundle: Path, images: tuple[Path, ...], top: int, artifact: str, allow_failed: bool, runner: str,
    engine_cache: Path | None, fallback: bool, as_json: bool,
) -> None:  # fmt: skip
    """Label IMAGES with BUNDLE, offline. A file that cannot be read is reported, and the exit code is 1.

    \b
    Example:
      edgetune predict bundles/first photo.jpg
    """
    options = RunnerOptions(runner, None, engine_cache, fallback)
    result = predict(bundle, images, artifact=artifact, top=top, allow_failed=allow_failed, options=options)
    failed = [image.error for image in result.images if image.error is not None]
    lines = [line for image in result.images if image.error is None for line in _lines(image)]
    messages = [f"error: {text}" for text in failed]
    errors = [{"code": "image", "message": text, "hint": ""} for text in failed]
    show(Outcome("predict", result, lines, messages, exit_code=1 if failed else 0, errors=errors), as_json=as_json)


def _lines(image: ImagePrediction) -> list[str]:
    labels = ", ".join(f"{best.label} {best.probability:.1%}" for best in image.predictions)
    return [f"{image.image}: none of these: {labels}" if image.rejected else f"{image.image}: {labels}"]

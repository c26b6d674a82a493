"""edgetune fit."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgetune.cli.options import FOLDER, PATH, force_option, json_option
from edgetune.cli.render import Outcome, progress_bars, show
from edgetune.core.config import to_dict

if TYPE_CHECKING:
    from edgetune.steps.fit import FitResult

_MAX_SKIPPED = 20


@click.command("fit")
@click.argument("data", type=FOLDER)
@click.option("--out", type=FOLDER, required=True, help="The run folder to write.")
@click.option(
    "--model", default="efficientnet_lite0", show_default=True, metavar="NAME",
    help="efficientnet_lite0..2, a torchvision CNN by its name, or timm/NAME.",
)  # fmt: skip
@click.option(
    "--weights", type=PATH, metavar="FILE", help="A .pth, .pt or .safetensors file instead of the published weights."
)
@click.option("--head", type=click.Choice(["linear"]), default="linear", show_default=True, help="The kind of head.")
@click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True,
    help="Where the backbone runs; auto takes a GPU if PyTorch sees one.",
)  # fmt: skip
@click.option(
    "--seed",
    type=click.IntRange(0, 2**32 - 1),
    default=0,
    show_default=True,
    help="Seed of the folds.",
)
@force_option
@json_option
def command(
    data: Path,
    out: Path,
    model: str,
    weights: Path | None,
    head: str,
    device: str,
    seed: int,
    force: bool,
    as_json: bool,
) -> None:
    """Fit the head of a frozen backbone on the images in DATA.

    DATA holds train/CLASS/ and val/CLASS/, or CLASS/ folders, of which a fifth is then set aside by content.
    The backbone runs over each image once; its features are cached, so another fit takes seconds.

    \b
    Example:
      edgetune fit data --out runs/first
      edgetune fit data --out runs/resnet --model resnet18 --weights resnet18-f37072fd.pth
    """
    from edgetune.steps.fit import FitOptions, fit

    options = FitOptions(model=model, weights=weights, head=head, device=device, seed=seed, force=force)
    result = fit(data, out, options, progress=progress_bars())
    show(_outcome(result), as_json=as_json)


def _outcome(result: FitResult) -> Outcome:
    run, metrics = result.run, result.metrics
    low, high = metrics.top1_accuracy_ci95
    skipped = run.split.skipped
    lines = [
        f"validation accuracy {metrics.top1_accuracy:.2%} (95 % interval {low:.1%} to {high:.1%}) "
        f"on {metrics.images} images of {len(run.classes)} classes",
        f"head: {run.head.kind}, L2 {run.head.l2:g} by {run.head.folds}-fold cross-validation "
        f"on {len(run.split.train)} training images",
        f"backbone: {run.backbone.name}, {run.backbone.unchanged_tensors} tensors bit-identical to the weights file",
        f"features: {run.features.computed} by {run.features.runner}, {run.features.from_cache} from the cache",
        f"report: {result.run_path / 'report.html'}",
    ]
    messages = [f"skipped {len(skipped)} file(s):"] if skipped else []
    messages += [f"  {file.path}: {file.reason}" for file in skipped[:_MAX_SKIPPED]]
    if len(skipped) > _MAX_SKIPPED:
        messages.append(f"  ... and {len(skipped) - _MAX_SKIPPED} more, see {result.run_path / 'run.json'}")
    data = {
        "run": str(result.run_path),
        "metrics": to_dict(metrics),
        "backbone": to_dict(run.backbone),
        "features": to_dict(run.features),
        "head": to_dict(run.head),
        "skipped": [to_dict(file) for file in skipped],
    }
    bundle = Path("bundles") / result.run_path.absolute().name
    next_command = shlex.join(["edgetune", "export", str(result.run_path), "--out", str(bundle), "--int8"])
    return Outcome("fit", data, lines, messages, next_command)

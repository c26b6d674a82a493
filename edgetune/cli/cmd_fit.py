"""edgetune fit."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from edgetune.cli.options import FOLDER, PATH, Share, force_option, json_option
from edgetune.cli.render import Outcome, progress_bars, show
from edgetune.core.config import to_dict
from edgetune.core.errors import Interrupted
from edgetune.core.head_recipe import CLASS_WEIGHTS, HEAD_KINDS
from edgetune.data.wording import shown
from edgetune.heads.report_words import counted

if TYPE_CHECKING:
    from edgetune.core.run import Run
    from edgetune.heads.evaluate import Metrics
    from edgetune.steps.fit import FitResult

_MAX_LISTED = 20
# A layer of 65,536 on 2,048 features takes some 3 GB with what AdamW keeps of it.
_MOST, _MOST_HIDDEN = 1_000_000, 1 << 14

F = TypeVar("F", bound=Callable[..., Any])


def _backbone_options(command: F) -> F:
    for option in reversed((
        click.option(
            "--model", default="efficientnet_lite0", show_default=True, metavar="NAME",
            help="efficientnet_lite0..2, a torchvision CNN by its name, or timm/NAME.",
        ),
        click.option(
            "--weights", type=PATH, metavar="FILE",
            help="A .pth, .pt or .safetensors file instead of the published weights.",
        ),
        click.option(
            "--features-from", "layer", default="", metavar="LAYER",
            help="Take the pooled features of this earlier layer, for small data unlike ImageNet.",
        ),
        click.option(
            "--image-size", type=click.IntRange(16, 4096), metavar="PIXELS",
            help="Any size that the backbone accepts instead of the one it was trained at.",
        ),
        click.option(
            "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True,
            help="Where the backbone runs; auto takes a GPU if PyTorch sees one.",
        ),
    )):  # fmt: skip
        command = option(command)
    return command


def _data_options(command: F) -> F:
    for option in reversed((
        click.option(
            "--views", type=click.IntRange(0, 64), default=0, show_default=True, metavar="K",
            help="Also fit on K augmented views (cropped, lit otherwise, half mirrored) of each training image.",
        ),
        click.option(
            "--group-by", default="", metavar="REGEX",
            help="Keep images together whose paths match with the same text, or the same first (...) of it.",
        ),
        click.option(
            "--class-weights", type=click.Choice(CLASS_WEIGHTS), default=CLASS_WEIGHTS[0], show_default=True,
            help="balanced: every class counts alike, however many images it has.",
        ),
    )):  # fmt: skip
        command = option(command)
    return command


def _training_options(command: F) -> F:
    for option in reversed(
        (
            click.option(
                "--epochs", type=click.IntRange(1, _MOST), help="mlp (at most), sgd, adamw: passes over the features."
            ),
            click.option("--learning-rate", type=click.FloatRange(0.0, min_open=True), help="mlp, sgd, adamw."),
            click.option("--batch-size", type=click.IntRange(1, _MOST), help="mlp, sgd, adamw."),
            click.option("--weight-decay", type=click.FloatRange(0.0), help="mlp, sgd, adamw."),
            click.option("--hidden", type=click.IntRange(1, _MOST_HIDDEN), help="mlp: the hidden layer's width."),
            click.option("--dropout", type=click.FloatRange(0.0, 1.0, max_open=True), help="mlp."),
        )
    ):
        command = option(command)
    return command


@click.command("fit")
@click.argument("data", type=PATH)
@click.option("--out", type=FOLDER, required=True, help="The run folder to write.")
@_backbone_options
@click.option(
    "--head", "kind", type=click.Choice(HEAD_KINDS), default=HEAD_KINDS[0], show_default=True,
    help="Softmax regression or a linear SVM, solved; a layer more (mlp); or a linear layer trained in epochs.",
)  # fmt: skip
@_data_options
@_training_options
@click.option(
    "--reject", "reject_share", type=Share(), metavar="SHARE",
    help="Find the probability below which an answer is none of the classes, so that this share of held-out training "
    "images is rejected.",
)  # fmt: skip
@click.option(
    "--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True,
    help="Seed of folds, views and training.",
)  # fmt: skip
@click.option("--resume", is_flag=True, help="Go on with a fit that was cut short; a finished one is left as it is.")
@force_option
@json_option
def command(data: Path, out: Path, as_json: bool, **chosen: Any) -> None:
    """Fit the head of a frozen backbone on the images in DATA.

    DATA holds train/CLASS/ and val/CLASS/ (and test/CLASS/), or CLASS/ folders, of which a fifth is then set aside by
    content; or it is a CSV file with the columns file, label and, if you like, split. The backbone runs over each image
    once; its features are cached, so another fit takes seconds. Nothing is ever chosen by looking at val or test.

    \b
    Example:
      edgetune fit data --out runs/first
      edgetune fit data --out runs/svm --head svm --class-weights balanced --reject 0.02
      edgetune fit data --out runs/resnet --model resnet18 --weights resnet18-f37072fd.pth
      edgetune fit data.csv --out runs/views --views 4 --group-by 'cam\\d+_\\d{8}'
    """
    from edgetune.heads.fit import HeadOptions
    from edgetune.steps.fit import FitOptions, fit

    names = (
        "kind",
        "class_weights",
        "reject_share",
        "epochs",
        "learning_rate",
        "batch_size",
        "weight_decay",
        "hidden",
        "dropout",
    )
    head = {name: value for name in names if (value := chosen.pop(name)) is not None}
    try:
        result = fit(data, out, FitOptions(head=HeadOptions(**head), **chosen), progress=progress_bars())
    except KeyboardInterrupt:
        raise Interrupted(
            "stopped; nothing was left half written.", hint="the same command goes on with the features computed so far"
        ) from None
    show(_outcome(result), as_json=as_json)


def _outcome(result: FitResult) -> Outcome:
    run = result.run
    data = {
        "run": str(result.run_path),
        "metrics": to_dict(result.metrics),
        "test_metrics": None if result.test_metrics is None else to_dict(result.test_metrics),
        "backbone": to_dict(run.backbone),
        "features": to_dict(run.features),
        "head": to_dict(run.head),
        "findings": [to_dict(finding) for finding in run.split.findings],
        "skipped": [to_dict(file) for file in run.split.skipped],
        "seconds": dict(result.seconds),
        "was_finished": result.was_finished,
    }
    bundle = Path("bundles") / result.run_path.absolute().name
    next_command = shlex.join(["edgetune", "export", str(result.run_path), "--out", str(bundle), "--int8"])
    return Outcome("fit", data, _lines(result), _messages(run, result.run_path), next_command)


def _lines(result: FitResult) -> list[str]:
    run, metrics = result.run, result.metrics
    lines = [f"validation {_accuracy(metrics)} of {len(run.classes)} classes"]
    if result.test_metrics is not None:
        lines.append(f"test {_accuracy(result.test_metrics)}")
    views = f" and {counted(run.features.views, 'view')} of each" if run.features.views else ""
    lines += [
        f"head: {_head_words(run)} on {counted(len(run.split.train), 'training image')}{views}",
        f"backbone: {run.backbone.name}, {run.backbone.unchanged_tensors} tensors bit-identical to the weights file",
        f"features: {run.features.computed} by {run.features.runner}, {run.features.from_cache} from the cache",
    ]
    if run.head.reject_below is not None:
        lines.append(f"reject: answers below a probability of {run.head.reject_below:.3f} are none of the classes")
    if result.was_finished:
        lines.append("the run was finished already; nothing was done")
    return [*lines, f"report: {result.run_path / 'report.html'}"]


def _accuracy(metrics: Metrics) -> str:
    low, high = metrics.top1_accuracy_ci95
    return (
        f"accuracy {metrics.top1_accuracy:.2%} (95 % interval {low:.1%} to {high:.1%}), calibration error "
        f"{metrics.expected_calibration_error:.3f}, on {counted(metrics.images, 'image')}"
    )


def _head_words(run: Run) -> str:
    head = run.head
    if head.training is None:
        return f"{head.kind}, L2 {head.l2:g} by {head.folds}-fold cross-validation, temperature {head.temperature:.2f}"
    return f"{head.kind}, {counted(head.training.epochs, 'epoch')}, temperature {head.temperature:.2f}"


def _messages(run: Run, path: Path) -> list[str]:
    findings = [f"note: {finding.message}" for finding in run.split.findings]
    skipped = run.split.skipped
    messages = _cut(findings, path) + ([f"skipped {len(skipped)} file(s):"] if skipped else [])
    return messages + _cut([f"  {shown(f'{file.path}: {file.reason}')}" for file in skipped], path)


def _cut(lines: list[str], path: Path) -> list[str]:
    more = len(lines) - _MAX_LISTED
    return lines if more <= 0 else [*lines[:_MAX_LISTED], f"  ... and {more} more, see {path / 'run.json'}"]

"""edgetune parity."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import click

from edgetune.cli.options import FOLDER, PATH, RUNNERS, Share, engine_cache_option, force_option, json_option
from edgetune.cli.render import GATE_FAILED, Outcome, progress_bars, show, table
from edgetune.core.bundle import PASS
from edgetune.core.config import to_dict
from edgetune.core.errors import UsageError
from edgetune.parity.records import ParityReport
from edgetune.parity.report import COLUMNS, remark_lines, report_rows, titles

_PRECISIONS = ("fp32", "tf32", "fp16", "int8")
# Options that mean something for one form of the command only.
_BUNDLE_ONLY = ("run", "kinds", "url", "engine_cache", "require")
_MODELS_ONLY = ("mean", "std", "resize", "precision")


@click.command("parity")
@click.argument("paths", nargs=-1, required=True, type=PATH, metavar="BUNDLE | A.onnx B.onnx")
@click.option("--data", type=PATH, help="Labelled images, CLASS/*.jpg; the run's validation images by default.")
@click.option("--run", type=FOLDER, help="The run the bundle came from; by default the one its manifest records.")
@click.option("--out", type=FOLDER, help="Write parity.json, .md, .xml (JUnit) and .html into this folder.")
@click.option(
    "--runner", "kinds", type=click.Choice(RUNNERS), multiple=True,
    help="What runs the artifacts; may be given several times. auto, the default, is the CPU, and engines that fit "
    "this machine.",
)  # fmt: skip
@click.option("--url", help="A running server to judge as well: http://HOST:PORT.")
@click.option("--require", is_flag=True, help="An artifact that could not be judged here, or not on all images, fails.")
@click.option("--localize", is_flag=True, help="Look for the block that breaks an artifact that failed.")
@click.option("--gates", type=PATH, help="A TOML file with other limits.")
@click.option(
    "--max-drop", type=Share(), help="The accuracy an artifact may lose; by default the gates', one point in a hundred."
)  # fmt: skip
@click.option("--precision", type=click.Choice(_PRECISIONS), help="Which gate judges B.onnx; by default its own.")
@click.option("--mean", type=float, nargs=3, help="Mean of R, G and B, of pixels in 0..1, for models that lack it.")
@click.option("--std", type=float, nargs=3, help="Deviation of R, G and B, of pixels in 0..1.")
@click.option("--resize", type=click.IntRange(1), help="Short side in px before the crop; the input's size by default.")
@engine_cache_option
@force_option
@json_option
@click.pass_context
def command(context: click.Context, /, paths: tuple[Path, ...], as_json: bool, **given: Any) -> None:
    """Compare every artifact of BUNDLE with the PyTorch model, from file bytes to label, or B.onnx with A.onnx.

    The reference is the live model rebuilt from the run. Without torch or the run, it is the logits that the
    bundle stores for the images it knows. Two ONNX files, made by any tool, are compared on a folder of images, or
    on arrays in an .npz file. Exit code 3: something failed, or nothing could be judged.

    \b
    Example:
      edgetune parity bundles/first --data data --localize --out parity
      edgetune parity bundles/first --url http://device:8000
      edgetune parity model.onnx model.int8.onnx --data photos
    """
    if len(paths) == 2:
        _refuse(given, _BUNDLE_ONLY, "a BUNDLE")
        report = _compare_models(paths, given)
        next_command = ""
    elif len(paths) == 1:
        _refuse(given, _MODELS_ONLY, "two ONNX files")
        report = _judge_bundle(paths[0], given)
        where = ["--engine-cache", str(given["engine_cache"])] if given["engine_cache"] is not None else []
        next_command = shlex.join(["edgetune", "bench", str(paths[0]), *where])
    else:
        raise UsageError(
            f"{len(paths)} paths were given, expected one bundle or two ONNX files.",
            hint=f"{context.command_path} --help",
        )
    show(_outcome(report, next_command), as_json=as_json)


def _refuse(given: dict[str, Any], names: tuple[str, ...], form: str) -> None:
    wrong = [name for name in names if given[name]]
    if wrong:
        word = {"kinds": "runner"}.get(wrong[0], wrong[0]).replace("_", "-")
        raise UsageError(f"--{word} is for {form} only.", hint="edgetune parity --help")


def _judge_bundle(bundle: Path, given: dict[str, Any]) -> ParityReport:
    from edgetune.runners.choice import RunnerOptions
    from edgetune.steps.parity import ParityOptions, parity

    options = ParityOptions(
        run=given["run"], out=given["out"], max_drop=given["max_drop"], force=given["force"],
        runner=RunnerOptions(cache=given["engine_cache"]), kinds=given["kinds"], gates=given["gates"],
        require=given["require"], url=given["url"], localize=given["localize"],
    )  # fmt: skip
    return parity(bundle, given["data"], options, progress=progress_bars())


def _compare_models(paths: tuple[Path, ...], given: dict[str, Any]) -> ParityReport:
    from edgetune.steps.parity_models import ModelsOptions, parity_of_models
    from edgetune.verify.compare_models import CompareOptions

    if given["data"] is None:
        raise UsageError("two ONNX files are compared on --data: a folder of images, or an .npz file.")
    compare = CompareOptions(
        mean=given["mean"] or None, std=given["std"] or None, resize=given["resize"], precision=given["precision"]
    )  # fmt: skip
    options = ModelsOptions(
        compare, given["max_drop"], given["gates"], given["out"], given["force"], given["localize"]
    )  # fmt: skip
    return parity_of_models(paths[0], paths[1], given["data"], options, progress=progress_bars())


def _outcome(report: ParityReport, next_command: str) -> Outcome:
    exit_code = 0 if report.verdict == PASS else GATE_FAILED
    messages = [f"skipped {file.path}: {file.reason}" for file in report.skipped]
    data = {**to_dict(report), "verdict": report.verdict}
    return Outcome(
        "parity", data, parity_lines(report), messages, next_command if exit_code == 0 else "", exit_code,
        gate_errors(report),
    )  # fmt: skip


def gate_errors(report: ParityReport) -> list[dict[str, str]]:
    """One entry for each artifact that did not pass, and each stage that failed, with the stable code `gate`."""
    failed = [
        (title, entry.verdict, entry.reasons)
        for title, entry in zip(titles(report), report.artifacts, strict=True)
        if entry.verdict != PASS
    ]
    failed += [(stage.stage, stage.verdict, (stage.reason,)) for stage in report.stages if stage.verdict == "FAIL"]
    return [
        {"code": "gate", "message": f"{title}: {verdict}: {'; '.join(reasons)}", "hint": ""}
        for title, verdict, reasons in failed
    ]


def parity_lines(report: ParityReport) -> list[str]:
    """The report as a table with its remarks, closed by the verdict."""
    lines = remark_lines(report)
    return [*table(COLUMNS, report_rows(report)), *([""] if lines else []), *lines, "", f"parity: {report.verdict}"]

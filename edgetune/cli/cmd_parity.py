"""edgetune parity."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from edgetune.cli.options import FOLDER, RUNNERS, Share, engine_cache_option, force_option, json_option
from edgetune.cli.render import GATE_FAILED, Outcome, progress_bars, show, table
from edgetune.core.bundle import PASS
from edgetune.parity.gates import DEFAULT_MAX_DROP
from edgetune.parity.report import COLUMNS, ParityReport, remarks, report_rows, titles


@click.command("parity")
@click.argument("bundle", type=FOLDER)
@click.option("--data", type=FOLDER, help="Labelled images, CLASS/*.jpg; the run's validation images by default.")
@click.option("--run", type=FOLDER, help="The run the bundle came from; by default the one its manifest records.")
@click.option("--out", type=FOLDER, help="Write parity.json and parity.html into this folder.")
@click.option(
    "--max-drop", type=Share(), default=DEFAULT_MAX_DROP, show_default=True, help="The accuracy an artifact may lose."
)
@click.option(
    "--runner", type=click.Choice(RUNNERS), default="auto", show_default=True,
    help="What runs the artifacts; auto is the CPU, and engines that fit this machine.",
)  # fmt: skip
@engine_cache_option
@force_option
@json_option
def command(
    bundle: Path, data: Path | None, run: Path | None, out: Path | None, max_drop: float, runner: str,
    engine_cache: Path | None, force: bool, as_json: bool,
) -> None:  # fmt: skip
    """Compare every artifact of BUNDLE with the PyTorch model, from file bytes to label.

    The reference is the live model rebuilt from the run. Without torch or the run, it is the logits that the
    bundle stores for the images it knows. Exit code 3: an artifact failed, or none could be judged.

    \b
    Example:
      edgetune parity bundles/first --data data
    """
    from edgetune.runners.choice import RunnerOptions
    from edgetune.steps.parity import ParityOptions, parity

    options = ParityOptions(run, out, max_drop, force, RunnerOptions(runner, cache=engine_cache))
    report = parity(bundle, data, options, progress=progress_bars())
    exit_code = 0 if report.verdict == PASS else GATE_FAILED
    messages = [f"skipped {file.path}: {file.reason}" for file in report.skipped]
    where = ["--engine-cache", str(engine_cache)] if engine_cache is not None else []
    next_command = shlex.join(["edgetune", "bench", str(bundle), *where]) if exit_code == 0 else ""
    errors = gate_errors(report)
    show(Outcome("parity", report, parity_lines(report), messages, next_command, exit_code, errors), as_json=as_json)


def gate_errors(report: ParityReport) -> list[dict[str, str]]:
    """One entry for each artifact that did not pass, with the stable code `gate`."""
    return [
        {"code": "gate", "message": f"{title}: {entry.verdict}: {'; '.join(entry.reasons)}", "hint": ""}
        for title, entry in zip(titles(report), report.artifacts, strict=True)
        if entry.verdict != PASS
    ]


def parity_lines(report: ParityReport) -> list[str]:
    """The report as a table with its remarks, closed by the verdict."""
    lines = [f"{title}: {reason}" for title, reason in remarks(report)]
    return [*table(COLUMNS, report_rows(report)), *([""] if lines else []), *lines, f"parity: {report.verdict}"]

"""edgetune doctor."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgetune.cli.options import FOLDER, PATH, engine_cache_option, force_option, json_option
from edgetune.cli.render import Outcome, progress_bars, show, table
from edgetune.core.errors import UsageError
from edgetune.steps.doctor import DoctorResult, doctor

if TYPE_CHECKING:
    from edgetune.steps.evidence import EvidenceFile

_MARKS = {True: "ok", False: "PROBLEM", None: "-"}


@click.command("doctor")
@click.option("--evidence", "file", type=PATH, help="Write what this machine is and does into FILE, to be sent.")
@click.option("--bundle", type=FOLDER, help="With --evidence: time this bundle here, and judge it.")
@click.option("--data", type=FOLDER, help="With --bundle: labelled images for parity, CLASS/*.jpg.")
@engine_cache_option
@force_option
@json_option
def command(
    file: Path | None, bundle: Path | None, data: Path | None, engine_cache: Path | None, force: bool, as_json: bool
) -> None:
    """Show what this machine has and lacks, and what to install.

    With --evidence it goes into one JSON file, with the power mode, clocks and temperatures before and after the
    measurements, and the engines of the bundle. The file names no user, no host and no folder of yours, no image and
    no class.

    \b
    Example:
      edgetune doctor
      edgetune doctor --evidence evidence.json --bundle bundles/first --data photos
    """
    if file is None:
        if bundle is not None or data is not None:
            raise UsageError("--bundle and --data are for --evidence FILE.")
        result = doctor(engine_cache)
        show(Outcome("doctor", result, _lines(result)), as_json=as_json)
        return
    if data is not None and bundle is None:
        raise UsageError("--data is for --bundle BUNDLE: without a bundle there is nothing to judge.")
    from edgetune.steps.evidence import EvidenceOptions, write_evidence

    options = EvidenceOptions(bundle, data, engine_cache, force)
    written = write_evidence(file, options, progress=progress_bars())
    data_out = {"path": str(file), "size_bytes": written.size_bytes, "digest": written.digest, **written.content}
    show(Outcome("doctor", data_out, _evidence_lines(written)), as_json=as_json)


def _lines(result: DoctorResult) -> list[str]:
    width = max(len(finding.name) for finding in result.findings)
    lines = []
    for finding in result.findings:
        advice = f"  ->  {finding.advice}" if finding.advice else ""
        lines.append(f"{_MARKS[finding.ok]:>8}  {finding.name:<{width}}  {finding.value}{advice}")
    return [*lines, "versions: " + ", ".join(f"{name} {version}" for name, version in result.versions.items())]


def _evidence_lines(written: EvidenceFile) -> list[str]:
    content = written.content
    lines = [*table(("part", "collected"), _rows(content)), ""]
    lines += [f"slowed down: {sentence}" for sentence in content["slowdowns"]]
    lines += [f"could not be had: {part}: {message}" for part, message in content["errors"].items()]
    lines += [
        f"parity {entry['verdict']}: {entry['artifact']}: {'; '.join(entry['reasons'])}"
        for entry in (content["parity"] or {}).get("artifacts", ())
        if entry["verdict"] != "PASS"
    ]
    lines.append(f"{written.path}, {written.size_bytes / 1e3:.0f} kB: send this file with your report.")
    lines.append("It names no user, no host and no folder of yours; it is plain text, so look into it first.")
    return lines


def _rows(content: dict[str, Any]) -> list[tuple[str, str]]:
    machine, parity = content["machine"], content["parity"]
    problems = sum(finding["ok"] is False for finding in content["findings"])
    mode = (content["power_after"] or {}).get("power_mode")
    rows = [
        ("machine", f"{machine['cpu']}, {(machine['gpu'] or {}).get('name', 'no GPU')}" if machine else "-"),
        ("findings", f"{len(content['findings'])}, of which problems: {problems}"),
        ("power", f"mode {mode or 'unknown'}; signs of slowing down: {len(content['slowdowns'])}"),
    ]
    if content["bundle"] is None:
        return [*rows, ("bundle", "-")]
    bench = content["bench"]
    judged = f", compared: {len(parity['artifacts'])}" if parity["artifacts"] else ""
    return [
        *rows,
        ("bundle", f"{content['bundle']['digest'][:12]}..., artifacts: {len(content['bundle']['artifacts'])}"),
        ("bench", f"ship: {bench['recommended'] or 'nothing'}" if bench else "-"),
        ("parity", f"{parity['verdict']}{judged}"),
        ("engines", f"{len(content['engines'])} in the cache"),
    ]

"""edgetune doctor."""

from __future__ import annotations

import click

from edgetune.cli.options import json_option
from edgetune.cli.render import Outcome, show
from edgetune.steps.doctor import doctor

_MARKS = {True: "ok", False: "PROBLEM", None: "-"}


@click.command("doctor")
@json_option
def command(as_json: bool) -> None:
    """Show what this machine has and lacks, and what to install.

    \b
    Example:
      edgetune doctor
    """
    result = doctor()
    width = max(len(finding.name) for finding in result.findings)
    lines = []
    for finding in result.findings:
        advice = f"  ->  {finding.advice}" if finding.advice else ""
        lines.append(f"{_MARKS[finding.ok]:>8}  {finding.name:<{width}}  {finding.value}{advice}")
    lines.append("versions: " + ", ".join(f"{name} {version}" for name, version in result.versions.items()))
    show(Outcome("doctor", result, lines), as_json=as_json)

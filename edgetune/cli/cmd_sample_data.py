"""edgetune sample-data."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from edgetune.cli.options import FOLDER, force_option, json_option
from edgetune.cli.render import Outcome, show
from edgetune.steps.sample_data import NAMES, sample_data


@click.command("sample-data")
@click.argument("name", type=click.Choice(NAMES))
@click.argument("folder", type=FOLDER)
@force_option
@json_option
def command(name: str, folder: Path, force: bool, as_json: bool) -> None:
    """Write the dataset NAME into FOLDER as train/CLASS/ and val/CLASS/, offline.

    \b
    digits: scikit-learn's 1,797 handwritten digits, 10 classes

    \b
    Example:
      edgetune sample-data digits data
    """
    result = sample_data(folder, force=force)
    outcome = Outcome(
        "sample-data", result, [f"{result.images} images of {name} in {folder}"],
        next_command=shlex.join(["edgetune", "fit", str(folder), "--out", f"runs/{name}"]),
    )  # fmt: skip
    show(outcome, as_json=as_json)

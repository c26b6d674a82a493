"""Options that several commands share, and the parameter types behind them."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

PATH = click.Path(path_type=Path)
FOLDER = click.Path(path_type=Path, file_okay=False)


def json_option(command: F) -> F:
    text = "Print one JSON envelope on stdout: command, ok, exit_code, data, messages, errors."
    return click.option("--json", "as_json", is_flag=True, help=text)(command)


def force_option(command: F) -> F:
    return click.option("--force", is_flag=True, help="Replace an output that edgetune wrote before.")(command)


def artifact_options(command: F) -> F:
    command = click.option(
        "--artifact", default="auto", show_default=True, metavar="NAME",
        help="The bundle's file to run; auto takes INT8, else FP32, whichever passed parity and suits this CPU.",
    )(command)  # fmt: skip
    return click.option("--allow-failed", is_flag=True, help="Use an artifact even if it failed parity.")(command)


class Share(click.FloatRange):
    """A share of images: 0.01 is one in a hundred."""

    name = "share"

    def __init__(self) -> None:
        super().__init__(0.0, 1.0)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        share = super().convert(value, param, ctx)
        if math.isnan(share):
            self.fail(f"{value} is not a share between 0 and 1.", param, ctx)
        return share

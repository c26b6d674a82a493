"""Options that several commands share, and the parameter types behind them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import click

# edgetune.runners.choice has these names too; importing it here would cost every --help its libraries.
RUNNERS = ("auto", "cpu", "cuda", "tensorrt-ep", "tensorrt-rtx-ep", "engine")

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
        help="The bundle's file to run; auto takes INT8, FP16 or FP32: what passed parity and suits the runner.",
    )(command)  # fmt: skip
    return click.option("--allow-failed", is_flag=True, help="Use an artifact even if it failed parity.")(command)


def runner_options(command: F) -> F:
    command = click.option(
        "--runner", type=click.Choice(RUNNERS), default="auto", show_default=True,
        help="What runs the artifact: ONNX Runtime on the CPU, on CUDA, or on one of its TensorRT providers, or an "
        "engine that edgetune build made; auto takes an engine that passed parity on this machine, else CUDA, else the "
        "CPU.",
    )(command)  # fmt: skip
    command = engine_cache_option(command)
    return click.option("--fallback", is_flag=True, help="Take the CPU, and say so, where --runner cannot.")(command)


def engine_cache_option(command: F) -> F:
    text = "Where engines are kept; the user's cache folder by default."
    return click.option("--engine-cache", type=FOLDER, help=text)(command)


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


class ByteSize(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """A size in memory: 512MiB, 2GiB, 1.5GB, or plain bytes."""

    name = "size"
    _UNITS: ClassVar[dict[str, int]] = {
        "": 1, "B": 1, "KB": 1000, "MB": 1000**2, "GB": 1000**3, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30,
    }  # fmt: skip

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", str(value).strip())
        unit = self._UNITS.get(match[2].upper()) if match else None
        if match is None or unit is None:
            self.fail(f"{value} is not a size such as 512MiB or 2GiB.", param, ctx)
        size = float(match[1]) * unit
        if not 1 <= size < 1 << 63:
            self.fail(f"{value} is not a size that memory can have.", param, ctx)
        return int(size)


class Seconds(click.FloatRange):
    """A time that passes: more than 0, and a number."""

    name = "seconds"

    def __init__(self) -> None:
        super().__init__(min=0.0, min_open=True)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        seconds = super().convert(value, param, ctx)
        if not math.isfinite(seconds):
            self.fail(f"{value} is not a number of seconds.", param, ctx)
        return seconds

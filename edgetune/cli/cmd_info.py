"""edgetune info."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgetune.cli.options import PATH, json_option
from edgetune.cli.render import Outcome, show
from edgetune.steps.info import info

_MAX_ITEMS = 12


@click.command("info")
@click.argument("path", type=PATH)
@json_option
def command(path: Path, as_json: bool) -> None:
    """Show what PATH is: a run, an ONNX file, or a bundle or engine (both checked byte by byte).

    \b
    Example:
      edgetune info bundles/first
    """
    description = info(path)
    show(Outcome("info", description, _lines(description)), as_json=as_json)


def _lines(value: dict[str, Any], indent: str = "") -> list[str]:
    lines: list[str] = []
    for key, item in value.items():
        if isinstance(item, dict) and item:
            shown = dict(list(item.items())[:_MAX_ITEMS])
            more = [f"{indent}  ... {len(item) - _MAX_ITEMS} more"] if len(item) > _MAX_ITEMS else []
            lines += [f"{indent}{key}:", *_lines(shown, indent + "  "), *more]
        elif isinstance(item, list) and item and isinstance(item[0], dict):
            lines += [f"{indent}{key}:"]
            lines += [f"{indent}  - " + ", ".join(f"{k} {v}" for k, v in row.items()) for row in item[:_MAX_ITEMS]]
        elif isinstance(item, list):
            shown_items = ", ".join(str(part) for part in item[:_MAX_ITEMS])
            lines.append(f"{indent}{key}: {shown_items}{', ...' if len(item) > _MAX_ITEMS else ''}")
        else:
            lines.append(f"{indent}{key}: {item}")
    return lines

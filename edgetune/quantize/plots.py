"""What quantizing did as pictures; every function gives a PNG, or None where there is nothing to draw."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

from edgetune.core.figures import new_figure, png
from edgetune.quantize.budget import Trial
from edgetune.quantize.calibrate import LayerRecord, RangeRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WIDTH = 9.0
_LABELLED = 5
_MAX_NAME = 28
_FAR_OUT = 20.0  # a range this much wider than the median one would flatten all others
_COLOURS = {"min-max": "tab:blue", "percentile": "tab:orange", "MSE": "tab:green"}


def sqnr_png(layers: Sequence[LayerRecord]) -> bytes | None:
    """Layers that lose nothing have no SQNR, and leave gaps in the lines."""
    outputs = [_or_nan(layer.sqnr_db) for layer in layers]
    weights = [_or_nan(layer.weight_sqnr_db) for layer in layers]
    known = [value for value in outputs + weights if math.isfinite(value)]
    if not known:
        return None
    figure = new_figure(_WIDTH, 3.9)
    axes = figure.subplots()
    size = max(1.5, 5.0 - len(layers) / 60)
    numbers = range(1, len(layers) + 1)
    axes.plot(numbers, outputs, "o-", color="tab:blue", markersize=size, linewidth=1.2, zorder=2.5, label="outputs")
    axes.plot(numbers, weights, "s--", color="tab:orange", markersize=size * 0.8, linewidth=0.9, label="weights alone")
    room = max(max(known) - min(known), 5.0)
    axes.set_ylim(min(known) - 0.3 * room, max(known) + 0.08 * room)
    _label_worst(axes, layers, outputs)
    _whole_numbers(axes, len(layers))
    axes.set_xlabel("layer number, in graph order")
    axes.set_ylabel("SQNR, dB (higher is better)")
    figure.legend(loc="outside upper right", ncols=2, frameon=False)
    return png(figure)


def ranges_png(ranges: Sequence[RangeRecord]) -> bytes | None:
    figure = new_figure(_WIDTH, 3.6)
    axes = figure.subplots()
    axes.use_sticky_edges = False
    reaches = []
    for method, bars in _by_method(ranges).items():
        lows = [record.low for _, record in bars]
        heights = [record.high - record.low for _, record in bars]
        reaches += [max(abs(record.low), abs(record.high)) for _, record in bars]
        width = 0.8 if len(ranges) <= 150 else 1.0
        numbers = [number for number, _ in bars]
        axes.bar(numbers, heights, bottom=lows, width=width, color=_COLOURS.get(method, "grey"), label=method)
    if not reaches:
        return None
    middle = statistics.median(reaches)
    if max(reaches) > _FAR_OUT * middle > 0.0:
        axes.set_yscale("symlog", linthresh=10.0 ** math.ceil(math.log10(middle)))
    axes.axhline(0.0, color="black", linewidth=0.6)
    _whole_numbers(axes, len(ranges))
    axes.set_xlabel("tensor number, in graph order")
    axes.set_ylabel("value")
    figure.legend(loc="outside upper right", ncols=len(_COLOURS) + 1, frameon=False)
    return png(figure)


def trials_png(trials: Sequence[Trial]) -> bytes | None:
    """None for a single trial: that is no search."""
    if len(trials) < 2:
        return None
    figure = new_figure(_WIDTH, 3.2)
    axes = figure.subplots()
    tried = sorted(trials, key=lambda trial: trial.kept_float)
    axes.plot([trial.kept_float for trial in tried], [100.0 * trial.drop for trial in tried], "o-", color="tab:blue")
    axes.axhline(0.0, color="grey", linewidth=0.8, linestyle=":")
    axes.locator_params(axis="x", integer=True)
    axes.margins(y=0.12)
    axes.set_xlabel("layers that the search kept in float")
    axes.set_ylabel("accuracy lost, % of images")
    return png(figure)


def _label_worst(axes: Axes, layers: Sequence[LayerRecord], outputs: Sequence[float]) -> None:
    """Names stand in one row below the lines, in the order of their points, so that none covers another."""
    known = [index for index, value in enumerate(outputs) if math.isfinite(value)]
    worst = sorted(sorted(known, key=lambda index: outputs[index])[:_LABELLED])
    axes.plot([index + 1 for index in worst], [outputs[index] for index in worst], "o", color="tab:red", zorder=3)
    for slot, index in enumerate(worst):
        text = f"{_short(layers[index].layer)}\nno. {index + 1}: {outputs[index]:.1f} dB"
        axes.annotate(
            text, (index + 1, outputs[index]), ((slot + 0.5) / len(worst), 0.03), textcoords="axes fraction",
            ha="center", va="bottom", fontsize=8, parse_math=False,
            arrowprops={"arrowstyle": "-", "color": "tab:red", "linewidth": 0.7, "relpos": (0.5, 1.0)},
        )  # fmt: skip


def _by_method(ranges: Sequence[RangeRecord]) -> dict[str, list[tuple[int, RangeRecord]]]:
    """Numbered ranges by the kind of method, without its parameter; kinds in the order of the legend."""
    found: dict[str, list[tuple[int, RangeRecord]]] = {method: [] for method in _COLOURS}
    for number, record in enumerate(ranges, start=1):
        if math.isfinite(record.low) and math.isfinite(record.high):
            kind = record.method.partition(" ")[0]
            found.setdefault(kind if kind in _COLOURS else "other", []).append((number, record))
    return {method: bars for method, bars in found.items() if bars}


def _whole_numbers(axes: Axes, count: int) -> None:
    axes.set_xlim(0.0, count + 1.0)
    axes.locator_params(axis="x", integer=True)


def _short(name: str) -> str:
    """Both ends of a name: the front is often shared, and the end often only the kind of operator."""
    half = (_MAX_NAME - 3) // 2
    line = " ".join(name.split())
    return line if len(line) <= _MAX_NAME else f"{line[:half]}...{line[-half:]}"


def _or_nan(value: float | None) -> float:
    return value if value is not None and math.isfinite(value) else math.nan

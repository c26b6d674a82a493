"""What a fit found as pictures, all PNG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from edgetune.core.figures import new_figure, png
from edgetune.heads.calibration import Calibration, ReliabilityBin
from edgetune.heads.evaluate import Metrics
from edgetune.heads.history import EpochPoint, PathPoint
from edgetune.heads.report_words import short

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_TICKS = 30
_MAX_NAME = 22
_MOST_CELLS = 200
_LEAST_DOT, _MOST_DOT = 0.7, 12.0  # square points
_LEAST_MARK, _MOST_MARK = 3.0, 13.0  # points across, for the bin with the fewest and the most images
_MARKED_EPOCHS = 40
_CURVES_SIZE = (6.8, 3.7)


def confusion_png(metrics: Metrics) -> bytes:
    """Rows are true classes, columns called ones: cells shaded by the share of the row, or with very many classes dots
    of that size, whose number the images bound.
    """
    names = list(metrics.per_class)
    figure = new_figure(min(10.0, 3.3 + 0.4 * len(names)), min(9.2, 3.0 + 0.4 * len(names)))
    axes = figure.subplots()
    if len(names) > _MOST_CELLS:
        _draw_dots(axes, metrics)
    else:
        _draw_cells(axes, metrics)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true class")
    axes.set_title(f"validation: {metrics.top1_accuracy:.2%} of {metrics.images:,} images", fontsize=11)
    return png(figure)


def _draw_dots(axes: Axes, metrics: Metrics) -> None:
    rows, columns, images = np.array(metrics.confusion).T
    there = np.array([each.images for each in metrics.per_class.values()])
    sizes = np.maximum(_MOST_DOT * images / there[rows], _LEAST_DOT)
    for group, colour in ((rows == columns, "tab:blue"), (rows != columns, "tab:orange")):
        axes.scatter(columns[group], rows[group], s=sizes[group], color=colour, linewidths=0)
    axes.set_xlim(-0.5, len(there) - 0.5)
    axes.set_ylim(len(there) - 0.5, -0.5)
    axes.set_aspect("equal")


def _draw_cells(axes: Axes, metrics: Metrics) -> None:
    names = list(metrics.per_class)
    counts = np.zeros((len(names), len(names)), dtype=np.int64)
    for true, called, images in metrics.confusion:
        counts[true, called] = images
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    if len(names) <= MAX_TICKS:
        _name_cells(axes, names, counts, shares)


def _name_cells(
    axes: Axes, names: Sequence[str], counts: npt.NDArray[np.int64], shares: npt.NDArray[np.float64]
) -> None:
    labels = [short(name, _MAX_NAME) for name in names]
    axes.set_xticks(range(len(names)), labels, rotation=45, ha="right", parse_math=False)
    axes.set_yticks(range(len(names)), labels, parse_math=False)
    for row, column in np.argwhere(counts):
        colour = "white" if shares[row, column] > 0.5 else "black"
        text = str(counts[row, column])
        axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=9 if len(names) < 15 else 7)


def path_png(path: Sequence[PathPoint], chosen: float) -> bytes:
    """Log loss and accuracy against the L2 strength, with the chosen one marked."""
    figure = new_figure(*_CURVES_SIZE)
    loss_axes = figure.subplots()
    accuracy_axes = loss_axes.twinx()
    l2 = [point.l2 for point in path]
    losses, accuracies = [point.log_loss for point in path], [point.accuracy for point in path]
    lines = loss_axes.plot(l2, losses, "o-", color="tab:blue", markersize=4, label="log loss")
    lines += accuracy_axes.plot(l2, accuracies, "s--", color="tab:orange", markersize=4, label="accuracy")
    lines.append(loss_axes.axvline(chosen, color="grey", linestyle=":", label="chosen"))
    loss_axes.set_xscale("log")
    loss_axes.minorticks_off()
    loss_axes.set_xlabel("L2 strength")
    _name_axes(loss_axes, accuracy_axes)
    figure.legend(handles=lines, loc="outside upper right", ncols=3, frameon=False)
    return png(figure)


def learning_png(epochs: Sequence[EpochPoint]) -> bytes:
    """Losses, and accuracy where images were held out, against the epoch."""
    figure = new_figure(*_CURVES_SIZE)
    loss_axes = figure.subplots()
    accuracy_axes = loss_axes.twinx()
    numbers = [point.epoch for point in epochs]
    mark = "o" if len(numbers) < _MARKED_EPOCHS else ""
    lines = []
    for axes, style, colour, label, values in (
        (loss_axes, "-", "grey", "train log loss", [point.train_loss for point in epochs]),
        (loss_axes, "-", "tab:blue", "held-out log loss", [point.held_out_loss for point in epochs]),
        (accuracy_axes, "--", "tab:orange", "held-out accuracy", [point.held_out_accuracy for point in epochs]),
    ):
        known = [math.nan if value is None else value for value in values]
        if not all(math.isnan(value) for value in known):
            lines += axes.plot(numbers, known, mark + style, color=colour, markersize=3, label=label)
    _name_axes(loss_axes, accuracy_axes)
    if len(lines) < 3:
        accuracy_axes.set_axis_off()
    loss_axes.set_xlabel("epoch")
    loss_axes.locator_params(axis="x", integer=True)
    figure.legend(handles=lines, loc="outside upper right", ncols=3, frameon=False)
    return png(figure)


def _name_axes(loss_axes: Axes, accuracy_axes: Axes) -> None:
    loss_axes.set_ylabel("log loss, nats per image")
    accuracy_axes.set_ylabel("top-1 accuracy")


def reliability_png(calibration: Calibration, metrics: Metrics) -> bytes:
    """How often answers of a probability are right: of training images held out of the fit before and after the
    temperature, and of validation images. A larger mark has more images.
    """
    figure = new_figure(8.6, 4.1)
    held_out, validation = figure.subplots(1, 2, sharey=True)
    _diagram(held_out, calibration.bins_before, "tab:orange", f"before, ECE {calibration.ece_before:.3f}")
    _diagram(held_out, calibration.bins_after, "tab:blue", f"after, ECE {calibration.ece_after:.3f}")
    _diagram(validation, metrics.reliability, "tab:blue", f"ECE {metrics.expected_calibration_error:.3f}")
    held_out.set_title(f"{calibration.images:,} training images, held out", fontsize=11)
    validation.set_title(f"{metrics.images:,} validation images", fontsize=11)
    held_out.set_ylabel("share of right answers")
    for axes in (held_out, validation):
        axes.plot([0, 1], [0, 1], color="grey", linewidth=0.8, linestyle=":", zorder=1)
        axes.set_xlabel("probability of the called class")
        axes.set_xlim(0.0, 1.03)
        axes.set_ylim(-0.03, 1.06)
        axes.legend(loc="lower right", frameon=False, fontsize=9)
    return png(figure)


def _diagram(axes: Axes, bins: Sequence[ReliabilityBin], colour: str, label: str) -> None:
    filled = [each for each in bins if each.images]
    x, y = [each.confidence or 0.0 for each in filled], [each.accuracy or 0.0 for each in filled]
    axes.plot(x, y, color=colour, linewidth=0.8, alpha=0.4)
    most = max((each.images for each in filled), default=1)
    sizes = [(_LEAST_MARK + (_MOST_MARK - _LEAST_MARK) * math.sqrt(each.images / most)) ** 2 for each in filled]
    axes.scatter(x, y, s=sizes, color=colour, alpha=0.7, linewidths=0, zorder=3)
    axes.plot([], [], "o", color=colour, markersize=6, label=label)

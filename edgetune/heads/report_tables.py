"""The fit's figures as rows: CSV for programs, tables for the page."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from edgetune.heads.evaluate import ClassMetrics, Metrics

if TYPE_CHECKING:
    from edgetune.heads.fit import HeadFit
    from edgetune.heads.history import EpochPoint, PathPoint


def results_csv(fit: HeadFit) -> bytes:
    """One row an epoch for a head that was trained in epochs, else one an L2 strength."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerows(_epochs(fit.epochs) if fit.epochs else _path(fit.path))
    return stream.getvalue().encode()


def _path(path: Sequence[PathPoint]) -> list[list[str]]:
    head = ["l2", "cv_log_loss", "cv_top1_accuracy"]
    return [head, *([f"{each.l2:.6g}", f"{each.log_loss:.6f}", f"{each.accuracy:.6f}"] for each in path)]


def _epochs(epochs: Sequence[EpochPoint]) -> list[list[str]]:
    """Held-out figures are empty where none were taken."""
    head = ["epoch", "learning_rate", "train_log_loss", "held_out_log_loss", "held_out_top1_accuracy"]
    rows = [
        [
            str(each.epoch), f"{each.learning_rate:.6g}", f"{each.train_loss:.6f}", _optional(each.held_out_loss),
            _optional(each.held_out_accuracy),
        ]
        for each in epochs
    ]  # fmt: skip
    return [head, *rows]


def _optional(value: float | None) -> str:
    return "" if value is None else f"{value:.6f}"


def worst_classes(metrics: Metrics) -> list[tuple[str, ClassMetrics]]:
    """By F1, the worst first; classes that neither occur nor were called come last."""
    return sorted(metrics.per_class.items(), key=lambda item: (item[1].f1 is None, item[1].f1, -item[1].images))


def top_confusions(metrics: Metrics, limit: int) -> list[tuple[int, int, int]]:
    """`(true class, called class, images)` of the pairs with the most images; among equals those first
    whose class has the fewest images.
    """
    there = [each.images for each in metrics.per_class.values()]
    wrong = [pair for pair in metrics.confusion if pair[0] != pair[1]]
    return sorted(wrong, key=lambda pair: (-pair[2], there[pair[0]], pair))[:limit]

"""The fit's report: tables, plots and one self-contained page."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING

import numpy as np

from edgetune.core import html
from edgetune.core.figures import new_figure, png
from edgetune.core.run import Run
from edgetune.heads.evaluate import Metrics
from edgetune.heads.linear import PathPoint

if TYPE_CHECKING:
    pass

_MAX_TICKS = 30
_MAX_NAME = 28


def results_csv(path: tuple[PathPoint, ...]) -> bytes:
    """The regularisation path as CSV: one row an L2 strength."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["l2", "cv_log_loss", "cv_top1_accuracy"])
    writer.writerows([f"{point.l2:.6g}", f"{point.log_loss:.6f}", f"{point.accuracy:.6f}"] for point in path)
    return stream.getvalue().encode()


def confusion_png(metrics: Metrics) -> bytes:
    names = list(metrics.per_class)
    counts = np.zeros((len(names), len(names)), dtype=np.int64)
    for true, called, images in metrics.confusion:
        counts[true, called] = images
    figure = new_figure(min(12.0, 3.5 + 0.4 * len(names)), min(11.0, 3.0 + 0.4 * len(names)))
    axes = figure.subplots()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if len(names) <= _MAX_TICKS:
        short = [name if len(name) <= _MAX_NAME else f"{name[: _MAX_NAME - 3]}..." for name in names]
        axes.set_xticks(range(len(names)), short, rotation=45, ha="right", parse_math=False)
        axes.set_yticks(range(len(names)), short, parse_math=False)
        for (row, column), count in np.ndenumerate(counts):
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(count), ha="center", va="center", color=colour, fontsize=9)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true class")
    axes.set_title(f"validation: {metrics.top1_accuracy:.2%} of {metrics.images} images")
    return png(figure)


def path_png(path: tuple[PathPoint, ...], chosen: float) -> bytes:
    figure = new_figure(6.4, 3.6)
    loss_axes = figure.subplots()
    accuracy_axes = loss_axes.twinx()
    l2 = [point.l2 for point in path]
    lines = loss_axes.plot(l2, [point.log_loss for point in path], "o-", color="tab:blue", label="log loss")
    lines += accuracy_axes.plot(l2, [point.accuracy for point in path], "s--", color="tab:orange", label="accuracy")
    lines.append(loss_axes.axvline(chosen, color="grey", linestyle=":", label="chosen"))
    loss_axes.set_xscale("log")
    loss_axes.set_xlabel("L2 strength")
    loss_axes.set_ylabel("log loss, nats per image")
    accuracy_axes.set_ylabel("top-1 accuracy")
    loss_axes.set_title("cross-validation inside the training set")
    loss_axes.legend(handles=lines, loc="center left")
    return png(figure)


def report_html(run: Run, metrics: Metrics, pictures: dict[str, bytes]) -> bytes:
    low, high = metrics.top1_accuracy_ci95
    lead = (
        f"{run.backbone.name}, {len(run.classes)} classes: {metrics.top1_accuracy:.2%} top-1 "
        f"(95 % interval {low:.1%} to {high:.1%}) on {metrics.images} validation images"
    )
    rows = [
        (name, values.images, _share(values.precision), _share(values.recall), _share(values.f1))
        for name, values in metrics.per_class.items()
    ]
    body = [html.heading("Classes"), html.table(("class", "images", "precision", "recall", "F1"), rows)]
    body += [html.heading(title) + html.picture(png, title) for title, png in pictures.items()]
    body += [html.heading("Backbone"), html.paragraph(_proof_sentence(run))]
    if run.split.skipped:
        skipped = [(file.path, file.reason) for file in run.split.skipped]
        body += [html.heading("Skipped files"), html.table(("file", "reason"), skipped)]
    return html.page("Head fit", lead, body)


def _proof_sentence(run: Run) -> str:
    backbone = run.backbone
    return (
        f"After the fit all {backbone.unchanged_tensors} tensors of the backbone, {backbone.unchanged_buffers} of them "
        f"buffers such as BN statistics, were bit-identical to the weights file "
        f"(sha256 {backbone.weights_sha256[:16]}...)."
    )


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"

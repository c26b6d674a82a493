"""The page of a bundle that shows what quantizing did, layer by layer."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

from edgetune.core import html
from edgetune.quantize.calibrate import CalibrationRecord, LayerRecord, TargetRecord
from edgetune.quantize.plots import ranges_png, sqnr_png, trials_png

_MOST_SENSITIVE = 15
_WORST_LAYERS = 10
_LONG_TABLE = 20


def quantization_html(
    record: CalibrationRecord, columns: Sequence[str], rows: Sequence[Sequence[str]], classes: Sequence[str]
) -> bytes:
    """`rows` are the judged artifacts, with the names of their `columns`."""
    lead = (
        f"{_count(len(record.images), 'training image')} calibrated "
        f"{', '.join(target.target for target in record.targets) or 'no target'}. "
        f"{_count(record.equalized_groups, 'group')} of layers had channels equalised. Method: {record.method}."
    )
    body = [html.heading("Against the PyTorch model"), html.table(columns, rows)] if rows else []
    for target in record.targets:
        body += _target(target, len(record.images))
    return html.page("Quantization", lead, [*body, *_images(record, classes)])


def _target(target: TargetRecord, images: int) -> list[str]:
    name = target.target
    lead = (
        f"{_count(images, 'image')} calibrated {_count(target.integer_layers, 'integer layer')}; "
        f"{_count(len(target.kept_float), 'layer')} stayed in float. "
        f"Weights are rounded {_rounding(target.rounding)}. The head is {target.head}."
    )
    body = [html.heading(name), html.paragraph(lead)]
    body += _drops(target)
    if target.kept_float:
        body += [html.heading(f"{name}: layers kept in float"), _long(("layer", "reason"), target.kept_float.items())]
    return body + _search(target) + _layers(target) + _ranges(target)


def _drops(target: TargetRecord) -> list[str]:
    drops = target.drops
    kept, refitted = ("no", "yes") if drops.refit_wins else ("yes", "no")
    rows = [
        ("FP32 head", _percent(drops.float_head), kept),
        ("head fitted again on INT8 features", _percent(drops.refitted_head), refitted),
    ]
    if target.drops.images:
        note = f"Measured on {_count(target.drops.images, 'held-out training image')}, paired with FP32."
    else:
        note = "Not measured: too few training images to hold some out."
    if drops.refitted_head is not None:
        note += " Another head is only taken where it is better by more than chance would be."
    columns = ("head", "accuracy lost", "in the bundle")
    return [html.heading(f"{target.target}: accuracy lost"), html.table(columns, rows), html.paragraph(note)]


def _search(target: TargetRecord) -> list[str]:
    """Empty where the first attempt kept to the accuracy budget."""
    body = []
    if len(target.trials) > 1:
        body += [html.heading(f"{target.target}: search for layers to keep in float")]
        body += _picture(trials_png(target.trials), "Accuracy lost by the number of layers kept in float")
        rows = [(trial.kept_float, _percent(trial.drop)) for trial in target.trials]
        body.append(html.table(("layers kept in float", "accuracy lost"), rows))
    if target.sensitivity:
        top = sorted(target.sensitivity, key=lambda each: each.noise_share, reverse=True)[:_MOST_SENSITIVE]
        shares = [(each.layer, _percent(each.noise_share, 1), _percent(each.work_share, 1)) for each in top]
        note = "What each layer, alone in float, takes off the error of the output, and its share of the work."
        body += [html.heading(f"{target.target}: most sensitive layers"), html.paragraph(note)]
        body.append(html.table(("layer", "error taken off", "multiplications"), shares))
    return body


def _layers(target: TargetRecord) -> list[str]:
    title = html.heading(f"{target.target}: error by layer")
    if not target.layers:
        return [title, html.paragraph("No layer computes with integers.")]
    note = (
        "SQNR is the power of the signal over that of the error. Outputs are compared with the float network's, the "
        "errors of all earlier layers included; - is for layers that lose nothing."
    )
    plot = _picture(sqnr_png(target.layers), "SQNR of outputs and weights by layer, in graph order")
    numbered = sorted(enumerate(target.layers, start=1), key=lambda item: _or_infinity(item[1]))
    rows = [
        (number, layer.layer, _decibel(layer.sqnr_db), _decibel(layer.weight_sqnr_db))
        for number, layer in numbered[:_WORST_LAYERS]
    ]
    table = html.table(("no.", "layer", "SQNR dB", "weight SQNR dB"), rows)
    return [title, html.paragraph(note), *plot, html.heading(f"{target.target}: layers with the lowest SQNR"), table]


def _ranges(target: TargetRecord) -> list[str]:
    title = html.heading(f"{target.target}: ranges of tensors")
    if not target.ranges:
        return [title, html.paragraph("No tensor has a range of its own.")]
    plot = _picture(ranges_png(list(target.ranges.values())), "Range by tensor, in graph order")
    rows = [
        (number, name, _number(choice.low), _number(choice.high), choice.method, _decibel(choice.sqnr_db))
        for number, (name, choice) in enumerate(target.ranges.items(), start=1)
    ]
    return [title, *plot, _long(("no.", "tensor", "low", "high", "method", "SQNR dB"), rows)]


def _images(record: CalibrationRecord, classes: Sequence[str]) -> list[str]:
    counts = Counter(file.label for file in record.images)
    rows = [(name, counts[label]) for label, name in enumerate(classes)]
    body = [html.heading("Calibration images"), _long(("class", "images"), rows)]
    if record.skipped:
        body.append(html.heading("Skipped calibration images"))
        body.append(_long(("file", "reason"), [(file.path, file.reason) for file in record.skipped]))
    return body


def _long(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table that is folded away where it has many rows."""
    listed = list(rows)
    table = html.table(columns, listed)
    if len(listed) <= _LONG_TABLE:
        return table
    return f"<details><summary>All {len(listed)} rows</summary>{table}</details>"


def _picture(png: bytes | None, description: str) -> list[str]:
    return [] if png is None else [html.picture(png, description)]


def _rounding(kind: str) -> str:
    return "so that they make up for each other's errors" if kind == "compensated" else kind


def _count(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _or_infinity(layer: LayerRecord) -> float:
    return math.inf if layer.sqnr_db is None or math.isnan(layer.sqnr_db) else layer.sqnr_db


def _percent(share: float | None, digits: int = 2) -> str:
    """Without the minus sign of a negative zero."""
    if share is None or not math.isfinite(share):
        return "-"
    return f"{round(share, digits + 2) + 0.0:.{digits}%}"


def _decibel(value: float | None) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:.1f}"


def _number(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else "-"

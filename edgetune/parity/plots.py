"""What parity found as pictures; every function gives a PNG, or None where there is nothing to draw."""

from __future__ import annotations

import importlib
import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image

from edgetune.core.figures import new_figure, png
from edgetune.parity.records import Localisation, LogitsPair

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SCATTER_POINTS = 4000
_WORST_POINTS = 200
_LABEL_POINTS = 1000
_BINS = 81
_WIDTH = 9.0
_HALF = (5.2, 3.9)
_COLOURS = 64
_MAX_NAME = 28
_LOWEST_DB = -20.0  # below this noise covers the signal tenfold, and a line that went on would flatten the others
_Values = npt.NDArray[np.float32]


def can_draw() -> bool:
    """Whether matplotlib is there and works; devices do without."""
    try:
        importlib.import_module("matplotlib.figure")
    except ImportError:
        return False
    return True


def blocks_png(localisation: Localisation) -> bytes | None:
    """Blocks without any error have no SQNR, and leave gaps in the lines."""
    blocks = localisation.blocks
    lines = {
        "all errors so far": [_plotted(block.cumulative_db) for block in blocks],
        "its own error": [_plotted(block.injected_db) for block in blocks],
        "expected": [_plotted(block.expected_db) for block in blocks],
    }
    known = [value for values in lines.values() for value in values if math.isfinite(value)]
    if not known:
        return None
    figure = new_figure(_WIDTH, 3.6)
    axes = figure.subplots()
    numbers = range(1, len(blocks) + 1)
    styles = {"all errors so far": "o-", "its own error": "s--", "expected": ":"}
    for (label, values), colour in zip(lines.items(), ("tab:blue", "tab:orange", "grey"), strict=True):
        if any(math.isfinite(value) for value in values):
            axes.plot(numbers, values, styles[label], color=colour, markersize=4, linewidth=1.2, label=label)
    room = max(max(known) - min(known), 5.0)
    axes.set_ylim(min(known) - 0.12 * room, max(known) + 0.22 * room)
    axes.set_xlim(0.0, len(blocks) + 1.0)
    axes.locator_params(axis="x", integer=True)
    _mark(axes, [block.block for block in blocks], localisation.culprit)
    axes.set_xlabel("block number, in graph order")
    axes.set_ylabel("SQNR, dB (higher is better)")
    figure.legend(loc="outside upper right", ncols=3, frameon=False)
    return _small(png(figure))


def _mark(axes: Axes, names: Sequence[str], culprit: str) -> None:
    if culprit not in names:
        return
    place = names.index(culprit) + 1
    axes.axvline(place, color="tab:red", linewidth=1.2, zorder=0.5)
    is_left = place <= len(names) / 2
    axes.annotate(
        f"{_short(culprit)}, no. {place}", (place, 0.97), (6 if is_left else -6, 0), xycoords=("data", "axes fraction"),
        textcoords="offset points", ha="left" if is_left else "right", va="top", color="tab:red", fontsize=9,
        parse_math=False,
    )  # fmt: skip


def histogram_png(pair: LogitsPair) -> bytes | None:
    """The differences of all logits, on a scale that shows single ones."""
    difference = _difference(pair)
    if difference is None:
        return None
    reach = float(np.abs(difference).max())
    if reach == 0.0:
        return None
    counts, edges = np.histogram(difference, bins=_BINS, range=(-reach, reach))
    figure = new_figure(*_HALF)
    axes = figure.subplots()
    axes.stairs(counts, edges, fill=True, color="tab:blue")
    axes.set_yscale("log")
    axes.set_ylim(0.5, 2.0 * float(counts.max()))
    axes.set_xlabel("candidate minus reference")
    axes.set_ylabel("logits")
    axes.set_title("error of the logits", fontsize=11)
    return _small(png(figure))


def scatter_png(pair: LogitsPair) -> bytes | None:
    """A fixed choice of logits, the worst of them always among it; those of the reference's labels stand out."""
    difference = _difference(pair)
    if difference is None:
        return None
    rows, columns = _chosen(difference, pair.reference.argmax(axis=1))
    reference, candidate = pair.reference[rows, columns], pair.candidate[rows, columns]
    named = pair.reference.argmax(axis=1)[rows] == columns
    figure = new_figure(*_HALF)
    axes = figure.subplots()
    for group, colour, label in ((~named, "tab:blue", "other logits"), (named, "tab:orange", "the label's logit")):
        axes.plot(
            reference[group], candidate[group], "o", color=colour, markersize=2.5, alpha=0.5, markeredgewidth=0,
            label=label,
        )  # fmt: skip
    ends = [float(min(reference.min(), candidate.min())), float(max(reference.max(), candidate.max()))]
    axes.plot(ends, ends, color="grey", linewidth=0.8, zorder=1.5)
    axes.set_xlabel("reference")
    axes.set_ylabel("candidate")
    axes.set_title("logits", fontsize=11)
    axes.legend(loc="upper left", frameon=False, fontsize=9, markerscale=2.0)
    return _small(png(figure))


def _difference(pair: LogitsPair) -> _Values | None:
    """None where there is no logit, or one that is no number."""
    if pair.reference.size == 0 or pair.reference.shape != pair.candidate.shape:
        return None
    with np.errstate(invalid="ignore", over="ignore"):
        difference: _Values = pair.candidate - pair.reference
    return difference if np.isfinite(difference).all() else None


def _chosen(difference: _Values, labels: npt.NDArray[np.intp]) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Rows and columns of at most `SCATTER_POINTS` logits: the worst of the worst images, and of the labels' logits
    and of all some that are drawn at random, always the same.
    """
    count, classes = difference.shape
    if difference.size <= SCATTER_POINTS:
        flat = np.arange(difference.size)
    else:
        random = np.random.default_rng(0)
        starts = np.arange(count) * classes
        peaks = starts + np.abs(difference).argmax(axis=1)
        worst = peaks[np.argsort(-np.abs(difference.ravel()[peaks]), kind="stable")[:_WORST_POINTS]]
        named = random.permutation(starts + labels)[:_LABEL_POINTS]
        others = random.choice(difference.size, SCATTER_POINTS - len(worst) - len(named), replace=False)
        flat = np.unique(np.concatenate([worst, named, others]))
    rows, columns = np.divmod(flat, classes)
    return rows, columns


def _small(png_: bytes) -> bytes:
    """The same plot in few colours, in a third of the bytes."""
    stream = io.BytesIO()
    with Image.open(io.BytesIO(png_)) as image:
        few = image.convert("RGB").quantize(_COLOURS, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    few.save(stream, "PNG", optimize=True)
    return stream.getvalue()


def _plotted(value: float | None) -> float:
    return math.nan if value is None or math.isnan(value) else max(value, _LOWEST_DB)


def _short(name: str) -> str:
    """Both ends of a name: the front is often shared, and the end often only the kind of operator."""
    half = (_MAX_NAME - 3) // 2
    line = " ".join(name.split())
    return line if len(line) <= _MAX_NAME else f"{line[:half]}...{line[-half:]}"

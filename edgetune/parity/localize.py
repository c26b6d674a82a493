"""Which block of a network breaks a candidate: two curves over the blocks, streamed, and what stands out in them.

The cumulative curve runs the candidate from the image, errors of earlier blocks included; the injected one gives each
block of the candidate the reference's own tensors, so that it shows this block's errors alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from edgetune.core.progress import Progress, no_progress
from edgetune.core.tensors import Array
from edgetune.parity.moments import Moments, View
from edgetune.parity.records import BlockError
from edgetune.runners.base import Runner, infer_parts

Batches = Callable[[], Iterable[Array]]

# FP32 blocks are 120 to 150 dB from each other by rounding, float16 blocks 55 to 75 dB (measured on Lite0 and ResNet).
_GATES_DB = {"fp32": 100.0, "fp16": 40.0}
_BELOW_FLOOR_DB = 20.0  # under the median block: a network whose every block is noisy has no culprit
_INT8_BELOW_DB = 6.0  # under what calibration saw
_INT8_OUTLIER_DB = 12.0  # under the median, where calibration recorded nothing
_ACTIVE = 0.01  # a smooth activation leaves next to no value as it is
_WORST = 5
_NO_ERROR_DB = 400.0


@dataclass(frozen=True)
class Point:
    """A block as the curves know it, by the name of its tensor.

    What calibration recorded: `product_db` of `product`, the layer's output before its activation, with all errors
    before it, and `range_db` of the integers that the tensor becomes; None where nothing was.
    """

    block: str
    module: str
    tensor: str
    product: str = ""
    product_db: float | None = None
    range_db: float | None = None


@dataclass
class Curve:
    """The figures of one point; `repeats` says whether the block gave the same twice."""

    point: Point
    cumulative: Moments = field(default_factory=Moments)
    injected: Moments = field(default_factory=Moments)
    repeats: bool = True
    product_signal: float = 0.0
    _active: int = 0
    _count: int = 0

    def see_product(self, product: Array, tensor: Array) -> None:
        """Adds the reference's values before and behind the activation: which pass it unchanged."""
        if product.shape == tensor.shape:
            self.product_signal += float(np.square(product, dtype=np.float64).sum())
            self._active += int(np.count_nonzero(product == tensor))
            self._count += tensor.size

    @property
    def expected_db(self) -> float | None:
        """What calibration leads to expect of the tensor: of the recorded noise an activation lets through what falls
        on values that it passes, and rounding to integers adds its own.
        """
        if self.point.product_db is None or self.injected.signal <= 0.0:
            return None
        share = 10.0 ** (-self.point.product_db / 10.0)
        active = self._active / self._count if self._count else 1.0
        if self._count and active > _ACTIVE:
            share *= active * self.product_signal / self.injected.signal
        if self.point.range_db is not None:
            share += 10.0 ** (-self.point.range_db / 10.0)
        return -10.0 * math.log10(share) if share > 0.0 else None

    def record(self) -> BlockError:
        finite = self.cumulative.finite
        return BlockError(
            block=self.point.block,
            module=self.point.module,
            tensor=self.point.tensor,
            cumulative_db=_kept(self.cumulative.sqnr_db),
            injected_db=_kept(self.injected.sqnr_db),
            expected_db=self.expected_db,
            max_abs_diff=self.cumulative.max_abs_diff if finite else None,
        )


@dataclass(frozen=True)
class Streams:
    """Open runners: `reference` and `candidate` take images, and give the tensors of all points by name; `pieces`
    takes `X<suffix>` for each tensor X in place of the candidate's own, and the images.
    """

    reference: Runner
    candidate: Runner
    pieces: Runner
    suffix: str
    views: Mapping[str, View]

    def run_reference(self, images: Array) -> dict[str, Array]:
        return _run(self.reference, images)

    def run_candidate(self, images: Array) -> dict[str, Array]:
        """In the reference's units."""
        return self._in_reference_units(_run(self.candidate, images))

    def run_pieces(self, images: Array, given: Mapping[str, Array]) -> dict[str, Array]:
        feed = {}
        for spec in self.pieces.input_specs:
            if not spec.name.endswith(self.suffix):
                feed[spec.name] = images
                continue
            tensor = spec.name.removesuffix(self.suffix)
            view = self.views.get(tensor)
            values = given[tensor].astype(np.float32, copy=False)
            feed[spec.name] = view.to_candidate(values) if view is not None else values
        return self._in_reference_units(self.pieces.infer(feed))

    def _in_reference_units(self, tensors: dict[str, Array]) -> dict[str, Array]:
        return {
            name: self.views[name].to_reference(values) if name in self.views else values
            for name, values in tensors.items()
        }


@dataclass(frozen=True)
class Culprit:
    """The index of the block that broke, None where none stands out, and the sentence that says why."""

    index: int | None
    reason: str


def measure(
    points: Iterable[Point], streams: Streams, batches: Batches, *, progress: Progress = no_progress
) -> list[Curve]:
    """The two curves over all images; in memory are one batch's tensors and the sums.

    Tensors that the reference does not give, or in another shape, have no curve.
    """
    curves = {point.tensor: Curve(point) for point in points}
    known: set[str] = set()
    done, total = 0, sum(len(images) for images in batches())
    for images in batches():
        reference = streams.run_reference(images)
        candidate = streams.run_candidate(images)
        pieces = streams.run_pieces(images, reference)
        if done == 0:
            known = {
                name for name in curves
                if name in reference and reference[name].shape == candidate[name].shape == pieces[name].shape
            }  # fmt: skip
            again = streams.run_pieces(images, reference)
            for name in known:
                curves[name].repeats = bool(np.array_equal(pieces[name], again[name], equal_nan=True))
        for name in known:
            curves[name].cumulative.add(reference[name], candidate[name])
            curves[name].injected.add(reference[name], pieces[name])
            product = curves[name].point.product
            if product in reference and product != name:
                curves[name].see_product(reference[product], reference[name])
        done += len(images)
        progress("blocks", done, total)
    return [curve for name, curve in curves.items() if name in known]


def find_culprit(curves: list[Curve], precision: str) -> Culprit:
    """The first block that is to blame; see the module for the two curves."""
    for index, curve in enumerate(curves):
        if curve.injected.reference_finite and not curve.injected.candidate_finite:
            return Culprit(index, "it makes NaN or infinity of finite numbers")
    for index, curve in enumerate(curves):
        if not curve.repeats:
            return Culprit(index, "it gives other numbers for the same input when it runs again")
    found = _worst_int8(curves) if precision == "int8" else _first_below_gate(curves, precision)
    return found if found is not None else Culprit(None, _adding_up(curves))


def _first_below_gate(curves: list[Curve], precision: str) -> Culprit | None:
    floor = _median([curve.injected.sqnr_db for curve in curves])
    gate = min(_GATES_DB[precision], floor - _BELOW_FLOOR_DB)
    for index, curve in enumerate(curves):
        found = _number(curve.injected.sqnr_db)
        if found < gate:
            return Culprit(
                index,
                f"given the reference's own input its output has an SQNR of {_say(found)}, where at least "
                f"{gate:.0f} dB are expected and the median block has {_say(floor)}",
            )
    return None


def _worst_int8(curves: list[Curve]) -> Culprit | None:
    usual = _median([curve.injected.sqnr_db for curve in curves]) - _INT8_OUTLIER_DB
    for index, curve in enumerate(curves):
        injected, cumulative = _number(curve.injected.sqnr_db), _number(curve.cumulative.sqnr_db)
        expected = curve.expected_db
        limit = usual if expected is None else expected - _INT8_BELOW_DB
        is_low = expected is None or cumulative <= limit
        if injected < limit and is_low:
            told = f"given the reference's own input its output has an SQNR of {_say(injected)}, where at least "
            told += f"{limit:.0f} dB are expected"
            if expected is not None:
                told += f"; with all errors before it {_say(cumulative)}, at calibration {expected:.1f} dB"
            return Culprit(index, told)
    return None


def ranking(curves: list[Curve]) -> list[Curve]:
    """By the relative noise that each block adds itself, most first."""
    return sorted(curves, key=lambda curve: _number(curve.injected.sqnr_db))


def _adding_up(curves: list[Curve]) -> str:
    noisiest = ranking(curves)[:_WORST]
    worst = ", ".join(f"{curve.point.block} ({_say(_number(curve.injected.sqnr_db))})" for curve in noisiest)
    last = _say(_number(curves[-1].cumulative.sqnr_db)) if curves else "-"
    return (
        f"no single block stands out: errors add up along the network to {last} at its end. "
        f"The blocks that add most, with the SQNR of their own error: {worst}"
    )


def bisect(count: int, is_wrong: Callable[[int], bool]) -> int | None:
    """The first of `count` prefixes that is wrong, where all behind it are wrong too: log2(count) + 1 tries at most.

    None where the last, the whole, is right.
    """
    if count == 0 or not is_wrong(count - 1):
        return None
    low, high = 0, count - 1
    while low < high:
        middle = (low + high) // 2
        if is_wrong(middle):
            high = middle
        else:
            low = middle + 1
    return high


def gate_db(precision: str) -> float:
    """How far, in dB, a prefix of a candidate may be from the reference's: errors before it included."""
    return {"fp32": 80.0, "tf32": 40.0, "fp16": 35.0, "int8": 20.0}[precision]


def _run(runner: Runner, images: Array) -> dict[str, Array]:
    (spec,) = runner.input_specs
    return infer_parts(runner, {spec.name: images})


def _median(values: Iterable[float | None]) -> float:
    found = np.array([_number(value) for value in values], np.float64)
    middle: npt.NDArray[np.float64] = np.minimum(found, _NO_ERROR_DB)
    return float(np.median(middle)) if len(middle) else math.inf


def _number(value: float | None) -> float:
    """No error at all counts as infinitely good."""
    return math.inf if value is None else value


def _say(value: float) -> str:
    if value >= _NO_ERROR_DB:
        return "no error"
    return "no finite distance" if value == -math.inf else f"{value:.1f} dB"


def _kept(value: float | None) -> float | None:
    return value if value is None or math.isfinite(value) else -1000.0

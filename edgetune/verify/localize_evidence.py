"""A closer look at one block: which of its tensors is wrong first, and in what way."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field

import numpy as np

from edgetune.core.tensors import Array
from edgetune.graph.blocks import Block
from edgetune.graph.constants import bad_constants, compare_constants, random_nodes
from edgetune.graph.severing import GIVEN, severed
from edgetune.parity.fault_kind import Evidence, Saturation
from edgetune.parity.localize import Curve, Streams
from edgetune.parity.moments import ChannelMoments, CrossMoments, Moments
from edgetune.runners.ort_runner import OrtRunner
from edgetune.verify.localize_graphs import Sides

_LEAST_DB = {"fp32": 90.0, "fp16": 45.0, "int8": 30.0}
_NEAR_DB = 6.0
_MOST_CHANNELS = 512  # a table of channels by channels is kept
_EXAMINED_IMAGES = 32


@dataclass
class _Look:
    """Sums of one tensor of the block."""

    moments: Moments = field(default_factory=Moments)
    channels: ChannelMoments = field(default_factory=ChannelMoments)
    cross: CrossMoments = field(default_factory=CrossMoments)
    transposed: Moments = field(default_factory=Moments)
    has_cross: bool = False
    is_square: bool = False

    def add(self, expected: Array, found: Array) -> None:
        self.moments.add(expected, found)
        if not self.moments.finite:
            return
        self.channels.add(expected, found)
        if expected.ndim in (2, 4) and 1 < expected.shape[1] <= _MOST_CHANNELS:
            self.cross.add(expected, found)
            self.has_cross = True
        if expected.ndim == 4 and expected.shape[2] == expected.shape[3] > 1:
            self.transposed.add(expected.swapaxes(2, 3), found)
            self.is_square = True


@dataclass
class WorstImage:
    """The reference's inputs of the block and its output, for the image whose output is furthest off; one image."""

    noise: float = -1.0
    feed: dict[str, Array] = field(default_factory=dict)
    output: Array = field(default_factory=lambda: np.zeros(0, np.float32))


@dataclass
class _Range:
    """Counts of one quantized tensor against its range, on the reference's values."""

    beyond: int = 0
    count: int = 0
    reach: float = 0.0


class Examination:
    """Runs the block's tensors one by one on right inputs."""

    def __init__(self, sides: Sides, block: Block, curve: Curve, precision: str) -> None:
        self._sides = sides
        self._block = block
        self._curve = curve
        self._precision = precision
        self._given = [name for name in block.inputs if name in sides.cuts]
        # Normalisation is one thing: its steps are not looked at one by one.
        self._is_input = not block.has_product and not self._given
        self._inner = (block.tensor,) if self._is_input else sides.inner_tensors(block)
        self._looks = {name: _Look() for name in self._inner}
        self._pixels = ChannelMoments(), ChannelMoments()
        self._has_pixels = False
        self._ranges: dict[str, _Range] = {}
        self.worst = WorstImage()

    def evidence(self, record: tuple[tuple[str, str], ...]) -> Evidence:
        self._run()
        tensor = self._first_wrong()
        look = self._looks[tensor]
        finite = look.moments.finite
        return Evidence(
            precision=self._precision,
            tensor=tensor,
            moments=look.moments,
            fit=look.channels.fit() if finite else None,
            permutation=look.cross.permutation() if finite and look.has_cross else None,
            transposed_db=_decibel(look.transposed) if finite and look.is_square else None,
            pixels=(self._pixels[0].fit(), self._pixels[1].fit()) if self._has_pixels and finite else None,
            weights=self._weights(),
            record=record,
            repeats=self._curve.repeats and not self._is_random(),
            saturation=self._saturation(),
            unfused_db=self._unfused_db(),
            wants_db=_LEAST_DB[self._precision],
        )

    def _run(self) -> None:
        cuts = [*self._given, *self._inner]
        with contextlib.ExitStack() as stack:
            reference = stack.enter_context(self._sides.open_reference(cuts))
            model = severed(self._sides.computed, cuts, self._inner)
            pieces = stack.enter_context(OrtRunner(model.SerializeToString()))
            streams = Streams(reference, pieces, pieces, GIVEN, self._sides.views)
            model = severed(self._sides.computed, self._sides.cuts, [self._block.tensor])
            whole = stack.enter_context(OrtRunner(model.SerializeToString()))
            blocks = Streams(reference, whole, whole, GIVEN, self._sides.views)
            done = 0
            for images in self._sides.batches():
                expected = streams.run_reference(images)
                found = streams.run_pieces(images, expected)
                for name, look in self._looks.items():
                    look.add(expected[name], found[name])
                made = blocks.run_pieces(images, expected)[self._block.tensor]
                self._see_pixels(images, expected[self._block.tensor], made)
                self._see_ranges(expected)
                self._see_worst(images, expected, made)
                done += len(images)
                if done >= _EXAMINED_IMAGES:
                    break

    def _see_pixels(self, images: Array, expected: Array, made: Array) -> None:
        if not self._is_input or images.ndim != 4 or expected.ndim != 4 or not np.isfinite(made).all():
            return
        planes = images.transpose(0, 3, 1, 2)
        if planes.shape == expected.shape:
            self._pixels[0].add(planes, expected)
            self._pixels[1].add(planes, made)
            self._has_pixels = True

    def _see_ranges(self, expected: dict[str, Array]) -> None:
        for name in dict.fromkeys([*self._given, self._block.tensor]):
            known = self._sides.graph.represented(name) if self._precision == "int8" else None
            if known is None:
                continue
            step, low, high = known
            view = self._sides.views.get(name)
            values = view.to_candidate(expected[name]) if view is not None else expected[name]
            seen = self._ranges.setdefault(name, _Range())
            seen.beyond += int(np.count_nonzero((values < low - step) | (values > high + step)))
            seen.count += values.size
            seen.reach = max(seen.reach, _reach(values, low, high))

    def _see_worst(self, images: Array, expected: dict[str, Array], made: Array) -> None:
        tensor = self._block.tensor
        difference = made.astype(np.float64) - expected[tensor]
        noise = np.square(difference).reshape(len(images), -1).sum(axis=1)
        noise = np.where(np.isfinite(noise), noise, np.inf)
        row = int(noise.argmax())
        if noise[row] <= self.worst.noise:
            return
        feed = {f"{name}{GIVEN}": expected[name][row : row + 1].astype(np.float32) for name in self._given}
        feed |= {name: images[row : row + 1] for name in self._block.inputs if name not in self._given}
        self.worst = WorstImage(float(noise[row]), feed, expected[tensor][row : row + 1])

    def _first_wrong(self) -> str:
        own = self._curve.injected.sqnr_db
        limit = min(_LEAST_DB[self._precision], (np.inf if own is None else own) + _NEAR_DB)
        for name, look in self._looks.items():
            if not look.moments.finite or _decibel(look.moments) < limit:
                return name
        return self._block.tensor

    def _weights(self) -> tuple[tuple[str, str], ...]:
        notes = bad_constants(self._sides.graph, self._block)
        if self._sides.reference is not None and not notes:
            scales = {name: view.scale for name, view in self._sides.views.items()}
            notes = compare_constants(
                self._sides.reference, self._sides.graph, self._block, self._precision, scales
            )  # fmt: skip
        return tuple((note.kind, note.sentence) for note in notes)

    def _is_random(self) -> bool:
        return any(node.name in self._block.nodes for node in random_nodes(self._sides.graph))

    def _saturation(self) -> tuple[Saturation, ...]:
        return tuple(
            Saturation(name, seen.beyond / max(seen.count, 1), 0.0, seen.reach) for name, seen in self._ranges.items()
        )

    def _unfused_db(self) -> float | None:
        """The whole block's SQNR without graph optimizations, on one batch."""
        sides, tensor = self._sides, self._block.tensor
        model = severed(sides.computed, sides.cuts, [tensor])
        moments = Moments()
        with (
            sides.open_reference([*self._given, tensor]) as reference,
            OrtRunner(model.SerializeToString(), optimise=False) as pieces,
        ):
            streams = Streams(reference, pieces, pieces, GIVEN, sides.views)
            images = next(iter(sides.batches()))
            expected = streams.run_reference(images)
            moments.add(expected[tensor], streams.run_pieces(images, expected)[tensor])
        return _decibel(moments)


def _decibel(moments: Moments) -> float:
    found = moments.sqnr_db
    return 400.0 if found is None else found


def _reach(values: Array, low: float, high: float) -> float:
    """The largest magnitude over that of the range, side by side."""
    sides = [float(values.max()) / high if high > 0 else 0.0, float(values.min()) / low if low < 0 else 0.0]
    return max(sides)

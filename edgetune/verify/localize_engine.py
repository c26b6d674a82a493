"""Localisation where kernels are fused, as in engines: an output from inside would change what is computed, so that
prefixes of the network are built, each a smaller network, and the first that is wrong is found by bisection.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edgetune.core.progress import Progress, no_progress
from edgetune.graph.blocks import Block, BlockGraph, articulation_points
from edgetune.graph.compose import read_model
from edgetune.graph.fp16_emulation import emulate_fp16
from edgetune.graph.severing import find_blocks, tapped
from edgetune.parity.fault_kind import OVERFLOW, UNKNOWN
from edgetune.parity.localize import Batches, bisect, gate_db
from edgetune.parity.moments import Moments
from edgetune.parity.records import BlockError, Localisation
from edgetune.runners.base import Runner, infer_parts
from edgetune.runners.ort_runner import OrtRunner

if TYPE_CHECKING:
    from edgetune.verify.localize import LocalizeJob

_BISECTED_IMAGES = 8


def localize_engine(job: LocalizeJob, batches: Batches, progress: Progress) -> Localisation:
    """What runs the file's bytes against the same file computed by the book on the CPU."""
    graph = BlockGraph(read_model(job.candidate))
    if job.open_runner is None:
        raise ValueError("there is nothing to open prefixes with.")
    exact = BlockGraph(emulate_fp16(graph.model)) if job.precision == "fp16" else graph
    cuts = [name for name in graph.resting_points() if name in set(exact.tensors())]
    with OrtRunner(tapped(exact, cuts).SerializeToString(), optimise=False) as reference:
        return bisect_prefixes(
            graph, cuts, job.open_runner, reference, batches, precision=job.precision, progress=progress
        )


def bisect_prefixes(
    graph: BlockGraph, cuts: Sequence[str], open_runner: Callable[[bytes], Runner], reference: Runner,
    batches: Batches, *, precision: str, progress: Progress = no_progress,
) -> Localisation:  # fmt: skip
    """The first of the prefixes from the image to a cut that is further from the reference than the precision allows.

    `reference` is open and gives all `cuts`. It takes log2 of their number of builds, and one for each branch of the
    segment that is found.
    """
    spine = articulation_points(graph, cuts) or tuple(cuts)
    expected_builds = len(spine).bit_length() + 1
    prefixes = _Prefixes(graph, open_runner, reference, batches, gate_db(precision), progress, expected_builds)
    index = bisect(len(spine), lambda number: prefixes.is_wrong(spine[number]))
    blocks = {block.tensor: block for block in find_blocks(graph, cuts)}
    if index is None:
        told = f"No prefix is wrong: the whole network gives what its file says; {prefixes.builds} builds."
        return Localisation("", "", "", told, "", "", prefixes.images, prefixes.records(blocks))
    first = cuts.index(spine[index - 1]) + 1 if index > 0 else 0
    inside = cuts[first : cuts.index(spine[index]) + 1]
    tensor = next(name for name in inside if prefixes.is_wrong(name))
    block, moments = blocks[tensor], prefixes.seen[tensor]
    return Localisation(
        culprit=block.name,
        module=block.module,
        kind=UNKNOWN if moments.candidate_finite else OVERFLOW,
        explanation=(
            f"The prefix up to {tensor!r} is the first that is wrong: its SQNR is {_say(moments)}, at least "
            f"{gate_db(precision):.0f} dB are expected; {prefixes.builds} builds."
        ),
        option=shlex.join(["--keep-float", block.name]) if block.has_product and precision in ("fp16", "int8") else "",
        repro="",
        images=prefixes.images,
        blocks=prefixes.records(blocks),
    )


@dataclass
class _Prefixes:
    """Builds prefixes on demand, each once."""

    graph: BlockGraph
    open_runner: Callable[[bytes], Runner]
    reference: Runner
    batches: Batches
    gate_db: float
    progress: Progress
    expected_builds: int
    seen: dict[str, Moments] = field(default_factory=dict)
    images: int = 0

    @property
    def builds(self) -> int:
        return len(self.seen)

    def is_wrong(self, tensor: str) -> bool:
        if tensor not in self.seen:
            self.seen[tensor] = self._measure(tensor)
            self.progress("prefixes", self.builds, max(self.builds + 1, self.expected_builds))
        moments = self.seen[tensor]
        return not moments.finite or (moments.sqnr_db is not None and moments.sqnr_db < self.gate_db)

    def _measure(self, tensor: str) -> Moments:
        moments = Moments()
        self.images = 0
        with self.open_runner(tapped(self.graph, [tensor]).SerializeToString()) as runner:
            for images in self.batches():
                expected, found = (
                    infer_parts(each, {each.input_specs[0].name: images})[tensor] for each in (self.reference, runner)
                )
                moments.add(expected, found)
                self.images += len(images)
                if self.images >= _BISECTED_IMAGES:
                    break
        return moments

    def records(self, blocks: Mapping[str, Block]) -> tuple[BlockError, ...]:
        """Of the prefixes that were built; blocks have no curve of their own here."""
        order = [name for name in blocks if name in self.seen]
        return tuple(_record(blocks[name], self.seen[name]) for name in order)


def _record(block: Block, moments: Moments) -> BlockError:
    level = moments.sqnr_db
    kept = level if level is None or moments.finite else -1000.0
    worst = moments.max_abs_diff if moments.finite else None
    return BlockError(block.name, block.module, block.tensor, kept, None, None, worst)


def _say(moments: Moments) -> str:
    level = moments.sqnr_db
    return "none, for it is not finite" if level is None or not moments.finite else f"{level:.1f} dB"

"""The two sides of a localisation: a candidate cut into blocks, and a reference that gives the same tensors."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgetune.core.errors import DataError, ModelError
from edgetune.core.tensors import Array
from edgetune.graph.alignment import aligned
from edgetune.graph.blocks import Block, BlockGraph, common_cuts
from edgetune.graph.compose import read_model
from edgetune.graph.fp16_emulation import emulate_fp16
from edgetune.graph.provenance import ModuleTensor, module_tensors
from edgetune.graph.severing import GIVEN, find_blocks, severed, tapped
from edgetune.parity.localize import Batches, Streams
from edgetune.parity.moments import Moments, View
from edgetune.runners.base import Runner, infer_parts
from edgetune.runners.ort_runner import OrtRunner
from edgetune.verify.localize_int8 import find_views

if TYPE_CHECKING:
    from edgetune.runners.torch_runner import TorchRunner
    from edgetune.verify.localize import LocalizeJob

_PREFIX = "extractor"  # the graph is that of the module which the PyTorch classifier has under this name
_BAD_DB, _GOOD_DB = 60.0, 90.0


@dataclass(frozen=True)
class Sides:
    """`graph` is the candidate's file, `computed` the graph that is run for it: float16 is emulated.

    `reference` is None where PyTorch is the reference; then `taps` say which module gives which tensor. `views` turn
    the candidate's units into the reference's, and `remark` says where they come from.
    """

    graph: BlockGraph
    computed: BlockGraph
    reference: BlockGraph | None
    torch: TorchRunner | None
    taps: tuple[ModuleTensor, ...]
    blocks: tuple[Block, ...]
    views: Mapping[str, View]
    remark: str
    batches: Batches

    @property
    def cuts(self) -> tuple[str, ...]:
        return tuple(block.tensor for block in self.blocks)

    @contextlib.contextmanager
    def streams(self, cuts: Collection[str], also: Collection[str] = (), *, optimise: bool = True) -> Iterator[Streams]:
        """Open runners for the candidate cut at `cuts`; the reference gives the tensors `also` as well."""
        with contextlib.ExitStack() as stack:
            reference = stack.enter_context(self.open_reference(list(dict.fromkeys([*cuts, *also]))))
            candidate = stack.enter_context(OrtRunner(_bytes(tapped(self.computed, cuts)), optimise=optimise))
            pieces = stack.enter_context(OrtRunner(_bytes(severed(self.computed, cuts)), optimise=optimise))
            yield Streams(reference, candidate, pieces, GIVEN, self.views)

    def open_reference(self, tensors: Collection[str]) -> Runner:
        if self.reference is not None:
            return OrtRunner(_bytes(tapped(self.reference, tensors)))
        if self.torch is None:
            raise ModelError("there is no reference to compare with.")
        return _torch_taps(self.torch, [tap for tap in self.taps if tap.tensor in tensors])

    def is_reduced(self, block: Block) -> bool:
        """Whether the block's layer computes with less than float32, so that it could be kept in float."""
        return block.has_product and self.graph.is_reduced(block.name)

    def inner_tensors(self, block: Block) -> tuple[str, ...]:
        """The tensors inside a block that the reference gives too, the block's own last."""
        known = set(self.reference.tensors()) if self.reference is not None else {tap.tensor for tap in self.taps}
        own = set(self.graph.tensors())
        inner = [
            name
            for node in self.graph.network.nodes
            if node.name in block.nodes
            for name in node.output
            if name in known and name in own and name != block.tensor
        ]
        return (*inner, block.tensor)


def _bytes(model: object) -> bytes:
    content: bytes = model.SerializeToString()  # type: ignore[attr-defined]
    return content


@contextlib.contextmanager
def open_sides(job: LocalizeJob, batches: Batches) -> Iterator[Sides]:
    """Reads the files and cuts them.

    Raises:
        ModelError: the two cannot be aligned, or there is no reference.
        DataError: there are no images.
    """
    first = next(iter(batches()), None)
    if first is None or len(first) == 0:
        raise DataError("there are no images to localise on.")
    graph = BlockGraph(read_model(job.candidate))
    if job.reference is not None:
        yield _with_onnx(job, graph, BlockGraph(read_model(job.reference)), batches)
    elif job.torch is not None:
        yield _with_torch(job, graph, job.torch(), first, batches)
    else:
        raise ModelError("there is neither an ONNX reference nor PyTorch.")


def _computed(graph: BlockGraph, precision: str) -> BlockGraph:
    return BlockGraph(emulate_fp16(graph.model)) if precision == "fp16" else graph


def _with_onnx(job: LocalizeJob, graph: BlockGraph, reference: BlockGraph, batches: Batches) -> Sides:
    graph = aligned(reference, graph)
    cuts = common_cuts(reference, graph)
    if not cuts:
        raise ModelError("the two files have no tensor in common at which they could be cut.")
    views: Mapping[str, View] = {}
    remark = ""
    if job.precision == "int8":
        views, remark = find_views(reference, graph, job.record, batches)
    return Sides(
        graph, _computed(graph, job.precision), reference, None, (), find_blocks(graph, cuts), views, remark, batches
    )


def _with_torch(job: LocalizeJob, graph: BlockGraph, torch: TorchRunner, images: Array, batches: Batches) -> Sides:
    computed = _computed(graph, job.precision)
    taps = module_tensors(graph.network, graph.tensors())
    resting = set(graph.resting_points())
    with _torch_taps(torch, taps) as runner, OrtRunner(_bytes(tapped(computed, graph.tensors()))) as candidate:
        (image,) = [spec.name for spec in runner.input_specs]
        expected = infer_parts(runner, {image: images})
        (name,) = [spec.name for spec in candidate.input_specs]
        found = infer_parts(candidate, {name: images})
    outputs = [name for name in graph.network.outputs if name in expected]
    known = [tap for tap in taps if tap.tensor in expected and expected[tap.tensor].shape == found[tap.tensor].shape]
    names = {tap.tensor for tap in known} | set(outputs)
    blocks = find_blocks(graph, [name for name in graph.resting_points() if name in names & resting])
    doubtful = _doubtful(blocks, expected, found)
    names -= doubtful
    blocks = find_blocks(graph, [block.tensor for block in blocks if block.tensor not in doubtful])
    if not blocks:
        raise ModelError("no tensor of the graph could be found in the PyTorch model.")
    kept = tuple(tap for tap in known if tap.tensor in names)
    return Sides(graph, computed, None, torch, kept, blocks, {}, "", batches)


def _doubtful(blocks: tuple[Block, ...], expected: Mapping[str, Array], found: Mapping[str, Array]) -> set[str]:
    """Tensors that differ although all that is computed from them agrees: a module that was taken for another."""
    levels = {block.tensor: _level(expected[block.tensor], found[block.tensor]) for block in blocks}
    doubtful = set()
    for block in blocks:
        readers = [levels[reader.tensor] for reader in blocks if block.tensor in reader.inputs]
        if levels[block.tensor] < _BAD_DB and readers and min(readers) > _GOOD_DB:
            doubtful.add(block.tensor)
    return doubtful


def _level(expected: Array, found: Array) -> float:
    moments = Moments()
    moments.add(expected, found)
    return np.inf if moments.sqnr_db is None else moments.sqnr_db


def _torch_taps(runner: TorchRunner, taps: Collection[ModuleTensor]) -> Runner:
    from edgetune.runners.torch_taps import TorchTaps

    outputs = {tap.tensor: tap.module for tap in taps if not tap.is_input}
    inputs = {tap.tensor: tap.module for tap in taps if tap.is_input}
    return TorchTaps(runner, outputs, inputs, prefix=_PREFIX)

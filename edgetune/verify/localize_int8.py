"""What an INT8 graph does to its tensors on purpose: channels equalised, pixels moved to the middle of the integers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from edgetune.core.errors import ConfigError, ModelError
from edgetune.graph.blocks import Block, BlockGraph, fits
from edgetune.graph.severing import tapped
from edgetune.parity.fault_kind import SCALE, ZERO_POINT
from edgetune.parity.localize import Batches, Point
from edgetune.parity.moments import ChannelMoments, View
from edgetune.quantize.canonical import canonical_network
from edgetune.quantize.equalize import equalizable
from edgetune.quantize.record_check import Mismatch, find_mismatches, target_record
from edgetune.quantize.targets import TARGETS
from edgetune.runners.base import infer_parts
from edgetune.runners.ort_runner import OrtRunner

_ESTIMATED_IMAGES = 8
_STRONG, _SHARED_FACTOR = 0.1, 1.8


def find_views(
    reference: BlockGraph, candidate: BlockGraph, record: Mapping[str, Any] | None, batches: Batches
) -> tuple[dict[str, View], str]:
    """How the candidate's tensors turn into the reference's, and a remark where that had to be estimated."""
    views = _pixel_views(reference, candidate)
    scales = record.get("channel_scales") if record is not None else None
    if isinstance(scales, dict):
        recorded = {name: np.array(values, np.float32) for name, values in scales.items()}
        return {**{name: _scaled(values) for name, values in recorded.items()}, **views}, ""
    estimated = _estimated_scales(reference, candidate, batches)
    if not estimated:
        return views, ""
    remark = f"the record has no channel scales, so those of {len(estimated)} tensors are estimated"
    return {**estimated, **views}, remark


def target_of(record: Mapping[str, Any] | None, file_name: str) -> str:
    """The target whose graph a file is, by its name, or the only one of the record; empty where neither tells."""
    parts = file_name.split(".")
    named = [part for part in parts if part in TARGETS]
    targets = record.get("targets") if record is not None else None
    known = [entry.get("target") for entry in targets if isinstance(entry, dict)] if isinstance(targets, list) else []
    if len(named) == 1 and named[0] in known:
        return named[0]
    return str(known[0]) if len(known) == 1 and known[0] in TARGETS else ""


def mismatches(graph: BlockGraph, record: Mapping[str, Any] | None, target: str) -> list[Mismatch]:
    if record is None or not target:
        return []
    try:
        return find_mismatches(graph.model, record, target)
    except ConfigError:
        return []


def record_notes(found: list[Mismatch], tensors: set[str]) -> tuple[tuple[str, str], ...]:
    """Pairs of class of fault and sentence for the mismatches of these tensors."""
    kinds = {"scale": SCALE, "zero point": ZERO_POINT}
    return tuple((kinds[each.what], str(each)) for each in found if each.tensor in tensors)


def make_point(block: Block, graph: BlockGraph, record: Mapping[str, Any] | None, target: str) -> Point:
    """A block with what calibration recorded of its layer and of the tensor's range."""
    if record is None or not target:
        return Point(block.name, block.module, block.tensor)
    try:
        known = target_record(record, target)
        layers = {entry["layer"]: entry["sqnr_db"] for entry in known["layers"]}
        ranges = {name: entry["sqnr_db"] for name, entry in known["ranges"].items()}
    except (ConfigError, KeyError, TypeError):
        return Point(block.name, block.module, block.tensor)
    product = next((str(node.output[0]) for node in graph.network.nodes if node.name == block.name), "")
    return Point(block.name, block.module, block.tensor, product, layers.get(block.name), ranges.get(block.tensor))


def _scaled(values: np.typing.NDArray[np.float32]) -> View:
    return View(values, np.zeros_like(values))


def _pixel_views(reference: BlockGraph, candidate: BlockGraph) -> dict[str, View]:
    """Where the image is quantized as pixel - 128, of a reference that subtracts a little less."""
    try:
        network, pixels = canonical_network(reference.model)
    except ModelError:
        return {}
    if pixels is None or candidate.quantizer(pixels.tensor) is None or not _is_centred(candidate, pixels.tensor):
        return {}
    subtract = reference.network.makers[reference.network.makers[pixels.tensor].input[0]]
    mean = float(reference.network.constants[subtract.input[1]].flat[0])
    channels = network.constants["pixel_middle"].shape[1] if network.constants["pixel_middle"].ndim == 4 else 3
    shift = np.full(channels, (128.0 - mean) * pixels.scale, np.float32)
    return {pixels.tensor: View(np.ones(channels, np.float32), shift)}


def _is_centred(candidate: BlockGraph, tensor: str) -> bool:
    """Whether the candidate's own constants are the middle, or it reads the uint8 image as it is."""
    divide = candidate.network.makers.get(tensor)
    if divide is None:
        return True
    subtract = candidate.network.makers.get(divide.input[0])
    middle = candidate.network.constants.get(subtract.input[1]) if subtract is not None else None
    return middle is not None and bool((middle == 128).all())


def _estimated_scales(reference: BlockGraph, candidate: BlockGraph, batches: Batches) -> dict[str, View]:
    """Of tensors that equalisation scales. The widest channel is not scaled, so a factor far from 1 that all strong
    channels share is a fault, and stays in.
    """
    try:
        names = equalizable(canonical_network(reference.model)[0])
    except ModelError:
        return {}
    known = set(reference.tensors()) & set(candidate.tensors())
    names = tuple(name for name in names if name in known and fits(reference, candidate, name))
    if not names:
        return {}
    sums = {name: ChannelMoments() for name in names}
    done = 0
    with (
        OrtRunner(tapped(reference, names).SerializeToString()) as expected,
        OrtRunner(tapped(candidate, names).SerializeToString()) as found,
    ):
        for images in batches():
            sides = [infer_parts(runner, {runner.input_specs[0].name: images}) for runner in (expected, found)]
            for name, moments in sums.items():
                moments.add(sides[0][name], sides[1][name])
            done += len(images)
            if done >= _ESTIMATED_IMAGES:
                break
    return {name: _scaled(_estimate(moments)) for name, moments in sums.items()}


def _estimate(moments: ChannelMoments) -> np.typing.NDArray[np.float32]:
    """Which channel was the widest is not known; it is a strong one, and what a weak one says is mostly noise."""
    ratio, power = moments.ratio(), moments.power()
    widest = float(ratio[power >= _STRONG * power.max()].max())
    common = widest if abs(np.log(widest)) > np.log(_SHARED_FACTOR) else 1.0
    return (ratio / common).astype(np.float32)

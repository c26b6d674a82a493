"""What a bundle's parts say of preprocessing and classes, and whether they say the same."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgetune.core.bundle import FAIL, NOT_RUN, PASS, Bundle
from edgetune.core.config import from_dict
from edgetune.core.errors import BundleError, ConfigError, ImageError
from edgetune.core.golden import MAX_PIXEL_DIFF, load_golden
from edgetune.core.preprocess import PreprocessSpec, decoder_version, preprocess_image
from edgetune.parity.records import StageCheck
from edgetune.parity.stages import LABELS, NORMALISED, PIXELS

# The keys that edgetune's ONNX files have; graph/compose writes them and cannot be reached without onnx.
METADATA_CLASSES = "edgetune.classes"
METADATA_PREPROCESS = "edgetune.preprocess"

_STAGE_OF = {
    "resize_size": PIXELS, "crop_size": PIXELS, "interpolation": PIXELS, "mean": NORMALISED, "std": NORMALISED,
}  # fmt: skip


@dataclass(frozen=True)
class Statement:
    """`source` is named in messages. `problem` tells why it could not be asked; what it does not say is None."""

    source: str
    preprocess: PreprocessSpec | None
    classes: tuple[str, ...] | None
    problem: str = ""


def statement_from_metadata(source: str, metadata: Mapping[str, str]) -> Statement:
    """What an ONNX file's metadata say; a key that is missing or cannot be read says nothing."""
    classes = _parsed(metadata.get(METADATA_CLASSES))
    try:
        spec = from_dict(PreprocessSpec, _parsed(metadata.get(METADATA_PREPROCESS)), source)
    except ConfigError:
        spec = None
    is_list = isinstance(classes, list) and all(isinstance(name, str) for name in classes)
    return Statement(source, spec, tuple(classes) if is_list else None)


def _parsed(text: str | None) -> Any:
    try:
        return None if text is None else json.loads(text)
    except (ValueError, RecursionError):
        return None


def check_statements(manifest: Statement, others: Sequence[Statement]) -> tuple[StageCheck, ...]:
    """One check for each of `pixels`, `normalised` and `labels` that all agree on, or one for each disagreement."""
    asked = [other for other in others if not other.problem]
    failed = [
        check for other in asked for check in (*_compare_specs(manifest, other), *_compare_classes(manifest, other))
    ]
    told = "all agree: " + ", ".join(statement.source for statement in (manifest, *asked))
    stages = {check.stage for check in failed}
    passed = [
        StageCheck(stage, PASS, None, None, told) for stage in (PIXELS, NORMALISED, LABELS) if stage not in stages
    ]
    unasked = [StageCheck(PIXELS, NOT_RUN, None, None, other.problem) for other in others if other.problem]
    return (*failed, *unasked, *(passed if asked else _all_not_run()))


def _all_not_run() -> list[StageCheck]:
    return [
        StageCheck(stage, NOT_RUN, None, None, "there is nothing to compare the manifest with")
        for stage in (PIXELS, NORMALISED, LABELS)
    ]


def _compare_specs(manifest: Statement, other: Statement) -> list[StageCheck]:
    if manifest.preprocess is None or other.preprocess is None:
        return [_fail(PIXELS, f"{other.source} does not say how images are preprocessed")]
    checks = []
    for field in dataclasses.fields(PreprocessSpec):
        here, there = (getattr(statement.preprocess, field.name) for statement in (manifest, other))
        if here != there:
            unit = " px" if field.name.endswith("_size") else ""
            reason = f"{field.name} is {here}{unit} in {manifest.source}, {there}{unit} in {other.source}"
            checks.append(_fail(_STAGE_OF[field.name], reason))
    return checks


def _compare_classes(manifest: Statement, other: Statement) -> list[StageCheck]:
    here, there = manifest.classes, other.classes
    if here is None or there is None:
        return [_fail(LABELS, f"{other.source} does not name its classes")]
    if len(here) != len(there):
        return [_fail(LABELS, f"there are {len(here)} classes in {manifest.source}, {len(there)} in {other.source}")]
    moved = [index for index, names in enumerate(zip(here, there, strict=True)) if names[0] != names[1]]
    if not moved:
        return []
    first = moved[0]
    more = f", and {len(moved) - 1} more differ" if len(moved) > 1 else ""
    return [
        _fail(
            LABELS, f"class {first} is {here[first]!r} in {manifest.source}, {there[first]!r} in {other.source}{more}"
        )
    ]


def _fail(stage: str, reason: str) -> StageCheck:
    return StageCheck(stage, FAIL, None, None, reason)


def check_golden(bundle: Bundle) -> StageCheck:
    """Decodes the golden files here and compares with the pixels that the bundle recorded, in steps of 255."""
    limit = float(MAX_PIXEL_DIFF)
    try:
        golden, files = load_golden(bundle)
    except BundleError as error:
        return StageCheck(PIXELS, NOT_RUN, None, limit, error.message)
    try:
        pixels = np.stack([preprocess_image(data, bundle.manifest.preprocess) for data in files])
    except ImageError as error:
        return StageCheck(PIXELS, FAIL, None, limit, f"a golden image: {error.message}")
    if pixels.shape != golden.pixels.shape:
        sizes = f"{pixels.shape[1]} px here, {golden.pixels.shape[1]} px where the bundle was exported"
        return StageCheck(PIXELS, FAIL, None, limit, f"the golden images come out at {sizes}")
    difference = np.abs(pixels.astype(np.int16) - golden.pixels.astype(np.int16))
    worst = int(difference.max(axis=(1, 2, 3)).argmax())
    told = f"{len(files)} golden images on {decoder_version()}"
    if difference.max() > MAX_PIXEL_DIFF:
        told = f"golden image {golden.names[worst]} is decoded otherwise than where the bundle was exported; {told}"
        return StageCheck(PIXELS, FAIL, float(difference.max()), limit, told)
    return StageCheck(PIXELS, PASS, float(difference.max()), limit, told)

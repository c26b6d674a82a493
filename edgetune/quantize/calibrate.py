"""Which images calibrate, and the record that lets anyone repeat it."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgetune.core.errors import DataError
from edgetune.core.files import read_json
from edgetune.core.run import Run, Skipped, SplitFile
from edgetune.data.splits import pick_stratified
from edgetune.quantize.budget import Trial

if TYPE_CHECKING:  # the command line reads this file's defaults on machines without onnx
    from edgetune.quantize.quantizer import Calibration, QuantizedModel
    from edgetune.quantize.sensitivity import Sensitivity

DEFAULT_TARGETS = ("cpu-x86", "tensorrt")
DEFAULT_IMAGES = 300
FEW_IMAGES = 32
SCHEMA_VERSION = 2


@dataclass(frozen=True)
class RangeRecord:
    """The range that a tensor's integers span, and the candidate it came from; `sqnr_db` as on the calibration set,
    None where nothing is lost.
    """

    low: float
    high: float
    method: str
    sqnr_db: float | None


@dataclass(frozen=True)
class LayerRecord:
    """`sqnr_db` of a layer's outputs against the float network, earlier errors included."""

    layer: str
    sqnr_db: float | None
    weight_sqnr_db: float | None


@dataclass(frozen=True)
class Drops:
    """The share of `images` held-out training images that INT8 loses against FP32, with the FP32 head and with a head
    fitted on the quantized backbone's features; None where that was not tried, or no image could be judged.
    """

    float_head: float | None
    refitted_head: float | None
    images: int
    refit_wins: bool

    @property
    def chosen(self) -> float | None:
        return self.refitted_head if self.refit_wins else self.float_head


@dataclass(frozen=True)
class TargetRecord:
    """One target's graph. `kept_float` gives the reason by layer; `trials` are those of the search for layers to keep
    in float. `fused_layers` of the integer layers run as integers in ONNX Runtime on this CPU; None where the target is
    another machine.
    """

    target: str
    rounding: str
    head: str
    integer_layers: int
    kept_float: dict[str, str]
    drops: Drops
    trials: tuple[Trial, ...]
    sensitivity: tuple[Sensitivity, ...]
    layers: tuple[LayerRecord, ...]
    ranges: dict[str, RangeRecord]
    fused_layers: int | None = None


@dataclass(frozen=True)
class CalibrationRecord:
    """The calibration set by path and content hash, and what was made of it for each target.

    `channel_scales` has for each equalised tensor what its channels are divided by in the INT8 graphs; None in records
    that do not tell.
    """

    schema_version: int
    method: str
    equalized_groups: int
    images: tuple[SplitFile, ...]
    skipped: tuple[Skipped, ...]
    targets: tuple[TargetRecord, ...]
    channel_scales: dict[str, tuple[float, ...]] | None = None


def pick_calibration_files(run: Run, count: int) -> tuple[SplitFile, ...]:
    """Picks training images, stratified by class; content that is also in the validation split is left out.

    Raises:
        DataError: no training image is left.
    """
    validation = {file.sha256 for file in run.split.val}
    pool = [file for file in run.split.train if file.sha256 not in validation]
    picked = pick_stratified(pool, [file.label for file in pool], [file.sha256 for file in pool], count)
    if not picked:
        raise DataError("no training image is left to calibrate with: all are in the validation split as well.")
    return tuple(picked)


def files_of_recipe(run: Run, recipe: Path) -> tuple[SplitFile, ...]:
    """The run's training images whose hashes a recipe lists: `{"images": [{"sha256": ...}, ...]}`, the form of a
    bundle's own `calibration.json`.

    Raises:
        DataError: the file is no such list, names images that the run does not have, or validation images.
    """
    wanted = _recipe_hashes(recipe)
    validation = {file.sha256 for file in run.split.val}
    leaked = [digest for digest in wanted if digest in validation]
    if leaked:
        raise DataError(f"{recipe} lists {len(leaked)} validation images; the first has the sha256 {leaked[0]}.")
    known = {file.sha256: file for file in run.split.train}
    missing = [digest for digest in wanted if digest not in known]
    if missing:
        raise DataError(
            f"{len(missing)} of the {len(wanted)} images that {recipe} lists are not among the run's training images; "
            f"the first has the sha256 {missing[0]}."
        )
    return tuple(known[digest] for digest in dict.fromkeys(wanted))


def _recipe_hashes(recipe: Path) -> list[str]:
    content = read_json(recipe)
    images = content.get("images") if isinstance(content, dict) else None
    hashes = [entry.get("sha256") for entry in images if isinstance(entry, dict)] if isinstance(images, list) else []
    wanted = [digest for digest in hashes if isinstance(digest, str)]
    if not wanted or not isinstance(images, list) or len(wanted) < len(images):
        raise DataError(
            f'{recipe} is no calibration recipe: it has no list "images" whose entries have a "sha256".',
            hint="the calibration.json of a bundle is one",
        )
    return wanted


def calibration_record(
    files: Collection[SplitFile], skipped: tuple[Skipped, ...], calibration: Calibration,
    targets: tuple[TargetRecord, ...],
) -> CalibrationRecord:  # fmt: skip
    unread = {file.path for file in skipped}
    return CalibrationRecord(
        schema_version=SCHEMA_VERSION,
        method="extremes and histograms in one pass; ranges by squared error, clipping weighted ten times",
        equalized_groups=calibration.equalized.groups,
        images=tuple(file for file in files if file.path not in unread),
        skipped=skipped,
        targets=targets,
        channel_scales={
            name: tuple(float(value) for value in scale) for name, scale in calibration.equalized.channel_scales.items()
        },
    )


def layer_records(quantized: QuantizedModel) -> tuple[LayerRecord, ...]:
    return tuple(
        LayerRecord(error.layer, finite(error.sqnr_db), finite(error.weight_sqnr_db)) for error in quantized.errors
    )


def range_records(quantized: QuantizedModel) -> dict[str, RangeRecord]:
    return {
        name: RangeRecord(choice.low, choice.high, choice.method, finite(choice.sqnr_db))
        for name, choice in quantized.ranges.items()
    }


def finite(value: float) -> float | None:
    return value if math.isfinite(value) else None

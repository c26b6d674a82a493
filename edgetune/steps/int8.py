"""The INT8 artifacts of an export: one calibration, and for each target a graph, its head, and the accuracy budget."""

from __future__ import annotations

import functools
import math
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgetune.core.progress import Progress
from edgetune.core.run import Run, Skipped, SplitFile
from edgetune.data.image_folder import ImageFile, SkippedFile
from edgetune.data.samples import SampleStream, batches
from edgetune.data.splits import pick_stratified
from edgetune.features.cache import FeatureCache
from edgetune.graph.compose import add_head, read_model, set_metadata, write_model
from edgetune.heads.fit import refit_head
from edgetune.heads.head import Head
from edgetune.heads.held_out import HeldOutHead, held_out_heads, held_out_hits
from edgetune.quantize.budget import Trial, meet_budget
from edgetune.quantize.calibrate import (
    CalibrationRecord,
    Drops,
    TargetRecord,
    calibration_record,
    files_of_recipe,
    layer_records,
    pick_calibration_files,
    range_records,
)
from edgetune.quantize.census import count_operators, fused_layers
from edgetune.quantize.images import ImageSpool
from edgetune.quantize.quantizer import (
    Calibration,
    QuantizedModel,
    calibrate,
    check_kept_float,
    quantize,
    with_requests,
)
from edgetune.quantize.rounding import WeightOptions
from edgetune.quantize.sensitivity import Sensitivity, rank_layers
from edgetune.quantize.targets import Target, find_target
from edgetune.runners.choice import runs_here
from edgetune.runners.ort_runner import OrtRunner
from edgetune.steps.training_features import TrainingFeatures, TrainingImages

DEFAULT_SEARCH_S = 300.0

_BATCH = 8
_FRESH_PER_CLASS = 20
_JUDGED_IMAGES = 1000  # enough to tell a drop of one point from none; more would only take longer


Hits = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Int8Options:
    """`recipe` lists the calibration images by hash. `max_drop` is a share of images; the search for layers to keep
    in float ends after `search_s` seconds a target; the layers named in `kept_float` are in float to begin with.
    """

    targets: tuple[str, ...]
    calibration_images: int
    recipe: Path | None = None
    refit_head: bool = True
    weights: WeightOptions = WeightOptions()  # noqa: RUF009 - frozen
    max_drop: float = 0.01
    search_s: float = DEFAULT_SEARCH_S
    kept_float: tuple[str, ...] = ()


@dataclass(frozen=True)
class Int8Job:
    """`root` is where the run's images are now; `float_model` computes features, which `float_cache` may hold."""

    run: Run
    root: Path
    float_model: Path
    float_cache: FeatureCache
    head: Head
    options: Int8Options


@dataclass(frozen=True)
class _Attempt:
    """One graph for a target with its head, and what they lose on held-out training images."""

    quantized: QuantizedModel
    head: Head
    drops: Drops

    @property
    def drop(self) -> float:
        """The chosen head's; 0 where no image could be judged."""
        return self.drops.chosen or 0.0


def int8_name(target: str) -> str:
    return f"model.int8.{target}.onnx"


def write_int8(job: Int8Job, folder: Path, progress: Progress) -> CalibrationRecord:
    """Writes one model a target into `folder`, and returns the record of how they were made.

    Raises:
        DataError: no image to calibrate with, or none left to fit the head on.
        ModelError: the backbone cannot be quantized.
        UsageError: a layer to keep in float is none of the backbone's.
    """
    targets = tuple(find_target(name) for name in job.options.targets)
    recipe, count = job.options.recipe, job.options.calibration_images
    picked = files_of_recipe(job.run, recipe) if recipe is not None else pick_calibration_files(job.run, count)
    skipped: list[SkippedFile] = []
    records = []
    with ImageSpool(_calibration_batches(job, picked, skipped)) as images:
        model = read_model(job.float_model)
        check_kept_float(model, job.options.kept_float)
        calibration = calibrate(model, images, targets, progress=progress)
        judge = _Judge(job, TrainingImages(job.run, job.root), picked, progress)
        for target in targets:
            attempt, record = _TargetMaker(job, calibration, images, target, judge).make(progress)
            head = attempt.head
            model = add_head(attempt.quantized.model, head.weight, head.bias, head.hidden)
            set_metadata(model, job.run.classes, job.run.preprocess)
            write_model(folder / int8_name(target.name), model)
            records.append(record)
    named = tuple(Skipped(file.path.relative_to(job.root).as_posix(), file.reason) for file in skipped)
    return calibration_record(picked, named, calibration, tuple(records))


def _calibration_batches(
    job: Int8Job, picked: tuple[SplitFile, ...], skipped: list[SkippedFile]
) -> Iterator[npt.NDArray[np.uint8]]:
    """Images whose content is what it was at the fit; others go to `skipped`."""
    files = [ImageFile(job.root / file.path, file.label) for file in picked]
    expected = {job.root / file.path: file.sha256 for file in picked}
    with SampleStream(files, job.run.preprocess) as stream:
        for samples, images in batches(stream, _BATCH, skipped.append):
            same = np.array([expected[sample.file.path] == sample.sha256 for sample in samples])
            changed = [sample.file.path for sample, unchanged in zip(samples, same, strict=True) if not unchanged]
            skipped += [SkippedFile(path, "was changed after the fit") for path in changed]
            if same.any():
                yield images[same]


class _Judge:
    """What INT8 backbones lose on training images that no head was fitted on; shared by all targets."""

    def __init__(
        self, job: Int8Job, training: TrainingImages, calibrated: tuple[SplitFile, ...], progress: Progress
    ) -> None:
        self._job = job
        self._training = training
        self._progress = progress
        pool = _fresh_images(job.run, calibrated)
        hashes = [file.sha256 for file in pool]
        self.files = pick_stratified(pool, [file.label for file in pool], hashes, _JUDGED_IMAGES)
        self._heads: tuple[HeldOutHead, ...] = ()
        self._exact: Hits = np.zeros(0, np.bool_)

    def kept_head(self, seen: TrainingFeatures) -> tuple[Hits, Hits]:
        """Hits of FP32, and of this INT8 backbone under the FP32 head; both empty where a class has too few images.

        The heads are fitted on the FP32 features of all training images but the third that they judge.
        """
        if not self._has_enough(seen):
            return np.zeros(0, np.bool_), np.zeros(0, np.bool_)
        if not self._heads:
            floats = self._float_features()
            rows = _rows_of(floats, seen.hashes)
            self._heads = held_out_heads(floats.features, floats.labels, self._job.run.head.recipe, rows)
            self._exact = held_out_hits(self._heads, floats.features[rows], seen.labels)
        return self._exact, held_out_hits(self._heads, seen.features, seen.labels)

    def own_head(self, seen: TrainingFeatures, every: TrainingFeatures) -> Hits:
        """Hits under heads fitted in the same way on this backbone's features of all training images, `every`."""
        rows = _rows_of(every, seen.hashes)
        heads = held_out_heads(every.features, every.labels, self._job.run.head.recipe, rows)
        return held_out_hits(heads, seen.features, seen.labels)

    def _has_enough(self, seen: TrainingFeatures) -> bool:
        return int(np.bincount(seen.labels, minlength=len(self._job.run.classes)).min()) >= 2

    def _float_features(self) -> TrainingFeatures:
        """What the float backbone computes of the training images; the fit may have cached it."""
        job = self._job
        return self._training.features(
            job.float_cache, lambda: OrtRunner(job.float_model, threads=1), job.run.split.train, self._progress
        )


def _rows_of(table: TrainingFeatures, hashes: tuple[str, ...]) -> npt.NDArray[np.int64]:
    places = {sha256: row for row, sha256 in enumerate(table.hashes)}
    return np.array([places[sha256] for sha256 in hashes], dtype=np.int64)


def _fresh_images(run: Run, calibrated: tuple[SplitFile, ...]) -> list[SplitFile]:
    """Training images that did not calibrate, where every class has a few of them: biases and weights were fitted on
    the others. In a small set all are judged, which flatters INT8 a little.
    """
    used = {file.sha256 for file in calibrated}
    fresh = [file for file in run.split.train if file.sha256 not in used]
    counts = np.bincount([file.label for file in fresh], minlength=len(run.classes))
    return fresh if counts.min() >= _FRESH_PER_CLASS else list(run.split.train)


class _TargetMaker:
    """All attempts at one target."""

    def __init__(
        self, job: Int8Job, calibration: Calibration, images: ImageSpool, target: Target, judge: _Judge
    ) -> None:
        self._job = job
        self._calibration = calibration
        self._images = images
        self._target = target
        self._judge = judge

    def make(self, progress: Progress) -> tuple[_Attempt, TargetRecord]:
        options = self._job.options
        deadline = time.monotonic() + options.search_s
        first = self._attempt((), progress)
        ranked: tuple[Sensitivity, ...] = ()
        if first.drop > options.max_drop:
            ranked = rank_layers(
                self._calibration, first.quantized, self._target, self._images, options=options.weights,
                progress=progress,
            )  # fmt: skip
        names = [each.layer for each in ranked if each.noise_share > 0.0]
        attempt = functools.partial(self._attempt, progress=progress)
        best, trials = meet_budget(first, names, attempt, options.max_drop, deadline)
        return best, self._record(best, trials, ranked)

    def _record(self, best: _Attempt, trials: tuple[Trial, ...], ranked: tuple[Sensitivity, ...]) -> TargetRecord:
        placement = best.quantized.placement
        return TargetRecord(
            target=self._target.name,
            rounding="compensated" if self._job.options.weights.rounding else "to nearest",
            head="fitted on the quantized backbone's features" if best.drops.refit_wins else "the FP32 head",
            integer_layers=len(placement.layers),
            kept_float=with_requests(placement.kept_float, self._job.options.kept_float),
            drops=best.drops,
            trials=trials,
            sensitivity=ranked,
            layers=layer_records(best.quantized),
            ranges=range_records(best.quantized),
            fused_layers=self._count_fused(best.quantized),
        )

    def _count_fused(self, quantized: QuantizedModel) -> int | None:
        if not runs_here(self._target.name):
            return None
        return fused_layers(count_operators(quantized.model.SerializeToString()))[0]

    def _attempt(self, kept_float: tuple[str, ...], progress: Progress) -> _Attempt:
        job = self._job
        kept_float = tuple(dict.fromkeys([*job.options.kept_float, *kept_float]))
        quantized = quantize(
            self._calibration, self._target, self._images, options=job.options.weights, kept_float=kept_float,
            progress=progress,
        )  # fmt: skip
        graph = quantized.model.SerializeToString()
        training = TrainingImages(job.run, job.root)
        with tempfile.TemporaryDirectory() as scratch:
            cache = FeatureCache(Path(scratch))
            seen = training.features(cache, lambda: OrtRunner(graph, threads=1), self._judge.files, progress)
            exact, kept = self._judge.kept_head(seen)
            if not job.options.refit_head or kept.sum() >= exact.sum():  # nothing lost, nothing to win back
                return _Attempt(quantized, job.head, _drops(exact, kept, None))
            every = training.features(cache, lambda: OrtRunner(graph, threads=1), job.run.split.train, progress)
        drops = _drops(exact, kept, self._judge.own_head(seen, every))
        head = job.head
        if drops.refit_wins:
            head = refit_head(every.features, every.labels, len(job.run.classes), job.run.head.recipe)
        return _Attempt(quantized, head, drops)


def _drops(exact: Hits, kept: Hits, refitted: Hits | None) -> Drops:
    """The FP32 head also gives FP32's answers: it only goes where another is better by more than chance would be."""
    if len(exact) == 0:
        return Drops(None, None, 0, refit_wins=False)
    kept_drop = float(exact.mean() - kept.mean())
    if refitted is None:
        return Drops(kept_drop, None, len(exact), refit_wins=False)
    better, worse = int((refitted & ~kept).sum()), int((kept & ~refitted).sum())
    wins = better - worse > math.sqrt(better + worse)
    return Drops(kept_drop, float(exact.mean() - refitted.mean()), len(exact), refit_wins=wins)

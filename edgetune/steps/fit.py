"""fit: images and a frozen backbone to a run with a fitted head."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgetune.core.config import from_dict, to_dict
from edgetune.core.errors import ConfigError, DataError, RunError, UsageError
from edgetune.core.files import cache_root, check_output, output_folder, read_json, sha256_of_file
from edgetune.core.progress import Progress, no_progress
from edgetune.core.run import HEAD_NAME, METRICS_NAME, RUN_NAME, Run, write_run
from edgetune.data.image_folder import ImageFolder
from edgetune.data.scan import scan_images
from edgetune.features.extract import FeaturePlan, FeatureTable, extract_features
from edgetune.heads.evaluate import Metrics, evaluate, most_confident_mistakes
from edgetune.heads.fit import HeadFit, HeadOptions, TrainingSet, check_options, fit_head
from edgetune.heads.head import Head, save_head
from edgetune.heads.report import TEST_METRICS_NAME, write_reports
from edgetune.heads.report_record import FitReport
from edgetune.models.identity import BackboneIdentity
from edgetune.models.names import DEFAULT_BACKBONE
from edgetune.steps.feature_source import (
    BackboneSource,
    FeatureSource,
    choose_device,
    feature_cache,
    feature_source,
)
from edgetune.steps.fit_checks import check_listed, check_readable, check_words, split_part
from edgetune.steps.fit_findings import gather_findings
from edgetune.steps.fit_journal import finished_run, journal
from edgetune.steps.fit_record import Parts, record_run


@dataclass(frozen=True)
class FitOptions:
    """`weights` is a file, or None for the published weights of `model`; `layer` is the one whose pooled output the
    features are, empty for the backbone's own; `views` counts the augmented views of each training image; images whose
    paths match `group_by` alike stay together; `device` is auto, cpu or cuda. `seed` is also the head's.
    """

    model: str = DEFAULT_BACKBONE
    weights: Path | None = None
    head: HeadOptions = HeadOptions()  # noqa: RUF009 - frozen
    layer: str = ""
    image_size: int | None = None
    views: int = 0
    group_by: str = ""
    device: str = "auto"
    seed: int = 0
    resume: bool = False
    force: bool = False


@dataclass(frozen=True)
class FitResult:
    """`test_metrics` are of a test split, None without one; `seconds` by stage. A run that was finished before, and
    was only looked at, says so.
    """

    run_path: Path
    run: Run
    metrics: Metrics
    test_metrics: Metrics | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    was_finished: bool = False


@dataclass(frozen=True)
class _Tables:
    """The features of each split; None for one that has no images."""

    train: FeatureTable
    val: FeatureTable
    test: FeatureTable | None


def fit(data: Path, out: Path, options: FitOptions, *, progress: Progress = no_progress) -> FitResult:
    """Fits the head on the training images and judges it on the validation images; writes the run folder.

    Raises:
        DataError, WeightsError, UsageError, OutputExistsError: as their messages say.
        BackboneChangedError: a bit of the backbone changed, which a fit must never do.
    """
    resolved = _resolved(data, options)
    check_words({**resolved, "out": str(out), "EDGETUNE_CACHE": str(cache_root())})
    if options.resume:
        run = finished_run(out, resolved)
        if run is not None:
            return _finished(out, run)
    check_output(out, RUN_NAME, force=options.force)
    _check_places(data, out, options.weights)
    check_options(options.head)
    with journal(out, resolved):
        return _Fit(data, out, options, progress).run(resolved)


def _resolved(data: Path, options: FitOptions) -> dict[str, Any]:
    """The options as `run.json` keeps them. Paths are whole: from another folder they mean the same files."""
    plain = {"data": data, **to_dict(options)}
    return {name: os.path.realpath(value) if isinstance(value, Path) else value for name, value in plain.items()}


def _check_places(data: Path, out: Path, weights: Path | None) -> None:
    """Raises `UsageError` where the output would become an input, or take the place of one."""
    run, images = Path(os.path.realpath(out)), Path(os.path.realpath(data))
    if run.is_relative_to(images):
        raise UsageError(f"--out {out} lies inside the images' folder {data}, where it would become a class.")
    inputs = [data] if weights is None else [data, weights]
    held = [path for path in inputs if path.exists() and Path(os.path.realpath(path)).is_relative_to(run)]
    if held:
        raise UsageError(
            f"--out {out} holds {held[0]}, which the fit reads and which would be lost.", hint="choose another --out"
        )


def _finished(out: Path, run: Run) -> FitResult:
    def metrics(name: str) -> Metrics:
        try:
            return from_dict(Metrics, read_json(out / name), str(out / name))
        except (DataError, ConfigError) as error:
            hint = "fit again with --force and without --resume"
            raise RunError(f"the run's figures are damaged: {error}", hint=hint) from error

    test = metrics(TEST_METRICS_NAME) if run.split.test else None
    return FitResult(out, run, metrics(METRICS_NAME), test, was_finished=True)


class _Fit:
    """One fit: its inputs, and the steps in the order they happen."""

    def __init__(self, data: Path, out: Path, options: FitOptions, progress: Progress) -> None:
        self._data = data
        self._out = out
        self._options = options
        self._progress = progress
        self._seconds: dict[str, float] = {}
        self._started = time.perf_counter()

    def run(self, resolved: dict[str, Any]) -> FitResult:
        options = self._options
        folder = scan_images(self._data, group_by=options.group_by)
        check_listed(folder)
        device = choose_device(options.device)
        backbone = BackboneSource(options.model, options.weights, options.layer, options.image_size, self._progress)
        source = feature_source(backbone, device)
        self._lap("scan")
        tables = self._extract(folder, backbone.identity, source)
        self._lap("features")
        check_readable(folder, tables.train)
        fitted = self._fit_head(folder, tables.train, device)
        self._lap("head")
        findings = gather_findings(folder, (tables.train, tables.val, tables.test), backbone.notes)
        parts = Parts(folder, backbone.prove(), source, fitted, findings)
        self._lap("checks")
        return self._write(resolved, tables, parts)

    def _extract(self, folder: ImageFolder, identity: BackboneIdentity, source: FeatureSource) -> _Tables:
        options = self._options
        caches = [
            feature_cache(identity, source.runner, source.precision, view=view, seed=options.seed)
            for view in range(options.views + 1)
        ]
        viewed = frozenset(file.path for file in folder.train)
        plan = FeaturePlan(identity.preprocess, caches, source.batch_size, seed=options.seed, viewed=viewed)
        # One pass over all splits, so that one session and one decoding pool serve them.
        files = (*folder.train, *folder.val, *folder.test)
        table = extract_features(files, plan, source.open, progress=self._progress)
        test = split_part(table, "test", folder.test) if folder.test else None
        return _Tables(split_part(table, "training", folder.train), split_part(table, "val", folder.val), test)

    def _fit_head(self, folder: ImageFolder, train: FeatureTable, device: str) -> HeadFit:
        options = dataclasses.replace(self._options.head, seed=self._options.seed, device=device)
        return fit_head(_training_set(train, len(folder.classes)), options, progress=self._progress)

    def _write(self, resolved: dict[str, Any], tables: _Tables, parts: Parts) -> FitResult:
        classes, head = parts.folder.classes, parts.fitted.head
        metrics = _judge(head, tables.val, classes, tables.train, parts)
        test = None if tables.test is None else _judge(head, tables.test, classes, tables.train, parts)
        mistakes = most_confident_mistakes(head.logits(tables.val.features), tables.val.labels)
        with output_folder(self._out, RUN_NAME, force=self._options.force) as partial:
            save_head(partial / HEAD_NAME, head)
            splits = (tables.train, tables.val, tables.test)
            run = record_run(resolved, parts, splits, sha256_of_file(partial / HEAD_NAME))
            report = FitReport(run, metrics, parts.fitted, mistakes, test, dict(self._seconds))
            write_reports(partial, report)
            write_run(partial, run)
        self._lap("report")
        return FitResult(self._out, run, metrics, test, self._seconds)

    def _lap(self, stage: str) -> None:
        now = time.perf_counter()
        self._seconds[stage] = now - self._started
        self._started = now


def _group_names(train: FeatureTable) -> list[str]:
    """Copies of an image are a group as well."""
    return [file.group or sha256 for file, sha256 in zip(train.files, train.hashes, strict=True)]


def _training_set(train: FeatureTable, classes: int) -> TrainingSet:
    """Images and their views; what belongs to one group, or is one image twice, stays on one side of every split."""
    names = _group_names(train)
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    groups = np.array([numbers[name] for name in names], dtype=np.int64)
    rows = np.concatenate([np.arange(len(names)), *[train.view_rows] * len(train.views)])
    return TrainingSet(
        features=np.concatenate([train.features, *train.views]) if train.views else train.features,
        labels=train.labels[rows],
        classes=classes,
        groups=groups[rows],
        is_view=np.arange(len(rows)) >= len(names),
    )


def _judge(head: Head, table: FeatureTable, classes: tuple[str, ...], train: FeatureTable, parts: Parts) -> Metrics:
    known = set(train.hashes)
    is_duplicate: npt.NDArray[np.bool_] = np.array([sha256 in known for sha256 in table.hashes], dtype=np.bool_)
    reject = parts.fitted.reject
    return evaluate(
        head.logits(table.features), table.labels, classes, is_duplicate=is_duplicate,
        reject_below=None if reject is None else reject.below,
    )  # fmt: skip

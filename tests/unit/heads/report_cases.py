"""Small reports whose every figure is known."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from edgetune.core.head_recipe import HeadRecipe, TrainingRecipe
from edgetune.core.preprocess import PreprocessSpec
from edgetune.core.run import BackboneRecord, FeaturesRecord, HeadRecord, Run, Split, SplitFile
from edgetune.heads.calibration import Calibration, Reject, ReliabilityBin
from edgetune.heads.evaluate import Metrics, evaluate
from edgetune.heads.fit import HeadFit
from edgetune.heads.head import Head
from edgetune.heads.history import EpochPoint, PathPoint
from edgetune.heads.report_record import FitReport

HALF = (0.5, 0.5, 0.5)
PATH = (PathPoint(1000.0, 0.693147, 0.5), PathPoint(10**0.5, 0.25, 0.9375), PathPoint(0.01, 0.3, 0.90625))
EPOCHS = (EpochPoint(1, 1.5, 1.25, 0.5, 1e-3), EpochPoint(2, 0.75, 0.875, 0.8125, 5e-4))
BEFORE = (ReliabilityBin(0.0, 0.5, 0, None, None), ReliabilityBin(0.5, 1.0, 8, 0.96, 0.75))
AFTER = (ReliabilityBin(0.0, 0.5, 0, None, None), ReliabilityBin(0.5, 1.0, 8, 0.8, 0.75))
CALIBRATION = Calibration(1.25, 8, 0.5, 0.4375, 0.21, 0.05, BEFORE, AFTER)
REJECT = Reject(0.02, 0.63, 0.025, 0.0125, 0.5)
TRAINING = TrainingRecipe("adamw", 2, 64, 1e-3, 0.01, 256, 0.5)


def perfect(*classes: str) -> Metrics:
    """One image of each class, all right."""
    return evaluate(np.eye(len(classes), dtype=np.float32), np.arange(len(classes)), classes)


def fitted(**changes: Any) -> HeadFit:
    """A linear head, unless the changes say otherwise."""
    head = Head(np.zeros((2, 5), np.float32), np.zeros(2, np.float32))
    fit = HeadFit(head, HeadRecipe("linear", 10**0.5), 5, PATH, (), CALIBRATION, None)
    return dataclasses.replace(fit, **changes)


def run(classes: tuple[str, ...] = ("ant", "bee"), root: Path = Path("/data"), **split: Any) -> Run:
    """`split` has the fields of `Split` that are not empty."""
    empty: dict[str, Any] = {"train": (), "val": (), "skipped": ()}
    return Run(
        schema_version=1,
        task="classification",
        created="2026-01-02",
        options={"seed": 7, "weights": None, "head": {"kind": "linear"}},
        versions={"numpy": "2.0"},
        classes=classes,
        preprocess=PreprocessSpec(8, 4, "bilinear", HALF, HALF),
        backbone=BackboneRecord("net<1>", "/w.pt", "0123456789abcdef" * 4, "b" * 64, 5, 358, 152),
        features=FeaturesRecord("onnxruntime CPU", "fp32", 2, 6),
        head=HeadRecord("linear", 10**0.5, 5, "c" * 64),
        split=Split(str(root), **{**empty, **split}),
    )


def report(**changes: Any) -> FitReport:
    return dataclasses.replace(FitReport(run(), perfect("ant", "bee"), fitted()), **changes)


def files(*paths: str) -> tuple[SplitFile, ...]:
    return tuple(SplitFile(path, "a" * 64, 0) for path in paths)

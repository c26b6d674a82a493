"""Which images calibrate."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path

import pytest

from edgetune.core.errors import DataError
from edgetune.core.preprocess import PreprocessSpec
from edgetune.core.run import BackboneRecord, FeaturesRecord, HeadRecord, Run, Split, SplitFile
from edgetune.quantize.calibrate import files_of_recipe, pick_calibration_files


def _run(train: tuple[SplitFile, ...], val: tuple[SplitFile, ...]) -> Run:
    return Run(
        1, "classification", "now", {}, {}, ("a", "b"), PreprocessSpec(8, 8, "bilinear", (0, 0, 0), (1, 1, 1)),
        BackboneRecord("x", "w", "s", "t", 4, 1, 0), FeaturesRecord("r", "fp32", 0, 1),
        HeadRecord("linear", 1.0, 5, "h"),
        Split("/data", train, val, ()),
    )  # fmt: skip


TRAIN = tuple(SplitFile(f"{label}/{index}.png", f"{index * 7919 % 10007:064d}", label)
              for label, count in ((0, 90), (1, 10)) for index in range(count))  # fmt: skip
VAL = (SplitFile("val/0.png", TRAIN[3].sha256, 0), SplitFile("val/1.png", "f" * 64, 1))


def test_classes_are_evened_out_as_far_as_they_reach() -> None:
    picked = pick_calibration_files(_run(TRAIN, ()), 40)
    assert Counter(file.label for file in picked) == {0: 30, 1: 10}


def test_content_that_is_in_the_validation_split_is_left_out() -> None:
    picked = pick_calibration_files(_run(TRAIN, VAL), 100)
    assert TRAIN[3].sha256 not in {file.sha256 for file in picked}


def test_the_pick_does_not_depend_on_the_order_of_files() -> None:
    forward = pick_calibration_files(_run(TRAIN, VAL), 25)
    backward = pick_calibration_files(_run(TRAIN[::-1], VAL), 25)
    assert sorted(file.path for file in forward) == sorted(file.path for file in backward)


def test_validation_images_alone_cannot_calibrate() -> None:
    only = tuple(dataclasses.replace(file, path=f"train/{file.path}") for file in VAL)
    with pytest.raises(DataError, match="no training image is left"):
        pick_calibration_files(_run(only, VAL), 10)


def _recipe(folder: Path, content: object) -> Path:
    path = folder / "recipe.json"
    path.write_text(json.dumps(content))
    return path


def test_a_recipe_brings_back_the_same_images(tmp_path: Path) -> None:
    run = _run(TRAIN, VAL)
    picked = pick_calibration_files(run, 20)
    content = {"schema_version": 2, "images": [{"path": "elsewhere", "sha256": file.sha256} for file in picked]}
    found = files_of_recipe(run, _recipe(tmp_path, content))
    assert {file.sha256 for file in found} == {file.sha256 for file in picked}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"images": [{"sha256": VAL[1].sha256}]}, "1 validation images"),
        ({"images": [{"sha256": TRAIN[0].sha256}, {"sha256": "0" * 63 + "x"}]}, "1 of the 2 images"),
        ({"images": []}, "no calibration recipe"),
        ({"images": [{"path": "a.png"}]}, "no calibration recipe"),
        ({"images": "all"}, "no calibration recipe"),
        ([], "no calibration recipe"),
    ],
)
def test_a_recipe_that_cannot_be_followed_is_refused(content: object, words: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=words):
        files_of_recipe(_run(TRAIN, VAL), _recipe(tmp_path, content))

from __future__ import annotations

import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from edgetune.core.errors import DataError
from edgetune.core.progress import no_progress
from edgetune.core.run import Run, SplitFile
from edgetune.features.cache import FeatureCache
from edgetune.steps.training_features import TrainingImages
from tests.unit.features.mean_colour import SPEC, Stream, colour_images


@pytest.fixture
def files(tmp_path: Path) -> list[SplitFile]:
    """Six images of one colour, 0 to 5, of two classes in turn."""
    images = colour_images(tmp_path, 6)
    hashes = [hashlib.sha256(image.path.read_bytes()).hexdigest() for image in images]
    return [SplitFile(image.path.name, sha256, image.label) for image, sha256 in zip(images, hashes, strict=True)]


def _training(root: Path) -> TrainingImages:
    return TrainingImages(cast("Run", SimpleNamespace(preprocess=SPEC, classes=("ant", "bee"))), root)


def test_images_that_changed_since_the_fit_are_left_out(tmp_path: Path, files: list[SplitFile]) -> None:
    (tmp_path / "2.png").write_bytes((tmp_path / "5.png").read_bytes())
    table = _training(tmp_path).features(FeatureCache(tmp_path / "cache"), Stream, files, no_progress)
    np.testing.assert_allclose(table.features[:, 0], [0, 1, 3, 4, 5], rtol=0, atol=1e-4)
    np.testing.assert_array_equal(table.labels, [0, 1, 1, 0, 1])
    assert table.hashes == tuple(file.sha256 for file in files if file.path != "2.png")


def test_a_class_without_unchanged_images_is_a_data_error(tmp_path: Path, files: list[SplitFile]) -> None:
    for name in ("1.png", "3.png", "5.png"):
        (tmp_path / name).write_bytes((tmp_path / "0.png").read_bytes())
    with pytest.raises(DataError, match="no unchanged training image is left of bee"):
        _training(tmp_path).features(FeatureCache(tmp_path / "cache"), Stream, files, no_progress)


def test_what_was_computed_of_some_files_is_not_computed_again_with_the_others(
    tmp_path: Path, files: list[SplitFile]
) -> None:
    cache, first, second = FeatureCache(tmp_path / "cache"), Stream(), Stream()
    _training(tmp_path).features(cache, lambda: first, [files[1], files[4]], no_progress)
    table = _training(tmp_path).features(cache, lambda: second, files, no_progress)
    assert (sum(map(len, first.batches)), sum(map(len, second.batches))) == (2, 4)
    np.testing.assert_allclose(table.features[:, 0], range(6), rtol=0, atol=1e-4)

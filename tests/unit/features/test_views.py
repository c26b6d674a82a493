from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgetune.core.preprocess import preprocess_image
from edgetune.core.tensors import Array
from edgetune.data import augment
from edgetune.data.augment import preprocess_versions, view_digest
from edgetune.data.image_folder import ImageFile
from edgetune.features.cache import FeatureCache
from edgetune.features.extract import FeaturePlan, extract_features
from tests.unit.features.mean_colour import SPEC, Stream, never


@pytest.fixture
def photos(tmp_path: Path) -> list[ImageFile]:
    """Six photos of 12 x 8 pixels, no two alike."""
    random = np.random.default_rng(0)
    for index in range(6):
        Image.fromarray(random.integers(0, 256, (8, 12, 3), np.uint8)).save(tmp_path / f"{index}.png")
    return [ImageFile(tmp_path / f"{index}.png", index % 2) for index in range(6)]


def _plan(root: Path, views: int, viewed: Sequence[ImageFile], seed: int = 3) -> FeaturePlan:
    caches = [FeatureCache(root / f"{seed} {view}" if view else root / "plain") for view in range(views + 1)]
    return FeaturePlan(SPEC, caches, 4, seed=seed, viewed=frozenset(file.path for file in viewed))


def _mean_of_view(file: ImageFile, view: int, seed: int = 3) -> Array:
    data = file.path.read_bytes()
    digest = view_digest(hashlib.sha256(data).hexdigest(), seed, view)
    (pixels,) = preprocess_versions(data, SPEC, [digest])
    mean: Array = pixels.mean(axis=(0, 1))
    return mean


def test_views_are_computed_of_the_images_that_have_them(tmp_path: Path, photos: list[ImageFile]) -> None:
    stream = Stream()
    table = extract_features(photos, _plan(tmp_path / "cache", 2, photos[1:5]), lambda: stream)
    plain = [preprocess_image(file.path.read_bytes(), SPEC).mean(axis=(0, 1)) for file in photos]
    np.testing.assert_allclose(table.features, plain, rtol=0, atol=1e-4)
    np.testing.assert_array_equal(table.view_rows, [1, 2, 3, 4])
    for view in (1, 2):
        expected = [_mean_of_view(file, view) for file in photos[1:5]]
        np.testing.assert_allclose(table.views[view - 1], expected, rtol=0, atol=1e-4)
    assert [len(batch) for batch in stream.batches] == [4, 3, 3, 2, 1, 1]  # a batch for each version of a block
    part = table.part(photos[1:5])
    np.testing.assert_array_equal(part.view_rows, range(4))


def test_views_depend_on_the_seed_and_not_on_the_other_files(tmp_path: Path, photos: list[ImageFile]) -> None:
    alone = extract_features(photos[3:4], _plan(tmp_path / "a", 1, photos), Stream)
    among = extract_features(photos[::-1], _plan(tmp_path / "b", 3, photos), Stream)
    other = extract_features(photos[3:4], _plan(tmp_path / "a", 1, photos, seed=4), Stream)
    np.testing.assert_array_equal(alone.views[0][0], among.views[0][2])
    assert (alone.views[0] != other.views[0]).any()


def test_only_views_that_are_missing_are_computed(tmp_path: Path, photos: list[ImageFile]) -> None:
    extract_features(photos, _plan(tmp_path / "cache", 1, photos[:4]), Stream)
    stream = Stream()
    table = extract_features(photos, _plan(tmp_path / "cache", 2, photos[:4]), lambda: stream)
    assert [len(batch) for batch in stream.batches] == [4]
    np.testing.assert_array_equal(table.cached, [False] * 4 + [True] * 2)
    assert extract_features(photos, _plan(tmp_path / "cache", 2, photos[:4]), never).from_cache == 6


def test_an_image_is_decoded_once_for_all_its_versions(
    tmp_path: Path, photos: list[ImageFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[str] = []
    original = augment.decode_image  # type: ignore[attr-defined]

    def decode(data: bytes, *, name: str, max_pixels: int) -> Image.Image:
        decoded.append(name)
        return original(data, name=name, max_pixels=max_pixels)

    monkeypatch.setattr(augment, "decode_image", decode)
    extract_features(photos, _plan(tmp_path / "cache", 5, photos), Stream)
    assert sorted(decoded) == [file.path.name for file in photos]

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from edgetune.core.errors import DataError, ModelError
from edgetune.core.preprocess import PreprocessSpec, preprocess_image
from edgetune.core.tensors import Array, Feed
from edgetune.data.image_folder import ImageFile
from edgetune.features import blocks, extract
from edgetune.features.cache import FeatureCache
from edgetune.features.extract import FeaturePlan, FeatureTable, extract_features
from edgetune.runners.base import Runner
from edgetune.runners.ort_runner import OrtRunner
from tests.unit.features.mean_colour import (
    SPEC,
    RecordingRunner,
    Stream,
    colour_image,
    colour_images,
    mean_colour,
    never,
)

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


def _colours(count: int) -> Array:
    return np.array([[index, 2 * index, 255 - index] for index in range(count)], dtype=np.float32)


def _extract(
    files: list[ImageFile], cache: FeatureCache, open_runner: Callable[[], Runner], batch_size: int = 4
) -> FeatureTable:
    return extract_features(files, FeaturePlan(SPEC, [cache], batch_size), open_runner)


def test_features_labels_and_hashes_come_in_the_order_of_the_files(tmp_path: Path) -> None:
    files = colour_images(tmp_path, 10)
    batches: list[int] = []
    table = _extract(files, FeatureCache(tmp_path / "cache"), lambda: RecordingRunner(batches))
    np.testing.assert_allclose(table.features, _colours(10), rtol=0, atol=1e-4)
    assert table.features.dtype == np.float32
    np.testing.assert_array_equal(table.labels, [0, 1] * 5)
    assert table.labels.dtype == np.int64
    assert table.files == tuple(files)
    assert table.hashes == tuple(hashlib.sha256(file.path.read_bytes()).hexdigest() for file in files)
    assert (table.skipped, table.from_cache) == ((), 0)
    assert sorted(batches) == [2, 4, 4]  # threads may finish in another order


def test_nothing_is_computed_twice(tmp_path: Path) -> None:
    files = colour_images(tmp_path, 6)
    first = _extract(files, FeatureCache(tmp_path / "cache"), lambda: OrtRunner(mean_colour(), threads=1))
    second = _extract(files, FeatureCache(tmp_path / "cache"), never)
    assert second.from_cache == 6
    np.testing.assert_array_equal(second.features, first.features)
    np.testing.assert_array_equal(second.labels, first.labels)


def test_a_block_that_lacks_an_image_runs_whole_and_the_others_not_at_all(tmp_path: Path) -> None:
    files = colour_images(tmp_path, 12)
    known = [*files[:5], *files[8:]]
    _extract(known, FeatureCache(tmp_path / "cache"), lambda: OrtRunner(mean_colour(), threads=1))
    batches: list[int] = []
    cache = FeatureCache(tmp_path / "cache")
    table = _extract(files, cache, lambda: RecordingRunner(batches))
    assert batches == [4]  # 4 to 7, of which the cache had 4
    np.testing.assert_array_equal(table.cached, [file in known for file in files])
    assert table.from_cache == 9
    np.testing.assert_allclose(table.features, _colours(12), rtol=0, atol=1e-4)
    assert cache.rows == 12  # what was known was not written again


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_copies_of_an_image_are_cached_once(tmp_path: Path, batch_size: int) -> None:
    one, two = colour_image(tmp_path / "1.png", (9, 9, 9), 0), colour_image(tmp_path / "2.png", (5, 5, 5), 1)
    copy = ImageFile(tmp_path / "copy.png", 1)
    copy.path.write_bytes(one.path.read_bytes())
    cache = FeatureCache(tmp_path / "cache")
    files = [one, copy, two, one]
    table = _extract(files, cache, lambda: OrtRunner(mean_colour(), threads=1), batch_size)
    assert cache.rows == len(cache) == 2
    assert table.from_cache == 0
    np.testing.assert_allclose(table.features[:, 0], [9, 9, 5, 9], rtol=0, atol=1e-4)
    np.testing.assert_array_equal(table.labels, [0, 1, 1, 0])
    assert _extract(files, FeatureCache(tmp_path / "cache"), never, batch_size).from_cache == 4


def test_a_file_that_cannot_be_read_does_not_make_its_block_run_again(tmp_path: Path) -> None:
    files = [*colour_images(tmp_path, 3), ImageFile(tmp_path / "text.jpg", 1)]
    (tmp_path / "text.jpg").write_text("no image")
    _extract(files, FeatureCache(tmp_path / "cache"), lambda: OrtRunner(mean_colour(), threads=1))
    table = _extract(files, FeatureCache(tmp_path / "cache"), never)
    assert (len(table.files), len(table.skipped)) == (3, 1)


def test_files_that_cannot_be_read_are_skipped_with_the_reason(tmp_path: Path) -> None:
    files = colour_images(tmp_path, 3)
    (tmp_path / "text.jpg").write_text("no image")
    files[1:1] = [ImageFile(tmp_path / "text.jpg", 1), ImageFile(tmp_path / "gone.png", 0)]
    table = _extract(files, FeatureCache(tmp_path / "cache"), lambda: OrtRunner(mean_colour(), threads=1))
    assert [file.path.name for file in table.files] == ["0.png", "1.png", "2.png"]
    np.testing.assert_allclose(table.features, _colours(3), rtol=0, atol=1e-4)
    assert [file.path.name for file in table.skipped] == ["text.jpg", "gone.png"]
    assert "not an image that can be read" in table.skipped[0].reason
    assert table.skipped[1].reason == "cannot be read: No such file or directory"


def test_nothing_readable_is_a_data_error_and_needs_no_backbone(tmp_path: Path) -> None:
    files = [ImageFile(tmp_path / name, 0) for name in ("gone.png", "lost.png")]
    with pytest.raises(DataError, match=r"none of 2 images could be read; the first: .*gone\.png: cannot be read"):
        _extract(files, FeatureCache(tmp_path / "cache"), never)


def test_no_files_at_all_are_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there are no images"):
        _extract([], FeatureCache(tmp_path / "cache"), never)


@pytest.mark.parametrize("colour", [(0, 0, 0), (7, 7, 7)], ids=["NaN", "infinity"])
def test_features_that_are_no_numbers_are_a_model_error_and_not_cached(
    tmp_path: Path, colour: tuple[int, int, int]
) -> None:
    files = [colour_image(tmp_path / "1.png", colour)]
    with pytest.raises(ModelError, match="the backbone gave NaN or infinity as features on onnxruntime CPU") as caught:
        _extract(files, FeatureCache(tmp_path / "cache"), lambda: OrtRunner(mean_colour(0.0), threads=1))
    assert "--weights" in caught.value.hint
    assert len(FeatureCache(tmp_path / "cache")) == 0


def test_progress_counts_every_file_and_ends_when_all_is_written(tmp_path: Path) -> None:
    files = [*colour_images(tmp_path, 4), ImageFile(tmp_path / "gone.png", 0)]
    seen: list[tuple[str, int, int, int]] = []

    def progress(stage: str, done: int, total: int) -> None:
        seen.append((stage, done, total, len(FeatureCache(tmp_path / "cache"))))

    plan = FeaturePlan(SPEC, [FeatureCache(tmp_path / "cache")], 2)
    extract_features(files, plan, lambda: OrtRunner(mean_colour(), threads=1), progress=progress)
    assert seen == [("features", 2, 5, 0), ("features", 4, 5, 0), ("features", 5, 5, 4)]


def test_shards_are_written_while_the_work_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extract, "SHARD_IMAGES", 8)
    _extract(colour_images(tmp_path, 20), FeatureCache(tmp_path / "cache"), lambda: OrtRunner(mean_colour(), threads=1))
    assert _shard_sizes(tmp_path / "cache") == [4, 8, 8]
    monkeypatch.setattr(extract, "SHARD_S", 0.0)
    _extract(colour_images(tmp_path, 20), FeatureCache(tmp_path / "timed"), lambda: OrtRunner(mean_colour(), threads=1))
    assert _shard_sizes(tmp_path / "timed") == [4] * 5


def _shard_sizes(folder: Path) -> list[int]:
    return sorted(len(np.load(path)) for path in folder.glob("*.npy"))


def test_a_stream_has_batches_in_flight_until_a_shard_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extract, "SHARD_IMAGES", 8)
    stream = Stream()
    table = extract_features(
        colour_images(tmp_path, 40), FeaturePlan(SPEC, [FeatureCache(tmp_path / "cache")], 4), lambda: stream
    )
    np.testing.assert_allclose(table.features, _colours(40), rtol=0, atol=1e-4)
    assert [len(batch) for batch in stream.batches] == [4] * 10
    assert (stream.ahead, stream.answered, stream.is_open) == (6, 10, False)  # two of a shard, and four behind it


def test_a_file_that_changes_between_two_reads_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was in the cache, so it was only hashed; then a file of its block turns out to be missing there."""
    files = colour_images(tmp_path, 2)
    _extract(files[:1], FeatureCache(tmp_path / "cache"), lambda: OrtRunner(mean_colour(), threads=1))
    original = Path.read_bytes
    reads: list[str] = []

    def read_bytes(path: Path) -> bytes:
        reads.append(path.name)
        return original(path) + b"more" * (reads.count("0.png") > 1 and path.name == "0.png")

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    table = _extract(files, FeatureCache(tmp_path / "cache"), lambda: OrtRunner(mean_colour(), threads=1))
    assert [file.path.name for file in table.files] == ["1.png"]
    assert [(file.path.name, file.reason) for file in table.skipped] == [("0.png", "changed while it was being read")]


def test_decoding_stays_a_bounded_number_of_images_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The backbone does not come before its export is done; decoding waits after 32 blocks of 8, and one more."""
    files = [colour_image(tmp_path / "one.png", (1, 2, 3))] * 800
    scanned: list[str] = []
    original = preprocess_image

    def count(data: bytes, spec: PreprocessSpec, *, name: str) -> npt.NDArray[np.uint8]:
        scanned.append(name)
        return original(data, spec, name=name)

    def open_runner() -> Runner:
        deadline = time.monotonic() + 10
        while len(scanned) < 256 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.2)
        assert 256 <= len(scanned) <= 256 + 4 * 8
        return OrtRunner(mean_colour(), threads=1)

    monkeypatch.setattr(blocks, "preprocess_image", count)
    assert len(_extract(files, FeatureCache(tmp_path / "cache"), open_runner, 8).files) == 800


def test_an_error_of_the_backbone_ends_the_pass_and_closes_it(tmp_path: Path) -> None:
    class Fails(RecordingRunner):
        def infer(self, feed: Feed) -> dict[str, Array]:
            raise ModelError("no kernel")

    with pytest.raises(ModelError, match="no kernel"):
        _extract(colour_images(tmp_path, 9), FeatureCache(tmp_path / "cache"), lambda: Fails([]))
    assert not any(thread.name.startswith("features") for thread in threading.enumerate())

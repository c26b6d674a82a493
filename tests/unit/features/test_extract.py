from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import numpy as np
import pytest
from PIL import Image

from edgetune.core.errors import DataError, ModelError
from edgetune.core.preprocess import PreprocessSpec
from edgetune.core.tensors import Array, Feed, TensorSpec
from edgetune.data.image_folder import ImageFile
from edgetune.features.cache import FeatureCache
from edgetune.features.extract import FeatureTable, extract_features
from edgetune.runners.base import Runner
from edgetune.runners.ort_runner import OrtRunner

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

SPEC = PreprocessSpec(4, 4, "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def _model(divisor: float = 1.0) -> bytes:
    """An ONNX model whose features are the mean red, green and blue, over `divisor`."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    nodes = [
        helper.make_node("Cast", ["image"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["wide"], ["mean"], axes=[1, 2], keepdims=0),
        helper.make_node("Div", ["mean", "divisor"], ["features"]),
    ]
    graph = helper.make_graph(
        nodes,
        "mean colour",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", 4, 4, 3])],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["N", 3])],
        [numpy_helper.from_array(np.array([divisor], np.float32), "divisor")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString()
    return data


class RecordingRunner:
    """Passes everything on to ONNX Runtime and notes the batch sizes."""

    def __init__(self, batches: list[int]) -> None:
        self._runner = OrtRunner(_model(), threads=1)
        self._batches = batches

    @property
    def name(self) -> str:
        return self._runner.name

    @property
    def input_specs(self) -> tuple[TensorSpec, ...]:
        return self._runner.input_specs

    @property
    def output_specs(self) -> tuple[TensorSpec, ...]:
        return self._runner.output_specs

    @property
    def min_batch(self) -> int:
        return self._runner.min_batch

    @property
    def max_batch(self) -> int | None:
        return self._runner.max_batch

    def infer(self, feed: Feed) -> dict[str, Array]:
        self._batches.append(len(feed["image"]))
        return self._runner.infer(feed)

    def __enter__(self) -> RecordingRunner:
        self._runner.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._runner.__exit__(kind, error, trace)


def _never() -> Runner:
    pytest.fail("the backbone was opened although nothing was missing")


def _image(path: Path, colour: tuple[int, int, int], label: int = 0) -> ImageFile:
    Image.new("RGB", (4, 4), colour).save(path)
    return ImageFile(path, label)


def _images(folder: Path, count: int) -> list[ImageFile]:
    return [_image(folder / f"{index}.png", (index, 2 * index, 255 - index), index % 2) for index in range(count)]


def _colours(count: int) -> Array:
    return np.array([[index, 2 * index, 255 - index] for index in range(count)], dtype=np.float32)


def _extract(
    files: list[ImageFile], cache: FeatureCache, open_runner: Callable[[], Runner], batch_size: int = 4
) -> FeatureTable:
    return extract_features(files, SPEC, cache, open_runner, batch_size=batch_size)


def test_features_labels_and_hashes_come_in_the_order_of_the_files(tmp_path: Path) -> None:
    files = _images(tmp_path, 10)
    batches: list[int] = []
    table = _extract(files, FeatureCache(tmp_path / "cache"), lambda: RecordingRunner(batches))
    np.testing.assert_allclose(table.features, _colours(10), rtol=0, atol=1e-4)
    assert table.features.dtype == np.float32
    np.testing.assert_array_equal(table.labels, [0, 1] * 5)
    assert table.labels.dtype == np.int64
    assert table.files == tuple(files)
    assert table.hashes == tuple(hashlib.sha256(file.path.read_bytes()).hexdigest() for file in files)
    assert (table.skipped, table.from_cache) == ((), 0)
    assert batches == [4, 4, 2]


def test_nothing_is_computed_twice(tmp_path: Path) -> None:
    files = _images(tmp_path, 6)
    first = _extract(files, FeatureCache(tmp_path / "cache"), lambda: OrtRunner(_model(), threads=1))
    second = _extract(files, FeatureCache(tmp_path / "cache"), _never)
    assert second.from_cache == 6
    np.testing.assert_array_equal(second.features, first.features)
    np.testing.assert_array_equal(second.labels, first.labels)


def test_only_what_is_missing_is_computed(tmp_path: Path) -> None:
    files = _images(tmp_path, 7)
    _extract(files[2:5], FeatureCache(tmp_path / "cache"), lambda: OrtRunner(_model(), threads=1))
    batches: list[int] = []
    table = _extract(files, FeatureCache(tmp_path / "cache"), lambda: RecordingRunner(batches))
    assert table.from_cache == 3
    assert batches == [4]
    np.testing.assert_allclose(table.features, _colours(7), rtol=0, atol=1e-4)


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_copies_of_an_image_are_computed_once(tmp_path: Path, batch_size: int) -> None:
    one, two = _image(tmp_path / "1.png", (9, 9, 9), 0), _image(tmp_path / "2.png", (5, 5, 5), 1)
    copy = ImageFile(tmp_path / "copy.png", 1)
    copy.path.write_bytes(one.path.read_bytes())
    batches: list[int] = []
    cache = FeatureCache(tmp_path / "cache")
    table = _extract([one, copy, two, one], cache, lambda: RecordingRunner(batches), batch_size)
    assert sum(batches) == 2
    assert len(cache.known) == 2
    np.testing.assert_allclose(table.features[:, 0], [9, 9, 5, 9], rtol=0, atol=1e-4)
    np.testing.assert_array_equal(table.labels, [0, 1, 1, 0])


def test_files_that_cannot_be_read_are_skipped_with_the_reason(tmp_path: Path) -> None:
    files = _images(tmp_path, 3)
    (tmp_path / "text.jpg").write_text("no image")
    files[1:1] = [ImageFile(tmp_path / "text.jpg", 1), ImageFile(tmp_path / "gone.png", 0)]
    table = _extract(files, FeatureCache(tmp_path / "cache"), lambda: OrtRunner(_model(), threads=1))
    assert [file.path.name for file in table.files] == ["0.png", "1.png", "2.png"]
    np.testing.assert_allclose(table.features, _colours(3), rtol=0, atol=1e-4)
    assert [file.path.name for file in table.skipped] == ["text.jpg", "gone.png"]
    assert "not an image that can be read" in table.skipped[0].reason
    assert table.skipped[1].reason == "cannot be read: No such file or directory"


def test_nothing_readable_is_a_data_error_and_needs_no_backbone(tmp_path: Path) -> None:
    files = [ImageFile(tmp_path / name, 0) for name in ("gone.png", "lost.png")]
    with pytest.raises(DataError, match=r"none of 2 images could be read; the first: .*gone\.png: cannot be read"):
        _extract(files, FeatureCache(tmp_path / "cache"), _never)


def test_no_files_at_all_are_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there are no images"):
        _extract([], FeatureCache(tmp_path / "cache"), _never)


@pytest.mark.parametrize("colour", [(0, 0, 0), (7, 7, 7)], ids=["NaN", "infinity"])
def test_features_that_are_no_numbers_are_a_model_error_and_not_cached(
    tmp_path: Path, colour: tuple[int, int, int]
) -> None:
    files = [_image(tmp_path / "1.png", colour)]
    with pytest.raises(ModelError, match="the backbone gave NaN or infinity as features on onnxruntime CPU") as caught:
        _extract(files, FeatureCache(tmp_path / "cache"), lambda: OrtRunner(_model(0.0), threads=1))
    assert "--weights" in caught.value.hint
    assert FeatureCache(tmp_path / "cache").known == {}


def test_progress_counts_every_file(tmp_path: Path) -> None:
    files = [*_images(tmp_path, 2), ImageFile(tmp_path / "gone.png", 0)]
    seen: list[tuple[str, int, int]] = []
    extract_features(
        files,
        SPEC,
        FeatureCache(tmp_path / "cache"),
        lambda: OrtRunner(_model(), threads=1),
        batch_size=4,
        progress=lambda *call: seen.append(call),
    )
    assert seen == [("features", 1, 3), ("features", 2, 3), ("features", 3, 3)]

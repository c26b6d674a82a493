"""Images through runners that answer, fail half-way, or answer nonsense."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from edgetune.core.errors import DataError, ImageError, ModelError
from edgetune.core.preprocess import PreprocessSpec
from edgetune.core.tensors import LOGITS_OUTPUT, Array, Feed, TensorSpec
from edgetune.data.image_folder import ImageFile
from edgetune.parity.compare import collect_logits, spread_rows

SPEC = PreprocessSpec(4, 4, "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


class _Plain:
    """A runner whose answer is a function of the pixels."""

    name = "plain"
    input_specs = (TensorSpec("image", "uint8", (None, 4, 4, 3)),)
    output_specs = (TensorSpec(LOGITS_OUTPUT, "float32", (None, 2)),)
    min_batch, max_batch = 1, None

    def __init__(self, answer: Callable[[Array], Array]) -> None:
        self._answer = answer

    def infer(self, feed: Feed) -> dict[str, Array]:
        return {LOGITS_OUTPUT: self._answer(feed["image"])}

    def __enter__(self) -> _Plain:
        return self

    def __exit__(self, *_: object) -> None: ...


class _Reader:
    name = "reader"

    def __init__(self, answer: Callable[[bytes], npt.NDArray[np.float32]]) -> None:
        self._answer = answer

    def classify(self, data: bytes) -> npt.NDArray[np.float32]:
        return self._answer(data)

    def __enter__(self) -> _Reader:
        return self

    def __exit__(self, *_: object) -> None: ...


@pytest.fixture
def files(tmp_path: Path) -> list[ImageFile]:
    """Twenty grey images, each of one value, and one that is none."""
    paths = [tmp_path / f"{value:02d}.png" for value in range(20)]
    for value, path in enumerate(paths):
        Image.new("RGB", (4, 4), (value, value, value)).save(path)
    (tmp_path / "broken.png").write_bytes(b"no image")
    return [ImageFile(path, index % 2) for index, path in enumerate([*paths, tmp_path / "broken.png"])]


def _means(images: Array) -> Array:
    mean = images.astype(np.float32).mean((1, 2, 3))
    return np.stack([mean, -mean], axis=1)


def test_every_runner_sees_every_readable_image_in_order(files: list[ImageFile]) -> None:
    sizes = _Reader(lambda data: np.array([len(data), 0.0], np.float32))
    table = collect_logits(files, SPEC, {"a": _Plain(_means)}, file_runners={"b": sizes})
    np.testing.assert_array_equal(table.logits["a"][:, 0], np.arange(20))
    assert [int(size) for size in table.logits["b"][:, 0]] == [file.path.stat().st_size for file in files[:20]]
    assert table.labels.tolist() == [0, 1] * 10
    assert (len(table.hashes), len(set(table.hashes)), table.failures) == (20, 20, {})
    assert [file.path.name for file in table.skipped] == ["broken.png"]


def test_a_runner_that_fails_is_left_out_and_the_others_go_on(files: list[ImageFile]) -> None:
    calls = []

    def fail(images: Array) -> Array:
        calls.append(len(images))
        if len(calls) == 2:
            raise ModelError("out of memory")
        return _means(images)

    def refuse(_: bytes) -> npt.NDArray[np.float32]:
        raise ImageError("too many pixels")

    table = collect_logits(
        files, SPEC, {"good": _Plain(_means), "bad": _Plain(fail)}, file_runners={"reader": _Reader(refuse)}
    )
    assert table.failures == {"bad": "out of memory", "reader": "too many pixels"}
    assert set(table.logits) == {"good"}
    assert calls == [8, 8]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda images: np.zeros(len(images), np.float32), r"the logits are \(8,\), expected \(8, classes\)"),
        (lambda images: np.zeros((1, 2), np.float32), r"the logits are \(1, 2\), expected \(8, classes\)"),
        (lambda images: np.zeros((len(images), 2 if images.max() < 10 else 3), np.float32), r"\(8, 3\), .* \(8, 2\)"),
    ],
    ids=["no classes", "another batch", "classes change"],
)  # fmt: skip
def test_an_answer_of_another_shape_is_a_failure(
    files: list[ImageFile], answer: Callable[[Array], Array], words: str
) -> None:
    table = collect_logits(files, SPEC, {"a": _Plain(answer)})
    assert table.logits == {}
    assert list(table.failures) == ["a"]
    with pytest.raises(DataError, match=words):
        raise DataError(table.failures["a"])


def test_files_with_other_numbers_of_classes_are_a_failure(files: list[ImageFile]) -> None:
    reader = _Reader(lambda data: np.zeros(2 + len(data) % 2, np.float32))
    files[1].path.write_bytes(files[1].path.read_bytes() + b"\0")
    table = collect_logits(files, SPEC, {}, file_runners={"r": reader})
    assert "the logits of two images are" in table.failures["r"]


@pytest.mark.parametrize(
    ("count", "limit", "rows"), [(10, 3, [0, 3, 6]), (3, 10, [0, 1, 2]), (1, 1, [0]), (16, 4, [0, 4, 8, 12])]
)
def test_a_few_rows_are_spread_evenly(count: int, limit: int, rows: list[int]) -> None:
    assert spread_rows(count, limit) == rows

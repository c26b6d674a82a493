from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import overload

import numpy as np
import pytest
from PIL import Image

from edgetune.core.preprocess import PreprocessSpec
from edgetune.data.image_folder import ImageFile, SkippedFile
from edgetune.data.samples import PREFETCH_IMAGES, Sample, SampleStream, batches

SPEC = PreprocessSpec(4, 4, "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


class CountedFiles(Sequence[ImageFile]):
    """Counts how many files were handed over."""

    def __init__(self, files: Sequence[ImageFile]) -> None:
        self._files = files
        self.taken = 0

    def __len__(self) -> int:
        return len(self._files)

    @overload
    def __getitem__(self, index: int) -> ImageFile: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[ImageFile]: ...

    def __getitem__(self, index: int | slice) -> ImageFile | Sequence[ImageFile]:
        if isinstance(index, int) and index < len(self._files):
            self.taken += 1
        return self._files[index]


def _image(path: Path, grey: int) -> ImageFile:
    """A 4x4 image of one grey, which no resize changes."""
    Image.new("RGB", (4, 4), (grey, grey, grey)).save(path)
    return ImageFile(path, grey % 2)


def _images(folder: Path, count: int) -> list[ImageFile]:
    return [_image(folder / f"{index}.png", index) for index in range(count)]


def _greys(samples: Sequence[Sample | SkippedFile]) -> list[int | str]:
    return [
        sample.reason if isinstance(sample, SkippedFile) else -1 if sample.image is None else int(sample.image[0, 0, 0])
        for sample in samples
    ]


def test_samples_come_in_the_order_of_the_files(tmp_path: Path) -> None:
    files = _images(tmp_path, 40)[::-1]
    with SampleStream(files, SPEC) as stream:
        samples = list(stream)
    assert _greys(samples) == list(range(39, -1, -1))
    for file, sample in zip(files, samples, strict=True):
        assert isinstance(sample, Sample)
        assert sample.file == file
        assert sample.sha256 == hashlib.sha256(file.path.read_bytes()).hexdigest()
        assert sample.image is not None
        assert sample.image.shape == (4, 4, 3)
        assert sample.image.dtype == np.uint8


def test_files_that_cannot_be_read_come_out_in_their_place_with_the_reason(tmp_path: Path) -> None:
    good = _image(tmp_path / "good.png", 7)
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "cut.png").write_bytes(good.path.read_bytes()[:45])
    (tmp_path / "folder.png").mkdir()
    names = ["text.jpg", "good.png", "gone.png", "cut.png", "folder.png", "good.png"]
    with SampleStream([ImageFile(tmp_path / name, 0) for name in names], SPEC) as stream:
        text, first, gone, cut, folder, second = stream
    assert _greys([first, second]) == [7, 7]
    assert isinstance(text, SkippedFile)
    assert text.path == tmp_path / "text.jpg"
    assert text.reason.startswith("text.jpg is not an image that can be read (8 bytes")
    assert isinstance(cut, SkippedFile)
    assert "cut.png is damaged and cannot be decoded" in cut.reason
    assert gone == SkippedFile(tmp_path / "gone.png", "cannot be read: No such file or directory")
    assert folder == SkippedFile(tmp_path / "folder.png", "cannot be read: Is a directory")


def test_no_files_give_no_samples() -> None:
    with SampleStream([], SPEC) as stream:
        assert list(stream) == []


def test_decoding_stays_a_bounded_number_of_images_ahead(tmp_path: Path) -> None:
    one = _image(tmp_path / "one.png", 5)
    files = CountedFiles([one] * (PREFETCH_IMAGES + 60))
    with SampleStream(files, SPEC) as stream:
        assert files.taken == PREFETCH_IMAGES
        for consumed, _ in enumerate(stream, start=1):
            assert files.taken <= consumed + PREFETCH_IMAGES
            if consumed == 50:
                assert files.taken == PREFETCH_IMAGES + 50
    assert consumed == len(files)


def test_leaving_early_stops_the_work(tmp_path: Path) -> None:
    one = _image(tmp_path / "one.png", 5)
    files = CountedFiles([one] * (4 * PREFETCH_IMAGES))
    with SampleStream(files, SPEC) as stream:
        next(iter(stream))
    assert files.taken <= PREFETCH_IMAGES + 1


@pytest.mark.parametrize(
    ("size", "expected"),
    [(1, [1] * 5), (2, [2, 2, 1]), (5, [5]), (8, [5])],
    ids=["one by one", "pairs", "exact", "larger than all"],
)
def test_batches_hold_up_to_their_size(tmp_path: Path, size: int, expected: list[int]) -> None:
    files = _images(tmp_path, 5)
    with SampleStream(files, SPEC) as stream:
        found = list(batches(stream, size, lambda file: pytest.fail(file.reason)))
    assert [len(images) for _, images in found] == expected
    assert [sample.file for samples, _ in found for sample in samples] == files
    greys = np.concatenate([images for _, images in found])[:, 0, 0, 0]
    np.testing.assert_array_equal(greys, np.arange(5))


def test_batches_leave_out_what_cannot_be_read_and_tell(tmp_path: Path) -> None:
    files = _images(tmp_path, 3)
    files.insert(1, ImageFile(tmp_path / "gone.png", 0))
    skipped: list[SkippedFile] = []
    with SampleStream(files, SPEC) as stream:
        found = list(batches(stream, 2, skipped.append))
    assert [[sample.file.path.name for sample in samples] for samples, _ in found] == [["0.png", "1.png"], ["2.png"]]
    assert [file.path.name for file in skipped] == ["gone.png"]


def test_batches_of_nothing_readable_are_none(tmp_path: Path) -> None:
    skipped: list[SkippedFile] = []
    with SampleStream([ImageFile(tmp_path / "gone.png", 0)], SPEC) as stream:
        assert list(batches(stream, 2, skipped.append)) == []
    assert len(skipped) == 1

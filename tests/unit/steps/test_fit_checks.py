"""A fit that cannot be done says so before it costs anything, and names the class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgetune.core.errors import DataError, UsageError
from edgetune.data.image_folder import ImageFile, ImageFolder, SkippedFile
from edgetune.features.table import FeatureTable
from edgetune.steps.fit_checks import check_listed, check_readable, check_words, split_part

ROOT = Path("/data")
CLASSES = ("ant", "bee")


def _files(ants: int, bees: int, group: str = "") -> tuple[ImageFile, ...]:
    """Bees are in `group`, ants in none."""
    return (
        *(ImageFile(ROOT / f"ant/{index}.png", 0) for index in range(ants)),
        *(ImageFile(ROOT / f"bee/{index}.png", 1, group) for index in range(bees)),
    )


def _folder(train: tuple[ImageFile, ...]) -> ImageFolder:
    return ImageFolder(ROOT, CLASSES, train, (), ())


def _table(
    files: tuple[ImageFile, ...], hashes: tuple[str, ...], skipped: tuple[SkippedFile, ...] = ()
) -> FeatureTable:
    return FeatureTable(
        features=np.zeros((len(files), 2), np.float32),
        labels=np.array([file.label for file in files], np.int64),
        files=files,
        hashes=hashes,
        skipped=skipped,
        cached=np.zeros(len(files), np.bool_),
        views=(),
        view_rows=np.arange(0),
    )


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (_files(2, 1), "the class 'bee' has 1 training image, expected at least 2."),
        (_files(0, 2), "the class 'ant' has 0 training images, expected at least 2."),
        (
            _files(2, 3, "cam1"),
            "all 3 training images of the class 'bee' are in the group cam1, expected at least 2 gr",
        ),
    ],
)
def test_what_no_content_can_mend_is_refused_by_the_listing(files: tuple[ImageFile, ...], words: str) -> None:
    with pytest.raises(DataError) as caught:
        check_listed(_folder(files))
    assert caught.value.message.startswith(words)
    assert caught.value.hint != ""


def test_two_images_of_each_class_are_enough() -> None:
    files = _files(2, 2)
    check_listed(_folder(files))
    check_readable(_folder(files), _table(files, ("a", "b", "c", "d")))


def test_a_group_and_an_image_of_its_own_are_two() -> None:
    check_listed(_folder((*_files(2, 2, "cam1"), ImageFile(ROOT / "bee/x.png", 1))))


def test_of_what_cannot_be_read_the_first_is_named() -> None:
    files = _files(2, 3)
    skipped = (SkippedFile(ROOT / "val/x.png", "x"), *(SkippedFile(file.path, "0 bytes.") for file in files[3:]))
    with pytest.raises(DataError) as caught:
        check_readable(_folder(files), _table(files[:3], ("a", "b", "c"), skipped))
    assert caught.value.message == (
        "the class 'bee' has 1 training image, expected at least 2; 2 cannot be read, the first, /data/bee/1.png: "
        "0 bytes."
    )


def test_copies_of_one_image_are_one() -> None:
    files = _files(2, 3)
    with pytest.raises(DataError, match="all 3 training images of the class 'bee' are copies of one"):
        check_readable(_folder(files), _table(files, ("a", "b", "c", "c", "c")))


def test_a_split_that_cannot_be_read_is_named() -> None:
    files = _files(2, 2)
    table = _table(files[:2], ("a", "b"), (SkippedFile(files[2].path, "cannot be read: gone"),))
    assert split_part(table, "training", files[:2]).files == files[:2]
    with pytest.raises(DataError) as caught:
        split_part(table, "val", files[2:])
    assert caught.value.message == (
        "not one of 2 val images can be read; the first, /data/bee/0.png: cannot be read: gone."
    )


def test_words_that_no_record_can_hold_are_refused() -> None:
    check_words({"data": "/é/画", "seed": 3, "weights": None, "head": {"kind": "svm"}})
    with pytest.raises(UsageError, match=r"weights is '/w\\udcff\.pth', which is not valid UTF-8"):
        check_words({"data": "/data", "weights": "/w\udcff.pth"})

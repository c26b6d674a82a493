"""Whether a fit can be done as asked: words that can be written down, images enough to fit on and to judge by."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgetune.core.errors import DataError, UsageError
from edgetune.core.files import printable
from edgetune.data.image_folder import ImageFile, ImageFolder, SkippedFile
from edgetune.data.wording import shown
from edgetune.features.table import FeatureTable

_LEAST = 2  # one to fit on, one to judge by


def check_words(words: Mapping[str, Any]) -> None:
    """Raises `UsageError` for an option or a path that is not valid UTF-8: neither JSON nor ONNX Runtime take it."""
    for name, word in words.items():
        if isinstance(word, str) and printable(word) != word:
            raise UsageError(f"{name} is {word!r}, which is not valid UTF-8.", hint="rename it")


def check_listed(folder: ImageFolder) -> None:
    """Refuses before any image is opened what no image's content can mend.

    Raises:
        DataError: a class has fewer than two training images, or all of them are in one group.
    """
    _check_classes(folder, folder.train, [file.group or str(file.path) for file in folder.train], ())


def check_readable(folder: ImageFolder, train: FeatureTable) -> None:
    """The same of the training images that could be read; copies of an image count as one.

    Raises:
        DataError: what `check_listed` refuses, or all training images of a class are copies of one.
    """
    names = [file.group or sha256 for file, sha256 in zip(train.files, train.hashes, strict=True)]
    _check_classes(folder, train.files, names, train.skipped)


def split_part(table: FeatureTable, split: str, files: Sequence[ImageFile]) -> FeatureTable:
    """The rows of a split's files. Raises `DataError` when not one of them could be read."""
    wanted = {file.path for file in files}
    if any(file.path in wanted for file in table.files):
        return table.part(files)
    first = next(file for file in table.skipped if file.path in wanted)
    raise DataError(
        f"not one of {len(files)} {split} images can be read; {_words(first)}",
        hint="mend those files, or do without that split",
    )


def _check_classes(
    folder: ImageFolder, files: Sequence[ImageFile], belongs: Sequence[str], skipped: Sequence[SkippedFile]
) -> None:
    """`belongs` names what each file is kept together with."""
    counts, apart = [0] * len(folder.classes), defaultdict(set)
    for file, name in zip(files, belongs, strict=True):
        counts[file.label] += 1
        apart[file.label].add(name)
    for label, count in enumerate(counts):
        if count < _LEAST:
            raise _too_few(folder, label, count, skipped)
        if len(apart[label]) < _LEAST:
            group = next(file.group for file in files if file.label == label)
            raise _all_alike(folder.classes[label], count, group)


def _too_few(folder: ImageFolder, label: int, count: int, skipped: Sequence[SkippedFile]) -> DataError:
    labels: dict[Path, int] = {file.path: file.label for file in folder.train}
    lost = [file for file in skipped if labels.get(file.path) == label]
    why = f"; {len(lost)} cannot be read, {_words(lost[0])}" if lost else "."
    images = f"{count} training image{'' if count == 1 else 's'}"
    return DataError(
        f"the class {folder.classes[label]!r} has {images}, expected at least {_LEAST}{why}",
        hint="add images of that class, or leave it out",
    )


def _all_alike(name: str, count: int, group: str) -> DataError:
    if not group:
        return DataError(
            f"all {count} training images of the class {name!r} are copies of one, expected at least {_LEAST} "
            "different ones: one to fit on, one to judge by.",
            hint="add images of that class, or leave it out",
        )
    return DataError(
        f"all {count} training images of the class {name!r} are in the group {shown(group)}, expected at least "
        f"{_LEAST} groups: one to fit on, one to judge by.",
        hint="add images of that class from elsewhere, or let --group-by make smaller groups",
    )


def _words(first: SkippedFile) -> str:
    return f"the first, {shown(str(first.path))}: {first.reason.rstrip('.')}."

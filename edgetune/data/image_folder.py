"""Images in class folders: what is there, with labels, and what was left out and why; nothing is opened."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from edgetune.core.errors import DataError
from edgetune.core.files import printable
from edgetune.core.preprocess import IMAGE_SUFFIXES
from edgetune.core.run import Finding
from edgetune.data.wording import shown, some_names

VAL_NAMES = ("val", "valid", "validation")
LAYOUT = (
    "expected FOLDER/CLASS/*.jpg, or FOLDER/train/CLASS/*.jpg with FOLDER/val/CLASS/*.jpg, "
    "or a CSV file with the columns file and label"
)


@dataclass(frozen=True)
class ImageFile:
    """`label` is the index into the classes. Images of one `group` stay on one side of a split; an image whose group
    is empty is a group of its own.
    """

    path: Path
    label: int
    group: str = ""


@dataclass(frozen=True)
class SkippedFile:
    path: Path
    reason: str


@dataclass(frozen=True)
class ImageFolder:
    """Every image lies below `root`. `classes` are sorted by name; `skipped` names files that were left out."""

    root: Path
    classes: tuple[str, ...]
    train: tuple[ImageFile, ...]
    val: tuple[ImageFile, ...]
    skipped: tuple[SkippedFile, ...]
    test: tuple[ImageFile, ...] = ()
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True)
class Listing:
    """What a source of images says; `val` is None where it leaves the split to the images' content."""

    root: Path
    classes: tuple[str, ...]
    train: tuple[ImageFile, ...]
    val: tuple[ImageFile, ...] | None
    test: tuple[ImageFile, ...]
    skipped: tuple[SkippedFile, ...]


def labelled_root(root: Path) -> Path:
    """The folder whose subfolders are classes, for judging a model: `root/val` where there is one, else `root`."""
    return next((root / name for name in VAL_NAMES if (root / name).is_dir()), root)


def class_names(root: Path) -> list[str]:
    """The folders below `root`, sorted, without hidden ones.

    Raises:
        DataError: `root` is no folder, or may not be read.
    """
    if not root.is_dir():
        raise DataError(f"{root} is not a folder.", hint=LAYOUT)
    try:
        return sorted(folder.name for folder in root.iterdir() if folder.is_dir() and not folder.name.startswith("."))
    except OSError as error:
        raise DataError(f"{root} cannot be read: {error.strerror}.") from error


def scan_labelled(root: Path, classes: tuple[str, ...]) -> tuple[tuple[ImageFile, ...], tuple[SkippedFile, ...]]:
    """Lists the images below `root/CLASS` with labels in the order of `classes`, which is authoritative.

    Raises:
        DataError: no such folder, no images, or a class folder that `classes` lacks.
    """
    unknown = [name for name in class_names(root) if name not in classes]
    if unknown:
        raise DataError(
            f"{root} has class folders that the training classes lack: {some_names(unknown)}.",
            hint=f"the classes are: {some_names(classes)}",
        )
    images, skipped = _scan_files(root, classes)
    if not images:
        raise DataError(f"{root} holds no images in class folders.", hint=LAYOUT)
    return images, skipped


def scan_classes(root: Path) -> tuple[tuple[str, ...], tuple[ImageFile, ...], tuple[SkippedFile, ...]]:
    """The classes that the folders below `root` are, and their images.

    Raises:
        DataError: fewer than two classes, or one without images.
    """
    classes = tuple(class_names(root))
    if not classes:
        raise DataError(f"{root} holds no class folders.", hint=LAYOUT)
    check_class_count(root, classes)
    images, skipped = _scan_files(root, classes)
    filled = {image.label for image in images}
    empty = [name for label, name in enumerate(classes) if label not in filled]
    if empty:
        reasons = [file.reason for file in skipped if file.path.is_relative_to(root / empty[0])]
        why = f"; of {shown(empty[0])}: {reasons[0]}" if reasons else ""
        raise DataError(f"{root}: no images in the class folders {some_names(empty)}{why}.", hint=LAYOUT)
    return classes, images, (*_outside_classes(root), *skipped)


def check_class_count(source: Path, classes: tuple[str, ...]) -> None:
    """Raises `DataError` for a single class."""
    if len(classes) == 1:
        raise DataError(f"{source} holds one class only, {classes[0]!r}; a classifier needs at least two.", hint=LAYOUT)


def reason_to_skip(path: Path) -> str:
    """Why the file cannot be an image, by its name alone; empty where it can."""
    if printable(str(path)) != str(path):
        return "its name is not valid UTF-8"
    if not path.suffix:
        return "its name does not end in an image type such as .jpg"
    return "" if path.suffix.lower() in IMAGE_SUFFIXES else f"{path.suffix} is not a supported image type"


def _outside_classes(root: Path) -> list[SkippedFile]:
    images = sorted(path for path in root.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
    return [SkippedFile(path, "lies in no class folder") for path in images if not path.name.startswith(".")]


def _scan_files(root: Path, classes: tuple[str, ...]) -> tuple[tuple[ImageFile, ...], tuple[SkippedFile, ...]]:
    images: list[ImageFile] = []
    skipped: list[SkippedFile] = []
    for label, name in enumerate(classes):
        paths, left_out = _walk(root / name)
        skipped += left_out
        for path in paths:
            reason = reason_to_skip(path)
            if reason:
                skipped.append(SkippedFile(path, reason))
            else:
                images.append(ImageFile(path, label))
    return tuple(images), tuple(skipped)


def _walk(folder: Path) -> tuple[list[Path], list[SkippedFile]]:
    """The files below a class folder in the order of their names, without hidden ones; and what is no file."""
    if not folder.is_dir():
        return [], []
    if folder.parent.resolve().is_relative_to(folder.resolve()):
        return [], [SkippedFile(folder, "is a link to a folder above it")]
    paths: list[Path] = []
    skipped: list[SkippedFile] = []

    def note(error: OSError) -> None:
        skipped.append(SkippedFile(Path(error.filename), f"cannot be read: {error.strerror}"))

    for place, folders, names in os.walk(folder, onerror=note):
        folders[:] = [name for name in folders if not name.startswith(".")]
        here = Path(place)
        links = [here / name for name in folders if (here / name).is_symlink()]
        skipped += [SkippedFile(path, "is a link to a folder, which is not followed") for path in links]
        for path in (here / name for name in names if not name.startswith(".")):
            if path.is_file():
                paths.append(path)
            elif path.suffix.lower() in IMAGE_SUFFIXES:
                skipped.append(SkippedFile(path, "is no file, or a link to nothing"))
    return sorted(paths), sorted(skipped, key=lambda file: file.path)

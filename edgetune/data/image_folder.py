"""A folder of images: `train/ val/` with one folder a class in each, or one folder a class at the top."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgetune.core.errors import DataError
from edgetune.core.files import printable, sha256_of_file
from edgetune.core.preprocess import IMAGE_SUFFIXES
from edgetune.data.splits import is_validation

_VAL_NAMES = ("val", "valid", "validation")


@dataclass(frozen=True)
class ImageFile:
    """`label` is the index into the folder's classes."""

    path: Path
    label: int


@dataclass(frozen=True)
class SkippedFile:
    path: Path
    reason: str


@dataclass(frozen=True)
class ImageFolder:
    """`classes` are sorted by name; `skipped` names files that are no images by their suffix."""

    root: Path
    classes: tuple[str, ...]
    train: tuple[ImageFile, ...]
    val: tuple[ImageFile, ...]
    skipped: tuple[SkippedFile, ...]


def scan_image_folder(root: Path) -> ImageFolder:
    """Lists the images without opening them; a flat folder is split by content hash (20 % for validation).

    Raises:
        DataError: no such folder, fewer than two classes, an empty class, or other classes in `val`.
    """
    if not root.is_dir():
        raise DataError(f"{root} is not a folder.", hint=_LAYOUT)
    train_root = root / "train"
    if not set(_class_names(root)) & {"train"} or not set(_class_names(root)) <= {"train", "test", *_VAL_NAMES}:
        return _split_by_content(root, *_scan_classes(root))
    val_root = next((root / name for name in _VAL_NAMES if (root / name).is_dir()), None)
    classes, train, skipped = _scan_classes(train_root)
    if val_root is None:
        return _split_by_content(root, classes, train, skipped)
    val, val_skipped = scan_labelled(val_root, classes)
    return ImageFolder(root, classes, train, val, skipped + val_skipped)


_LAYOUT = "expected FOLDER/CLASS/*.jpg, or FOLDER/train/CLASS/*.jpg with FOLDER/val/CLASS/*.jpg"


def labelled_root(root: Path) -> Path:
    """The folder whose subfolders are classes, for judging a model: `root/val` where there is one, else `root`."""
    return next((root / name for name in _VAL_NAMES if (root / name).is_dir()), root)


def scan_labelled(root: Path, classes: tuple[str, ...]) -> tuple[tuple[ImageFile, ...], tuple[SkippedFile, ...]]:
    """Lists the images below `root/CLASS` with labels in the order of `classes`, which is authoritative.

    Raises:
        DataError: no such folder, no images, or a class folder that `classes` lacks.
    """
    if not root.is_dir():
        raise DataError(f"{root} is not a folder.", hint=_LAYOUT)
    unknown = [name for name in _class_names(root) if name not in classes]
    if unknown:
        raise DataError(
            f"{root} has class folders that the training classes lack: {', '.join(unknown)}.",
            hint=f"the classes are: {', '.join(classes)}",
        )
    images, skipped = _scan_files(root, classes)
    if not images:
        raise DataError(f"{root} holds no images in class folders.", hint=_LAYOUT)
    return images, skipped


def _class_names(root: Path) -> list[str]:
    return sorted(folder.name for folder in root.iterdir() if folder.is_dir() and not folder.name.startswith("."))


def _scan_classes(root: Path) -> tuple[tuple[str, ...], tuple[ImageFile, ...], tuple[SkippedFile, ...]]:
    classes = tuple(_class_names(root))
    if not classes:
        raise DataError(f"{root} holds no class folders.", hint=_LAYOUT)
    if len(classes) == 1:
        raise DataError(f"{root} holds one class only, {classes[0]!r}; a classifier needs at least two.", hint=_LAYOUT)
    images, skipped = _scan_files(root, classes)
    filled = {image.label for image in images}
    empty = [name for label, name in enumerate(classes) if label not in filled]
    if empty:
        raise DataError(f"{root}: no images in the class folders {', '.join(empty)}.", hint=_LAYOUT)
    return classes, images, skipped


def _scan_files(root: Path, classes: tuple[str, ...]) -> tuple[tuple[ImageFile, ...], tuple[SkippedFile, ...]]:
    images: list[ImageFile] = []
    skipped: list[SkippedFile] = []
    for label, name in enumerate(classes):
        for path in sorted((root / name).rglob("*")):
            hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
            if hidden or not path.is_file():
                continue
            if printable(str(path)) != str(path):
                skipped.append(SkippedFile(path, "its name is not valid UTF-8"))
            elif path.suffix.lower() in IMAGE_SUFFIXES:
                images.append(ImageFile(path, label))
            else:
                skipped.append(SkippedFile(path, f"{path.suffix or 'no suffix'} is not a supported image type"))
    return tuple(images), tuple(skipped)


def _split_by_content(
    root: Path, classes: tuple[str, ...], images: tuple[ImageFile, ...], skipped: tuple[SkippedFile, ...]
) -> ImageFolder:
    try:
        in_val = [is_validation(sha256_of_file(image.path)) for image in images]
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read: {error.strerror}.") from error
    train = tuple(image for image, val in zip(images, in_val, strict=True) if not val)
    val = tuple(image for image, val in zip(images, in_val, strict=True) if val)
    lacking = sorted(set(range(len(classes))) - {image.label for image in train})
    if lacking or not val:
        raise DataError(
            f"{root} has too few images ({len(images)}) to set a fifth aside for validation"
            + (
                f": no training image is left for {', '.join(classes[label] for label in lacking)}." if lacking else "."
            ),
            hint="add images, or make train/ and val/ folders yourself",
        )
    return ImageFolder(root, classes, train, val, skipped)

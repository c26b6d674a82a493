"""Labelled images from a folder or a CSV file, split into train, val and test."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

from edgetune.core.errors import DataError
from edgetune.core.files import sha256_of_bytes, sha256_of_file
from edgetune.core.run import Finding
from edgetune.data.csv_file import read_csv
from edgetune.data.groups import with_groups
from edgetune.data.image_folder import (
    LAYOUT,
    VAL_NAMES,
    ImageFile,
    ImageFolder,
    Listing,
    SkippedFile,
    class_names,
    scan_classes,
    scan_labelled,
)
from edgetune.data.splits import is_validation
from edgetune.data.wording import shown, some_names


@dataclass
class _Sides:
    """The images of train, those of val, those that cannot be read, and what decided: digests of content or groups."""

    train: list[ImageFile] = field(default_factory=list)
    val: list[ImageFile] = field(default_factory=list)
    unread: list[SkippedFile] = field(default_factory=list)
    digests: set[str] = field(default_factory=set)


def scan_images(source: Path, *, group_by: str = "") -> ImageFolder:
    """Lists labelled images without decoding them: a folder of class folders, a folder with `train/ val/ test/` of
    them, or a CSV file.

    Where no validation images are given, a fifth of the training images is set aside: by the hash of each file's
    content, or of its group's name where `group_by`, a regular expression over relative paths, finds one. So a file's
    side depends on no other file, and copies and groups stay together.

    Raises:
        DataError: the source cannot be used, or is too small to be split.
        UsageError: `group_by` is no regular expression, or fits no path.
    """
    listing = read_csv(source) if source.is_file() else _list_folder(source)
    findings: list[Finding] = []
    if group_by:
        listing, findings = _with_groups(listing, group_by)
    return dataclasses.replace(_split(listing, source), findings=tuple(findings))


def _list_folder(root: Path) -> Listing:
    names = set(class_names(root))
    splits = names & {"train", "test", *VAL_NAMES}
    if not splits or (splits == {"train"} and splits != names):  # train may be a class, beside bus and car
        classes, images, skipped = scan_classes(root)
        return Listing(root, classes, images, None, (), skipped)
    if splits != names or "train" not in splits:
        other = f"beside {shown(min(names - splits))}" if splits != names else "and no train"
        text = f"{root} holds {', '.join(sorted(splits))} {other}, so its folders are neither splits nor classes."
        raise DataError(text, hint=LAYOUT)
    return _list_splits(root, splits)


def _list_splits(root: Path, names: set[str]) -> Listing:
    classes, train, skipped = scan_classes(root / "train")
    val: tuple[ImageFile, ...] | None = None
    found = [name for name in VAL_NAMES if name in names]
    if found:
        val, more = scan_labelled(root / found[0], classes)
        skipped += (*more, *(SkippedFile(root / name, f"{found[0]} is used instead") for name in found[1:]))
    test: tuple[ImageFile, ...] = ()
    if "test" in names and not class_names(root / "test"):  # unlabelled, as competitions publish it
        skipped += (SkippedFile(root / "test", "it holds no class folders"),)
    elif "test" in names:
        test, more = scan_labelled(root / "test", classes)
        skipped += more
    return Listing(root, classes, train, val, test, skipped)


def _with_groups(listing: Listing, group_by: str) -> tuple[Listing, list[Finding]]:
    splits = (listing.train, listing.val or (), listing.test)
    (train, val, test), findings = with_groups(listing.root, splits, group_by)
    given = None if listing.val is None else val
    return dataclasses.replace(listing, train=train, val=given, test=test), findings


def _split(listing: Listing, source: Path) -> ImageFolder:
    if listing.val is not None:
        return ImageFolder(listing.root, listing.classes, listing.train, listing.val, listing.skipped, listing.test)
    sides = _set_aside(listing.train)
    _check_sides(listing.classes, source, sides)
    skipped = (*listing.skipped, *sides.unread)
    return ImageFolder(listing.root, listing.classes, tuple(sides.train), tuple(sides.val), skipped, listing.test)


def _set_aside(images: tuple[ImageFile, ...]) -> _Sides:
    sides = _Sides()
    for image in images:
        digest, problem = _digest(image)
        if problem:
            sides.unread.append(SkippedFile(image.path, problem))
        else:
            sides.digests.add(digest)
            (sides.val if is_validation(digest) else sides.train).append(image)
    return sides


def _digest(image: ImageFile) -> tuple[str, str]:
    """What decides an image's side: the sha256 of its group's name, or of its content; and why there is none."""
    try:
        return (sha256_of_bytes(image.group.encode()) if image.group else sha256_of_file(image.path)), ""
    except OSError as error:
        return "", f"cannot be read: {error.strerror}"


def _check_sides(classes: tuple[str, ...], source: Path, sides: _Sides) -> None:
    present = {image.label for image in sides.train}
    lacking = [name for label, name in enumerate(classes) if label not in present]
    if sides.val and not lacking:
        return
    if sides.unread:
        first = sides.unread[0]
        raise DataError(
            f"{source}: {len(sides.unread)} files cannot be read, and the others are too few to set a fifth aside for "
            f"validation; the first is {shown(first.path.name)}: {first.reason}.",
            hint="look at those files; images may be missing besides",
        )
    is_grouped = any(image.group for image in (*sides.train, *sides.val))
    lost = f": no training image is left of {some_names(lacking)}." if lacking else "."
    raise DataError(
        f"{source} has too few {'groups' if is_grouped else 'different images'} ({len(sides.digests)}) to set a fifth "
        f"aside for validation{lost}",
        hint="add images, or say what is for validation: with train/ and val/ folders, or a CSV's column split",
    )

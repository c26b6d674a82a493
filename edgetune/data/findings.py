"""What the owner of the images should know about classes and groups; a fit goes on all the same."""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from edgetune.core.files import printable
from edgetune.core.run import Finding
from edgetune.data.image_folder import ImageFile, ImageFolder
from edgetune.data.wording import MAX_LISTED, shown, some_names

MISSING_CLASS, IMBALANCE, SHARED_GROUP, NO_GROUP = "missing-class", "imbalance", "shared-group", "no-group"
ALIKE_CLASSES = "alike-classes"

_IMBALANCE_RATIO = 10


def first_findings(findings: Sequence[Finding], things: str) -> tuple[Finding, ...]:
    """The first `MAX_LISTED` findings of one kind, and one that counts the rest as `things`."""
    rest = len(findings) - MAX_LISTED
    if rest <= 0:
        return tuple(findings)
    counted = Finding(findings[0].kind, f"{rest:,} more {things} are not listed; there are {len(findings):,} in all.")
    return (*findings[:MAX_LISTED], counted)


def findings_of(folder: ImageFolder) -> tuple[Finding, ...]:
    """Of the images as they are listed, or of those of them that could be read."""
    return (
        *_alike_classes(folder.classes),
        *_missing_classes(folder),
        *_imbalance(folder),
        *_shared_groups(folder),
    )


def relative_name(folder: ImageFolder, path: Path) -> str:
    return printable(path.relative_to(folder.root).as_posix())


def _alike_classes(classes: Sequence[str]) -> tuple[Finding, ...]:
    """Names that a person, or another file system, would take for one."""
    first: dict[str, str] = {}
    findings = []
    for name in classes:
        known = first.setdefault(unicodedata.normalize("NFKC", name).casefold().strip(), name)
        if known != name:
            pair = f"the classes {known!r} and {name!r} are two"
            text = f"{pair}; their names differ in case, spaces or the code of an accent alone."
            findings.append(Finding(ALIKE_CLASSES, text))
    return first_findings(findings, "classes with such names")


def _missing_classes(folder: ImageFolder) -> list[Finding]:
    findings = []
    for split, images in (("val", folder.val), ("test", folder.test)):
        present = {image.label for image in images}
        lacking = [name for label, name in enumerate(folder.classes) if label not in present]
        if images and lacking:
            text = f"{split} has no images of {len(lacking)} of {len(folder.classes)} classes, which are not judged: "
            findings.append(Finding(MISSING_CLASS, f"{text}{some_names(lacking)}."))
    return findings


def _imbalance(folder: ImageFolder) -> list[Finding]:
    counts = Counter(image.label for image in folder.train)
    most, least = max(counts, key=lambda label: (counts[label], -label)), min(counts, key=lambda label: counts[label])
    if counts[most] <= _IMBALANCE_RATIO * counts[least]:
        return []
    large, small = (f"{shown(folder.classes[label])} has {counts[label]:,}" for label in (most, least))
    text = (
        f"the classes differ in size: {large} training images, {small}; with --class-weights balanced they count alike."
    )
    return [Finding(IMBALANCE, text)]


def _shared_groups(folder: ImageFolder) -> tuple[Finding, ...]:
    """Groups that are in two splits, as given folders may have them."""
    places: dict[str, dict[str, list[ImageFile]]] = defaultdict(lambda: defaultdict(list))
    for split, images in (("train", folder.train), ("val", folder.val), ("test", folder.test)):
        for image in images:
            if image.group:
                places[image.group][split].append(image)
    findings = []
    for group, splits in sorted(places.items()):
        if len(splits) > 1:
            counts = " and ".join(f"{split} ({len(images):,})" for split, images in splits.items())
            paths = tuple(relative_name(folder, images[0].path) for images in splits.values())
            findings.append(Finding(SHARED_GROUP, f"the group {shown(group)} has images in {counts}.", paths))
    return first_findings(findings, "groups in two splits")

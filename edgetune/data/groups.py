"""Images that belong together, such as those of one camera or one object, by an expression over their paths."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from edgetune.core.errors import UsageError
from edgetune.core.files import printable
from edgetune.core.run import Finding
from edgetune.data.findings import MAX_LISTED, NO_GROUP, shown
from edgetune.data.image_folder import ImageFile


def group_finder(expression: str) -> Callable[[str], str]:
    """A function from an image's path, relative and with `/`, to its group; empty where the expression finds none.

    The expression is searched anywhere in the path. The group is the first named group that took part in the match,
    else the first group, else the whole match.

    Raises:
        UsageError: the expression is no regular expression.
    """
    try:
        pattern = re.compile(expression)
    except (re.error, OverflowError, RecursionError) as error:
        raise UsageError(
            f"--group-by {expression!r} is not a regular expression: {error}.",
            hint=r"for example --group-by '(cam\d+)_' keeps cam1_001.jpg and cam1_002.jpg together",
        ) from error

    def find(path: str) -> str:
        match = pattern.search(path)
        if match is None:
            return ""
        candidates = [match[name] for name in pattern.groupindex] or list(match.groups()) or [match[0]]
        return next((text for text in candidates if text), "")

    return find


def with_groups(
    root: Path, splits: Sequence[tuple[ImageFile, ...]], expression: str
) -> tuple[list[tuple[ImageFile, ...]], list[Finding]]:
    """The same images with their groups, and a finding where some have none: each of those is a group of its own.

    Raises:
        UsageError: the expression is no regular expression, or finds a group for no image at all.
    """
    find = group_finder(expression)
    grouped = [
        tuple(dataclasses.replace(image, group=find(image.path.relative_to(root).as_posix())) for image in images)
        for images in splits
    ]
    everything = [image for images in grouped for image in images]
    alone = [printable(image.path.relative_to(root).as_posix()) for image in everything if not image.group]
    if len(alone) == len(everything):
        raise UsageError(
            f"--group-by {expression!r} finds a group in none of {len(alone)} paths, such as {shown(alone[0])}.",
            hint="it is searched in the path relative to the images' folder, with / between folders",
        )
    if not alone:
        return grouped, []
    text = f"--group-by finds no group in {len(alone):,} of {len(everything):,} paths; each is a group of its own."
    return grouped, [Finding(NO_GROUP, text, tuple(alone[:MAX_LISTED]))]

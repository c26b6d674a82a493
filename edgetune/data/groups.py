"""Images that belong together, such as those of one camera or one object, by an expression over their paths."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from edgetune.core.errors import UsageError
from edgetune.core.files import printable
from edgetune.core.run import Finding
from edgetune.data.findings import NO_GROUP
from edgetune.data.image_folder import ImageFile
from edgetune.data.wording import MAX_LISTED, shown

# A search takes microseconds; one that backtracks over repeats inside repeats may take longer than anyone waits.
_SEARCH_S = 2.0


class _TooLongError(Exception):
    """A single search has taken `_SEARCH_S` seconds of processor time."""


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
        UsageError: the expression is no regular expression, takes too long, or finds a group for no image at all.
    """
    find = group_finder(expression)
    paths = [image.path.relative_to(root).as_posix() for images in splits for image in images]
    groups = iter(_found(find, paths, expression))
    grouped = [tuple(dataclasses.replace(image, group=next(groups)) for image in images) for images in splits]
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


def _found(find: Callable[[str], str], paths: Sequence[str], expression: str) -> list[str]:
    found: list[str] = []
    with _time_limit() as start_anew:
        try:
            for path in paths:
                start_anew()
                found.append(find(path))
        except _TooLongError:
            raise UsageError(
                f"--group-by {expression!r} finds no end in {shown(paths[len(found)])}, after {_SEARCH_S:g} s.",
                hint=r"a repeat inside a repeat, such as (\w+)+, has too many ways to match; write \w+",
            ) from None
    return found


@contextlib.contextmanager
def _time_limit() -> Iterator[Callable[[], None]]:
    """Yields what starts the time anew. Only the main thread can be stopped in a search; others are not limited."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return

    def stop(*_: object) -> None:
        raise _TooLongError

    def start_anew() -> None:
        signal.setitimer(signal.ITIMER_VIRTUAL, _SEARCH_S)

    before = signal.signal(signal.SIGVTALRM, stop)
    try:
        yield start_anew
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0.0)
        signal.signal(signal.SIGVTALRM, before or signal.SIG_DFL)

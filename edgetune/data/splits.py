"""Which image goes where: splits that stay put when files are added, and stratified picks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")

VAL_FRACTION = 0.2


def is_validation(sha256: str, fraction: float = VAL_FRACTION) -> bool:
    """Decides by the content hash alone, so other files, names and order do not matter.

    Equal images share a side, so a copy never leaks from training into validation.
    """
    return int(sha256[:8], 16) < fraction * 2**32


def pick_stratified(items: Sequence[T], labels: Sequence[int], keys: Sequence[str], count: int) -> list[T]:
    """Picks up to `count` items, as evenly over the labels as their sizes allow, in the order of their keys.

    Keys are content hashes, which makes the choice random with respect to content yet repeatable.
    """
    by_label: dict[int, list[int]] = defaultdict(list)
    for index in sorted(range(len(items)), key=lambda index: keys[index]):
        by_label[labels[index]].append(index)
    picked: list[int] = []
    rank = 0
    while len(picked) < min(count, len(items)):
        row = [queue[rank] for _, queue in sorted(by_label.items()) if rank < len(queue)]
        picked.extend(row[: count - len(picked)])
        rank += 1
    return [items[index] for index in picked]

"""Image folders for the parity benchmarks: random parts of a dataset, so that another seed means other images."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path

# The two splits of every folder that is read and written here.
SPLITS = ("train", "val")


def write_part(source: Path, out: Path, images_per_class: Mapping[str, int], seed: int) -> int:
    """Links a random part of `source/{train,val}/CLASS` below `out`; returns the number of images.

    Both splits are drawn from their own side, so no image changes sides. A class with fewer images gives all it has.
    """
    count = 0
    for split in SPLITS:
        for folder in sorted(path for path in (source / split).iterdir() if path.is_dir()):
            paths = sorted(path for path in folder.iterdir() if path.is_file())
            # Seeded by name too: else every class would draw the same places in its list.
            random.Random(f"{seed} {split} {folder.name}").shuffle(paths)
            destination = out / split / folder.name
            destination.mkdir(parents=True, exist_ok=True)
            for path in paths[: images_per_class[split]]:
                _link(path, destination / path.name)
                count += 1
    return count


def _link(path: Path, link: Path) -> None:
    if not link.is_symlink():
        link.symlink_to(path.resolve())


def some_images(folder: Path, count: int, splits: Sequence[str] = ("train",)) -> list[Path]:
    """Up to `count` images, taken from the classes of the splits in turn."""
    classes = [path for split in splits for path in sorted((folder / split).iterdir()) if path.is_dir()]
    lists = [sorted(path for path in each.iterdir() if path.is_file()) for each in classes]
    longest = max(map(len, lists), default=0)
    return [paths[row] for row in range(longest) for paths in lists if row < len(paths)][:count]

"""Folders of files that only look like images, by their names."""

from __future__ import annotations

import hashlib
from pathlib import Path

from edgetune.data.image_folder import ImageFolder


def fill(root: Path, *names: str) -> Path:
    """Files whose content is their own name; nothing opens them."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return root


def listing(folder: ImageFolder, split: str) -> list[tuple[str, int]]:
    return [(image.path.relative_to(folder.root).as_posix(), image.label) for image in getattr(folder, split)]


def share(data: bytes) -> float:
    """Where the content's hash lies between 0 and 1."""
    return int(hashlib.sha256(data).hexdigest(), 16) / 16**64

"""Inputs for two models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.unit.verify.onnx_pairs import SIZE, X


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    np.savez(tmp_path / "rows.npz", x=X)
    return tmp_path / "rows.npz"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """24 images of noise in two class folders."""
    random = np.random.default_rng(1)
    for index in range(24):
        folder = tmp_path / "images" / ("ants" if index % 2 else "bees")
        folder.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:02}.png")
    return tmp_path / "images"

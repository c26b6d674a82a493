"""Golden images: a few files with their pixels and logits, by which a device checks itself before it serves."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgetune.core.bundle import Bundle
from edgetune.core.errors import BundleError
from edgetune.core.files import ARCHIVE_ERRORS

GOLDEN_FOLDER = "golden"
_TABLE = "golden.npz"
# Two correct decoders may round a pixel differently by a few steps of 255, and no more.
MAX_PIXEL_DIFF = 8


@dataclass(frozen=True)
class GoldenSet:
    """`names` of the image files, their preprocessed `pixels` uint8 `(N, H, W, 3)`, and per artifact the
    logits float32 `(N, classes)` that it gave where it was exported.
    """

    names: tuple[str, ...]
    pixels: npt.NDArray[np.uint8]
    logits: dict[str, npt.NDArray[np.float32]]


def write_golden(folder: Path, golden: GoldenSet, files: dict[str, bytes]) -> None:
    """Writes the image files and one table into `folder/golden`."""
    target = folder / GOLDEN_FOLDER
    target.mkdir()
    for name, data in files.items():
        (target / name).write_bytes(data)
    table = io.BytesIO()
    arrays = {f"logits/{artifact}": values for artifact, values in golden.logits.items()}
    np.savez_compressed(table, names=np.array(golden.names), pixels=golden.pixels, **arrays)  # type: ignore[arg-type]
    (target / _TABLE).write_bytes(table.getvalue())


def load_golden(bundle: Bundle) -> tuple[GoldenSet, list[bytes]]:
    """Returns the golden set and the image files' bytes, in the same order.

    Raises:
        BundleError: the bundle has no golden set, or it cannot be read.
    """
    folder = bundle.path / GOLDEN_FOLDER
    try:
        with np.load(folder / _TABLE, allow_pickle=False) as table:
            logits = {key.partition("/")[2]: table[key] for key in table.files if key.startswith("logits/")}
            golden = GoldenSet(tuple(str(name) for name in table["names"]), table["pixels"], logits)
        return golden, [(folder / name).read_bytes() for name in golden.names]
    except ARCHIVE_ERRORS as error:
        raise BundleError(f"{folder} holds no golden set that can be read: {error}.") from error

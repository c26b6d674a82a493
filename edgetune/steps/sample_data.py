"""sample-data: a small real dataset as an image folder, offline."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgetune.core.files import output_folder
from edgetune.data.digits import write_digits

NAMES = ("digits",)
_MARKER = "SAMPLE-DATA.txt"
_ORIGIN = """Handwritten digits, as scikit-learn ships them (sklearn.datasets.load_digits).
Source: UCI Machine Learning Repository, Optical Recognition of Handwritten Digits,
E. Alpaydin and C. Kaynak, CC BY 4.0.
"""


@dataclass(frozen=True)
class SampleDataResult:
    folder: Path
    images: int


def sample_data(folder: Path, *, force: bool = False) -> SampleDataResult:
    """Writes the digits (1,797 images of 10 classes) as `train/` and `val/` folders; nothing is downloaded."""
    with output_folder(folder, _MARKER, force=force) as partial:
        (partial / _MARKER).write_text(_ORIGIN)
        images = write_digits(partial)
    return SampleDataResult(folder, images)

"""Fashion-MNIST (Xiao et al. 2017) as an image folder for `edgetune fit`: `fashion_mnist.py OUT_FOLDER`.

Writes `train/CLASS/*.png`, 1,000 training images a class, and `val/CLASS/*.png`, the official 10,000 test images; all
28x28 grey. Reads the four gzipped idx files from --source, where Debian's package dataset-fashion-mnist puts them.
"""

from __future__ import annotations

import argparse
import gzip
import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

CLASSES = (
    "t-shirt-top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle-boot",
)  # fmt: skip
TRAIN_PER_CLASS = 1000

_SOURCE = Path("/usr/share/datasets/fashion-mnist")
_UINT8 = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--source", type=Path, default=_SOURCE)
    arguments = parser.parse_args()
    for split, prefix, per_class in (("train", "train", TRAIN_PER_CLASS), ("val", "t10k", None)):
        images = read_idx(arguments.source / f"{prefix}-images-idx3-ubyte.gz")
        labels = read_idx(arguments.source / f"{prefix}-labels-idx1-ubyte.gz")
        print(f"{split}: {write_split(arguments.out / split, images, labels, per_class)} images")


def read_idx(path: Path) -> npt.NDArray[np.uint8]:
    """An idx file of bytes: two zeros, the type, the number of dimensions, each size as big-endian u32, the values."""
    content = gzip.decompress(path.read_bytes())
    zeros, kind, dimensions = struct.unpack_from(">HBB", content)
    if zeros != 0 or kind != _UINT8:
        raise ValueError(f"{path} is no idx file of unsigned bytes.")
    shape = struct.unpack_from(f">{dimensions}I", content, 4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def write_split(
    folder: Path, images: npt.NDArray[np.uint8], labels: npt.NDArray[np.uint8], per_class: int | None
) -> int:
    """Writes images `(N, 28, 28)` by class, the first `per_class` of each or all: the files come shuffled as they are.

    An image is named by its place in the idx file. Returns the number of images written.
    """
    count = 0
    for label, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index in np.flatnonzero(labels == label)[:per_class]:
            Image.fromarray(images[index]).save(folder / name / f"{index:05d}.png")
            count += 1
    return count


if __name__ == "__main__":
    main()

"""Images that are there twice: copies in two splits, copies with two labels, and near copies of training images."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgetune.core.run import Finding
from edgetune.data.findings import first_findings
from edgetune.data.wording import shown

DUPLICATE, LABEL_CONFLICT, NEAR_DUPLICATE = "duplicate", "label-conflict", "near-duplicate"

# How near is a copy? Measured as cosine distance of EfficientNet-Lite0's features on photos (hymenoptera), on one photo
# each of 500 classes (ImageNet), and on 28 px drawings that are all alike (Fashion-MNIST). Between different images the
# nearest is at 0.19, 0.25 and 0.03, so no fixed distance will do. What separates copies everywhere are two ratios.
# The distance to the nearest image over that to the eleventh is 0.06 (median) for photos cropped by 3 %, 0.09 when
# mirrored, 0.18 at JPEG quality 40, and above 0.35 for all different photos.
_NEIGHBOUR = 11
_NEIGHBOUR_RATIO = 0.3
# Over the typical distance between images it is 0.04, 0.06 and 0.12, and above 0.28 for different photos. It also finds
# an image with a whole series of near copies, such as frames of a video, whose eleventh neighbour is near as well.
_TYPICAL_RATIO = 0.25
_SERIES_RATIO = 0.05

_BLOCK = 1024
_SAMPLED = 1024
# A random projection keeps distances within some 11 % (one standard deviation: sqrt(2 / 160); Johnson and Lindenstrauss
# 1984), enough to tell which images to look at closely. Below so many pairs all are looked at.
_PROJECTED_WIDTH = 160
_PROJECTION_SLACK = 2.0
_FEW_PAIRS = 1 << 22

Matrix = npt.NDArray[np.float32]


@dataclass(frozen=True)
class SplitImages:
    """One split: paths relative to the images' root and content hashes, labels int64 `(N,)`, features float32 `(N, D)`
    of the images themselves, without augmentation.
    """

    name: str
    paths: Sequence[str]
    hashes: Sequence[str]
    labels: npt.NDArray[np.int64]
    features: Matrix


@dataclass(frozen=True)
class _Image:
    split: int
    path: str
    sha256: str
    label: int


@dataclass(frozen=True)
class _Nearest:
    """For each query the row of the nearest image, and cosine distances to it and to the eleventh; each `(N,)`."""

    row: npt.NDArray[np.int64]
    distance: Matrix
    eleventh: Matrix


def find_duplicates(splits: Sequence[SplitImages], classes: Sequence[str]) -> tuple[Finding, ...]:
    """What is in two splits or has two labels, as sentences with the two paths; the first split is train.

    Near copies are looked for between every other split and train. Memory is bounded by a block of distances.
    """
    copies: dict[str, list[_Image]] = defaultdict(list)
    for image in _images(splits):
        copies[image.sha256].append(image)
    repeated = [images for images in copies.values() if len(images) > 1]
    duplicates = [finding for images in repeated for finding in _in_two_splits(images)]
    conflicts = [finding for images in repeated for finding in _with_two_labels(images, classes)]
    return (
        *first_findings(duplicates, "copies in two splits"),
        *first_findings(conflicts, "copies with two labels"),
        *first_findings(_near_duplicates(splits, classes), "near copies of training images"),
    )


def _images(splits: Sequence[SplitImages]) -> Iterator[_Image]:
    for index, split in enumerate(splits):
        for path, sha256, label in zip(split.paths, split.hashes, split.labels.tolist(), strict=True):
            yield _Image(index, path, sha256, label)


def _in_two_splits(copies: list[_Image]) -> Iterator[Finding]:
    first = copies[0]
    for image in copies[1:]:
        if image.split != first.split:
            text = f"{shown(image.path)} is a copy of {shown(first.path)}."
            yield Finding(DUPLICATE, text, (image.path, first.path))


def _with_two_labels(copies: list[_Image], classes: Sequence[str]) -> Iterator[Finding]:
    first = copies[0]
    for image in copies[1:]:
        if image.label != first.label:
            labels = f"{shown(classes[image.label])} and {shown(classes[first.label])}"
            text = f"{shown(image.path)} and {shown(first.path)} are the same image, labelled {labels}."
            yield Finding(LABEL_CONFLICT, text, (image.path, first.path))


def _near_duplicates(splits: Sequence[SplitImages], classes: Sequence[str]) -> list[Finding]:
    train, *others = splits
    known = set(train.hashes)
    typical = _typical_distance(train.features)
    found = []
    for split in others:
        fresh = np.array([row for row, sha256 in enumerate(split.hashes) if sha256 not in known], dtype=np.int64)
        near, nearest = _near_rows(split.features, fresh, train.features, typical)
        for row, other, distance in zip(near.tolist(), nearest.row.tolist(), nearest.distance.tolist(), strict=True):
            found.append((distance, _near_finding((split, row), (train, other), distance / typical, classes)))
    return [finding for _, finding in sorted(found, key=lambda pair: (pair[0], pair[1].paths))]


def _near_finding(
    image: tuple[SplitImages, int], other: tuple[SplitImages, int], ratio: float, classes: Sequence[str]
) -> Finding:
    (path, label), (other_path, other_label) = (
        (split.paths[row], int(split.labels[row])) for split, row in (image, other)
    )
    labels = f", yet one is labelled {shown(classes[label])}, the other {shown(classes[other_label])}"
    text = f"{shown(path)} is nearly {shown(other_path)} ({ratio:.0%} of the typical distance between images)"
    return Finding(NEAR_DUPLICATE, f"{text}{labels if label != other_label else ''}.", (path, other_path))


def _near_rows(
    features: Matrix, rows: npt.NDArray[np.int64], train: Matrix, typical: float
) -> tuple[npt.NDArray[np.int64], _Nearest]:
    """Which of the `rows` are near copies, and of what."""
    if len(rows) * len(train) > _FEW_PAIRS and features.shape[1] > 2 * _PROJECTED_WIDTH:
        projection = np.random.default_rng(0).standard_normal((features.shape[1], _PROJECTED_WIDTH), dtype=np.float32)
        rough = _nearest(_projected(features[rows], projection), _projected(train, projection))
        rows = rows[_is_near(rough, typical, _PROJECTION_SLACK)]
    nearest = _nearest(features[rows], train)
    near = _is_near(nearest, typical, 1.0)
    return rows[near], _Nearest(nearest.row[near], nearest.distance[near], nearest.eleventh[near])


def _is_near(nearest: _Nearest, typical: float, slack: float) -> npt.NDArray[np.bool_]:
    is_single = (nearest.distance < slack * _TYPICAL_RATIO * typical) & (
        nearest.distance < slack * _NEIGHBOUR_RATIO * nearest.eleventh
    )
    return is_single | (nearest.distance < slack * _SERIES_RATIO * typical)


def _typical_distance(features: Matrix) -> float:
    """The median cosine distance between images, over a sample of them; 0 for a single image."""
    sample = _unit(features[:: -(-len(features) // _SAMPLED)])
    distances = 1 - (sample @ sample.T)[np.triu_indices(len(sample), k=1)]
    return max(0.0, float(np.median(distances))) if len(distances) else 0.0


def _nearest(queries: Matrix, train: Matrix) -> _Nearest:
    """Queries float32 `(N, D)` against train `(M, D)`, a block of each at a time."""
    count = min(_NEIGHBOUR, len(train))
    best = np.full((len(queries), count), -np.inf, dtype=np.float32)
    row = np.zeros(len(queries), dtype=np.int64)
    for start in range(0, len(train), 4 * _BLOCK):
        known = _unit(train[start : start + 4 * _BLOCK])
        for first in range(0, len(queries), _BLOCK):
            part = slice(first, first + _BLOCK)
            likeness = _unit(queries[part]) @ known.T
            column = likeness.argmax(axis=1)
            is_nearer = likeness[np.arange(len(column)), column] > best[part, -1]
            row[part] = np.where(is_nearer, column + start, row[part])
            both = np.concatenate([best[part], _largest(likeness, count)], axis=1)
            best[part] = np.sort(both, axis=1)[:, -count:]
    distances = np.maximum(1 - best, 0)  # rounding goes below
    return _Nearest(row, distances[:, -1], distances[:, 0])


def _largest(likeness: Matrix, count: int) -> Matrix:
    return np.partition(likeness, -count, axis=1)[:, -count:] if likeness.shape[1] > count else likeness


def _projected(features: Matrix, projection: Matrix) -> Matrix:
    return np.concatenate(
        [_unit(features[first : first + _BLOCK]) @ projection for first in range(0, len(features), _BLOCK)]
    )


def _unit(features: Matrix) -> Matrix:
    """Rows of length 1; a row of zeros stays one, at distance 1 from all."""
    lengths: Matrix = np.linalg.norm(features, axis=1, keepdims=True)
    unit: Matrix = features / np.maximum(lengths, np.finfo(np.float32).tiny)
    return unit

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest

from edgetune.core.run import Finding
from edgetune.features import duplicates
from edgetune.features.duplicates import SplitImages, find_duplicates

CLASSES = ("ant", "bee")
Features = npt.NDArray[np.float32]


def _split(
    name: str, features: Features, labels: Sequence[int] | None = None, hashes: Sequence[str] | None = None
) -> SplitImages:
    count = len(features)
    return SplitImages(
        name=name,
        paths=[f"{name}/{index}.jpg" for index in range(count)],
        hashes=hashes or [f"{name} {index}" for index in range(count)],
        labels=np.array(labels or [0] * count, dtype=np.int64),
        features=features,
    )


def _random(count: int, width: int = 64, seed: int = 0) -> Features:
    return np.random.default_rng(seed).standard_normal((count, width), dtype=np.float32)


def _at(*distances: float) -> Features:
    """Unit vectors at these cosine distances from the first axis, each leaning to an axis of its own."""
    features = np.zeros((len(distances), 100), dtype=np.float32)
    for row, distance in enumerate(distances):
        features[row, 0] = 1 - distance
        features[row, row + 1] = np.sqrt(1 - (1 - distance) ** 2)
    return features


def _told(findings: Sequence[Finding], kind: str) -> list[tuple[str, ...]]:
    return [finding.paths for finding in findings if finding.kind == kind]


def test_different_images_are_no_duplicates() -> None:
    splits = [_split(name, _random(200, seed=seed)) for seed, name in enumerate(("train", "val", "test"))]
    assert find_duplicates(splits, CLASSES) == ()


def test_copies_in_two_splits_are_named_with_the_first() -> None:
    splits = [
        _split("train", _random(3), hashes=["a", "b", "b"]),
        _split("val", _random(3, seed=1), hashes=["b", "c", "c"]),
        _split("test", _random(3, seed=2), hashes=["c", "d", "a"]),
    ]
    findings = find_duplicates(splits, CLASSES)
    assert {finding.kind for finding in findings} == {"duplicate"}
    assert [finding.message for finding in findings] == [
        "test/2.jpg is a copy of train/0.jpg.",
        "val/0.jpg is a copy of train/1.jpg.",
        "test/0.jpg is a copy of val/1.jpg.",
    ]
    assert findings[0].paths == ("test/2.jpg", "train/0.jpg")


def test_copies_with_two_labels_are_named_wherever_they_are() -> None:
    splits = [
        _split("train", _random(4), [0, 1, 1, 1], ["a", "a", "b", "b"]),
        _split("val", _random(2, seed=1), [0, 1], ["b", "c"]),
    ]
    findings = find_duplicates(splits, CLASSES)
    assert _told(findings, "duplicate") == [("val/0.jpg", "train/2.jpg")]
    assert _told(findings, "label-conflict") == [("train/1.jpg", "train/0.jpg"), ("val/0.jpg", "train/2.jpg")]
    (first, _) = (finding.message for finding in findings if finding.kind == "label-conflict")
    assert first == "train/1.jpg and train/0.jpg are the same image, labelled bee and ant."


def test_a_near_copy_is_named_with_what_it_is_near() -> None:
    train, val, test = _random(50), _random(50, seed=1), _random(50, seed=2)
    val[3] = train[7] + 0.3 * val[3]
    test[4] = 5 * train[9] + 0.1 * test[4]
    splits = [_split("train", train), _split("val", val), _split("test", test, [0] * 4 + [1] + [0] * 45)]
    findings = find_duplicates(splits, CLASSES)
    assert [finding.kind for finding in findings] == ["near-duplicate"] * 2
    assert [finding.paths for finding in findings] == [("test/4.jpg", "train/9.jpg"), ("val/3.jpg", "train/7.jpg")]
    assert findings[0].message == (
        "test/4.jpg is nearly train/9.jpg (0% of the typical distance between images), "
        "yet one is labelled bee, the other ant."
    )
    apart = 1 - _unit64(train) @ _unit64(train).T
    share = (1 - _unit64(train)[7] @ _unit64(val)[3]) / np.median(apart[np.triu_indices(50, k=1)])
    assert (
        findings[1].message == f"val/3.jpg is nearly train/7.jpg ({share:.0%} of the typical distance between images)."
    )


def test_equal_features_of_other_files_are_at_no_distance() -> None:
    train = _random(50)
    findings = find_duplicates([_split("train", train), _split("val", 3 * train)], CLASSES)
    assert _told(findings, "near-duplicate")[0] == ("val/0.jpg", "train/0.jpg")
    assert all(" (0% of" in finding.message for finding in findings[:20])


def test_an_exact_copy_is_not_also_a_near_one() -> None:
    train = _random(50)
    splits = [_split("train", train), _split("val", train, hashes=[f"train {index}" for index in range(50)])]
    assert {finding.kind for finding in find_duplicates(splits, CLASSES)} == {"duplicate"}


@pytest.mark.parametrize(
    ("nearest", "others", "is_near"),
    [
        (0.24, [], True),
        (0.26, [], False),
        (0.20, [0.70] * 10, True),
        (0.20, [0.60] * 10, False),
        (0.14, [0.50] * 10, True),
        (0.16, [0.50] * 10, False),
        (0.06, [0.10] * 9, True),
        (0.06, [0.10] * 10, False),
        (0.045, [0.05] * 10, True),
        (0.045, [0.05] * 20, True),
    ],
)
def test_near_is_a_quarter_of_the_typical_distance_and_alone_or_a_twentieth(
    nearest: float, others: list[float], is_near: bool
) -> None:
    """The query is the first axis. The typical distance is 1: most training images are at right angles."""
    train = _at(nearest, *others, *[1.0] * (90 - len(others)))
    query = np.zeros((1, 100), dtype=np.float32)
    query[0, 0] = 3
    findings = find_duplicates([_split("train", train), _split("val", query)], CLASSES)
    assert _told(findings, "near-duplicate") == ([("val/0.jpg", "train/0.jpg")] if is_near else [])


@pytest.mark.parametrize("scale", [0.01, 0.1, 0.5])
def test_near_depends_on_how_alike_all_images_are(scale: float) -> None:
    """A common part brings all images nearer to one another, and copies as much."""
    train, val = scale * _random(300), scale * _random(300, seed=1)
    val[5] = train[6] + 0.2 * val[5]
    common = np.ones(64, dtype=np.float32)
    findings = find_duplicates([_split("train", train + common), _split("val", val + common)], CLASSES)
    assert _told(findings, "near-duplicate") == [("val/5.jpg", "train/6.jpg")]


@pytest.mark.parametrize("block", [1, 7, 1024])
def test_blocks_find_what_the_whole_matrix_shows(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(duplicates, "_BLOCK", block)
    queries, train = _random(23), _random(61, seed=1)
    distances = 1 - _unit64(queries) @ _unit64(train).T
    found = duplicates._nearest(queries, train)
    np.testing.assert_array_equal(found.row, distances.argmin(axis=1))
    np.testing.assert_allclose(found.distance, np.sort(distances)[:, 0], rtol=0, atol=1e-6)
    np.testing.assert_allclose(found.eleventh, np.sort(distances)[:, 10], rtol=0, atol=1e-6)


def test_a_projection_changes_nothing_that_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies at 0 % to 40 % of the typical distance: about half are near enough."""
    train, val = _random(1000, 400), _random(900, 400, seed=1)
    noise = np.linspace(0, 1.1, 100, dtype=np.float32)[:, np.newaxis]
    val[:100] = train[:100] + noise * val[:100]
    splits = [_split("train", train), _split("val", val)]
    monkeypatch.setattr(duplicates, "_FEW_PAIRS", 1 << 60)
    whole = duplicates._near_duplicates(splits, CLASSES)
    monkeypatch.setattr(duplicates, "_FEW_PAIRS", 0)
    assert duplicates._near_duplicates(splits, CLASSES) == whole
    assert 50 < len(whole) < 90


def test_a_projection_spares_the_distances_between_most_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 300 queries one alone is compared at full width."""
    train, val = _random(300, 400), _random(300, 400, seed=1)
    val[0] = train[0] + 0.1 * val[0]
    compared = []
    nearest = duplicates._nearest

    def count(queries: Features, known: Features) -> duplicates._Nearest:
        compared.append(queries.shape)
        return nearest(queries, known)

    monkeypatch.setattr(duplicates, "_FEW_PAIRS", 0)
    monkeypatch.setattr(duplicates, "_nearest", count)
    duplicates._near_duplicates([_split("train", train), _split("val", val)], CLASSES)
    assert compared == [(300, 160), (1, 400)]


def test_memory_is_bounded() -> None:
    """All distances at once would be 400 MB."""
    splits = [_split("train", _random(20_000, 8)), _split("val", _random(5000, 8, seed=1))]
    tracemalloc.start()
    find_duplicates(splits, CLASSES)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100e6


def test_many_copies_are_counted() -> None:
    hashes = [str(index) for index in range(1030)]
    labels = [index % 2 for index in range(1030)]
    splits = [_split("train", _random(1030), labels, hashes), _split("val", _random(1030), labels[::-1], hashes)]
    findings = find_duplicates(splits, CLASSES)
    assert len(findings) == 42
    assert findings[20].message == "1,010 more copies in two splits are not listed; there are 1,030 in all."
    assert findings[41].message == "1,010 more copies with two labels are not listed; there are 1,030 in all."


def test_of_many_near_copies_the_nearest_are_listed() -> None:
    train, val = _random(100), _random(100, seed=1)
    val[:40] = train[:40] + np.linspace(0.4, 0.01, 40, dtype=np.float32)[:, np.newaxis] * val[:40]
    findings = find_duplicates([_split("train", train), _split("val", val)], CLASSES)
    distances = 1 - (_unit64(train[:40]) * _unit64(val[:40])).sum(axis=1)
    nearest = [(f"val/{row}.jpg", f"train/{row}.jpg") for row in np.argsort(distances)[:20]]
    assert [finding.paths for finding in findings[:20]] == nearest
    assert findings[20].message == "20 more near copies of training images are not listed; there are 40 in all."


def test_odd_names_and_classes_stand_in_a_sentence() -> None:
    train, val = _split("train", _random(2), hashes=["a", "b"]), _split("val", _random(1), [1], ["a"])
    named = SplitImages("val", ["two\nlines.jpg"], val.hashes, val.labels, val.features)
    duplicate, conflict = find_duplicates([train, named], ("ant", "b\te"))
    assert duplicate.message == r"'two\nlines.jpg' is a copy of train/0.jpg."
    assert duplicate.paths == ("two\nlines.jpg", "train/0.jpg")
    assert conflict.message == r"'two\nlines.jpg' and train/0.jpg are the same image, labelled 'b\te' and ant."


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_few_training_images_are_enough_to_look_at(count: int) -> None:
    assert find_duplicates([_split("train", _random(count)), _split("val", _random(3, seed=1))], CLASSES) == ()


def test_images_without_any_feature_are_near_nothing() -> None:
    train, val = _random(30), np.zeros((3, 64), dtype=np.float32)
    train[:3] = 0
    assert find_duplicates([_split("train", train), _split("val", val)], CLASSES) == ()


def _unit64(features: Features) -> npt.NDArray[np.float64]:
    wide = features.astype(np.float64)
    unit: npt.NDArray[np.float64] = wide / np.linalg.norm(wide, axis=1, keepdims=True)
    return unit

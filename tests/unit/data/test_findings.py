from __future__ import annotations

from pathlib import Path

import pytest

from edgetune.core.run import Finding
from edgetune.data.findings import findings_of, first_findings
from edgetune.data.image_folder import ImageFile, ImageFolder
from edgetune.data.wording import MAX_LISTED, shown, some_names

ROOT = Path("/data")


def _images(split: str, counts: dict[int, int], groups: tuple[str, ...] = ("",)) -> tuple[ImageFile, ...]:
    return tuple(
        ImageFile(ROOT / split / str(label) / f"{index}.jpg", label, groups[index % len(groups)])
        for label, count in counts.items()
        for index in range(count)
    )


def _folder(train: tuple[ImageFile, ...], val: tuple[ImageFile, ...], test: tuple[ImageFile, ...] = ()) -> ImageFolder:
    classes = tuple(f"class {label}" for label in range(1 + max(image.label for image in train)))
    return ImageFolder(ROOT, classes, train, val, (), test)


def _told(folder: ImageFolder) -> list[tuple[str, str]]:
    return [(finding.kind, finding.message) for finding in findings_of(folder)]


def test_nothing_is_told_of_a_plain_folder() -> None:
    counts = {0: 2, 1: 20}
    assert _told(_folder(_images("train", counts), _images("val", counts), _images("test", counts))) == []


def test_classes_that_are_not_judged_are_named() -> None:
    train = _images("train", {0: 3, 1: 3, 2: 3})
    told = _told(_folder(train, _images("val", {1: 1}), _images("test", {0: 1, 1: 1})))
    assert told == [
        ("missing-class", "val has no images of 2 of 3 classes, which are not judged: class 0, class 2."),
        ("missing-class", "test has no images of 1 of 3 classes, which are not judged: class 2."),
    ]


def test_of_many_missing_classes_the_first_are_named() -> None:
    ((_, message),) = _told(_folder(_images("train", dict.fromkeys(range(50), 2)), _images("val", {0: 1})))
    assert message.startswith("val has no images of 49 of 50 classes, which are not judged: class 1, class 2, ")
    assert message.endswith("class 19, class 20, ....")


@pytest.mark.parametrize(("large", "is_told"), [(30, False), (31, True)])
def test_more_than_ten_times_as_many_images_are_told(large: int, is_told: bool) -> None:
    told = _told(_folder(_images("train", {0: 5, 1: 3, 2: large}), _images("val", {0: 1, 1: 1, 2: 1})))
    text = "the classes differ in size: class 2 has 31 training images, class 1 has 3; with --class-weights "
    assert told == ([("imbalance", text + "balanced they count alike.")] if is_told else [])


def test_a_group_in_two_splits_is_named() -> None:
    train = _images("train", {0: 4, 1: 4}, ("a", "b", "two\nlines", ""))
    val = _images("val", {0: 2, 1: 1}, ("two\nlines", "c"))
    (finding,) = findings_of(_folder(train, val))
    assert finding.kind == "shared-group"
    assert finding.message == r"the group 'two\nlines' has images in train (2) and val (2)."
    assert finding.paths == ("train/0/2.jpg", "val/0/0.jpg")


def test_a_group_that_shares_nothing_but_no_group_is_not_named() -> None:
    assert findings_of(_folder(_images("train", {0: 2, 1: 2}), _images("val", {0: 2, 1: 2}))) == ()


def test_of_many_shared_groups_the_first_are_listed_and_the_rest_counted() -> None:
    groups = tuple(f"g{index:02d}" for index in range(25))
    findings = findings_of(_folder(_images("train", {0: 25, 1: 25}, groups), _images("val", {0: 25, 1: 25}, groups)))
    assert [finding.message.split()[2] for finding in findings[:-1]] == list(groups[:20])
    assert findings[-1].message == "5 more groups in two splits are not listed; there are 25 in all."
    assert findings[-1].paths == ()


@pytest.mark.parametrize("count", [0, 1, MAX_LISTED])
def test_a_few_findings_are_all_listed(count: int) -> None:
    findings = [Finding("kind", str(index)) for index in range(count)]
    assert first_findings(findings, "things") == tuple(findings)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a b.jpg", "a b.jpg"),
        ("é.jpg", "é.jpg"),
        ("a\nb", r"'a\nb'"),
        ("\x1b[31m", r"'\x1b[31m'"),
        ("\udce9", r"'\udce9'"),
    ],
)
def test_a_name_stands_in_a_sentence(name: str, expected: str) -> None:
    assert shown(name) == expected


def test_of_many_names_the_first_stand_in_a_sentence() -> None:
    assert some_names(["a", "b\n"]) == r"a, 'b\n'"
    names = [f"c{index:02d}" for index in range(MAX_LISTED + 1)]
    assert some_names(names[:MAX_LISTED]) == ", ".join(names[:MAX_LISTED])
    assert some_names(names) == ", ".join(names[:MAX_LISTED]) + ", ..."


@pytest.mark.parametrize(
    ("classes", "named"),
    [
        (("Cat", "cat", "dog"), [("Cat", "cat")]),
        (("caf\u00e9", "cafe\u0301"), [("caf\u00e9", "cafe\u0301")]),
        (("a ", "a", "A"), [("a ", "a"), ("a ", "A")]),
        (("cat", "cats", "c at"), []),
    ],
    ids=["case", "accent", "space", "different"],
)
def test_classes_that_look_like_one_are_named(classes: tuple[str, ...], named: list[tuple[str, str]]) -> None:
    images = tuple(ImageFile(ROOT / f"{label}.jpg", label) for label in range(len(classes)))
    told = [finding.message for finding in findings_of(ImageFolder(ROOT, classes, images, images, ()))]
    assert told == [
        f"the classes {one!r} and {other!r} are two; their names differ in case, spaces or the code of an accent alone."
        for one, other in named
    ]

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from edgetune.core.errors import DataError
from edgetune.data.image_folder import labelled_root, scan_classes, scan_labelled
from tests.unit.data.image_files import fill

CLASSES = ("ant", "bee")


def _touch(path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"")


def test_labels_follow_the_classes_that_are_given(tmp_path: Path) -> None:
    fill(tmp_path, "ant/1.jpg", "bee/1.jpg", "bee/x.txt")
    images, skipped = scan_labelled(tmp_path, ("cat", "bee", "ant"))
    assert [(image.path.parent.name, image.label) for image in images] == [("bee", 1), ("ant", 2)]
    assert [file.path.name for file in skipped] == ["x.txt"]


def test_an_unknown_class_is_refused_with_those_there_are(tmp_path: Path) -> None:
    fill(tmp_path, "ant/1.jpg", "wasp/1.jpg")
    with pytest.raises(DataError, match="lack: wasp") as caught:
        scan_labelled(tmp_path, CLASSES)
    assert caught.value.hint == "the classes are: ant, bee"


def test_a_folder_that_is_gone_is_refused_with_the_layout(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="gone is not a folder") as caught:
        scan_labelled(tmp_path / "gone", CLASSES)
    assert "expected FOLDER/CLASS/*.jpg" in caught.value.hint


@pytest.mark.parametrize(
    ("folders", "expected"),
    [((), ""), (("train",), ""), (("train", "val"), "val"), (("validation",), "validation"), (("valid", "val"), "val")],
    ids=["flat", "train only", "val", "validation", "val first"],
)
def test_the_labelled_folder_is_val_where_there_is_one(tmp_path: Path, folders: tuple[str, ...], expected: str) -> None:
    for name in folders:
        (tmp_path / name).mkdir()
    assert labelled_root(tmp_path) == tmp_path / expected


@pytest.mark.parametrize(
    "name",
    [
        "two\nlines.jpg",
        'it\'s "quoted".jpg',
        "tab\there.png",
        "-rf.jpg",
        "a,b;c.jpg",
        "$(ls).jpg",
        "é 画像.webp",
        " .jpg",
    ],
)
def test_odd_names_are_names(tmp_path: Path, name: str) -> None:
    fill(tmp_path, f"ant/{name}", "bee/1.jpg")
    _, images, skipped = scan_classes(tmp_path)
    assert [image.path for image in images] == [tmp_path / "ant" / name, tmp_path / "bee/1.jpg"]
    assert skipped == ()


@pytest.mark.parametrize("place", [b"ant/caf\xe9.jpg", b"ant/caf\xe9/1.jpg"], ids=["file", "folder"])
def test_a_name_that_is_not_utf8_is_skipped(tmp_path: Path, place: bytes) -> None:
    fill(tmp_path, "ant/1.jpg", "bee/1.jpg")
    _touch(tmp_path / os.fsdecode(place))
    _, images, skipped = scan_classes(tmp_path)
    assert len(images) == 2
    assert [file.reason for file in skipped] == ["its name is not valid UTF-8"]


def test_a_class_whose_name_is_not_utf8_is_refused_in_words_that_can_be_printed(tmp_path: Path) -> None:
    fill(tmp_path, "ant/1.jpg", "bee/1.jpg")
    _touch(tmp_path / os.fsdecode(b"caf\xe9/1.jpg"))
    with pytest.raises(DataError, match=r"folders 'caf\\udce9'; .*: its name is not valid UTF-8\.") as caught:
        scan_classes(tmp_path)
    assert caught.value.message.isprintable()


def test_a_class_folder_that_may_not_be_read_is_said_to_be_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, "ant/1.jpg", "bee/1.jpg", "wasp/notes.txt")
    scanned = os.scandir

    def refuse(path: str) -> object:
        if str(path) == str(tmp_path / "bee"):
            raise PermissionError(13, "Permission denied", path)
        return scanned(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match="folders bee, wasp; of bee: cannot be read: Permission denied"):
        scan_classes(tmp_path)


def test_of_many_classes_the_first_are_named(tmp_path: Path) -> None:
    classes = tuple(f"class {index:03d}" for index in range(300))
    fill(tmp_path, "other/1.jpg")
    with pytest.raises(DataError, match="training classes lack: other") as caught:
        scan_labelled(tmp_path, classes)
    assert caught.value.hint == f"the classes are: {', '.join(classes[:20])}, ..."


def _loop_in_a_class(root: Path) -> Path:
    (root / "ant/again").symlink_to(root)
    return root / "ant/again"


def _link_to_itself(root: Path) -> Path:
    (root / "ant/self.jpg").symlink_to("self.jpg")
    return root / "ant/self.jpg"


def _link_to_nothing(root: Path) -> Path:
    (root / "ant/gone.jpg").symlink_to("nowhere")
    return root / "ant/gone.jpg"


def _pipe(root: Path) -> Path:
    os.mkfifo(root / "ant/pipe.jpg")
    return root / "ant/pipe.jpg"


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (_loop_in_a_class, "is a link to a folder, which is not followed"),
        (_link_to_itself, "is no file, or a link to nothing"),
        (_link_to_nothing, "is no file, or a link to nothing"),
        (_pipe, "is no file, or a link to nothing"),
    ],
)
def test_links_and_pipes_are_named_and_never_followed(
    tmp_path: Path, make: Callable[[Path], Path], reason: str
) -> None:
    fill(tmp_path, "ant/1.jpg", "bee/1.jpg")
    path = make(tmp_path)
    _, images, skipped = scan_classes(tmp_path)
    assert [image.path.name for image in images] == ["1.jpg", "1.jpg"]
    assert [(file.path, file.reason) for file in skipped] == [(path, reason)]


def test_a_class_folder_that_links_to_its_own_parent_is_no_class(tmp_path: Path) -> None:
    fill(tmp_path, "ant/1.jpg", "bee/1.jpg")
    (tmp_path / "loop").symlink_to(tmp_path)
    with pytest.raises(DataError, match="no images in the class folders loop"):
        scan_classes(tmp_path)
    images, skipped = scan_labelled(tmp_path, ("ant", "bee", "loop"))
    assert [image.label for image in images] == [0, 1]
    assert [file.reason for file in skipped] == ["is a link to a folder above it"]


def test_a_class_folder_may_be_a_link_to_elsewhere(tmp_path: Path) -> None:
    fill(tmp_path, "data/ant/1.jpg", "disk/bees/1.jpg")
    (tmp_path / "data/bee").symlink_to(tmp_path / "disk/bees")
    classes, images, _ = scan_classes(tmp_path / "data")
    assert classes == CLASSES
    assert images[1].path == tmp_path / "data/bee/1.jpg"


def test_a_folder_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As root may read everything, the refusal is played."""
    fill(tmp_path, "ant/1.jpg", "ant/locked/2.jpg", "bee/1.jpg")
    scandir = os.scandir

    def refuse(path: str) -> os._ScandirIterator[str]:
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    _, images, skipped = scan_classes(tmp_path)
    assert len(images) == 2
    assert [(file.path.name, file.reason) for file in skipped] == [("locked", "cannot be read: Permission denied")]


def test_images_beside_the_class_folders_are_named(tmp_path: Path) -> None:
    fill(tmp_path, "ant/1.jpg", "bee/1.jpg", "stray.jpg", "labels.csv", ".hidden.jpg")
    _, _, skipped = scan_classes(tmp_path)
    assert [(file.path.name, file.reason) for file in skipped] == [("stray.jpg", "lies in no class folder")]

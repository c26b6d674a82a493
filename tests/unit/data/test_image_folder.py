from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from edgetune.core.errors import DataError
from edgetune.data.image_folder import ImageFolder, labelled_root, scan_image_folder, scan_labelled


def _fill(root: Path, *names: str) -> Path:
    """Files whose content is their own name; nothing opens them."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return root


def _listing(folder: ImageFolder, split: str) -> list[tuple[str, int]]:
    return [(image.path.relative_to(folder.root).as_posix(), image.label) for image in getattr(folder, split)]


def _share(data: bytes) -> float:
    """Where the content's hash lies between 0 and 1."""
    return int(hashlib.sha256(data).hexdigest(), 16) / 16**64


@pytest.mark.parametrize("val", ["val", "valid", "validation"])
def test_train_and_val_folders_are_taken_as_they_are(tmp_path: Path, val: str) -> None:
    _fill(tmp_path, "train/bee/2.png", "train/ant/1.jpg", "train/bee/1.JPEG", f"{val}/bee/9.webp", f"{val}/ant/x.bmp")
    folder = scan_image_folder(tmp_path)
    assert folder.root == tmp_path
    assert folder.classes == ("ant", "bee")
    assert _listing(folder, "train") == [("train/ant/1.jpg", 0), ("train/bee/1.JPEG", 1), ("train/bee/2.png", 1)]
    assert _listing(folder, "val") == [(f"{val}/ant/x.bmp", 0), (f"{val}/bee/9.webp", 1)]
    assert folder.skipped == ()


def test_images_are_listed_in_the_order_of_their_names(tmp_path: Path) -> None:
    names = [f"train/{name}/{index:02d}.png" for name in ("ant", "bee") for index in range(30)]
    _fill(tmp_path, *(names[index * 37 % 60] for index in range(60)), "val/ant/1.png")
    assert [name for name, _ in _listing(scan_image_folder(tmp_path), "train")] == names


def test_a_class_may_be_absent_from_val(tmp_path: Path) -> None:
    _fill(tmp_path, "train/ant/1.jpg", "train/bee/1.jpg", "val/bee/2.jpg")
    assert _listing(scan_image_folder(tmp_path), "val") == [("val/bee/2.jpg", 1)]


@pytest.mark.parametrize("prefix", ["", "train/"], ids=["flat", "train only"])
def test_without_val_the_content_decides(tmp_path: Path, prefix: str) -> None:
    _fill(tmp_path, *(f"{prefix}{name}/{index}.png" for name in ("ant", "bee") for index in range(40)))
    folder = scan_image_folder(tmp_path)
    everything = sorted(tmp_path.rglob("*.png"))
    assert {image.path for image in folder.val} == {path for path in everything if _share(path.read_bytes()) < 0.2}
    assert {image.path for image in folder.train} == {path for path in everything if _share(path.read_bytes()) >= 0.2}
    assert {(image.path.parent.name, image.label) for image in folder.train} == {("ant", 0), ("bee", 1)}


def test_images_in_folders_below_a_class_belong_to_it(tmp_path: Path) -> None:
    _fill(tmp_path, "train/ant/a/b/1.jpg", "train/bee/1.jpg", "val/ant/c/1.jpg")
    assert _listing(scan_image_folder(tmp_path), "train") == [("train/ant/a/b/1.jpg", 0), ("train/bee/1.jpg", 1)]


def test_files_that_are_no_images_are_named(tmp_path: Path) -> None:
    _fill(tmp_path, "train/ant/1.jpg", "train/ant/notes.txt", "train/bee/1.jpg", "val/bee/2.png", "val/bee/README")
    folder = scan_image_folder(tmp_path)
    assert [(file.path.name, file.reason) for file in folder.skipped] == [
        ("notes.txt", ".txt is not a supported image type"),
        ("README", "no suffix is not a supported image type"),
    ]


def test_gifs_are_named_as_unsupported(tmp_path: Path) -> None:
    _fill(tmp_path, "train/ant/1.jpg", "train/ant/2.GIF", "train/bee/1.jpg", "val/ant/1.jpg")
    assert scan_image_folder(tmp_path).skipped[0].reason == ".GIF is not a supported image type"


@pytest.mark.parametrize(
    "hidden",
    ["train/.git/1.jpg", "train/ant/.DS_Store", "train/ant/._1.jpg", "train/ant/.ipynb_checkpoints/1.jpg"],
    ids=["hidden class", "hidden file", "hidden image", "hidden folder in a class"],
)
def test_what_is_hidden_is_left_out(tmp_path: Path, hidden: str) -> None:
    _fill(tmp_path, "train/ant/1.jpg", "train/bee/1.jpg", "val/ant/1.jpg", hidden)
    folder = scan_image_folder(tmp_path)
    assert folder.classes == ("ant", "bee")
    assert _listing(folder, "train") == [("train/ant/1.jpg", 0), ("train/bee/1.jpg", 1)]
    assert folder.skipped == ()


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ((), "holds no class folders"),
        (("1.jpg",), "holds no class folders"),
        (("ant/1.jpg",), "holds one class only, 'ant'; a classifier needs at least two"),
        (("ant/1.jpg", "bee/notes.txt", "cat/x.gif"), "no images in the class folders bee, cat"),
        (("ant/1.jpg", "bee/1.jpg"), r"too few images \(2\) to set a fifth aside for validation"),
        (("train/ant/1.jpg", "val/ant/1.jpg"), "train holds one class only, 'ant'"),
        (("train/ant/1.jpg", "train/bee/1.jpg", "val/x.txt"), "val holds no images in class folders"),
        (
            ("train/ant/1.jpg", "train/bee/1.jpg", "val/wasp/1.jpg", "val/fly/1.jpg"),
            "val has class folders that the training classes lack: fly, wasp",
        ),
    ],
    ids=[
        "empty",
        "no folders",
        "one class",
        "empty classes",
        "too few",
        "train one class",
        "empty val",
        "other val classes",
    ],
)
def test_a_folder_that_cannot_be_used_is_refused(tmp_path: Path, files: tuple[str, ...], words: str) -> None:
    _fill(tmp_path, *files)
    with pytest.raises(DataError, match=words) as caught:
        scan_image_folder(tmp_path)
    assert caught.value.hint != ""


def test_a_class_that_would_lose_all_its_training_images_is_named(tmp_path: Path) -> None:
    _fill(tmp_path, *(f"ant/{index}.png" for index in range(30)))
    _fill(tmp_path, next(name for name in (f"bee/{index}.png" for index in range(100)) if _share(name.encode()) < 0.2))
    with pytest.raises(DataError, match="no training image is left for bee"):
        scan_image_folder(tmp_path)


@pytest.mark.parametrize("name", ["gone", "file"])
def test_what_is_no_folder_is_refused_with_the_layout(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    for scan in (scan_image_folder, lambda root: scan_labelled(root, ("ant", "bee"))):
        with pytest.raises(DataError, match=f"{name} is not a folder") as caught:
            scan(tmp_path / name)
        assert "expected FOLDER/CLASS/*.jpg" in caught.value.hint


def test_labels_follow_the_classes_that_are_given(tmp_path: Path) -> None:
    _fill(tmp_path, "ant/1.jpg", "bee/1.jpg", "bee/x.txt")
    images, skipped = scan_labelled(tmp_path, ("cat", "bee", "ant"))
    assert [(image.path.parent.name, image.label) for image in images] == [("bee", 1), ("ant", 2)]
    assert [file.path.name for file in skipped] == ["x.txt"]


def test_an_unknown_class_is_refused_with_those_there_are(tmp_path: Path) -> None:
    _fill(tmp_path, "ant/1.jpg", "wasp/1.jpg")
    with pytest.raises(DataError, match="lack: wasp") as caught:
        scan_labelled(tmp_path, ("ant", "bee"))
    assert caught.value.hint == "the classes are: ant, bee"


@pytest.mark.parametrize(
    ("folders", "expected"),
    [((), ""), (("train",), ""), (("train", "val"), "val"), (("validation",), "validation"), (("valid", "val"), "val")],
    ids=["flat", "train only", "val", "validation", "val first"],
)
def test_the_labelled_folder_is_val_where_there_is_one(tmp_path: Path, folders: tuple[str, ...], expected: str) -> None:
    for name in folders:
        (tmp_path / name).mkdir()
    assert labelled_root(tmp_path) == tmp_path / expected

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetune.core.errors import DataError, UsageError
from edgetune.data.findings import findings_of
from edgetune.data.image_folder import ImageFolder
from edgetune.data.scan import scan_images
from tests.unit.data.image_files import fill, listing, share


@pytest.mark.parametrize("val", ["val", "valid", "validation"])
def test_train_val_and_test_folders_are_taken_as_they_are(tmp_path: Path, val: str) -> None:
    fill(tmp_path, "train/bee/2.png", "train/ant/1.jpg", "train/bee/1.JPEG", f"{val}/bee/9.webp", f"{val}/ant/x.bmp")
    fill(tmp_path, "test/ant/7.tif", "test/bee/8.ppm")
    folder = scan_images(tmp_path)
    assert folder.root == tmp_path
    assert folder.classes == ("ant", "bee")
    assert listing(folder, "train") == [("train/ant/1.jpg", 0), ("train/bee/1.JPEG", 1), ("train/bee/2.png", 1)]
    assert listing(folder, "val") == [(f"{val}/ant/x.bmp", 0), (f"{val}/bee/9.webp", 1)]
    assert listing(folder, "test") == [("test/ant/7.tif", 0), ("test/bee/8.ppm", 1)]
    assert (folder.skipped, folder.findings) == ((), ())
    assert {image.group for image in folder.train} == {""}


def test_images_are_listed_in_the_order_of_their_names(tmp_path: Path) -> None:
    names = [f"train/{name}/{index:02d}.png" for name in ("ant", "bee") for index in range(30)]
    fill(tmp_path, *(names[index * 37 % 60] for index in range(60)), "val/ant/1.png")
    assert [name for name, _ in listing(scan_images(tmp_path), "train")] == names


@pytest.mark.parametrize(
    ("prefix", "test"), [("", ()), ("train/", ()), ("train/", ("test/ant/1.png",))], ids=["flat", "train", "with test"]
)
def test_without_val_the_content_decides(tmp_path: Path, prefix: str, test: tuple[str, ...]) -> None:
    fill(tmp_path, *(f"{prefix}{name}/{index}.png" for name in ("ant", "bee") for index in range(40)))
    everything = sorted(tmp_path.rglob("*.png"))
    fill(tmp_path, *test)
    folder = scan_images(tmp_path)
    assert {image.path for image in folder.val} == {path for path in everything if share(path.read_bytes()) < 0.2}
    assert {image.path for image in folder.train} == {path for path in everything if share(path.read_bytes()) >= 0.2}
    assert {(image.path.parent.name, image.label) for image in folder.train} == {("ant", 0), ("bee", 1)}
    assert tuple(name for name, _ in listing(folder, "test")) == test


def test_images_in_folders_below_a_class_belong_to_it(tmp_path: Path) -> None:
    fill(tmp_path, "train/ant/a/b/1.jpg", "train/bee/1.jpg", "val/ant/c/1.jpg")
    assert listing(scan_images(tmp_path), "train") == [("train/ant/a/b/1.jpg", 0), ("train/bee/1.jpg", 1)]


def test_files_that_are_no_images_are_named(tmp_path: Path) -> None:
    fill(tmp_path, "train/ant/1.jpg", "train/ant/notes.txt", "train/ant/2.GIF", "train/bee/1.jpg", "val/bee/2.png")
    fill(tmp_path, "val/bee/README", "test/ant/1.jpg", "test/bee/labels.csv")
    assert [(file.path.name, file.reason) for file in scan_images(tmp_path).skipped] == [
        ("2.GIF", ".GIF is not a supported image type"),
        ("notes.txt", ".txt is not a supported image type"),
        ("README", "its name does not end in an image type such as .jpg"),
        ("labels.csv", ".csv is not a supported image type"),
    ]


@pytest.mark.parametrize(
    "hidden",
    ["train/.git/1.jpg", "train/ant/.DS_Store", "train/ant/._1.jpg", "train/ant/.ipynb_checkpoints/1.jpg", ".x/1.jpg"],
    ids=["hidden class", "hidden file", "hidden image", "hidden folder in a class", "hidden split"],
)
def test_what_is_hidden_is_left_out(tmp_path: Path, hidden: str) -> None:
    fill(tmp_path, "train/ant/1.jpg", "train/bee/1.jpg", "val/ant/1.jpg", hidden)
    folder = scan_images(tmp_path)
    assert folder.classes == ("ant", "bee")
    assert listing(folder, "train") == [("train/ant/1.jpg", 0), ("train/bee/1.jpg", 1)]
    assert folder.skipped == ()


def test_train_may_be_a_class_among_others(tmp_path: Path) -> None:
    fill(tmp_path, *(f"{name}/{index}.png" for name in ("bus", "car", "train") for index in range(30)))
    assert scan_images(tmp_path).classes == ("bus", "car", "train")


def test_a_test_folder_without_labels_is_named_and_left_out(tmp_path: Path) -> None:
    fill(tmp_path, "train/ant/1.jpg", "train/bee/1.jpg", "val/ant/1.jpg", "val/bee/1.jpg", "test/1.jpg")
    folder = scan_images(tmp_path)
    assert folder.test == ()
    assert [(file.path.name, file.reason) for file in folder.skipped] == [("test", "it holds no class folders")]


def test_of_two_validation_folders_one_is_named_as_left_out(tmp_path: Path) -> None:
    fill(tmp_path, "train/ant/1.jpg", "train/bee/1.jpg", "val/ant/1.jpg", "val/bee/1.jpg", "valid/ant/2.jpg")
    folder = scan_images(tmp_path)
    assert [name for name, _ in listing(folder, "val")] == ["val/ant/1.jpg", "val/bee/1.jpg"]
    assert [(file.path.name, file.reason) for file in folder.skipped] == [("valid", "val is used instead")]


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ((), "holds no class folders"),
        (("1.jpg",), "holds no class folders"),
        (("ant/1.jpg",), "holds one class only, 'ant'; a classifier needs at least two"),
        (("ant/1.jpg", "bee/notes.txt", "cat/x.gif"), "no images in the class folders bee, cat"),
        (("ant/1.jpg", "bee/1.jpg"), r"too few different images \(2\) to set a fifth aside for validation"),
        (("train/ant/1.jpg", "val/ant/1.jpg"), "train holds one class only, 'ant'"),
        (("train/ant/1.jpg", "train/bee/1.jpg", "val/x.txt"), "val holds no images in class folders"),
        (("train/ant/1.jpg", "train/bee/1.jpg", "test/ant/x.txt"), "test holds no images in class folders"),
        (
            ("train/ant/1.jpg", "train/bee/1.jpg", "val/wasp/1.jpg", "val/fly/1.jpg"),
            "val has class folders that the training classes lack: fly, wasp",
        ),
        (
            ("train/ant/1.jpg", "train/bee/1.jpg", "val/ant/1.jpg", "test/wasp/1.jpg"),
            "test has class folders that the training classes lack: wasp",
        ),
        (("train/ant/1.jpg", "val/ant/1.jpg", "notes/1.jpg"), "holds train, val beside notes, so its folders are"),
        (("val/ant/1.jpg", "test/ant/1.jpg"), "holds test, val and no train, so its folders are"),
    ],
    ids=[
        "empty",
        "no folders",
        "one class",
        "empty classes",
        "too few",
        "train one class",
        "empty val",
        "empty test",
        "other val classes",
        "other test classes",
        "splits among others",
        "no train",
    ],
)
def test_a_folder_that_cannot_be_used_is_refused(tmp_path: Path, files: tuple[str, ...], words: str) -> None:
    fill(tmp_path, *files)
    with pytest.raises(DataError, match=words) as caught:
        scan_images(tmp_path)
    assert caught.value.hint != ""


def test_a_source_that_is_gone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="gone is not a folder") as caught:
        scan_images(tmp_path / "gone")
    assert "or a CSV file with the columns file and label" in caught.value.hint


def test_a_class_that_would_lose_all_its_training_images_is_named(tmp_path: Path) -> None:
    fill(tmp_path, *(f"ant/{index}.png" for index in range(30)))
    fill(tmp_path, next(name for name in (f"bee/{index}.png" for index in range(100)) if share(name.encode()) < 0.2))
    with pytest.raises(DataError, match="no training image is left of bee"):
        scan_images(tmp_path)


def test_a_file_that_cannot_be_read_does_not_stop_the_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, *(f"{name}/{index}.png" for name in ("ant", "bee") for index in range(30)))
    before = scan_images(tmp_path)
    locked = before.train[0].path
    opened = Path.open

    def refuse(self: Path, mode: str = "r") -> object:
        if self == locked:
            raise PermissionError(13, "Permission denied", str(self))
        return opened(self, mode)

    monkeypatch.setattr(Path, "open", refuse)
    folder = scan_images(tmp_path)
    assert [(file.path, file.reason) for file in folder.skipped] == [(locked, "cannot be read: Permission denied")]
    assert (folder.train, folder.val) == (before.train[1:], before.val)


def test_copies_of_one_image_cannot_be_split(tmp_path: Path) -> None:
    for name in ("ant/1.png", "ant/2.png", "bee/1.png", "bee/2.png"):
        fill(tmp_path, name).joinpath(name).write_bytes(b"the same")
    with pytest.raises(DataError, match=r"has too few different images \(1\) to set a fifth aside"):
        scan_images(tmp_path)


def test_files_that_cannot_be_read_are_not_taken_for_too_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, *(f"{name}/{index}.png" for name in ("ant", "bee") for index in range(30)))
    opened = Path.open

    def refuse(self: Path, mode: str = "r") -> object:
        if self.parent.name == "bee":
            raise PermissionError(13, "Permission denied", str(self))
        return opened(self, mode)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(DataError, match=r": 30 files cannot be read, .* first is 0\.png: cannot be read: Permission"):
        scan_images(tmp_path)


def test_a_csv_file_is_split_like_a_folder(tmp_path: Path) -> None:
    names = [f"{name}/{index}.png" for name in ("ant", "bee") for index in range(40)]
    fill(tmp_path, *names)
    from_folder = scan_images(tmp_path)
    (tmp_path / "labels.csv").write_text("file,label\n" + "".join(f"{name},{name[:3]}\n" for name in reversed(names)))
    from_csv = scan_images(tmp_path / "labels.csv")
    assert from_csv == from_folder


def test_a_csv_file_too_small_to_split_is_named(tmp_path: Path) -> None:
    fill(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / "labels.csv").write_text("file,label\na.jpg,ant\nb.jpg,bee\n")
    with pytest.raises(DataError, match=r"labels\.csv has too few different images \(2\)") as caught:
        scan_images(tmp_path / "labels.csv")
    assert "a CSV's column split" in caught.value.hint


def _cameras(root: Path, count: int, images: int = 3) -> Path:
    return fill(
        root, *(f"{name}/cam{c}_{i}.jpg" for name in ("ant", "bee") for c in range(count) for i in range(images))
    )


def test_a_group_falls_on_the_side_of_its_name(tmp_path: Path) -> None:
    folder = scan_images(_cameras(tmp_path, 20), group_by=r"cam\d+")
    expected = {f"cam{camera}" for camera in range(20) if share(f"cam{camera}".encode()) < 0.2}
    assert {image.group for image in folder.val} == expected
    assert {image.group for image in folder.train} == {f"cam{camera}" for camera in range(20)} - expected
    assert 0 < len(expected) < 20
    assert all(image.path.name.startswith(f"{image.group}_") for image in folder.train + folder.val)
    assert folder.findings == ()


def test_too_few_groups_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"too few groups \(1\) to set a fifth aside"):
        scan_images(_cameras(tmp_path, 1, images=40), group_by="cam")


def test_an_image_without_a_group_is_split_by_its_content_and_told(tmp_path: Path) -> None:
    _cameras(tmp_path, 20)
    fill(tmp_path, *(f"ant/{index}.png" for index in range(30)))
    folder = scan_images(tmp_path, group_by=r"cam\d+")
    alone = {image.path.name: image in folder.val for image in folder.train + folder.val if not image.group}
    assert alone == {f"{index}.png": share(f"ant/{index}.png".encode()) < 0.2 for index in range(30)}
    (finding,) = folder.findings
    assert finding.kind == "no-group"
    assert finding.message == "--group-by finds no group in 30 of 150 paths; each is a group of its own."
    assert len(finding.paths) == 20
    assert finding.paths[0] in {f"ant/{index}.png" for index in range(30)}


def test_groups_in_given_splits_are_named_and_stay(tmp_path: Path) -> None:
    fill(tmp_path, "train/ant/cam1_1.jpg", "train/bee/cam1_2.jpg", "train/ant/cam2_1.jpg", "val/ant/cam1_3.jpg")
    fill(tmp_path, "val/bee/cam3_1.jpg", "test/bee/cam1_4.jpg", "test/ant/cam4_1.jpg")
    folder = scan_images(tmp_path, group_by=r"cam\d")
    assert len(folder.train) == 3
    assert [(finding.kind, finding.message, finding.paths) for finding in findings_of(folder)] == [
        (
            "shared-group",
            "the group cam1 has images in train (2) and val (1) and test (1).",
            ("train/ant/cam1_1.jpg", "val/ant/cam1_3.jpg", "test/bee/cam1_4.jpg"),
        )
    ]


def test_an_expression_that_fits_no_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"finds a group in none of 6 paths, such as ant/cam0_0\.jpg\."):
        scan_images(_cameras(tmp_path, 1), group_by="camera")


def _sides(folder: ImageFolder) -> dict[Path, bool]:
    return {image.path: side for side, images in ((False, folder.train), (True, folder.val)) for image in images}


def _write(root: Path, contents: dict[tuple[int, int], bytes]) -> None:
    for name in ("ant", "bee"):
        # Enough that both sides are filled whatever else there is.
        fill(root, *(f"{name}/fixed{index}_{index}.png" for index in range(60)))
    for (camera, index), data in contents.items():
        (root / f"ant/cam{camera}_{index}.png").write_bytes(data)


_files = st.dictionaries(st.tuples(st.integers(0, 3), st.integers(0, 9)), st.binary(max_size=3), max_size=8)


@settings(max_examples=25, deadline=None)
@given(some=_files, more=_files, group_by=st.sampled_from(["", r"(?:cam|fixed)\d+", r"fixed\d+"]))
def test_a_side_never_depends_on_other_files(
    some: dict[tuple[int, int], bytes], more: dict[tuple[int, int], bytes], group_by: str
) -> None:
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        _write(Path(first), some)
        _write(Path(second), {**more, **some})
        few, many = (scan_images(Path(root), group_by=group_by) for root in (first, second))
        lone = {path.relative_to(first): side for path, side in _sides(few).items()}
        among = {path.relative_to(second): side for path, side in _sides(many).items()}
    assert {path: among[path] for path in lone} == lone


@settings(max_examples=25, deadline=None)
@given(data=st.binary(max_size=8), names=st.lists(st.text("abc \n'é", min_size=1, max_size=6), min_size=1, max_size=4))
def test_a_renamed_or_copied_file_stays_on_its_side(data: bytes, names: list[str]) -> None:
    with tempfile.TemporaryDirectory() as root:
        _write(Path(root), {})
        paths = [Path(root) / kind / f"{name}.png" for kind in ("ant", "bee") for name in names]
        for path in paths:
            path.write_bytes(data)
        sides = _sides(scan_images(Path(root)))
    assert {sides[path] for path in paths} == {int(hashlib.sha256(data).hexdigest(), 16) / 16**64 < 0.2}


def test_a_folder_of_many_images_is_listed_in_a_second(tmp_path: Path) -> None:
    """20,000 links to one file: the listing is measured, not the disk."""
    fill(tmp_path, "a.png")
    for name in ("train/ant", "train/bee", "val/ant", "val/bee"):
        (tmp_path / name).mkdir(parents=True)
        for index in range(5000):
            os.link(tmp_path / "a.png", tmp_path / name / f"{index:05d}.png")
    folder = scan_images(tmp_path)
    assert (len(folder.train), len(folder.val)) == (10_000, 10_000)

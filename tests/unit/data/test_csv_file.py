from __future__ import annotations

import time
from pathlib import Path

import pytest

from edgetune.core.errors import DataError
from edgetune.data.csv_file import read_csv
from edgetune.data.image_folder import Listing
from tests.unit.data.image_files import fill

FILES = ("a.jpg", "b.jpg", "sub/c.jpg", "d.jpg")
SPLIT_ROWS = "a.jpg,ant,train\nb.jpg,bee,train\nsub/c.jpg,ant,val\nd.jpg,bee,test\n"


def _csv(root: Path, content: str | bytes) -> Path:
    path = fill(root, *FILES) / "labels.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def _names(found: Listing, split: str) -> list[tuple[str, int]] | None:
    images = getattr(found, split)
    return (
        None if images is None else [(image.path.relative_to(found.root).as_posix(), image.label) for image in images]
    )


def _refusal(root: Path, content: str | bytes) -> DataError:
    with pytest.raises(DataError) as caught:
        read_csv(_csv(root, content))
    assert caught.value.message.isprintable()
    return caught.value


def test_rows_go_where_they_say(tmp_path: Path) -> None:
    found = read_csv(_csv(tmp_path, "file,label,split\n" + SPLIT_ROWS))
    assert found.root == tmp_path
    assert found.classes == ("ant", "bee")
    assert _names(found, "train") == [("a.jpg", 0), ("b.jpg", 1)]
    assert _names(found, "val") == [("sub/c.jpg", 0)]
    assert _names(found, "test") == [("d.jpg", 1)]
    assert found.skipped == ()


@pytest.mark.parametrize(
    "content",
    [
        "file;label;split\n" + SPLIT_ROWS.replace(",", ";"),
        "file\tlabel\tsplit\n" + SPLIT_ROWS.replace(",", "\t"),
        b"\xef\xbb\xbffile,label,split\n" + SPLIT_ROWS.encode(),
        ("file,label,split\n" + SPLIT_ROWS).replace("\n", "\r\n"),
        ("file,label,split\n" + SPLIT_ROWS).replace("\n", "\r"),
        "file,label,split\n" + SPLIT_ROWS.rstrip("\n"),
        "file,label,split\n\n" + SPLIT_ROWS.replace("\n", "\n\n,,\n"),
        "Path, CLASS ,Split\n" + SPLIT_ROWS.replace(",", " , "),
        "filename,label,split\n" + SPLIT_ROWS.replace("val", "Validation").replace("train", "TRAIN"),
        "image,class,split\n" + SPLIT_ROWS.replace("val", "valid"),
        '"file","label","split"\n' + SPLIT_ROWS.replace("a.jpg", '"a.jpg"'),
        "file,label,split\n" + SPLIT_ROWS.replace("a.jpg", "./a.jpg").replace("sub/", "sub//./"),
        "file,label,split\n" + "".join(reversed(SPLIT_ROWS.splitlines(keepends=True))),
    ],
    ids=[
        "semicolons", "tabs", "BOM", "CRLF", "CR", "no last line end", "blank lines", "other names", "other splits",
        "synonyms", "quotes", "dots in paths", "other order",
    ],
)  # fmt: skip
def test_spelling_does_not_matter(tmp_path: Path, content: str | bytes) -> None:
    path = _csv(tmp_path, content)
    plain = tmp_path / "plain.csv"
    plain.write_text("file,label,split\n" + SPLIT_ROWS)
    assert read_csv(path) == read_csv(plain)


def test_other_columns_are_ignored_wherever_they_stand(tmp_path: Path) -> None:
    found = read_csv(_csv(tmp_path, "id,label,width,file\n1,bee,9,b.jpg\n2,ant,9,a.jpg\n"))
    assert _names(found, "train") == [("a.jpg", 0), ("b.jpg", 1)]
    assert found.val is None


def test_rows_of_train_and_test_alone_leave_val_open(tmp_path: Path) -> None:
    found = read_csv(_csv(tmp_path, "file,label,split\na.jpg,ant,train\nb.jpg,bee,train\nd.jpg,bee,test\n"))
    assert found.val is None
    assert _names(found, "test") == [("d.jpg", 1)]


@pytest.mark.parametrize("name", ["two\nlines.jpg", "a,b.jpg", 'say "hi".jpg', "it's.jpg", "é 画像.jpg", "-x.jpg"])
def test_odd_names_may_be_quoted(tmp_path: Path, name: str) -> None:
    fill(tmp_path, name)
    quoted = '"' + name.replace('"', '""') + '"'
    found = read_csv(_csv(tmp_path, f"file,label\n{quoted},ant\na.jpg,bee\n"))
    assert (name, 0) in (_names(found, "train") or [])


def test_a_label_is_text(tmp_path: Path) -> None:
    found = read_csv(_csv(tmp_path, 'file,label\na.jpg,10\nb.jpg,9\nd.jpg,"a, b"\nsub/c.jpg,010\n'))
    assert found.classes == ("010", "10", "9", "a, b")


def test_files_that_are_absent_or_no_images_are_skipped_and_named(tmp_path: Path) -> None:
    rows = "gone.jpg,ant\nsub,bee\nlabels.csv,bee\nsub.png,ant\n" + "x" * 300 + ".jpg,ant\n"
    (tmp_path / "sub.png").mkdir()
    found = read_csv(_csv(tmp_path, "file,label\na.jpg,ant\nb.jpg,bee\n" + rows))
    assert [name for name, _ in _names(found, "train") or []] == ["a.jpg", "b.jpg"]
    assert [(file.path.name, file.reason) for file in found.skipped] == [
        ("gone.jpg", "it does not exist, or is not a file"),
        ("labels.csv", ".csv is not a supported image type"),
        ("sub", "its name does not end in an image type such as .jpg"),
        ("sub.png", "it does not exist, or is not a file"),
        ("x" * 300 + ".jpg", "it does not exist, or is not a file"),
    ]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "line 1 has no column file or path or image or filename and none label or class; it has nothing."),
        ("file,name\na.jpg,ant\n", "line 1 has no column label or class; it has file, name."),
        ("name;label\na.jpg;ant\n", "line 1 has no column file or path or image or filename; it has name, label."),
        ("file,label,path\na.jpg,ant,b.jpg\n", "line 1 has the columns file, path, which mean the same; expected one."),
        ("file,label,Label\na.jpg,ant,b\n", "line 1 has the columns label, label, which mean the same; expected one."),
        ("file,label\n", "lists no files."),
        ("file,label\na.jpg,ant,x\n", "line 2 has 3 fields, the header has 2."),
        ("file,label\na.jpg,ant\nb.jpg\n", "line 3 has 1 fields, the header has 2."),
        ('file,label\na.jpg,ant\n\n"b.jpg,bee\n', "line 4 is not CSV: unexpected end of data."),
        ('file,label\n"a.jpg"x,ant\n', "line 2 is not CSV: ',' expected after '\"'."),
        (b"file,label\na.jpg,ant\nb.jpg,b\xe9e\n", "line 3 is not UTF-8 text (byte 0xe9)."),
        ("file,label\na.jpg,ant\n".encode("utf-16"), "line 1 is not UTF-8 text (byte 0xff)."),
        ("file,label\na.jpg,\n", ": line 2: the label of a.jpg is empty."),
        ("file,label\n,ant\n", ": line 2: the file is empty."),
        ("file,label,split\na.jpg,ant,dev\n", ": line 2: the split of a.jpg is 'dev', expected train, val or test."),
        ("file,label,split\na.jpg,ant,\n", ": line 2: the split of a.jpg is '', expected train, val or test."),
        ("file,label\n/etc/a.jpg,ant\n", ": line 2: the path /etc/a.jpg is absolute, expected one relative to"),
        ("file,label\nsub/../a.jpg,ant\n", ": line 2: the path sub/../a.jpg has .., expected one below the CSV's"),
        ("file,label\n../../etc/a.jpg,ant\n", "has .., expected one below the CSV's folder."),
        ("file,label\na.jpg,ant\nb.jpg,bee\n./a.jpg,ant\n", ": line 4: a.jpg is listed in line 2 already."),
        ("file,label\n./a.jpg,ant\na.jpg,ant\n", ": line 3: a.jpg is listed in line 2 already."),
        ("file,label\na.jpg,ant\na.jpg,bee\n", ": line 3: a.jpg has the label 'bee', and 'ant' in line 2."),
        (
            "file,label,split\na.jpg,ant,train\na.jpg,ant,val\n",
            ": line 3: a.jpg is in val, and in train in line 2.",
        ),
        ('file,label\n"two\nlines.jpg",\n', r": line 2: the label of 'two\nlines.jpg' is empty."),
        ('file,label\n"two\nlines.jpg",ant\nb.jpg,\n', ": line 4: the label of b.jpg is empty."),
        ("file,label\na.jpg,ant\nb.jpg,ant\n", "holds one class only, 'ant'; a classifier needs at least two."),
        (
            "file,label,split\na.jpg,ant,train\nb.jpg,bee,train\nd.jpg,cat,val\n",
            "has labels in val or test that the training rows lack: cat.",
        ),
        ("file,label,split\na.jpg,ant,val\n", "lists no training images."),
        (
            "file,label\ngone.jpg,ant\nb.jpg,bee\n",
            ": no training images of ant are left; of gone.jpg, for one: it does not exist, or is not a file.",
        ),
        (
            "file,label,split\na.jpg,ant,train\nb.jpg,bee,train\ngone.jpg,ant,val\nx.jpg,ant,test\n",
            ": no test images, no val images are left; ",
        ),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_used_is_refused(tmp_path: Path, content: str | bytes, words: str) -> None:
    message = _refusal(tmp_path, content).message
    assert words in message
    assert message.startswith(str(tmp_path / "labels.csv"))


def test_when_no_file_is_there_the_hint_says_where_they_are_looked_for(tmp_path: Path) -> None:
    error = _refusal(tmp_path, "file,label\nants\\a.jpg,ant\nbees\\b.jpg,bee\n")
    assert error.hint == f"paths are relative to the CSV's folder {tmp_path}, with / between folders"


def test_the_first_problems_are_listed_and_the_rest_counted(tmp_path: Path) -> None:
    message = _refusal(tmp_path, "file,label\n" + "".join(f"{index}.jpg,\n" for index in range(1, 2001))).message
    assert ": line 2: the label of 1.jpg is empty; line 3: " in message
    assert message.endswith("line 6: the label of 5.jpg is empty; and 1,995 more.")


def test_a_folder_is_no_csv_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read: Is a directory"):
        read_csv(tmp_path)


def test_an_image_is_no_csv_file(tmp_path: Path) -> None:
    assert "line 1 is not UTF-8 text" in _refusal(tmp_path, b"\xff\xd8\xff\xe0\0\x10JFIF").message


def test_a_field_without_end_is_refused(tmp_path: Path) -> None:
    assert "is not CSV: field larger than field limit" in _refusal(tmp_path, "file,label\n" + "x" * 200_000).message


def test_fifty_thousand_rows_take_little_time(tmp_path: Path) -> None:
    """About a second on two shared cores; the time of this process, for others may take the machine."""
    for index in range(100):
        fill(tmp_path, f"{index % 10}/{index}.jpg")
    rows = "".join(
        f"{index % 10}/{index if index < 100 else f'{index}x'}.jpg,{index % 10}\n" for index in range(50_000)
    )
    path = _csv(tmp_path, "file,label\n" + rows)
    started = time.process_time()
    found = read_csv(path)
    assert time.process_time() - started < 2
    assert (len(found.train), len(found.skipped)) == (100, 49_900)

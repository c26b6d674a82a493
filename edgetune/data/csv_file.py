"""Labelled images listed in a CSV file: `file` and `label`, and `split` where the owner decides it."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from edgetune.core.errors import DataError
from edgetune.data.image_folder import VAL_NAMES, ImageFile, Listing, SkippedFile, check_class_count, reason_to_skip
from edgetune.data.wording import shown, some_names

_FILE_COLUMNS = ("file", "path", "image", "filename")
_LABEL_COLUMNS = ("label", "class")
_SPLIT_COLUMN = "split"
_DELIMITERS = (",", ";", "\t")
_SPLITS = {"train": "train", "test": "test", **dict.fromkeys(VAL_NAMES, "val")}
_SHOWN_PROBLEMS = 5
_EXAMPLE = "expected a header such as file,label or file,label,split"


@dataclass(frozen=True)
class _Row:
    line: int
    file: str
    label: str
    split: str


@dataclass(frozen=True)
class _Columns:
    """Their places in a row; `split` is None where there is no such column."""

    file: int
    label: int
    split: int | None
    count: int


def read_csv(path: Path) -> Listing:
    """Lists the images of a CSV file with paths relative to its folder; UTF-8, and commas, semicolons or tabs.

    Files that are not there are skipped. Absolute paths and `..` are refused: whoever reads the run later finds its
    images below one root, which may have moved.

    Raises:
        DataError: naming the lines that cannot be used, or what is missing.
    """
    rows = _checked(path, list(_read_rows(path)))
    train_labels = {row.label for row in rows if row.split == "train"}
    unknown = sorted({row.label for row in rows} - train_labels)
    if not train_labels:
        raise DataError(f"{path} lists no training images.", hint="the column split says train, val or test")
    if unknown:
        raise DataError(
            f"{path} has labels in val or test that the training rows lack: {some_names(unknown)}.",
            hint="give those labels training images as well, or leave their rows out",
        )
    classes = tuple(sorted(train_labels))
    check_class_count(path, classes)
    return _listed(path, rows, classes)


def _listed(path: Path, rows: list[_Row], classes: tuple[str, ...]) -> Listing:
    root, labels = path.parent, {name: label for label, name in enumerate(classes)}
    images: dict[str, list[ImageFile]] = {row.split: [] for row in rows}
    skipped = []
    for row in sorted(rows, key=lambda row: row.file):
        file = root / row.file
        reason = reason_to_skip(file) or ("" if _is_file(file) else "it does not exist, or is not a file")
        if reason:
            skipped.append(SkippedFile(file, reason))
        else:
            images[row.split].append(ImageFile(file, labels[row.label]))
    filled = {image.label for image in images["train"]}
    empty = [name for label, name in enumerate(classes) if label not in filled]
    lost = [f"training images of {some_names(empty)}"] if empty else []
    lost += [f"{split} images" for split in sorted(images) if not images[split] and split != "train"]
    if lost:
        raise _nothing_left(path, lost, skipped[0])
    train, val, test = (tuple(images[split]) if split in images else None for split in ("train", "val", "test"))
    return Listing(root, classes, train or (), val, test or (), tuple(skipped))


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # too long a name, or a loop of links
        return False


def _nothing_left(path: Path, lost: list[str], first: SkippedFile) -> DataError:
    return DataError(
        f"{path}: no {', no '.join(lost)} are left; of {shown(first.path.name)}, for one: {first.reason}.",
        hint=f"paths are relative to the CSV's folder {path.parent}, with / between folders",
    )


def _read_rows(path: Path) -> Iterator[_Row]:
    text = _decoded(path)
    columns, delimiter = _find_columns(path, text)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    line = 1
    try:
        for index, fields in enumerate(reader):
            if index and any(field.strip() for field in fields):
                yield _row(path, line, fields, columns)
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path}, line {line} is not CSV: {error}.") from error


def _decoded(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}, line {line} is not UTF-8 text (byte 0x{data[error.start]:02x}).",
            hint="save the table as CSV in UTF-8",
        ) from error


def _find_columns(path: Path, text: str) -> tuple[_Columns, str]:
    """The delimiter is the one that shows the columns we need, so that it need not be guessed."""
    first = next(io.StringIO(text, newline=""), "")
    headers = {}
    for delimiter in _DELIMITERS:
        names = [name.strip().casefold() for name in next(csv.reader([first], delimiter=delimiter), [])]
        headers[delimiter] = names
        if set(names) & set(_FILE_COLUMNS) and set(names) & set(_LABEL_COLUMNS):
            split = _one_column(path, names, (_SPLIT_COLUMN,)) if _SPLIT_COLUMN in names else None
            file, label = _one_column(path, names, _FILE_COLUMNS), _one_column(path, names, _LABEL_COLUMNS)
            return _Columns(file, label, split, len(names)), delimiter
    names = max(headers.values(), key=len)
    lacking = [
        " or ".join(known) for known in (_FILE_COLUMNS, _LABEL_COLUMNS) if not set(known) & set(names)
    ]  # fmt: skip
    have = ", ".join(map(shown, names)) if any(names) else "nothing"
    raise DataError(f"{path}, line 1 has no column {' and none '.join(lacking)}; it has {have}.", hint=_EXAMPLE)


def _one_column(path: Path, names: list[str], known: tuple[str, ...]) -> int:
    found = [index for index, name in enumerate(names) if name in known]
    if len(found) > 1:
        several = ", ".join(names[index] for index in found)
        raise DataError(f"{path}, line 1 has the columns {several}, which mean the same; expected one.", hint=_EXAMPLE)
    return found[0]


def _row(path: Path, line: int, fields: list[str], columns: _Columns) -> _Row:
    if len(fields) != columns.count:
        raise DataError(
            f"{path}, line {line} has {len(fields)} fields, the header has {columns.count}.",
            hint='put a field that holds the delimiter in quotes: "a,b.jpg"',
        )
    split = "train" if columns.split is None else fields[columns.split].strip()
    return _Row(line, fields[columns.file].strip(), fields[columns.label].strip(), split)


def _checked(path: Path, rows: list[_Row]) -> list[_Row]:
    """The rows with plain paths and known splits, or a `DataError` that names the first few problems."""
    good: dict[str, _Row] = {}
    problems = []
    for row in rows:
        file = PurePosixPath(row.file)
        plain = _Row(row.line, str(file), row.label, _SPLITS.get(row.split.casefold(), ""))
        problem = _problem(row, file) or _repeated(plain, good.get(plain.file))
        if problem:
            problems.append(f"line {row.line}: {problem}")
        good.setdefault(plain.file, plain)
    if problems:
        more = f"; and {len(problems) - _SHOWN_PROBLEMS:,} more" if len(problems) > _SHOWN_PROBLEMS else ""
        raise DataError(f"{path}: {'; '.join(problems[:_SHOWN_PROBLEMS])}{more}.")
    if not good:
        raise DataError(f"{path} lists no files.", hint=_EXAMPLE)
    return list(good.values())


def _problem(row: _Row, file: PurePosixPath) -> str:
    if not row.file:
        return "the file is empty"
    if file.is_absolute():
        return f"the path {shown(row.file)} is absolute, expected one relative to the CSV's folder"
    if ".." in file.parts:
        return f"the path {shown(row.file)} has .., expected one below the CSV's folder"
    if not row.label:
        return f"the label of {shown(row.file)} is empty"
    if row.split.casefold() not in _SPLITS:
        return f"the split of {shown(row.file)} is {row.split!r}, expected train, val or test"
    return ""


def _repeated(row: _Row, before: _Row | None) -> str:
    if before is None:
        return ""
    name = shown(row.file)
    if row.label != before.label:
        return f"{name} has the label {row.label!r}, and {before.label!r} in line {before.line}"
    if row.split != before.split:
        return f"{name} is in {row.split}, and in {before.split} in line {before.line}"
    return f"{name} is listed in line {before.line} already"

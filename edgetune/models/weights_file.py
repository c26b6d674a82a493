"""What a file is that should hold weights, by its bytes alone: torch's readers call each fault an internal error."""

from __future__ import annotations

import html
import json
import re
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from edgetune.core.errors import WeightsError

ZIP, SAFETENSORS, PICKLE = "zip", "safetensors", "pickle"

_HEAD_BYTES = 1 << 14
_CHUNK_BYTES = 1 << 20
_MAX_HEADER_BYTES = 100_000_000  # of a safetensors file, by its format
# Names and shapes of 100,000 tensors, and what training scripts keep beside them. Reading a table takes up to a hundred
# times its own memory.
_MAX_TABLE_BYTES = 1 << 24
_PICKLED = re.compile(rb"\x80[\x02-\x05]")
_PAGE = re.compile(rb"\s*(?:<!--.*?-->\s*)*<(?:!doctype\s+html|html|head|body|\?xml)", re.IGNORECASE | re.DOTALL)
_TITLE = re.compile(r"<title[^>]*>(.*?)</title", re.IGNORECASE | re.DOTALL)
_LFS = b"version https://git-lfs.github.com/spec/"
_QUOTED_CHARACTERS = 80

_FETCH = "fetch the file again and compare its size or sha256 with the publisher's"


@dataclass(frozen=True)
class Fault:
    """What is wrong with a file, as the end of a sentence, and what to do about it."""

    what: str
    hint: str = _FETCH


def check_weights_file(path: Path) -> str:
    """Returns the format: a zip of PyTorch's, a safetensors file, or a pickle of PyTorch before 1.6.

    Raises:
        WeightsError: there is no such file, it cannot be opened, is something else, or was cut short.
    """
    try:
        head = _read_head(path)
        size = path.stat().st_size
        kind = _kind(head, size)
        fault = _fault(path, head, size, kind)
    except OSError as error:
        raise WeightsError(
            f"the weights file {path} cannot be opened: {error.strerror or error}.",
            hint="check the path and its rights",
        ) from error
    if fault is not None:
        raise WeightsError(f"the weights file {path} {fault.what}.", hint=fault.hint)
    return kind


def describe_page(head: bytes) -> str:
    """Of bytes that are a web page or plain text: what they say, quoted; empty for all else."""
    text = head.decode("utf-8", "replace").rstrip("\ufffd")  # its last character may be cut
    if _PAGE.match(head):
        title = _TITLE.search(text)
        return f"a web page titled {_quoted(html.unescape(title[1]))}" if title else "a web page without a title"
    if text and "\ufffd" not in text and all(character.isprintable() or character.isspace() for character in text):
        return f"text that begins with {_quoted(text)}"
    return ""


def _quoted(text: str) -> str:
    words = " ".join(text.split())
    return f'"{words[:_QUOTED_CHARACTERS]}{"..." if len(words) > _QUOTED_CHARACTERS else ""}"'


def shown_name(name: object) -> str:
    """A name from a file for a message: one line of 80 characters, each of which can be printed; of what is no string,
    its type, since its text may have any length.
    """
    if not isinstance(name, str):
        return f"<{type(name).__name__}>"
    text = "".join(each if each.isprintable() else f"\\x{ord(each):02x}" for each in name[:_QUOTED_CHARACTERS])
    return text + ("..." if len(name) > _QUOTED_CHARACTERS else "")


def _read_head(path: Path) -> bytes:
    if not path.exists():
        raise WeightsError(
            f"the weights file {path} does not exist.", hint="give the path of a .pth, .pt or .safetensors"
        )
    if path.is_dir():
        raise WeightsError(
            f"the weights file {path} is a folder.", hint="give the path of the .pth, .pt or .safetensors in it"
        )
    if not path.is_file():
        raise WeightsError(f"the weights file {path} is a device or a pipe.", hint="give the path of a plain file")
    with path.open("rb") as stream:
        return stream.read(_HEAD_BYTES)


def _kind(head: bytes, size: int) -> str:
    if head.startswith(b"PK"):
        return ZIP
    if _PICKLED.match(head):
        return PICKLE
    length = int.from_bytes(head[:8], "little")
    return SAFETENSORS if head[8:9] == b"{" and length <= max(_MAX_HEADER_BYTES, size) else ""


def _fault(path: Path, head: bytes, size: int, kind: str) -> Fault | None:
    if not head:
        return Fault("cannot be read; it is empty (0 bytes)")
    if head.startswith(_LFS):
        return Fault(
            "is a pointer of Git LFS, not the weights themselves", "run git lfs pull where the file was checked out"
        )
    if kind == ZIP:
        return _zip_fault(path, size)
    if kind == SAFETENSORS:
        return _safetensors_fault(path, size)
    if kind == PICKLE:
        return None
    page = describe_page(head)
    if page:
        return Fault(f"is {page}; the server sent it in place of the weights", "fetch the file again, and look at it")
    return Fault(
        f"({size} bytes) cannot be read; it is damaged or of another format: it begins with {head[:8]!r}",
        "give a .pth or .pt that torch.save wrote, or a .safetensors",
    )


def _cut_short(size: int, why: str) -> Fault:
    return Fault(f"cannot be read; it is damaged, cut short at {size} bytes: {why}")


def _zip_fault(path: Path, size: int) -> Fault | None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.partition("/")[2] for name in archive.namelist()]
            if "data.pkl" not in names:
                return Fault("is a zip archive, but none that torch.save wrote", "give a .pth, .pt or .safetensors")
            if "constants.pkl" in names and any(name.startswith("code/") for name in names):
                return Fault(
                    "is a TorchScript archive, which is a program; it was not run",
                    "if you trust it, save its tensors: torch.save(torch.jit.load(FILE).state_dict(), 'weights.pth')",
                )
            return _size_fault(archive, size) or _checksum_fault(archive)
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError, RuntimeError):
        return _cut_short(size, "the table at its end is missing")


def _size_fault(archive: zipfile.ZipFile, size: int) -> Fault | None:
    """What torch.save writes is not compressed: a file that unpacks to far more than itself is a trap."""
    unpacked = sum(entry.file_size for entry in archive.infolist())
    if unpacked > 2 * size:
        return Fault(
            f"is a compressed archive of {size} bytes that would unpack to {unpacked}; torch.save does not compress",
            "do not open the file with other tools; ask whoever made it for a .safetensors",
        )
    table = max(entry.file_size for entry in archive.infolist() if entry.filename.endswith("/data.pkl"))
    return _table_fault(table, "pickle") if table > _MAX_TABLE_BYTES else None


def _table_fault(size: int, what: str) -> Fault:
    return Fault(
        f"has a {what} of {size} bytes beside its tensors, expected at most {_MAX_TABLE_BYTES}",
        "save the tensors alone: torch.save(model.state_dict(), 'weights.pth')",
    )


def _checksum_fault(archive: zipfile.ZipFile) -> Fault | None:
    """torch.load does not look at the checksums. Files that were written without any have all of them wrong."""
    wrong, right = [], 0
    for entry in archive.infolist():
        if entry.file_size and not _is_intact(archive, entry):
            wrong.append(entry.filename)
        elif entry.file_size:
            right += 1
    if not wrong or not right:
        return None
    return Fault(f"cannot be read; it is damaged: the checksum of {shown_name(wrong[0])} in it is wrong")


def _is_intact(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bool:
    try:
        with archive.open(entry) as stream:
            while stream.read(_CHUNK_BYTES):
                pass
    except (zipfile.BadZipFile, zlib.error, EOFError):
        return False
    return True


def _safetensors_fault(path: Path, size: int) -> Fault | None:
    """The format: 8 bytes of length, a JSON header of that length, the tensors' bytes (safetensors, "Format")."""
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        whole = 8 + length
        if size < whole:
            return _cut_short(size, f"its header alone ends at byte {whole}")
        if length > _MAX_TABLE_BYTES:
            return _table_fault(length, "header")
        header = stream.read(length)
    try:
        entries = json.loads(header)
        ends = [entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__"]
        whole += max((int(end) for end in ends), default=0)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError, OverflowError):
        return Fault("cannot be read; it is damaged: its header is no table of tensors")
    return _cut_short(size, f"it should have {whole}") if size < whole else None

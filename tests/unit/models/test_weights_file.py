"""What is told of a file that holds no weights, or not all of them."""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from edgetune.core.errors import WeightsError
from edgetune.models.checkpoint import read_state_dict
from edgetune.models.weights_file import PICKLE, SAFETENSORS, ZIP, check_weights_file, describe_page, shown_name

STATE = {"a.weight": torch.arange(60_000.0).reshape(2, 30_000), "a.count": torch.tensor(3)}

_PAGE = b"""<!DOCTYPE html>
<html><head><title>404 &ndash; Not
  Found</title></head><body>nothing here</body></html>"""


def save_zip(path: Path, content: Any = STATE) -> None:
    torch.save(content, path)


def save_legacy(path: Path, content: Any = STATE) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


def save_safetensors(path: Path) -> None:
    from safetensors.torch import save_file

    save_file(STATE, path)


WRITERS: dict[str, Callable[[Path], None]] = {ZIP: save_zip, PICKLE: save_legacy, SAFETENSORS: save_safetensors}


def _refused(path: Path) -> WeightsError:
    with pytest.raises(WeightsError) as caught:
        read_state_dict(path)
    assert str(path) in caught.value.message
    assert caught.value.hint
    return caught.value


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".bin"])
def test_the_bytes_and_not_the_name_tell_the_format(tmp_path: Path, kind: str, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    WRITERS[kind](path)
    assert check_weights_file(path) == kind
    assert torch.equal(read_state_dict(path)["a.weight"], STATE["a.weight"])


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("share", [0.1, 0.5, 0.999], ids=["a tenth", "half", "nearly all"])
def test_a_file_that_was_cut_short_says_so(tmp_path: Path, kind: str, share: float) -> None:
    path = tmp_path / "weights.pth"
    WRITERS[kind](path)
    whole = path.read_bytes()
    kept = int(len(whole) * share)
    path.write_bytes(whole[:kept])
    error = _refused(path)
    assert f"cannot be read; it is damaged, cut short at {kept} bytes" in error.message
    assert error.hint == "fetch the file again and compare its size or sha256 with the publisher's"


def test_the_words_for_each_format_that_was_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    for kind, words in (
        (ZIP, "the table at its end is missing"),
        (SAFETENSORS, "it should have 240152"),
        (PICKLE, "unexpected EOF, expected 120"),
    ):
        WRITERS[kind](path)
        path.write_bytes(path.read_bytes()[:120_000])
        assert words in _refused(path).message


@pytest.mark.parametrize("kept", [1, 3, 9, 20, 100])
@pytest.mark.parametrize("kind", WRITERS)
def test_the_first_bytes_alone_are_no_weights(tmp_path: Path, kind: str, kept: int) -> None:
    path = tmp_path / "weights.pth"
    WRITERS[kind](path)
    path.write_bytes(path.read_bytes()[:kept])
    _refused(path)


def test_an_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    path.touch()
    assert _refused(path).message.endswith("weights.pth cannot be read; it is empty (0 bytes).")


def test_a_changed_byte_inside_a_zip_is_noticed_though_torch_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    save_zip(path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert not torch.equal(torch.load(path, weights_only=True)["a.weight"], STATE["a.weight"])
    assert "damaged: the checksum of weights/data/0 in it is wrong" in _refused(path).message


def test_a_zip_written_without_checksums_is_read(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        save_zip(path)
    finally:
        torch.serialization.set_crc32_options(before)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is not None
    assert torch.equal(read_state_dict(path)["a.weight"], STATE["a.weight"])


def test_a_missing_file(tmp_path: Path) -> None:
    error = _refused(tmp_path / "no.pth")
    assert error.message == f"the weights file {tmp_path / 'no.pth'} does not exist."


def test_a_folder(tmp_path: Path) -> None:
    assert _refused(tmp_path).message == f"the weights file {tmp_path} is a folder."


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pth")
    assert _refused(tmp_path / "pipe.pth").message.endswith("is a device or a pipe.")


def test_a_file_without_rights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "weights.pth"
    save_zip(path)

    def refuse(self: Path, *args: Any, **options: Any) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", refuse)
    assert _refused(path).message == f"the weights file {path} cannot be opened: Permission denied."


def test_a_web_page_is_named_with_its_title(tmp_path: Path) -> None:
    path = tmp_path / "resnet18.pth"
    path.write_bytes(_PAGE)
    assert _refused(path).message == (
        f'the weights file {path} is a web page titled "404 \u2013 Not Found"; the server sent it in place of the '
        "weights."
    )


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"  \n<html><body>no title</body></html>", "a web page without a title"),
        (b"<!-- x --><!doctype HTML><title>Sign in</title>", 'a web page titled "Sign in"'),
        (b'{"error": "Repository not found"}', 'text that begins with "{"error": "Repository not found"}"'),
        (b"Access denied.\n" + b"x" * 200, f'text that begins with "Access denied. {"x" * 65}..."'),
    ],
    ids=["no title", "a comment first", "an answer in JSON", "long text"],
)
def test_other_answers_of_servers(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(content)
    assert f"is {words}; the server sent it" in _refused(path).message


def test_bytes_that_are_no_text_are_not_described() -> None:
    assert describe_page(b"\x00\x01\x02") == ""
    assert describe_page(b"") == ""
    assert describe_page("größer".encode()[:-3]) == 'text that begins with "grö"'


def test_a_pointer_of_git_lfs(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 46830571\n")
    error = _refused(path)
    assert error.message.endswith("is a pointer of Git LFS, not the weights themselves.")
    assert "git lfs pull" in error.hint


def test_another_kind_of_file(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    assert re.search(r"\(108 bytes\) cannot be read; .* it begins with b'\\x89HDF\\r\\n", _refused(path).message)


def test_a_zip_that_torch_did_not_write(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert _refused(path).message.endswith("is a zip archive, but none that torch.save wrote.")


def test_a_torchscript_archive(tmp_path: Path) -> None:
    path = tmp_path / "script.pt"
    traced = torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2))  # type: ignore[no-untyped-call]
    torch.jit.save(traced, path)
    error = _refused(path)
    assert error.message.endswith("is a TorchScript archive, which is a program; it was not run.")
    assert "torch.jit.load(FILE).state_dict()" in error.hint


@pytest.mark.parametrize("header", [b'{"a": 3}', b'{"a": {"data_offsets": [0]}}', b"{" + b"[" * 30, b'{"a": "\xff"}'])
def test_a_safetensors_file_with_a_broken_header(tmp_path: Path, header: bytes) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(100))
    assert "damaged: its header is no table of tensors" in _refused(path).message


def _zip_of(path: Path, members: dict[str, bytes], *, compressed: bool) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            archive.writestr(f"archive/{name}", content)


@pytest.mark.parametrize("bomb", ["data.pkl", "data/0"])
def test_an_archive_that_unpacks_to_far_more_is_not_unpacked(
    tmp_path: Path, bomb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "bomb.pth"
    save_zip(path)
    with zipfile.ZipFile(path) as archive:
        members = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    _zip_of(path, members | {bomb: bytes(50_000_000)}, compressed=True)

    def unpack(*_: object) -> None:
        raise AssertionError("the bomb went off")

    monkeypatch.setattr(zipfile.ZipFile, "open", unpack)
    error = _refused(path)
    assert re.search(
        r"is a compressed archive of \d+ bytes that would unpack to 50\d{6}; torch\.save does not compress",
        error.message,
    )


def test_a_zip_that_is_hardly_compressed_is_read(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    save_zip(path, {"a.weight": torch.randn(2, 30_000)})
    with zipfile.ZipFile(path) as archive:
        members = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    _zip_of(path, members, compressed=True)
    assert read_state_dict(path)["a.weight"].shape == (2, 30_000)


def test_a_table_that_is_larger_than_any_networks(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    _zip_of(path, {"data.pkl": b"\x80\x02" + b"]" * (1 << 24)}, compressed=False)
    error = _refused(path)
    assert "has a pickle of 16777218 bytes beside its tensors, expected at most 16777216" in error.message
    assert "torch.save(model.state_dict(), 'weights.pth')" in error.hint
    header = b'{"a":' + b" " * (1 << 24) + b"{}}"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    assert f"has a header of {len(header)} bytes beside its tensors" in _refused(path).message
    path.write_bytes(len(header).to_bytes(8, "little") + header[:-1])
    assert f"cut short at {len(header) + 7} bytes: its header alone ends at byte" in _refused(path).message


def test_an_offset_beyond_all_numbers(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    header = b'{"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 1e400]}}'
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))
    assert "damaged: its header is no table of tensors" in _refused(path).message


def test_names_are_shown_on_one_line() -> None:
    assert shown_name("a.größe") == "a.größe"
    assert shown_name("a\nb\x1b[31m\ud800") == r"a\x0ab\x1b[31m\xd800"
    assert shown_name("x" * 500) == "x" * 80 + "..."
    assert shown_name((1,) * 10**6) == "<tuple>"

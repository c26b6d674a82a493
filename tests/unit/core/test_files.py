from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgetune.core.errors import DataError, EdgetuneError, OutputExistsError
from edgetune.core.files import (
    cache_root,
    canonical_json,
    check_output,
    output_folder,
    pretty_json,
    read_json,
    sha256_of_bytes,
    sha256_of_file,
    write_bytes_atomic,
)

MARKER = "ours.txt"

# FIPS 180-2, appendix B.
SHA256_OF_ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def _run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def _write_ours(folder: Path, text: str) -> None:
    folder.mkdir()
    (folder / MARKER).write_text(text)


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def dead_pid() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


@pytest.fixture
def other_pid() -> Iterator[int]:
    """The id of a process that lives as long as the test."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process.pid
        process.kill()


def test_digests_match_the_published_example(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256_of_bytes(b"abc") == SHA256_OF_ABC
    assert sha256_of_file(tmp_path / "abc") == SHA256_OF_ABC


def test_a_file_longer_than_one_read_has_the_digest_of_its_bytes(tmp_path: Path) -> None:
    data = bytes(range(256)) * (3 * 4096 + 1)
    (tmp_path / "long").write_bytes(data)
    assert sha256_of_file(tmp_path / "long") == sha256_of_bytes(data)


def test_canonical_json_has_one_spelling() -> None:
    assert canonical_json({"b": [1, 2.5], "a": "é"}) == '{"a":"é","b":[1,2.5]}'.encode()


def test_pretty_json_keeps_the_order_and_ends_with_a_newline() -> None:
    assert pretty_json({"b": 1, "a": "é"}) == '{\n  "b": 1,\n  "a": "é"\n}\n'.encode()


@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=["nan", "infinity"])
def test_json_refuses_what_is_no_number(value: float) -> None:
    for write in (canonical_json, pretty_json):
        with pytest.raises(ValueError, match="JSON compliant"):
            write({"a": value})


def test_a_missing_json_file_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.json does not exist"):
        read_json(tmp_path / "gone.json")


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"\xff\xfe\x00", b"{'a': 1}", b"[" * 100_000],
    ids=["empty", "cut off", "not UTF-8", "single quotes", "nested too deep"],
)
def test_a_damaged_json_file_is_a_data_error(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "bad.json").write_bytes(data)
    with pytest.raises(DataError, match=r"bad\.json cannot be read as JSON"):
        read_json(tmp_path / "bad.json")


def test_a_folder_is_no_json_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read as JSON"):
        read_json(tmp_path)


def test_an_atomic_write_makes_folders_and_replaces_the_file(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "file.bin"
    write_bytes_atomic(path, b"one")
    write_bytes_atomic(path, b"two")
    assert path.read_bytes() == b"two"
    assert _names(path.parent) == ["file.bin"]


def test_an_atomic_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")
    code = """
import resource, signal, sys
from pathlib import Path
from edgetune.core.files import write_bytes_atomic
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    write_bytes_atomic(Path(sys.argv[1]), bytes(100_000))
except OSError as error:
    print("refused", error.errno)
"""
    assert _run(code, str(path)).stdout.startswith("refused")
    assert path.read_bytes() == b"old"
    assert _names(tmp_path) == ["file.bin"]


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"EDGETUNE_CACHE": "/a", "XDG_CACHE_HOME": "/b", "HOME": "/c"}, "/a"),
        ({"EDGETUNE_CACHE": "", "XDG_CACHE_HOME": "/b", "HOME": "/c"}, "/b/edgetune"),
        ({"EDGETUNE_CACHE": "", "XDG_CACHE_HOME": "", "HOME": "/c"}, "/c/.cache/edgetune"),
    ],
    ids=["own variable", "XDG", "home"],
)
def test_the_cache_folder_is_chosen_in_order(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert cache_root() == Path(expected)


def test_an_output_folder_appears_whole(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "out"
    with output_folder(target, MARKER, force=False) as partial:
        (partial / "sub").mkdir()
        (partial / "sub" / "file").write_text("content")
        (partial / MARKER).write_text("new")
        assert not target.exists()
    assert (target / "sub" / "file").read_text() == "content"
    assert _names(target.parent) == ["out"]


def test_a_relative_output_goes_to_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with output_folder(Path("out"), MARKER, force=False) as partial:
        (partial / MARKER).write_text("new")
    assert (tmp_path / "out" / MARKER).read_text() == "new"


def test_an_error_inside_the_block_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with output_folder(tmp_path / "out", MARKER, force=False) as partial:
            (partial / "file").write_text("half")
            raise KeyError("a bug")

    with pytest.raises(KeyError, match="a bug"):
        fail()
    assert _names(tmp_path) == []


def test_an_error_inside_the_block_keeps_the_output_that_was_to_be_replaced(tmp_path: Path) -> None:
    _write_ours(tmp_path / "out", "old")

    def fail() -> None:
        with output_folder(tmp_path / "out", MARKER, force=True) as partial:
            (partial / MARKER).write_text("new")
            raise KeyError("a bug")

    with pytest.raises(KeyError):
        fail()
    assert (tmp_path / "out" / MARKER).read_text() == "old"
    assert _names(tmp_path) == ["out"]


def test_a_killed_process_leaves_no_output_and_the_next_call_cleans_up(tmp_path: Path) -> None:
    target = tmp_path / "out"
    code = """
import os, signal, sys
from pathlib import Path
from edgetune.core.files import output_folder
with output_folder(Path(sys.argv[1]), "ours.txt", force=False) as partial:
    (partial / "ours.txt").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert _run(code, str(target)).returncode == -signal.SIGKILL
    assert not target.exists()
    (leftover,) = _names(tmp_path)
    assert leftover.startswith(".out.")
    with output_folder(target, MARKER, force=False) as partial:
        assert _names(tmp_path) == [partial.name]
        (partial / MARKER).write_text("whole")
    assert _names(tmp_path) == ["out"]
    assert (target / MARKER).read_text() == "whole"


def test_the_old_output_comes_back_when_the_process_died_between_the_two_renames(tmp_path: Path, dead_pid: int) -> None:
    _write_ours(tmp_path / f".out.{dead_pid}-0123abcd.replaced", "old")
    _write_ours(tmp_path / f".out.{dead_pid}-0123abcd.partial", "new")
    with (
        pytest.raises(OutputExistsError, match="out exists already"),
        output_folder(tmp_path / "out", MARKER, force=False),
    ):
        pass
    assert _names(tmp_path) == ["out"]
    assert (tmp_path / "out" / MARKER).read_text() == "old"


def test_the_old_output_comes_back_to_a_name_with_brackets(tmp_path: Path, dead_pid: int) -> None:
    _write_ours(tmp_path / f".out[1].{dead_pid}-0123abcd.replaced", "old")
    with pytest.raises(OutputExistsError), output_folder(tmp_path / "out[1]", MARKER, force=False):
        pass
    assert (tmp_path / "out[1]" / MARKER).read_text() == "old"


def test_an_output_that_was_replaced_in_full_does_not_come_back(tmp_path: Path, dead_pid: int) -> None:
    _write_ours(tmp_path / f".out.{dead_pid}-0123abcd.replaced", "old")
    _write_ours(tmp_path / "out", "new")
    with pytest.raises(OutputExistsError), output_folder(tmp_path / "out", MARKER, force=False):
        pass
    assert _names(tmp_path) == ["out"]
    assert (tmp_path / "out" / MARKER).read_text() == "new"


@pytest.mark.parametrize("kind", ["partial", "replaced"])
def test_a_leftover_whose_process_id_is_now_our_own_is_cleaned_up(tmp_path: Path, kind: str) -> None:
    """In a container every start may have the same process id."""
    _write_ours(tmp_path / f".out.{os.getpid()}-0123abcd.{kind}", "old")
    with output_folder(tmp_path / "out", MARKER, force=True) as partial:
        (partial / MARKER).write_text("new")
    assert _names(tmp_path) == ["out"]


def test_the_folder_of_a_living_process_is_left_alone(tmp_path: Path, other_pid: int) -> None:
    _write_ours(tmp_path / f".out.{other_pid}-0123abcd.partial", "theirs")
    with output_folder(tmp_path / "out", MARKER, force=False) as partial:
        (partial / MARKER).write_text("new")
    assert _names(tmp_path) == [f".out.{other_pid}-0123abcd.partial", "out"]


@pytest.mark.parametrize("name", [".out.backup", ".out.12x.partial", ".out.1.copy", ".other.1.partial"], ids=str)
def test_hidden_neighbours_that_are_no_leftovers_stay(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("precious")
    with output_folder(tmp_path / "out", MARKER, force=False) as partial:
        (partial / MARKER).write_text("new")
    assert (tmp_path / name).read_text() == "precious"


def test_force_replaces_a_folder_that_holds_the_marker(tmp_path: Path) -> None:
    _write_ours(tmp_path / "out", "old")
    (tmp_path / "out" / "stale").write_text("old")
    with output_folder(tmp_path / "out", MARKER, force=True) as partial:
        (partial / MARKER).write_text("new")
    assert _names(tmp_path) == ["out"]
    assert _names(tmp_path / "out") == [MARKER]
    assert (tmp_path / "out" / MARKER).read_text() == "new"


def test_an_empty_folder_may_be_filled_without_force(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with output_folder(tmp_path / "out", MARKER, force=False) as partial:
        (partial / MARKER).write_text("new")
    assert _names(tmp_path / "out") == [MARKER]


def test_without_force_an_output_of_ours_stays(tmp_path: Path) -> None:
    _write_ours(tmp_path / "out", "old")
    with pytest.raises(OutputExistsError, match="exists already") as caught:
        check_output(tmp_path / "out", MARKER, force=False)
    assert "--force" in caught.value.hint


@pytest.mark.parametrize("force", [False, True], ids=["plain", "force"])
@pytest.mark.parametrize("foreign", ["folder", "file", "dangling link"])
def test_a_foreign_output_is_never_touched(tmp_path: Path, foreign: str, force: bool) -> None:
    target = tmp_path / "out"
    if foreign == "folder":
        target.mkdir()
        (target / "precious").write_text("mine")
    elif foreign == "file":
        target.write_text("mine")
    else:
        target.symlink_to(tmp_path / "nowhere")
    with (
        pytest.raises(OutputExistsError, match=rf"not a folder that edgetune wrote \(it holds no {MARKER}\)") as caught,
        output_folder(target, MARKER, force=force),
    ):
        pass
    assert "choose another --out" in caught.value.hint
    assert _names(tmp_path) == ["out"]
    assert target.is_symlink() or foreign != "folder" or (target / "precious").read_text() == "mine"


def test_a_link_to_an_output_of_ours_is_replaced_or_refused_but_not_half(tmp_path: Path) -> None:
    _write_ours(tmp_path / "real", "old")
    (tmp_path / "out").symlink_to("real")
    try:
        with output_folder(tmp_path / "out", MARKER, force=True) as partial:
            (partial / MARKER).write_text("new")
        expected = "new"
    except OutputExistsError:
        expected = "old"
    assert (tmp_path / "out" / MARKER).read_text() == expected
    assert [name for name in _names(tmp_path) if name.startswith(".")] == []


def test_a_foreign_folder_that_appears_meanwhile_is_not_destroyed(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with pytest.raises(OutputExistsError), output_folder(target, MARKER, force=False) as partial:
        (partial / MARKER).write_text("new")
        target.mkdir()
        (target / "precious").write_text("mine")
    assert _names(target) == ["precious"]


def test_an_output_of_ours_that_appears_meanwhile_is_not_replaced_without_force(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with pytest.raises(OutputExistsError), output_folder(target, MARKER, force=False) as partial:
        (partial / MARKER).write_text("second")
        _write_ours(target, "first")
    assert (target / MARKER).read_text() == "first"


def test_a_parent_that_is_a_file_gives_an_edgetune_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(EdgetuneError, match=r"file/out cannot be written"),
        output_folder(tmp_path / "file" / "out", MARKER, force=False),
    ):
        pass


def test_a_full_disk_gives_an_edgetune_error_and_leaves_nothing(tmp_path: Path) -> None:
    code = """
import resource, signal, sys
from pathlib import Path
from edgetune.core.errors import EdgetuneError
from edgetune.core.files import output_folder
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    with output_folder(Path(sys.argv[1]), "ours.txt", force=False) as partial:
        (partial / "ours.txt").write_text("fits")
        (partial / "big").write_bytes(bytes(100_000))
except EdgetuneError as error:
    print(error.message)
"""
    done = _run(code, str(tmp_path / "out"))
    assert "out could not be written, and nothing was left half done" in done.stdout
    assert "File too large" in done.stdout
    assert _names(tmp_path) == []

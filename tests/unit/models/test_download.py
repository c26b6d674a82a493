"""Downloads from a real server on loopback: whole and checked, or not at all and with a reason."""

from __future__ import annotations

import hashlib
import os
import socket
import threading
import time
from pathlib import Path

import pytest

from edgetune.core.errors import WeightsError
from edgetune.models.download import STAGE, RemoteFile, fetch, move_aside, why_unreachable
from tests.unit.models.file_server import Answer, content, page, redirect, serving, stall

DATA = bytes(range(256)) * 4096  # 1 MiB, in four reads
PREFIX = hashlib.sha256(DATA).hexdigest()[:8]
NAME = f"net-{PREFIX}.pth"


def _fetch(folder: Path, answer: Answer, timeout_s: float = 5.0) -> tuple[str, ...]:
    with serving({f"/{NAME}": answer}) as address:
        return fetch(RemoteFile(f"{address}/{NAME}", folder / NAME, PREFIX), timeout_s=timeout_s)


def _failure(folder: Path, answer: Answer, timeout_s: float = 5.0) -> str:
    """The message, after a look at what every failed download must leave and say."""
    with pytest.raises(WeightsError) as caught:
        _fetch(folder, answer, timeout_s)
    assert list(folder.iterdir()) == []
    assert f"{NAME} could not be downloaded from http://127.0.0.1:" in caught.value.message
    assert f"elsewhere and put it at {folder / NAME}, or give --weights FILE" in caught.value.hint
    assert "fetch http://127.0.0.1:" in caught.value.hint
    return caught.value.message


def test_a_file_comes_whole_with_its_progress_in_bytes(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    with serving({f"/{NAME}": content(DATA)}) as address:
        remote = RemoteFile(f"{address}/{NAME}", tmp_path / "new" / "folder" / NAME, PREFIX)
        assert fetch(remote, progress=lambda *step: seen.append(step)) == ()
        assert fetch(remote, progress=lambda *step: seen.append(step)) == ()  # the second time there is nothing to do
    assert remote.path.read_bytes() == DATA
    assert [path.name for path in remote.path.parent.iterdir()] == [NAME]
    assert seen[-1] == (STAGE, len(DATA), len(DATA))
    assert [done for _, done, _ in seen] == sorted({done for _, done, _ in seen})
    assert {(stage, total) for stage, _, total in seen} == {(STAGE, len(DATA))}
    assert len(seen) > 2


def test_a_server_that_tells_no_length(tmp_path: Path) -> None:
    assert _fetch(tmp_path, content(DATA, with_length=False)) == ()
    assert (tmp_path / NAME).read_bytes() == DATA


def test_a_body_that_is_cut(tmp_path: Path) -> None:
    message = _failure(tmp_path, content(DATA[:300_000], promised=len(DATA)))
    assert message.endswith("the connection ended after 300000 of 1048576 bytes.")


def test_a_body_that_is_cut_where_no_length_was_told(tmp_path: Path) -> None:
    message = _failure(tmp_path, content(DATA[:300_000], with_length=False))
    found = hashlib.sha256(DATA[:300_000]).hexdigest()
    assert message.endswith(
        f"the sha256 of the 300000 bytes that came is {found}, expected one that begins with {PREFIX}."
    )


def test_an_error_of_the_server(tmp_path: Path) -> None:
    assert _failure(tmp_path, page(404, "Gone")).endswith("the server answered HTTP 404 Not Found.")
    assert _failure(tmp_path, page(503, "Busy")).endswith("the server answered HTTP 503 Service Unavailable.")


def test_a_web_page_in_place_of_the_file(tmp_path: Path) -> None:
    message = _failure(tmp_path, page(200, "Sign in to the network"))
    assert message.endswith('what came is a web page titled "Sign in to the network".')


def test_a_server_that_stalls(tmp_path: Path) -> None:
    over = threading.Event()
    start = time.monotonic()
    try:
        message = _failure(tmp_path, stall(DATA[:1000], len(DATA), over), timeout_s=0.3)
    finally:
        over.set()
    assert message.endswith("the server stopped sending.")
    assert time.monotonic() - start < 5


def test_a_redirect_is_followed_on_the_web(tmp_path: Path) -> None:
    with serving({"/there": content(DATA)}) as other, serving({f"/{NAME}": redirect(f"{other}/there")}) as address:
        fetch(RemoteFile(f"{address}/{NAME}", tmp_path / NAME, PREFIX))
    assert (tmp_path / NAME).read_bytes() == DATA


@pytest.mark.parametrize("target", ["ftp://127.0.0.1/x", "file:///etc/hostname"])
def test_a_redirect_to_elsewhere_is_refused(tmp_path: Path, target: str) -> None:
    assert target in _failure(tmp_path, redirect(target))


def test_urllib_would_have_followed_a_redirect_to_ftp(tmp_path: Path) -> None:
    message = _failure(tmp_path, redirect("ftp://127.0.0.1:9/x"))
    assert message.endswith("the server sends us to 'ftp://127.0.0.1:9/x', which is no web address.")


def test_a_redirect_in_circles_ends(tmp_path: Path) -> None:
    assert "HTTP 302" in _failure(tmp_path, redirect(f"/{NAME}"))


def test_no_server_at_all(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/{NAME}"
    with pytest.raises(WeightsError) as caught:
        fetch(RemoteFile(url, tmp_path / NAME, PREFIX))
    assert caught.value.message == (f"{NAME} could not be downloaded from {url}: no connection (Connection refused).")
    assert caught.value.hint == f"fetch {url} elsewhere and put it at {tmp_path / NAME}, or give --weights FILE"
    assert why_unreachable(url) == "no connection (Connection refused)"


def test_a_server_that_says_anything_is_reachable() -> None:
    with serving({}) as address:
        assert why_unreachable(f"{address}/nothing") == ""


@pytest.mark.parametrize("url", [f"file:///tmp/{NAME}", f"ftp://127.0.0.1/{NAME}"])
def test_only_the_web_is_downloaded_from(tmp_path: Path, url: str) -> None:
    with pytest.raises(WeightsError, match="could not be downloaded"):
        fetch(RemoteFile(url, tmp_path / NAME, PREFIX))


def test_a_damaged_file_is_moved_aside_and_fetched_again(tmp_path: Path) -> None:
    path = tmp_path / NAME
    for number, damage in enumerate([DATA[:1000], DATA[:2000], b""], start=1):
        path.write_bytes(damage)
        aside = f"{NAME}.damaged" + (f".{number}" if number > 1 else "")
        assert _fetch(tmp_path, content(DATA)) == (
            f"{path} was damaged (its sha256 did not begin with {PREFIX}): it was moved to {aside} and fetched again",
        )
        assert path.read_bytes() == DATA
        assert (tmp_path / aside).read_bytes() == damage
    assert len(list(tmp_path.iterdir())) == 4


def test_a_damaged_file_stays_where_there_is_no_other(tmp_path: Path) -> None:
    path = tmp_path / NAME
    path.write_bytes(DATA[:1000])
    with pytest.raises(WeightsError) as caught:
        _fetch(tmp_path, page(404, "Gone"))
    assert caught.value.message.startswith(
        f"{path} is damaged: its sha256 does not begin with {PREFIX}. {NAME} could not be downloaded from http://"
    )
    assert path.read_bytes() == DATA[:1000]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("is_cut", [False, True], ids=["both come whole", "ours is cut"])
def test_a_file_that_another_process_finished_meanwhile_is_taken(tmp_path: Path, is_cut: bool) -> None:
    path = tmp_path / NAME
    path.write_bytes(b"damaged")

    def answer(handler: object) -> None:
        path.unlink()
        path.write_bytes(DATA)
        content(DATA[:9] if is_cut else DATA, promised=len(DATA))(handler)  # type: ignore[arg-type]

    assert _fetch(tmp_path, answer) == ()
    assert path.read_bytes() == DATA
    assert list(tmp_path.iterdir()) == [path]


def test_what_killed_downloads_left_is_removed_and_what_lives_stays(tmp_path: Path) -> None:
    old, young = (tmp_path / f".{NAME}.{token}.partial" for token in ("aa", "bb"))
    old.write_bytes(b"x")
    young.write_bytes(b"y")
    os.utime(old, (time.time() - 7200,) * 2)
    _fetch(tmp_path, content(DATA))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([young.name, NAME])


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(WeightsError, match=r"file/checkpoints cannot be written \(Not a directory\)"):
        _fetch(tmp_path / "file" / "checkpoints", content(DATA))


def test_moving_aside_overwrites_nothing(tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    (tmp_path / "net.pth.damaged").write_bytes(b"older")
    path.write_bytes(b"newer")
    assert move_aside(path) == tmp_path / "net.pth.damaged.2"
    assert (tmp_path / "net.pth.damaged").read_bytes() == b"older"
    assert (tmp_path / "net.pth.damaged.2").read_bytes() == b"newer"
    assert not path.exists()

"""The admin socket: who can reach it, what it takes the place of, and what it answers."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
from pathlib import Path
from typing import Any

import pytest

from edgetune.core.errors import AddressError
from edgetune.serve.admin import AdminApp, bind_admin
from edgetune.serve.model import ServedModel
from edgetune.serve.slot import Swap
from tests.unit.serve.stand_ins import Client, in_loop
from tests.unit.serve.test_app import serving

GOOD = Swap("second", ok=True, error="", seconds=0.5)
BAD = Swap("second", ok=False, error="it was changed.", seconds=0.5)


def test_only_this_user_can_reach_it(tmp_path: Path) -> None:
    path = tmp_path / "admin"
    before = os.umask(0)
    try:
        with bind_admin(path) as listener:
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            assert listener.family == socket.AF_UNIX
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(path))
        assert os.umask(0) == 0  # the mask of the process is as it was
    finally:
        os.umask(before)


def test_the_socket_of_a_dead_server_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "admin"
    bind_admin(path).close()
    assert path.exists()
    with bind_admin(path), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


def test_the_socket_of_a_live_server_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "admin"
    with bind_admin(path):
        with pytest.raises(AddressError, match="a server answers there"):
            bind_admin(path)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))


@pytest.mark.parametrize("what", ["file", "folder", "link", "dangling link"])
def test_what_is_no_socket_is_left_alone(tmp_path: Path, what: str) -> None:
    path, other = tmp_path / "admin", tmp_path / "other"
    if what == "file":
        path.write_text("precious")
    elif what == "folder":
        path.mkdir()
    else:
        if what == "link":
            other.write_text("precious")
        path.symlink_to(other)
    with pytest.raises(AddressError, match=r"admin cannot be bound: it is there and is no socket"):
        bind_admin(path)
    assert os.path.lexists(path)
    assert what not in ("file", "link") or path.read_text() == "precious"


@pytest.mark.parametrize("name", ["no/folder/admin", "x" * 200], ids=["no folder", "too long"])
def test_a_path_that_cannot_be_is_told(tmp_path: Path, name: str) -> None:
    before = os.umask(0o22)
    os.umask(before)
    with pytest.raises(AddressError, match="cannot be bound"):
        bind_admin(tmp_path / name)
    after = os.umask(before)
    assert after == before


class Changes:
    """Notes what it is asked to change to, and answers with one `Swap`."""

    def __init__(self, swap: Swap = GOOD) -> None:
        self.asked: list[Path | None] = []
        self._swap = swap

    async def __call__(self, path: Path | None) -> Swap:
        self.asked.append(path)
        return self._swap


async def _ask(app: AdminApp, method: str, path: str, body: bytes = b"") -> tuple[int, Any]:
    client = Client([body], method=method, path=path)
    await app(client.scope, client.receive, client.send)
    return client.status, json.loads(client.answer)


def test_the_status_tells_what_is_served(mean_served: ServedModel) -> None:
    async def work() -> None:
        async with serving(mean_served) as (_, service):
            app = AdminApp(service, Changes())
            status, page = await _ask(app, "GET", "/status")
            assert status == 200
            assert (page["live"], page["ready"], page["draining"]) == (True, True, False)
            assert page["bundle"] == str(mean_served.bundle.path)
            assert (page["artifact"], page["bundle_digest"]) == ("model.onnx", mean_served.digest)
            assert (page["inflight_requests"], page["queue_length"], page["last_swap"]) == (0, 0, None)
            service.slot.last_swap = BAD
            _, page = await _ask(app, "GET", "/status")
            assert page["last_swap"] == {"bundle": "second", "ok": False, "error": "it was changed.", "seconds": 0.5}

    in_loop(work)


def test_draining_says_not_ready(mean_served: ServedModel) -> None:
    async def work() -> None:
        async with serving(mean_served) as (_, service):
            status, page = await _ask(AdminApp(service, Changes()), "POST", "/drain")
            assert (status, page["draining"], page["ready"], page["live"]) == (200, True, False, True)
            assert service.is_draining

    in_loop(work)


@pytest.mark.parametrize(
    ("body", "path"),
    [(b"", None), (b" \n", None), (b'{"bundle": "/a/b"}', Path("/a/b")), (b'{"bundle":"x y"}', Path("x y"))],
)
def test_a_swap_is_asked_for(mean_served: ServedModel, body: bytes, path: Path | None) -> None:
    async def work() -> None:
        async with serving(mean_served) as (_, service):
            for swap, status in ((GOOD, 200), (BAD, 409)):
                changes = Changes(swap)
                answer = await _ask(AdminApp(service, changes), "POST", "/swap", body)
                assert changes.asked == [path]
                assert answer == (status, {"bundle": "second", "ok": swap.ok, "error": swap.error, "seconds": 0.5})

    in_loop(work)


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"{", 400, "not valid JSON"),
        (b"\xff", 400, "not valid JSON"),
        (b"[" * 5000, 400, "not valid JSON"),
        (b"[]", 400, "expected to be"),
        (b"null", 400, "expected to be"),
        (b"{}", 400, "expected to be"),
        (b'{"bundle": 1}', 400, "expected to be"),
        (b'{"bundle": ""}', 400, "expected to be"),
        (b'{"bundle": "a\\u0000b"}', 400, "expected to be"),
        (b'{"bundle": "a", "force": true}', 400, "expected to be"),
        (b'"' + b"x" * 70_000 + b'"', 413, "over the limit of 65536 bytes"),
    ],
    ids=["cut", "no text", "deep", "list", "null", "empty", "number", "no path", "zero", "another key", "large"],
)
def test_any_other_body_is_refused(mean_served: ServedModel, body: bytes, status: int, words: str) -> None:
    async def work() -> None:
        async with serving(mean_served) as (_, service):
            changes = Changes()
            code, page = await _ask(AdminApp(service, changes), "POST", "/swap", body)
            assert code == status
            assert words in page["error"]
            assert changes.asked == []

    in_loop(work)


def test_there_is_nothing_else(mean_served: ServedModel) -> None:
    async def work() -> None:
        async with serving(mean_served) as (_, service):
            changes = Changes()
            app = AdminApp(service, changes)
            for method, path in (
                ("GET", "/"),
                ("GET", "/swap"),
                ("GET", "/drain"),
                ("POST", "/status"),
                ("POST", "/x"),
            ):
                assert await _ask(app, method, path) == (404, {"error": "Not Found"})
            assert (changes.asked, service.is_draining) == ([], False)
            gone = Client([], method="POST", path="/swap")
            await app(gone.scope, gone.receive, gone.send)
            assert (gone.sent, changes.asked) == ([], [])

    in_loop(work)


def test_a_fault_of_ours_is_an_answer_too(mean_served: ServedModel) -> None:
    async def broken(_: Path | None) -> Swap:
        await asyncio.sleep(0)
        raise OSError(13, "Permission denied")

    async def work() -> None:
        async with serving(mean_served) as (_, service):
            status, page = await _ask(AdminApp(service, broken), "POST", "/swap")
            assert status == 500
            assert list(page) == ["error"]

    in_loop(work)

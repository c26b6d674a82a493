"""systemd's protocol over real datagram sockets, and sockets handed to a real child process."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgetune.core.errors import AddressError
from edgetune.serve.observe.notify import Notifier, inherited_sockets


class Manager:
    """systemd's side: a bound datagram socket, and the environment that names it."""

    def __init__(self, name: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("\0" + name[1:] if name.startswith("@") else name)
        self.socket.settimeout(5)
        self.environ = {"NOTIFY_SOCKET": name}

    def heard(self) -> bytes:
        return self.socket.recv(65536)


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    name = str(tmp_path / "notify") if request.param == "path" else f"@edgetune-{secrets.token_hex(8)}"
    manager = Manager(name)
    yield manager
    manager.socket.close()


def test_each_message_as_systemd_reads_it(manager: Manager) -> None:
    notifier = Notifier(manager.environ)
    assert notifier.is_active
    notifier.ready("serving ants")
    assert manager.heard() == b"READY=1\nSTATUS=serving ants"
    notifier.status("caf\u00e9")
    assert manager.heard() == b"STATUS=caf\xc3\xa9"
    notifier.watchdog()
    assert manager.heard() == b"WATCHDOG=1"
    notifier.extend_timeout(1.5)
    assert manager.heard() == b"EXTEND_TIMEOUT_USEC=1500000"
    notifier.stopping()
    assert manager.heard() == b"STOPPING=1"


def test_reloading_tells_the_monotonic_time(manager: Manager) -> None:
    before = time.monotonic_ns() // 1000
    Notifier(manager.environ).reloading()
    first, second = manager.heard().split(b"\n")
    assert first == b"RELOADING=1"
    key, _, value = second.partition(b"=")
    assert key == b"MONOTONIC_USEC"
    assert before <= int(value) <= time.monotonic_ns() // 1000


@pytest.mark.parametrize("text", ["a\nREADY=1", "a\r\nREADY=1", "a\x00READY=1", "a\u2028READY=1"], ids=ascii)
def test_a_status_is_one_assignment(manager: Manager, text: str) -> None:
    Notifier(manager.environ).status(text)
    heard = manager.heard()
    assert heard.startswith(b"STATUS=a ")
    assert b"\n" not in heard
    assert b"\x00" not in heard


def test_a_status_is_cut_and_may_hold_unpaired_characters(manager: Manager) -> None:
    notifier = Notifier(manager.environ)
    notifier.status("x" * 10_000)
    assert manager.heard() == b"STATUS=" + b"x" * 256
    notifier.status("\ud800")
    assert manager.heard() == b"STATUS= "


@pytest.mark.parametrize(
    "name", ["", "/nowhere/at/all", "@", "relative", "/" + "x" * 300, "/a\0b", "/\ud800", "vsock:2:1234"], ids=ascii
)
def test_nothing_is_raised_where_nobody_listens(name: str) -> None:
    environ = {"NOTIFY_SOCKET": name} if name else {}
    notifier = Notifier(environ)
    assert notifier.is_active == bool(name)
    notifier.ready("ready")
    notifier.reloading()
    notifier.watchdog()
    notifier.extend_timeout(-1)
    notifier.stopping()


def test_a_manager_that_reads_nothing_holds_nobody_up_for_long(manager: Manager) -> None:
    notifier = Notifier(manager.environ)
    began = time.monotonic()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as filler:
        filler.setblocking(False)
        with pytest.raises(BlockingIOError):
            for _ in range(100_000):
                filler.sendto(b"x", manager.socket.getsockname())
    notifier.watchdog()
    assert time.monotonic() - began < 2


@pytest.mark.parametrize(
    ("environ", "expected_s"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "20000000"}, 10.0),
        ({"WATCHDOG_USEC": "20000000", "WATCHDOG_PID": str(os.getpid())}, 10.0),
        ({"WATCHDOG_USEC": "20000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "500000"}, 0.25),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "-5"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "\u0661"}, None),
        ({"WATCHDOG_USEC": "9" * 5000}, None),
    ],
    ids=["absent", "20 s", "own pid", "another's pid", "0.5 s", "0", "negative", "word", "arabic digit", "huge"],
)
def test_the_watchdog_is_fed_twice_a_period(environ: dict[str, str], expected_s: float | None) -> None:
    assert Notifier(environ).watchdog_interval_s == expected_s


# Does what systemd does between fork and exec: descriptors from 3 on, and the child's own pid.
_ACTIVATE = """
import os, sys
fds = [int(word) for word in sys.argv[2].split(",")]
for index, fd in enumerate(fds):
    os.dup2(fd, 100 + index)
for index in range(len(fds)):
    os.dup2(100 + index, 3 + index)
os.environ.update(LISTEN_FDS=str(len(fds)), LISTEN_PID=str(os.getpid()), LISTEN_FDNAMES="http")
os.execv(sys.executable, [sys.executable, "-c", sys.argv[1]])
"""

_SERVE = """
import os, subprocess, sys
from edgetune.serve.observe.notify import inherited_sockets
listeners = inherited_sockets(os.environ)
assert not [name for name in os.environ if name.startswith("LISTEN_")]
assert not any(os.get_inheritable(listener.fileno()) for listener in listeners)
assert inherited_sockets(os.environ) == []
for listener in listeners:
    listener.setblocking(True)
    connection, _ = listener.accept()
    with connection:
        connection.sendall(f"{listener.fileno()} {listener.family.name}".encode())
"""


def _activated(code: str, *sockets: socket.socket) -> subprocess.Popen[str]:
    fds = [each.fileno() for each in sockets]
    command = [sys.executable, "-c", _ACTIVATE, code, ",".join(map(str, fds))]
    return subprocess.Popen(command, pass_fds=fds, stderr=subprocess.PIPE, text=True)


def test_a_child_serves_the_sockets_that_it_was_handed(tmp_path: Path) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as tcp,
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as unix,
    ):
        unix.bind(str(tmp_path / "s"))
        unix.listen()
        child = _activated(_SERVE, tcp, unix)
        said = []
        for family, address in ((socket.AF_INET, tcp.getsockname()), (socket.AF_UNIX, unix.getsockname())):
            with socket.socket(family, socket.SOCK_STREAM) as client:
                client.settimeout(20)
                client.connect(address)
                said.append(client.recv(100))
        _, errors = child.communicate(timeout=20)
    assert (child.returncode, errors) == (0, "")
    assert said == [b"3 AF_INET", b"4 AF_UNIX"]


_REFUSE = """
import os
from edgetune.core.errors import AddressError
from edgetune.serve.observe.notify import inherited_sockets
try:
    inherited_sockets(os.environ)
except AddressError as error:
    raise SystemExit(error.message)
"""


def test_only_listening_stream_sockets_are_taken(tmp_path: Path) -> None:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagram,
        socket.socket() as silent,
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as packets,
    ):
        packets.bind(str(tmp_path / "s"))
        packets.listen()
        for odd in (datagram, silent, packets):
            child = _activated(_REFUSE, odd)
            _, errors = child.communicate(timeout=20)
            assert child.returncode == 1
            assert errors == "descriptor 3 of LISTEN_FDS is no listening stream socket.\n"


def test_a_descriptor_that_is_a_file_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w") as file:
        command = [sys.executable, "-c", _ACTIVATE, _REFUSE, str(file.fileno())]
        child = subprocess.run(
            command, pass_fds=[file.fileno()], capture_output=True, text=True, timeout=20, check=False
        )
    assert child.returncode == 1
    assert child.stderr.startswith("descriptor 3 of LISTEN_FDS is no socket: ")


@pytest.mark.parametrize(
    "environ",
    [{}, {"LISTEN_FDS": "1"}, {"LISTEN_FDS": "1", "LISTEN_PID": "1"}, {"LISTEN_PID": str(os.getpid())}],
    ids=["none", "no pid", "another's pid", "no count"],
)
def test_another_processes_sockets_are_left_alone(environ: dict[str, str]) -> None:
    assert inherited_sockets(environ) == []
    assert environ == {}


@pytest.mark.parametrize("count", ["0", "-1", "17", "many", "1e1", "9" * 5000])
def test_odd_counts_are_refused(count: str) -> None:
    environ = {"LISTEN_FDS": count, "LISTEN_PID": str(os.getpid())}
    with pytest.raises(AddressError, match="expected 1 to 16 sockets"):
        inherited_sockets(environ)
    assert environ == {}

"""What systemd and the server tell each other: state and watchdog (`sd_notify`), and sockets handed over at start."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Mapping, MutableMapping

from edgetune.core.errors import AddressError

_FIRST_FD = 3
_MOST_FDS = 16
_LISTEN_VARIABLES = ("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "LISTEN_PIDFDID")

# A manager that reads no more must not hold up the event loop.
_SEND_TIMEOUT_S = 0.25
_STATUS_CHARACTERS = 256


class Notifier:
    """Sends to the socket that `NOTIFY_SOCKET` names: a path, or `@` and an abstract name. Without the variable every
    method does nothing; none of them raises.

    `watchdog_interval_s` is half of what the manager asks for in `WATCHDOG_USEC`, None where it asks for nothing.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        name = environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + name[1:] if name.startswith("@") else name
        self.watchdog_interval_s = _watchdog_interval_s(environ)

    @property
    def is_active(self) -> bool:
        return bool(self._address)

    def ready(self, status: str) -> None:
        """The server answers; also after `reloading`."""
        self._send("READY=1", f"STATUS={_one_line(status)}")

    def reloading(self) -> None:
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self) -> None:
        self._send("STOPPING=1")

    def status(self, text: str) -> None:
        self._send(f"STATUS={_one_line(text)}")

    def watchdog(self) -> None:
        """A sign of life; to be sent only while the server is well."""
        self._send("WATCHDOG=1")

    def extend_timeout(self, seconds: float) -> None:
        """Asks for this much time from now for starting, stopping or reloading."""
        self._send(f"EXTEND_TIMEOUT_USEC={max(0, round(seconds * 1e6))}")

    def _send(self, *lines: str) -> None:
        if not self._address:
            return
        # Also ValueError: a name that no file can have.
        with contextlib.suppress(OSError, ValueError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.settimeout(_SEND_TIMEOUT_S)
            sender.sendto("\n".join(lines).encode(), os.fsencode(self._address))


def inherited_sockets(environ: MutableMapping[str, str]) -> list[socket.socket]:
    """The listening sockets that systemd opened for this process, in its order; empty where it opened none.

    The variables are removed and the sockets closed on exec, so that no child takes them for its own.

    Raises:
        AddressError: what was handed over is no listening stream socket.
    """
    count, owner = environ.get("LISTEN_FDS", ""), environ.get("LISTEN_PID", "")
    for name in _LISTEN_VARIABLES:
        environ.pop(name, None)
    if not count or owner != str(os.getpid()):
        return []
    if not (count.isascii() and count.isdigit() and len(count) < 4 and 1 <= int(count) <= _MOST_FDS):
        raise AddressError(f"LISTEN_FDS is {count[:16]!r}, expected 1 to {_MOST_FDS} sockets.")
    return [_listener(fd) for fd in range(_FIRST_FD, _FIRST_FD + int(count))]


def _listener(fd: int) -> socket.socket:
    try:
        os.set_inheritable(fd, False)
        listener = socket.socket(fileno=fd)
    except OSError as error:
        raise AddressError(f"descriptor {fd} of LISTEN_FDS is no socket: {error.strerror}.") from error
    is_stream = listener.type == socket.SOCK_STREAM
    if not is_stream or not listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        listener.detach()  # it belongs to who opened it
        raise AddressError(
            f"descriptor {fd} of LISTEN_FDS is no listening stream socket.", hint="use ListenStream= and Accept=no"
        )
    listener.setblocking(False)
    return listener


def _watchdog_interval_s(environ: Mapping[str, str]) -> float | None:
    period, owner = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
    if not (period.isascii() and period.isdigit() and len(period) < 19) or owner not in ("", str(os.getpid())):
        return None
    return int(period) / 2e6 or None


def _one_line(text: str) -> str:
    """A line's end would begin another assignment."""
    return "".join(letter if letter.isprintable() else " " for letter in text[:_STATUS_CHARACTERS])

"""What the server answers to a request that it cannot serve."""

from __future__ import annotations


class RequestError(Exception):
    """`status` is the HTTP status, `message` goes to the client, and `reason` is the short name of a refusal that is
    counted: `queue_full`, `deadline`, `too_large`, `bad_image`, `draining`, `auth`; empty for any other fault.
    """

    def __init__(self, status: int, message: str, *, reason: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.reason = reason


class ClientGone(Exception):
    """The client closed its connection; there is nobody to answer."""

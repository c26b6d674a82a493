"""What the server answers to a request that it cannot serve, and how a failure becomes such an answer."""

from __future__ import annotations

import logging
import secrets

from edgetune.core.errors import ImageError, TensorError

logger = logging.getLogger(__name__)


class RequestError(Exception):
    """`status` is the HTTP status, `message` goes to the client, and `reason` is the short name of a refusal that is
    counted, one of `stats.REASONS`; empty for a fault that is not.
    """

    def __init__(self, status: int, message: str, *, reason: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.reason = reason


class ClientGone(Exception):
    """The client closed its connection; there is nobody to answer."""


def as_request_error(error: Exception) -> RequestError:
    """A new error with no traceback: the client's own faults in their words, any other under a number by which the log
    has it.

    An error that is kept must not be one that was raised: its traceback holds every local variable on its way, request
    bodies among them, and a variable that leads back to the error makes a ring, which only a garbage collection ends.
    """
    if isinstance(error, RequestError):
        return RequestError(error.status, error.message, reason=error.reason)
    if isinstance(error, ImageError):
        return RequestError(400, error.message, reason="bad_image")
    if isinstance(error, TensorError):
        return RequestError(400, error.message, reason="bad_request")
    identifier = secrets.token_hex(4)
    logger.error("internal error %s", identifier, exc_info=error)
    return RequestError(500, f"internal error, id={identifier}", reason="internal")

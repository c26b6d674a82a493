"""What TensorRT logs: a few errors and warnings for people, and a builder's list of layers for the proof."""

from __future__ import annotations

import re

_NOISE = (
    "Thread context has not been set",
    "getHardwareCompatibilityLevel() is unsupported",
    "setHardwareCompatibilityLevel() is unsupported",
    "catchCudaError",
    "Using default value for",
)
_ERRORS = ("ERROR", "INTERNAL_ERROR")
_LAYERS = "Layers:"
_KEPT = 50
# "[builder.cpp::buildEngine::42] Error Code 2: " or "IBuilder::build: " say where in the library; users need what.
_WHERE = re.compile(r"^(\[[^\]]*::[^\]]*\]\s*)?(I\w+::\w+:\s*)?(Error Code \d+:\s*)?")
_SOURCE = re.compile(r"\.?\s+In \w+ at \S+\.cpp:\d+(?=\)|$)")


class LogRecorder:
    """A sink for the library's logger, bounded however much it says: verbose builds log thousands of lines."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.warnings: list[str] = []
        self.layer_dump = ""

    def __call__(self, severity: str, message: str) -> None:
        if message.startswith(_LAYERS):
            self.layer_dump = message
        elif any(noise in message for noise in _NOISE):
            return
        elif severity in _ERRORS and len(self.errors) < _KEPT:
            self.errors.append(plain(message))
        elif severity == "WARNING" and len(self.warnings) < _KEPT and plain(message) not in self.warnings:
            self.warnings.append(plain(message))

    def first_error(self) -> str:
        return self.errors[0] if self.errors else "the library gave no reason"

    def take_error(self) -> str:
        """The first error since the last call, or nothing: the library logs most failures and raises few."""
        found, self.errors = self.errors[:1], []
        return found[0] if found else ""


def plain(message: str) -> str:
    """The message in one line, without the place in the library that it comes from."""
    return _SOURCE.sub("", _WHERE.sub("", " ".join(message.split()))).rstrip(".") or message

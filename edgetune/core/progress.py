"""How long work tells an observer how far it is; the command line draws bars from it."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Called with a stage's name, how much is done, and the total; `done == total` ends the stage."""

    def __call__(self, stage: str, done: int, total: int) -> None: ...


def no_progress(stage: str, done: int, total: int) -> None:
    """For callers that do not watch."""

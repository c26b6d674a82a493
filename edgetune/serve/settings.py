"""What the server is told at start, and its limits."""

from __future__ import annotations

from dataclasses import dataclass

from edgetune.runners.choice import AUTO, RunnerOptions

MIB = 1 << 20


@dataclass(frozen=True)
class ServeSettings:
    """`port` 0 takes a free port. `max_requests` bounds requests in work or waiting; more get 503 at once."""

    host: str = "127.0.0.1"
    port: int = 8000
    model_name: str = ""
    artifact: str = AUTO
    allow_failed: bool = False
    runner: RunnerOptions = RunnerOptions()  # noqa: RUF009 - frozen
    max_requests: int = 32
    max_connections: int = 256
    max_body_bytes: int = 16 * MIB
    max_batch: int = 64
    max_pixels: int = 25_000_000
    body_timeout_s: float = 10.0
    shutdown_timeout_s: int = 10

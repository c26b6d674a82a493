"""What the server is told at start, and its limits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgetune.core.config import from_dict, read_toml
from edgetune.core.errors import ConfigError
from edgetune.core.preprocess import IMAGE_FORMATS
from edgetune.runners.choice import AUTO, RunnerOptions

KIB, MIB = 1 << 10, 1 << 20
THROUGHPUT, LATENCY = "throughput", "latency"
MODES = (THROUGHPUT, LATENCY)


@dataclass(frozen=True)
class Limits:
    """What a client may ask of the server; every refusal names its limit.

    `max_requests` are in work or waiting with their bodies in memory, `max_request_bytes` is what those bodies may
    weigh together; a request that finds no place waits `admission_wait_s` before its body is read, and is then told to
    come back. `max_images` are one request's. `max_connections` more close the longest idle one.
    """

    max_requests: int = 32
    max_request_bytes: int = 64 * MIB
    admission_wait_s: float = 1.0
    deadline_s: float = 5.0
    max_deadline_s: float = 60.0
    max_connections: int = 256
    max_header_bytes: int = 64 * KIB
    header_timeout_s: float = 5.0
    max_body_bytes: int = 16 * MIB
    body_timeout_s: float = 10.0
    min_body_bytes_per_s: int = 16 * KIB
    keep_alive_s: float = 65.0
    max_json_bytes: int = 4 * MIB
    max_images: int = 256
    max_pixels: int = 25_000_000
    image_formats: tuple[str, ...] = ("JPEG", "PNG")

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, (int, float)) and not 0 < value < 1 << 40:
                raise ConfigError(f"limits.{name} is {value}, expected a number above 0.")
        unknown = sorted(set(self.image_formats) - set(IMAGE_FORMATS))
        if unknown or not self.image_formats:
            known = ", ".join(IMAGE_FORMATS)
            raise ConfigError(f"limits.image_formats has {unknown}, expected one or more of {known}.")
        if self.max_body_bytes > self.max_request_bytes:
            raise ConfigError(
                f"limits.max_body_bytes is {self.max_body_bytes}, over max_request_bytes, {self.max_request_bytes}."
            )


@dataclass(frozen=True)
class Batching:
    """`size` images at most run as one batch; None chooses: 1 on a CPU, where two single runs side by side are faster
    than one of two, and 8 on a GPU. A batch that is not full waits `delay_s` for more.
    """

    size: int | None = None
    delay_s: float = 0.0

    def __post_init__(self) -> None:
        if (self.size is not None and not 1 <= self.size <= 256) or not 0 <= self.delay_s <= 1:
            raise ConfigError(f"batching is {self.size} images in {self.delay_s} s, expected 1..256 in 0..1 s.")


@dataclass(frozen=True)
class Access:
    """Who may ask. `token_file` holds the bearer token; `tls_ca` asks clients for a certificate that it signed.

    `hosts` are names that requests may be sent to, beside the loopback ones; `insecure` accepts a public address
    without a token or client certificates.
    """

    token_file: Path | None = None
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    tls_ca: Path | None = None
    hosts: tuple[str, ...] = ()
    insecure: bool = False


@dataclass(frozen=True)
class ServeSettings:
    """`port` 0 takes a free port. `mode` is `throughput` (as many runs side by side as CPUs) or `latency` (one run at
    a time on all CPUs); `runs` and the runner's `threads` overrule it. `previous` is the bundle that is served where
    the first one cannot be. With `drain_s`, a server that is told to stop says "not ready" so long before it does.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    model_name: str = ""
    artifact: str = AUTO
    allow_failed: bool = False
    runner: RunnerOptions = RunnerOptions()  # noqa: RUF009 - frozen
    mode: str = THROUGHPUT
    runs: int | None = None
    batching: Batching = Batching()
    limits: Limits = Limits()
    access: Access = Access()
    previous: Path | None = None
    admin_socket: Path | None = None
    drain_s: float = 0.0
    shutdown_timeout_s: int = 10
    access_log: bool = False
    log_format: Literal["text", "json"] = "text"
    triton_metrics: bool = False


@dataclass(frozen=True)
class ServeConfig:
    """What a configuration file may set."""

    limits: Limits = Limits()
    batching: Batching = Batching()


def read_config(path: Path | None) -> ServeConfig:
    """Raises `ConfigError` for a file that cannot be read, or has unknown or unfit keys."""
    if path is None:
        return ServeConfig()
    return from_dict(ServeConfig, read_toml(path), str(path))

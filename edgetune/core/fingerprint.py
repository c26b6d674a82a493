"""Keys for caches: one digest of everything that the cached thing depends on."""

from __future__ import annotations

from typing import Any

from edgetune.core.files import canonical_json, sha256_of_bytes


def fingerprint(parts: dict[str, Any]) -> str:
    """The first 32 hex digits (128 bits) of the sha256 over the parts' canonical JSON."""
    return sha256_of_bytes(canonical_json(parts))[:32]

"""Names of layers that a user gave."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from edgetune.core.errors import UsageError

KEPT_ON_REQUEST = "it was asked for"

_NEAR, _LISTED = 3, 8


def check_layer_names(wanted: Iterable[str], known: Iterable[str]) -> None:
    """Raises `UsageError` with the nearest names for the first of `wanted` that is not known."""
    names = list(known)
    for name in wanted:
        if name in names:
            continue
        near = difflib.get_close_matches(name, names, _NEAR, 0.6)
        shown = names[:_LISTED] + (["..."] if len(names) > _LISTED else [])
        hint = f"did you mean {' or '.join(near)}?" if near else f"its layers are {', '.join(shown)}"
        raise UsageError(f"--keep-float {name!r} is no layer of the model that could be kept in float.", hint=hint)

"""Names of files and classes, which may hold anything, as they can stand in a sentence."""

from __future__ import annotations

from collections.abc import Sequence

# More than anyone reads one by one.
MAX_LISTED = 20


def shown(name: str) -> str:
    """Quoted and escaped where the name holds a line break or the like."""
    return name if name.isprintable() else repr(name)


def some_names(names: Sequence[str]) -> str:
    """The first `MAX_LISTED` names, and dots where there are more."""
    more = ", ..." if len(names) > MAX_LISTED else ""
    return ", ".join(map(shown, names[:MAX_LISTED])) + more

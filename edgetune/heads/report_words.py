"""How the fit's report writes names and numbers."""

from __future__ import annotations

import bisect
import itertools
import re
import unicodedata

# What XML forbids, UTF-8 cannot hold, or turns the direction of the text after it.
_UNSEEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufffe\uffff\ud800-\udfff]"
)  # fmt: skip


def visible(text: str) -> str:
    """The text with control characters written out, such as `\\u202e`."""
    return _UNSEEN.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def short(text: str, limit: int) -> str:
    """On one line, at most as wide as `limit` letters; both ends of a long text are kept, since many share their
    start.
    """
    line = visible(text)
    if sum(map(_width, line)) <= limit:
        return line
    end = (limit - 3) // 3
    tail = _head_of(line[::-1], end)[::-1]
    return f"{_head_of(line, limit - 3 - end)}...{tail}"


def _head_of(line: str, width: int) -> str:
    widths = itertools.accumulate(map(_width, line))
    return line[: bisect.bisect_right(list(widths), width)]


def _width(character: str) -> int:
    """Chinese characters, emoji and their kin are as wide as two letters."""
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.2%}"


def share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def counted(count: int, what: str, plural: str = "") -> str:
    return f"{count:,} {what}" if count == 1 else f"{count:,} {plural or what + 's'}"


def seconds(value: float) -> str:
    return f"{value:.1f} s" if value < 99.95 else f"{value / 60.0:.1f} min"

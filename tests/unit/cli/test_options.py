"""Sizes in memory as people write them."""

from __future__ import annotations

import click
import pytest

from edgetune.cli.options import ByteSize


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("1", 1),
        ("4096", 4096),
        ("512MiB", 512 * 1024 * 1024),
        ("2GiB", 2 * 1024**3),
        ("2gib", 2 * 1024**3),
        (" 1.5 GB ", 1_500_000_000),
        ("1kb", 1000),
        ("1KiB", 1024),
        ("0.5KiB", 512),
        ("7B", 7),
    ],
)
def test_sizes(text: str, size_bytes: int) -> None:
    assert ByteSize().convert(text, None, None) == size_bytes


@pytest.mark.parametrize(
    "text",
    ["", "GiB", "-1", "1e9", "1,5GB", "2 parsecs", "2TiBs", "nan", "inf", "0", "0.4", "9223372036854775808", "9" * 400],
)
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(click.BadParameter, match="is not a size"):
        ByteSize().convert(text, None, None)

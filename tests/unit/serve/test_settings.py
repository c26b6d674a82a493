"""What a configuration file may say."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path
from typing import Any

import pytest

from edgetune.core.errors import ConfigError
from edgetune.serve.settings import MIB, Batching, Limits, ServeConfig, read_config


def _read(folder: Path, text: str) -> ServeConfig:
    path = folder / "serve.toml"
    path.write_text(text)
    return read_config(path)


def test_without_a_file_the_defaults_hold() -> None:
    assert read_config(None) == ServeConfig()
    limits = Limits()
    assert (limits.max_body_bytes, limits.max_request_bytes, limits.max_connections) == (16 * MIB, 64 * MIB, 256)
    assert (limits.max_pixels, limits.image_formats, limits.max_images) == (25_000_000, ("JPEG", "PNG"), 256)
    assert Batching() == Batching(None, 0.0)


def test_a_file_sets_what_it_names_and_nothing_else(tmp_path: Path) -> None:
    text = '[limits]\nmax_images = 8\ndeadline_s = 2\nimage_formats = ["WEBP"]\n[batching]\nsize = 4\ndelay_s = 0.002\n'
    config = _read(tmp_path, text)
    assert config.limits == dataclasses.replace(Limits(), max_images=8, deadline_s=2.0, image_formats=("WEBP",))
    assert config.batching == Batching(4, 0.002)
    assert _read(tmp_path, "") == ServeConfig()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[limit]", "has unknown keys ['limit']"),
        ("port = 1", "has unknown keys ['port']"),
        ("[limits]\nmax_image = 1", "serve.toml.limits has unknown keys ['max_image']"),
        ("limits = 3", "serve.toml.limits is a int"),
        ("[limits]\nmax_images = '8'", "serve.toml.limits.max_images is '8'"),
        ("[limits]\nmax_images = 8.0", "serve.toml.limits.max_images is 8.0"),
        ("[limits]\nmax_images = true", "serve.toml.limits.max_images is True"),
        ("[limits]\nmax_images = 0", "limits.max_images is 0, expected a number above 0"),
        ("[limits]\ndeadline_s = -1.5", "limits.deadline_s is -1.5"),
        ("[limits]\ndeadline_s = nan", "limits.deadline_s is nan"),
        ("[limits]\ndeadline_s = inf", "limits.deadline_s is inf"),
        ("[limits]\nmax_body_bytes = 999999999999999", "limits.max_body_bytes is 999999999999999"),
        ("[limits]\nmax_body_bytes = 67108865", "limits.max_body_bytes is 67108865, over max_request_bytes, 67108864"),
        ("[limits]\nimage_formats = []", "limits.image_formats has []"),
        ('[limits]\nimage_formats = ["GIF", "JPEG", "EPS"]', "limits.image_formats has ['EPS', 'GIF']"),
        ("[batching]\nsize = 0", "batching is 0 images"),
        ("[batching]\nsize = 257", "batching is 257 images"),
        ("[batching]\ndelay_s = 1.5", "in 1.5 s, expected 1..256 in 0..1 s"),
        ("[batching]\ndelay_s = nan", "in nan s"),
        ("[batching]\ndelay_s = -0.1", "in -0.1 s"),
        ("limits", "is no TOML file that can be read"),
        ("[limits]\nmax_images = 1\nmax_images = 2", "is no TOML file that can be read"),
    ],
)
def test_a_wrong_file_is_refused_with_the_key_and_the_value(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        _read(tmp_path, text)


@pytest.mark.parametrize(
    "name", [field.name for field in dataclasses.fields(Limits) if field.name != "image_formats"]
)  # fmt: skip
@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf, 1 << 40])
def test_every_limit_has_bounds(name: str, value: float) -> None:
    changes: dict[str, Any] = {name: value}
    with pytest.raises(ConfigError, match=rf"limits\.{name} is "):
        Limits(**changes)


def test_the_example_that_we_ship_can_be_read_and_names_every_limit() -> None:
    example = Path(__file__).resolve().parents[3] / "deploy" / "serve.toml"
    if not example.is_file():
        pytest.skip("no deploy/serve.toml yet")
    read_config(example)
    words = set(re.findall(r"\w+", example.read_text()))
    assert {field.name for field in dataclasses.fields(Limits)} <= words

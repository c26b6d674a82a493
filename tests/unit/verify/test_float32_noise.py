from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from edgetune.core.bundle import PASS
from edgetune.core.tensors import LOGITS_OUTPUT
from edgetune.runners.torch_runner import TorchRunner
from edgetune.verify.float32_noise import float32_noise_db, known_noise_db
from tests.unit.runners.mean_bundle import FP32, mean_bundle


class _Cancels(torch.nn.Module):
    """The pixels' mean, with a large number added and taken away again: float32 keeps 24 bits of the sum."""

    large: torch.Tensor

    def __init__(self, large: float) -> None:
        super().__init__()
        self.register_buffer("large", torch.tensor(large))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        mean = image.to(self.large.dtype).mean((1, 2)) / 255.0
        return (mean + self.large) - self.large


PIXELS = np.random.default_rng(0).integers(0, 256, (16, 6, 6, 3), dtype=np.uint8)


def _noise_db(large: float) -> float | None:
    with TorchRunner(_Cancels(large), 6, LOGITS_OUTPUT) as runner:
        found = float32_noise_db(runner, PIXELS)
        assert next(runner.module.buffers()).dtype == torch.float32
    return found


def test_what_cancels_costs_its_bits() -> None:
    """2^15 + x is rounded to steps of 2^-8: an rms error of 2^-8 / sqrt(12) = 0.00113 of values around 0.5: 53 dB."""
    found = _noise_db(2.0**15)
    assert found is not None
    assert 50.0 < found < 56.0


def test_a_plain_sum_is_as_exact_as_float32() -> None:
    found = _noise_db(0.0)
    assert found is None or found > 140.0


def test_nan_tells_nothing() -> None:
    assert _noise_db(float("nan")) is None


@pytest.mark.parametrize(
    ("content", "expected"),
    [({"noise_db": 96.5}, 96.5), ({"noise_db": None}, None), ({"noise_db": "x"}, None), ({}, None), ([], None)],
)
def test_without_pytorch_the_bundle_tells(tmp_path: Path, content: object, expected: float | None) -> None:
    bundle = mean_bundle(tmp_path / "b", {FP32: PASS})
    assert known_noise_db(bundle) is None
    (bundle.path / "parity.json").write_text(json.dumps(content))
    assert known_noise_db(bundle) == expected

"""How a bundle's artifact starts here, and how a machine notices that it computes something else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgetune.core.errors import EdgetuneError, SelfTestError
from edgetune.runners.choice import AUTO, Choice, RunnerOptions
from edgetune.runners.from_bundle import open_chosen, open_runner, self_test
from edgetune.runners.ort_providers import CPU, CUDA
from tests.unit.runners.mean_bundle import FP32, mean_bundle


def test_the_self_test_passes_where_pixels_and_logits_are_the_same(tmp_path: Path) -> None:
    bundle = mean_bundle(tmp_path / "b", {FP32: "PASS"})
    with open_runner(bundle, Choice(bundle.artifact(FP32), ""), RunnerOptions()) as runner:
        tested = self_test(bundle, bundle.artifact(FP32), runner)
    assert (tested.images, tested.max_pixel_diff) == (1, 0)
    assert tested.max_logit_diff < 1e-4


@pytest.mark.parametrize(
    ("logits", "pixel", "words"),
    [
        ([[-20.0, 30.5]], 10, r"golden logits differ by up to 0\.5, expected at most 0\.0305"),
        ([[-20.0, 30.0]], 60, "pixels differ by up to 50 of 255, expected at most 8"),
    ],
    ids=["other logits", "another decoder"],
)
def test_a_machine_that_computes_something_else_is_noticed(
    logits: list[list[float]], pixel: int, words: str, tmp_path: Path
) -> None:
    bundle = mean_bundle(tmp_path / "b", {FP32: "PASS"}, np.array(logits, np.float32), pixel)
    with (
        open_runner(bundle, Choice(bundle.artifact(FP32), ""), RunnerOptions()) as runner,
        pytest.raises(SelfTestError, match=words),
    ):
        self_test(bundle, bundle.artifact(FP32), runner)


def test_a_provider_that_is_not_here_is_an_error_or_a_fallback_with_its_reason(tmp_path: Path) -> None:
    bundle = mean_bundle(tmp_path / "b", {FP32: "PASS"})
    with pytest.raises(EdgetuneError, match="cuda was asked for"), open_chosen(bundle, AUTO, RunnerOptions(CUDA)):
        pass
    with open_chosen(bundle, AUTO, RunnerOptions(CUDA, fallback=True)) as (choice, runner):
        assert choice.runner == CPU
        assert "on the CPU, because cuda was asked for" in choice.reason
        assert runner.name == "onnxruntime CPU"

"""Heads trained on a GPU: the same bits on every run, and the answers that a CPU trains."""

from __future__ import annotations

import numpy as np
import pytest

from edgetune.heads.fit import HeadFit, HeadOptions, TrainingSet, fit_head
from tests.unit.heads.head_cases import clusters

pytestmark = pytest.mark.gpu
torch = pytest.importorskip("torch")
if not torch.cuda.is_available():
    pytest.skip("PyTorch sees no CUDA device", allow_module_level=True)


def _fit(kind: str, device: str) -> HeadFit:
    training = TrainingSet(*clusters(3, 300, spread=1.5), 3)
    return fit_head(training, HeadOptions(kind=kind, epochs=20, batch_size=64, learning_rate=0.02, device=device))


@pytest.mark.parametrize("kind", ["mlp", "sgd", "adamw"])
def test_a_gpu_trains_the_same_bits_every_time_and_a_cpus_answers(kind: str) -> None:
    first, again, cpu = _fit(kind, "cuda"), _fit(kind, "cuda"), _fit(kind, "cpu")
    assert first.head.weight.tobytes() == again.head.weight.tobytes()
    assert (first.epochs, first.recipe) == (again.epochs, again.recipe)
    features = clusters(3, 300, spread=1.5)[0]
    answers = [fit.head.logits(features).argmax(axis=1) for fit in (first, cpu)]
    assert (answers[0] == answers[1]).mean() > 0.95
    if kind != "mlp":  # dropout is drawn otherwise on a GPU
        np.testing.assert_allclose(first.calibration.log_loss_after, cpu.calibration.log_loss_after, rtol=0.01, atol=0)

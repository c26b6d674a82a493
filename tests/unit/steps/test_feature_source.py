"""A backbone on demand: what is known of it may never be said of other weights."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from torchvision.models import shufflenet_v2_x0_5  # noqa: E402

from edgetune.core.errors import WeightsError  # noqa: E402
from edgetune.core.progress import no_progress  # noqa: E402
from edgetune.steps.feature_source import BackboneSource, choose_device  # noqa: E402

NAME = "shufflenet_v2_x0_5"


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGETUNE_CACHE", str(tmp_path / "cache"))
    return _write_weights(tmp_path / "weights.pth", seed=0)


def _write_weights(path: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    torch.save(shufflenet_v2_x0_5(weights=None).state_dict(), path)
    return path


def _source(weights: Path) -> BackboneSource:
    return BackboneSource(NAME, weights, "", None, no_progress)


def test_a_proved_backbone_is_known_the_next_time_without_being_loaded(weights: Path) -> None:
    first = _source(weights)
    first.load()
    proved = first.prove()
    second = _source(weights)
    assert second.identity == second.prove() == proved
    assert proved.tensors > 200


def test_a_file_replaced_between_two_looks_is_refused(weights: Path) -> None:
    first = _source(weights)
    first.load()
    before = first.prove()
    second = _source(weights)
    _write_weights(weights, seed=1)
    with pytest.raises(WeightsError, match="was changed while it was in use"):
        second.load()
    third = _source(weights)
    third.load()
    assert third.identity.tensors_sha256 != before.tensors_sha256


def test_the_cpu_needs_no_question() -> None:
    assert choose_device("cpu") == "cpu"

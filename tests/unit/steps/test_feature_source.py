"""A backbone on demand: what is known of it may never be said of other weights."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from torchvision.models import shufflenet_v2_x0_5  # noqa: E402

from edgetune.core.errors import WeightsError  # noqa: E402
from edgetune.core.progress import no_progress  # noqa: E402
from edgetune.steps.feature_source import BackboneSource, choose_device, feature_source  # noqa: E402

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


@pytest.mark.parametrize(("size_px", "images"), [(96, 4), (512, 4), (513, 3), (724, 2), (1024, 1), (3584, 1)])
def test_large_images_come_in_small_batches(weights: Path, size_px: int, images: int) -> None:
    """Memory goes with the pixels of a batch: four images of 2048 px took 13 GB."""
    backbone = BackboneSource(NAME, weights, "", size_px, no_progress)
    assert feature_source(backbone, "cpu").batch_size == images

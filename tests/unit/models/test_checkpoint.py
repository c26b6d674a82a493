"""Reading weights files: formats, wrappers, damage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from edgetune.core.errors import WeightsError
from edgetune.models.checkpoint import digest_of_tensors, read_state_dict

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.count": torch.tensor(3)}


@pytest.mark.parametrize(
    "content",
    [
        STATE,
        {"state_dict": STATE, "epoch": 3},
        {"model": STATE, "optimizer": {"lr": 0.1}},
        {"model": {"state_dict": STATE}},
        {f"module.{name}": tensor for name, tensor in STATE.items()},
        {"state_dict": {f"module.{name}": tensor for name, tensor in STATE.items()}},
    ],
    ids=["plain", "state_dict", "model", "nested", "module prefix", "wrapped and prefixed"],
)
@pytest.mark.parametrize("suffix", [".pth", ".pt"])
def test_wrappers_and_prefixes_are_taken_off(tmp_path: Path, content: Any, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    torch.save(content, path)
    state = read_state_dict(path)
    assert sorted(state) == sorted(STATE)
    assert torch.equal(state["a.weight"], STATE["a.weight"])


def test_safetensors_are_read(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file(STATE, tmp_path / "weights.safetensors")
    assert torch.equal(read_state_dict(tmp_path / "weights.safetensors")["a.weight"], STATE["a.weight"])


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"nothing\.pth does not exist"):
        read_state_dict(tmp_path / "nothing.pth")


@pytest.mark.parametrize("kept", [0, 1, 100, -1], ids=["empty", "one byte", "100 bytes", "last byte missing"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_truncated_file_is_named(tmp_path: Path, kept: int, suffix: str) -> None:
    from safetensors.torch import save_file

    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save(STATE, path)
    else:
        save_file(STATE, path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(WeightsError, match=rf"weights{suffix} .* cannot be read"):
        read_state_dict(path)


def test_code_in_a_weights_file_is_not_run(tmp_path: Path) -> None:
    target = tmp_path / "written-by-a-pickle"

    class Hostile:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.write_text, (target, "gotcha")

    torch.save({"state_dict": Hostile()}, tmp_path / "hostile.pth")
    with pytest.raises(WeightsError, match="cannot be read"):
        read_state_dict(tmp_path / "hostile.pth")
    assert not target.exists()


def test_a_file_without_tensors_is_refused(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "lr": 0.1}, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match=r"holds no state dict, but a mapping with the keys \['epoch', 'lr'\]"):
        read_state_dict(tmp_path / "other.pth")


def test_the_digest_sees_values_names_and_negative_zero() -> None:
    digests = {
        digest_of_tensors({"x": torch.tensor([0.0, 1.0])}),
        digest_of_tensors({"x": torch.tensor([-0.0, 1.0])}),
        digest_of_tensors({"y": torch.tensor([0.0, 1.0])}),
        digest_of_tensors({"x": torch.tensor([[0.0, 1.0]])}),
        digest_of_tensors({"x": torch.tensor([0.0, 1.0], dtype=torch.float64)}),
    }
    assert len(digests) == 5

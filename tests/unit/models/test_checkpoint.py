"""Reading weights files: wrappers, prefixes, and code that is not run."""

from __future__ import annotations

import argparse
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgetune.core.errors import WeightsError
from edgetune.models.checkpoint import digest_of_tensors, read_state_dict, tensor_bytes

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


@pytest.mark.parametrize("key", ["ema", "model_ema", "state_dict_ema"])
def test_averaged_weights_are_taken_only_where_there_are_no_others(tmp_path: Path, key: str) -> None:
    averaged = {"module.a.weight": torch.full((2, 3), 9.0), "module.a.count": torch.tensor(3)}
    path = tmp_path / "weights.pth"
    torch.save({key: {**averaged, "n_averaged": torch.tensor(5)}, "epoch": 3}, path)
    state = read_state_dict(path)
    assert sorted(state) == sorted(STATE)
    assert torch.equal(state["a.weight"], torch.full((2, 3), 9.0))
    torch.save({key: averaged, "model": STATE}, path)
    assert torch.equal(read_state_dict(path)["a.weight"], STATE["a.weight"])


def test_both_prefixes_are_taken_off_in_either_order(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    for prefix in ("module._orig_mod.", "_orig_mod.module."):
        torch.save({f"{prefix}{name}": tensor for name, tensor in STATE.items()}, path)
        assert sorted(read_state_dict(path)) == sorted(STATE)


def test_a_prefix_that_only_some_names_have_stays(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"module.a": torch.zeros(1), "b": torch.zeros(1)}, path)
    assert sorted(read_state_dict(path)) == ["b", "module.a"]


def test_arguments_and_accuracies_beside_the_weights_are_no_code(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    for best in (np.float64(0.93), np.float32(0.5), np.int64(7)):
        torch.save({"model": STATE, "args": argparse.Namespace(lr=0.1, data="/x"), "best": best}, path)
        assert torch.equal(read_state_dict(path)["a.weight"], STATE["a.weight"])


class _Writes:
    """Pickled as a call that writes a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"echo gotcha > {self._path}",)


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "pickle"])
def test_code_in_a_weights_file_is_named_and_not_run(tmp_path: Path, is_zip: bool) -> None:
    target = tmp_path / "written-by-a-pickle"
    path = tmp_path / "hostile.pth"
    torch.save({"state_dict": STATE, "x": _Writes(target)}, path, _use_new_zipfile_serialization=is_zip)
    with pytest.raises(WeightsError) as caught:
        read_state_dict(path)
    assert not target.exists()
    assert caught.value.message == (
        f"the weights file {path} holds code beside tensors ({os.name}.system); it was not run."
    )
    assert "ask whoever made it for a state dict alone, or a .safetensors" in caught.value.hint
    torch.load(path, weights_only=False)  # the trap is a real one
    assert target.exists()


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "pickle"])
def test_a_whole_pickled_model_is_named(tmp_path: Path, is_zip: bool) -> None:
    import torchvision.models

    path = tmp_path / "model.pth"
    torch.save(torchvision.models.squeezenet1_1(), path, _use_new_zipfile_serialization=is_zip)
    words = r"holds a whole pickled model, which is code \(torchvision\.models\.squeezenet\..*\); it was not run"
    with pytest.raises(WeightsError, match=words) as caught:
        read_state_dict(path)
    assert "torch.save(model.state_dict(), 'weights.pth')" in caught.value.hint


def test_a_file_without_tensors_is_refused(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "lr": 0.1}, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match=r"holds no state dict, but a mapping with the keys \['epoch', 'lr'\]"):
        read_state_dict(tmp_path / "other.pth")


@pytest.mark.parametrize("protocol", [4, 5])
@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "pickle"])
def test_another_pickle_protocol_is_no_damage(tmp_path: Path, protocol: int, is_zip: bool) -> None:
    path = tmp_path / "weights.pth"
    torch.save(STATE, path, pickle_protocol=protocol, _use_new_zipfile_serialization=is_zip)
    with pytest.raises(WeightsError, match=f"was saved with pickle protocol {protocol}, expected 2\\.") as caught:
        read_state_dict(path)
    assert "torch.save(model.state_dict(), 'weights.pth')" in caught.value.hint


def test_what_the_unpickler_says_is_told_without_its_advice(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(b"\x80\x02" + bytes(100))
    with pytest.raises(WeightsError, match=r"cut short at 102 bytes or changed: Unsupported operand 0\.$"):
        read_state_dict(path)


@pytest.mark.parametrize(
    ("tensor", "what"),
    [
        (torch.eye(3).to_sparse(), "sparse or nested"),
        (torch.zeros(3, device="meta"), r"without values \(on the meta device\)"),
        (torch.zeros(3, dtype=torch.complex64), "complex"),
    ],
    ids=["sparse", "meta", "complex"],
)
def test_tensors_that_are_no_plain_arrays_are_named(tmp_path: Path, tensor: torch.Tensor, what: str) -> None:
    path = tmp_path / "weights.pth"
    torch.save({**STATE, "b.weight": tensor}, path)
    with pytest.raises(WeightsError, match=rf"holds the tensor b\.weight, which is {what}\.$"):
        read_state_dict(path)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", ["quantized", "rows", "nested"])
def test_tensors_that_pytorch_itself_warns_of_are_named_without_a_warning(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "weights.pth"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tensor = {
            "quantized": lambda: torch.quantize_per_tensor(torch.eye(3), 0.1, 0, torch.qint8),
            "rows": lambda: torch.eye(3).to_sparse_csr(),
            "nested": lambda: torch.nested.nested_tensor([torch.zeros(3), torch.zeros(2)]),
        }[kind]()
        torch.save({**STATE, "b.weight": tensor}, path)
    with warnings.catch_warnings(record=True) as heard, pytest.raises(WeightsError, match=r"b\.weight, which is "):
        warnings.simplefilter("always")
        read_state_dict(path)
    assert not heard


def test_keys_that_are_no_strings_are_no_state_dict(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    content: dict[Any, torch.Tensor] = {10**500: torch.zeros(1), "a\x1b[31m": torch.zeros(1)}
    torch.save(content | STATE, path)
    with pytest.raises(WeightsError, match=r"holds no state dict, but a mapping with the keys \['<int>', 'a.count',"):
        read_state_dict(path)


def test_a_negated_view_has_the_bytes_of_its_values() -> None:
    tensor = torch.tensor([0.0, 1.0])
    assert tensor_bytes(torch._neg_view(tensor)) == tensor_bytes(-tensor) != tensor_bytes(tensor)


def test_the_digest_sees_values_names_and_negative_zero() -> None:
    digests = {
        digest_of_tensors({"x": torch.tensor([0.0, 1.0])}),
        digest_of_tensors({"x": torch.tensor([-0.0, 1.0])}),
        digest_of_tensors({"y": torch.tensor([0.0, 1.0])}),
        digest_of_tensors({"x": torch.tensor([[0.0, 1.0]])}),
        digest_of_tensors({"x": torch.tensor([0.0, 1.0], dtype=torch.float64)}),
    }
    assert len(digests) == 5

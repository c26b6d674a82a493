"""What hooks give, under the names asked for."""

from __future__ import annotations

import numpy as np
import pytest

from edgetune.core.errors import ModelError

torch = pytest.importorskip("torch")

from edgetune.runners.torch_runner import TorchRunner  # noqa: E402
from edgetune.runners.torch_taps import TorchTaps  # noqa: E402


class _Inner(torch.nn.Module):  # type: ignore[misc, name-defined]
    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Identity()
        self.act = torch.nn.ReLU(inplace=True)
        self.twice = torch.nn.Identity()

    def forward(self, image):  # type: ignore[no-untyped-def]
        values = image.to(torch.float32).mean((1, 2)) - 100
        return self.twice(self.twice(self.act(self.first(values))))


class _Outer(torch.nn.Module):  # type: ignore[misc, name-defined]
    def __init__(self) -> None:
        super().__init__()
        self.extractor = _Inner()

    def forward(self, image):  # type: ignore[no-untyped-def]
        return self.extractor(image) * 2


def _feed() -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.uint8]]]:
    image = np.zeros((2, 4, 4, 3), np.uint8)
    image[..., 1], image[..., 2] = 200, 110
    return {"image": image}


def _taps(outputs: dict[str, str], inputs: dict[str, str]) -> TorchTaps:
    return TorchTaps(TorchRunner(_Outer(), 4, "logits"), outputs, inputs, prefix="extractor")


def test_outputs_and_inputs_of_modules_below_the_prefix() -> None:
    """The activation works in place: what it got is kept as it was."""
    with _taps({"relu": "act", "before": "first", "whole": "extractor"}, {"given": "act"}) as taps:
        found = taps.infer(_feed())
    assert found["given"].tolist() == found["before"].tolist() == [[-100.0, 100.0, 10.0]] * 2
    assert found["relu"].tolist() == found["whole"].tolist() == [[0.0, 100.0, 10.0]] * 2
    assert found["logits"].tolist() == [[0.0, 200.0, 20.0]] * 2


def test_modules_called_twice_or_not_there_are_left_out() -> None:
    with _taps({"two": "twice", "none": "no.such"}, {}) as taps:
        assert set(taps.infer(_feed())) == {"logits"}


def test_hooks_are_gone_afterwards() -> None:
    taps = _taps({"relu": "act"}, {"given": "act"})
    module = taps._runner._module.get_submodule("extractor.act")
    with taps:
        assert len(module._forward_hooks) == len(module._forward_pre_hooks) == 1
    assert not module._forward_hooks
    assert not module._forward_pre_hooks
    with pytest.raises(ModelError, match="not open"):
        taps.infer(_feed())

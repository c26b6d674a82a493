"""The fitted head: one linear layer, or two with a ReLU between them, and its file."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgetune.core.errors import RunError

Floats = npt.NDArray[np.float32]

_REPAIR = "fit again with edgetune fit"


@dataclass(frozen=True)
class Head:
    """logits = inner @ weight.T + bias, all float32: `weight` `(classes, H)`, `bias` `(classes,)`.

    With a hidden layer inner = relu(features @ hidden_weight.T + hidden_bias), `hidden_weight` `(H, D)` and
    `hidden_bias` `(H,)`; without one inner is the features, and H is D.
    """

    weight: Floats
    bias: Floats
    hidden_weight: Floats | None = None
    hidden_bias: Floats | None = None

    @property
    def hidden(self) -> tuple[Floats, Floats] | None:
        """Weight and bias of the hidden layer; None without one."""
        if self.hidden_weight is None or self.hidden_bias is None:
            return None
        return self.hidden_weight, self.hidden_bias

    @property
    def classes(self) -> int:
        return len(self.bias)

    @property
    def feature_dim(self) -> int:
        """D: how many features of an image the head takes."""
        return int((self.weight if self.hidden_weight is None else self.hidden_weight).shape[1])

    def logits(self, features: Floats) -> Floats:
        """`features` float32 `(N, D)` to logits float32 `(N, classes)`."""
        inner = features
        if self.hidden is not None:
            weight, bias = self.hidden
            inner = np.maximum(features @ weight.T + bias, np.float32(0.0))
        logits: Floats = inner @ self.weight.T + self.bias
        return logits

    def divided_by(self, temperature: float) -> Head:
        """The head whose logits are this one's divided by `temperature`."""
        weight, bias = (array.astype(np.float64) / temperature for array in (self.weight, self.bias))
        return dataclasses.replace(self, weight=weight.astype(np.float32), bias=bias.astype(np.float32))


def save_head(path: Path, head: Head) -> None:
    from safetensors.numpy import save

    tensors = {field.name: getattr(head, field.name) for field in dataclasses.fields(head)}
    path.write_bytes(save({name: np.ascontiguousarray(array) for name, array in tensors.items() if array is not None}))


def load_head(path: Path) -> Head:
    """Raises `RunError` when the file is missing, damaged, or holds NaN."""
    import safetensors
    from safetensors.numpy import load

    try:
        tensors = load(path.read_bytes())
        head = Head(tensors["weight"], tensors["bias"], tensors.get("hidden_weight"), tensors.get("hidden_bias"))
    except (OSError, KeyError, safetensors.SafetensorError) as error:
        raise RunError(f"the head {path} cannot be read: {error}", hint=_REPAIR) from error
    _check_shapes(path, head)
    if not all(np.isfinite(array).all() for array in tensors.values()):
        raise RunError(f"the head {path} holds NaN or infinity.", hint=_REPAIR)
    return head


def _check_shapes(path: Path, head: Head) -> None:
    layers = [(head.weight, head.bias)]
    if head.hidden_weight is not None or head.hidden_bias is not None:
        if head.hidden is None:
            raise RunError(f"the head {path} has half a hidden layer: its weight or its bias is missing.", hint=_REPAIR)
        layers.insert(0, head.hidden)
    for weight, bias in layers:
        if weight.ndim != 2 or bias.shape != weight.shape[:1]:
            raise RunError(f"the head {path} has weights {weight.shape} and bias {bias.shape}.", hint=_REPAIR)
        if {weight.dtype.name, bias.dtype.name} != {"float32"}:
            raise RunError(f"the head {path} holds {weight.dtype} and {bias.dtype}, expected float32.", hint=_REPAIR)
    if head.hidden is not None and head.weight.shape[1] != len(head.hidden[1]):
        raise RunError(
            f"the head {path} has a hidden layer of {len(head.hidden[1])} and weights {head.weight.shape} behind it.",
            hint=_REPAIR,
        )

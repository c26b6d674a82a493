"""Modules around the backbone: uint8 images in, features or logits out."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from edgetune.core.preprocess import PreprocessSpec

Floats = npt.NDArray[np.float32]


class FeatureExtractor(nn.Module):
    """Images uint8 `(N, H, W, 3)` to features `(N, D)`.

    Casts before it transposes, which is the order that TensorRT's ONNX parser needs for a uint8 input.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, backbone: nn.Module, spec: PreprocessSpec) -> None:
        super().__init__()
        self.backbone = backbone
        self.register_buffer("mean", _per_row(spec.mean, spec.crop_size), persistent=False)
        self.register_buffer("std", _per_row(spec.std, spec.crop_size), persistent=False)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        pixels = image.to(torch.float32).permute(0, 3, 1, 2)
        features: torch.Tensor = self.backbone((pixels - self.mean) / self.std)
        return features


def _per_row(values: tuple[float, float, float], width_px: int) -> torch.Tensor:
    """Channel constants for pixels in 0..255, repeated along one row: `(1, 3, 1, W)`.

    ONNX Runtime moves the INT8 graph's transpose behind this arithmetic. Constants of shape `(1, 3, 1, 1)` would
    then be broadcast three numbers at a time, which cost a fifth of the whole inference.
    """
    return 255.0 * torch.tensor(values).reshape(1, 3, 1, 1).repeat(1, 1, 1, width_px)


class Classifier(nn.Module):
    """Images uint8 `(N, H, W, 3)` to logits `(N, classes)`: the PyTorch model that parity holds artifacts against.

    `head` is the last layer; `hidden`, in front of it, is empty or a layer `(H, D)` and its ReLU.
    """

    def __init__(
        self, extractor: FeatureExtractor, weight: Floats, bias: Floats, hidden: tuple[Floats, Floats] | None = None
    ) -> None:
        super().__init__()
        self.extractor = extractor
        self.hidden = nn.Sequential() if hidden is None else nn.Sequential(_linear(*hidden), nn.ReLU())
        self.head = _linear(weight, bias)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.hidden(self.extractor(image)))
        return logits


def _linear(weight: Floats, bias: Floats) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weight))
        layer.bias.copy_(torch.from_numpy(bias))
    return layer

"""Features of an earlier layer: the network runs as far as that layer, whose output is pooled."""

from __future__ import annotations

import contextlib
import difflib
from typing import Any

import torch
from torch import nn

from edgetune.core.errors import UsageError

_NEAR, _LISTED = 4, 12


class LayerFeatures(nn.Module):
    """Normalised pixels float `(N, 3, H, W)` to the pooled output `(N, C)` of one layer of `network`.

    What comes behind the layer is not run, except while the module is exported: the exporter follows calls from entry
    to return, and drops what no output needs. Inner tensors keep the names that they have in the whole network. One
    thread at a time.
    """

    def __init__(self, network: nn.Module, layer: str) -> None:
        super().__init__()
        self.network = network
        self.pool = GlobalPool(layer)
        self.layer = layer

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        caught: list[torch.Tensor] = []

        def catch(_layer: nn.Module, _inputs: Any, output: Any) -> None:
            if not caught:
                caught.append(self.pool(output))  # here, as what comes next may work in place
            if not torch.compiler.is_exporting():
                raise _Reached

        # Registered anew each time, so that other hooks of the layer run before it.
        handle = self.network.get_submodule(self.layer).register_forward_hook(catch)
        try:
            with contextlib.suppress(_Reached):
                self.network(pixels)
        finally:
            handle.remove()
        if not caught:
            raise UsageError(f"the layer {self.layer!r} takes no part when an image is classified.", hint=_CHOOSE)
        return caught[0]


class GlobalPool(nn.Module):
    """The mean over the image of an output `(N, C, H, W)`; an output `(N, D)` as it is.

    Raises:
        UsageError: the layer's output has another shape.
    """

    def __init__(self, layer: str) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, output: Any) -> torch.Tensor:
        shape = tuple(output.shape[1:]) if isinstance(output, torch.Tensor) else None
        if shape is None:
            raise UsageError(f"the layer {self.layer!r} gives a {type(output).__name__}, not a tensor.", hint=_CHOOSE)
        # Images are square, and so are maps of features: other shapes have their channels last.
        if len(shape) not in (1, 3) or (len(shape) == 3 and shape[1] != shape[2]):
            described = ", ".join(["N", *map(str, shape)])
            raise UsageError(
                f"the layer {self.layer!r} gives a tensor ({described}), expected (N, C, H, W) or (N, D).",
                hint=_CHOOSE,
            )
        pooled: torch.Tensor = output.mean((2, 3)) if output.ndim == 4 else output.clone()
        return pooled


_CHOOSE = "choose a block of convolutions, such as layer3 of resnet18 or blocks.4 of efficientnet_lite0"


class _Reached(Exception):
    """The layer has given its output; nothing behind it is needed."""


def features_of_layer(network: nn.Module, layer: str, name: str) -> LayerFeatures:
    """Raises `UsageError` with the nearest names where the backbone `name` has no such layer."""
    known = [each for each, _ in network.named_modules() if each]
    if layer not in known:
        near = difflib.get_close_matches(layer, known, _NEAR, 0.5)
        outer = [each for each, _ in network.named_children()]
        shown = ", ".join(outer[:_LISTED] + (["..."] if len(outer) > _LISTED else []))
        raise UsageError(
            f"{name} has no layer {layer!r}" + (f"; nearest names: {', '.join(near)}." if near else "."),
            hint=f"its layers are those of PyTorch's named_modules(): {shown}, and what lies in them, such as "
            f"{_an_inner(known)}",
        )
    return LayerFeatures(network, layer)


def _an_inner(known: list[str]) -> str:
    return next((each for each in reversed(known) if each.count(".") == 1), known[-1])

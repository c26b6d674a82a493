"""Backbones by name: a pretrained CNN without its last layer, and the preprocessing it was trained with."""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from edgetune.core.errors import UsageError, first_line
from edgetune.core.preprocess import PreprocessSpec

DEFAULT_BACKBONE = "efficientnet_lite0"
LITE_BACKBONES = ("efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2")

# The published weights of these two were trained on inputs that the model itself rescales.
_TORCHVISION_OPTIONS: dict[str, dict[str, Any]] = {
    "googlenet": {"init_weights": False, "transform_input": True},
    "inception_v3": {"init_weights": False, "transform_input": True},
}
# Torchvision's list also has transformers; only CNNs are in scope.
_NOT_CNNS = ("vit_", "swin_", "maxvit")


@dataclass(frozen=True)
class Architecture:
    """A backbone without weights: `module` takes normalised float `(N, 3, H, W)` and returns features `(N, D)`.

    `head_prefixes` are the names, in weights files, of the layers that the backbone leaves out.
    """

    name: str
    module: nn.Module
    head_prefixes: tuple[str, ...]
    preprocess: PreprocessSpec


def build_architecture(name: str) -> Architecture:
    """Builds `efficientnet_lite0..2`, a torchvision classification CNN by its name, or `timm/NAME`.

    Raises:
        UsageError: no such backbone; the message names the nearest ones.
    """
    if name in LITE_BACKBONES:
        return _from_timm(name, f"tf_{name}")
    if name.startswith("timm/"):
        return _from_timm(name, name.removeprefix("timm/"))
    return _from_torchvision(name)


def feature_dim(architecture: Architecture) -> int:
    """The width D of the features, found by running one grey image through the module."""
    size = architecture.preprocess.crop_size
    with torch.inference_mode():
        features = architecture.module.eval()(torch.zeros(1, 3, size, size))
    if features.ndim != 2:
        raise UsageError(
            f"{architecture.name} gives features of shape {tuple(features.shape)}, expected (1, D).",
            hint="choose a classification CNN",
        )
    return int(features.shape[1])


def _from_timm(name: str, timm_name: str) -> Architecture:
    import timm
    from timm.data.config import resolve_data_config

    if not timm.is_model(timm_name.partition(".")[0]):
        raise UsageError(f"timm has no model {timm_name!r}.", hint=_nearest(timm_name, timm.list_models()))
    try:
        module: Any = timm.create_model(timm_name, pretrained=False, num_classes=0).eval()
    except (RuntimeError, TypeError, ValueError) as error:
        raise UsageError(f"timm cannot build {timm_name!r}: {first_line(error)}") from error
    config = resolve_data_config({}, model=module)
    crop_size = int(config["input_size"][-1])
    spec = PreprocessSpec(
        resize_size=max(crop_size, math.floor(crop_size / config["crop_pct"])),
        crop_size=crop_size,
        interpolation=config["interpolation"],
        mean=_triple(config["mean"]),
        std=_triple(config["std"]),
    )
    classifier = module.pretrained_cfg.get("classifier") or "classifier"
    prefixes = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    return Architecture(name, module, prefixes, spec)


def _from_torchvision(name: str) -> Architecture:
    import torchvision.models

    known = [model for model in torchvision.models.list_models(torchvision.models) if not model.startswith(_NOT_CNNS)]
    if name not in known:
        raise UsageError(f"there is no backbone {name!r}.", hint=_nearest(name, [*LITE_BACKBONES, *known]))
    module = torchvision.models.get_model(name, weights=None, **_TORCHVISION_OPTIONS.get(name, {})).eval()
    transforms: Any = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    spec = PreprocessSpec(
        resize_size=transforms.resize_size[0],
        crop_size=transforms.crop_size[0],
        interpolation=transforms.interpolation.value,
        mean=_triple(transforms.mean),
        std=_triple(transforms.std),
    )
    return Architecture(name, module, (_cut_last_layer(module),), spec)


def _cut_last_layer(module: nn.Module) -> str:
    """Replaces the last linear layer (SqueezeNet: its last convolution) by the identity; returns its name."""
    layers: list[str] = [name for name, layer in module.named_modules() if isinstance(layer, nn.Linear)]
    if not layers:
        layers = [name for name, layer in module.named_modules() if isinstance(layer, nn.Conv2d)]
    parent, _, child = layers[-1].rpartition(".")
    setattr(module.get_submodule(parent), child, nn.Identity())
    return layers[-1]


def _triple(values: Any) -> tuple[float, float, float]:
    return cast("tuple[float, float, float]", tuple(float(value) for value in values))


def _nearest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=4, cutoff=0.5)
    return f"nearest names: {', '.join(close)}" if close else "see torchvision.models, or timm/NAME for timm's"

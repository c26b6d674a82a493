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
from edgetune.models.layers import features_of_layer
from edgetune.models.names import DEFAULT_BACKBONE as DEFAULT_BACKBONE
from edgetune.models.names import LITE_BACKBONES as LITE_BACKBONES

# Both were published with outputs beside the last layer that only training uses, and trained on inputs that the model
# itself rescales.
_WITHOUT_AUXILIARIES = {"init_weights": False, "transform_input": True, "aux_logits": False}
_TORCHVISION_OPTIONS: dict[str, dict[str, Any]] = {
    "googlenet": _WITHOUT_AUXILIARIES,
    "inception_v3": _WITHOUT_AUXILIARIES,
}
_AUXILIARIES = {
    "googlenet": ("aux1", "aux2"),
    "inception_v3": ("AuxLogits",),
    "timm/inception_v3": ("AuxLogits",),
}
# Torchvision's list also has transformers; only CNNs are in scope.
_NOT_CNNS = ("vit_", "swin_", "maxvit")

_MAX_SIZE_PX = 4096
# What models raise on images of a size that they cannot take.
_REFUSALS = (RuntimeError, ValueError, TypeError, AssertionError, LookupError, ArithmeticError)


@dataclass(frozen=True)
class Architecture:
    """A backbone without weights: `module` takes normalised float `(N, 3, H, W)` and returns features `(N, D)`.

    `network` has the tensors under the names of weights files; it is `module` itself, or lies in it where the features
    are those of an earlier `layer`. `head_prefixes` are the names, in weights files, of the layers that the backbone
    leaves out, and `auxiliaries` those of outputs that only training uses.
    """

    name: str
    module: nn.Module
    head_prefixes: tuple[str, ...]
    preprocess: PreprocessSpec
    network: nn.Module
    layer: str = ""
    auxiliaries: tuple[str, ...] = ()


def build_architecture(name: str, *, layer: str = "", image_size: int | None = None) -> Architecture:
    """Builds `efficientnet_lite0..2`, a torchvision classification CNN by its name, or `timm/NAME`.

    `image_size` is the crop in px in place of the published one; the short side is scaled with it.

    Raises:
        UsageError: no such backbone or layer, with the nearest names; or a size out of range.
    """
    if name in LITE_BACKBONES:
        network, heads, spec = _from_timm(f"tf_{name}", image_size)
    elif name.startswith("timm/"):
        network, heads, spec = _from_timm(name.removeprefix("timm/"), image_size)
    else:
        network, heads, spec = _from_torchvision(name, image_size)
    module = features_of_layer(network, layer, name) if layer else network
    return Architecture(name, module, heads, spec, network, layer, _AUXILIARIES.get(name.partition(".")[0], ()))


def feature_dim(architecture: Architecture) -> int:
    """The width D of the features, found by running one grey image through the module.

    Raises:
        UsageError: the backbone refuses images of this size, or gives no flat, finite features for them.
    """
    size = architecture.preprocess.crop_size
    try:
        with torch.inference_mode():
            features = architecture.module.eval()(torch.zeros(1, 3, size, size))
    except _REFUSALS as error:
        raise UsageError(
            f"{architecture.name} cannot take images of {size} px: {first_line(error)}",
            hint="choose another --image-size, or none for the size that the backbone was trained with",
        ) from error
    if features.ndim != 2 or features.shape[1] == 0:
        raise UsageError(
            f"{architecture.name} gives features of shape {tuple(features.shape)}, expected (1, D).",
            hint="choose a classification CNN",
        )
    if not bool(torch.isfinite(features).all()):
        raise UsageError(
            f"{architecture.name} gives NaN or infinity for a grey image of {size} px.",
            hint="choose a larger --image-size, or other weights",
        )
    return int(features.shape[1])


_Parts = tuple[nn.Module, tuple[str, ...], PreprocessSpec]


def _from_timm(timm_name: str, image_size: int | None) -> _Parts:
    import timm
    from timm.data.config import resolve_data_config

    if not timm.is_model(timm_name.partition(".")[0]):
        raise UsageError(f"timm has no model {timm_name!r}.", hint=_nearest(timm_name, timm.list_models()))
    try:
        module: Any = timm.create_model(timm_name, pretrained=False, num_classes=0).eval()
    except (RuntimeError, TypeError, ValueError) as error:
        raise UsageError(f"timm cannot build {timm_name!r}: {first_line(error)}") from error
    config = resolve_data_config({}, model=module)
    crop_size = _checked_size(int(config["input_size"][-1]) if image_size is None else image_size)
    spec = _spec(
        resize_size=math.floor(crop_size / config["crop_pct"]),  # as timm's own transforms round it
        crop_size=crop_size,
        interpolation=config["interpolation"],
        statistics=(config["mean"], config["std"]),
    )
    classifier = module.pretrained_cfg.get("classifier") or "classifier"
    names = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    return module, tuple(dict.fromkeys(_whole_head(module, name) for name in names)), spec


def _from_torchvision(name: str, image_size: int | None) -> _Parts:
    import torchvision.models

    listed = torchvision.models.list_models(torchvision.models)
    known = [model for model in listed if not model.startswith(_NOT_CNNS)]
    if name not in known:
        if name in listed:
            raise UsageError(f"{name} is a transformer; only CNNs are supported.", hint="resnet50 or convnext_tiny")
        raise UsageError(f"there is no backbone {name!r}.", hint=_nearest(name, [*LITE_BACKBONES, *known]))
    module = torchvision.models.get_model(name, weights=None, **_TORCHVISION_OPTIONS.get(name, {})).eval()
    transforms: Any = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    resize, crop = int(transforms.resize_size[0]), int(transforms.crop_size[0])
    crop_size = _checked_size(crop if image_size is None else image_size)
    spec = _spec(
        resize_size=(2 * crop_size * resize + crop) // (2 * crop),  # rounded, half a pixel upwards
        crop_size=crop_size,
        interpolation=transforms.interpolation.value,
        statistics=(transforms.mean, transforms.std),
    )
    return module, (_cut_last_layer(module),), spec


def _checked_size(crop_size: int) -> int:
    if not 1 <= crop_size <= _MAX_SIZE_PX:
        raise UsageError(f"--image-size is {crop_size} px, expected 1 to {_MAX_SIZE_PX}.")
    return crop_size


def _spec(*, resize_size: int, crop_size: int, interpolation: str, statistics: tuple[Any, Any]) -> PreprocessSpec:
    resize_size = max(crop_size, resize_size)
    if resize_size > _MAX_SIZE_PX:
        raise UsageError(
            f"--image-size {crop_size}: the short side would have {resize_size} px, expected at most {_MAX_SIZE_PX}."
        )
    mean, std = statistics
    return PreprocessSpec(resize_size, crop_size, interpolation, _triple(mean), _triple(std))


def _cut_last_layer(module: nn.Module) -> str:
    """Replaces the last linear layer (SqueezeNet: its last convolution) by the identity; returns the head's name."""
    layers: list[str] = [name for name, layer in module.named_modules() if isinstance(layer, nn.Linear)]
    if not layers:
        layers = [name for name, layer in module.named_modules() if isinstance(layer, nn.Conv2d)]
    parent, _, child = layers[-1].rpartition(".")
    setattr(module.get_submodule(parent), child, nn.Identity())
    return _whole_head(module, layers[-1])


def _whole_head(module: nn.Module, layer: str) -> str:
    """The outermost container of a layer that was cut off in which no tensors are left: heads may have layers of their
    own in front of the last, and whoever fitted another head to the network may have replaced all of it.
    """
    kept = list(module.state_dict())
    parent = layer.rpartition(".")[0]
    while parent and not any(name.startswith(f"{parent}.") for name in kept):
        layer, parent = parent, parent.rpartition(".")[0]
    return layer


def _triple(values: Any) -> tuple[float, float, float]:
    return cast("tuple[float, float, float]", tuple(float(value) for value in values))


def _nearest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=4, cutoff=0.5)
    return f"nearest names: {', '.join(close)}" if close else "see torchvision.models, or timm/NAME for timm's"

"""Random weights whose activations behave like a trained network's, for backbones whose weights are not at hand.

An untrained network makes poor evidence: its signal vanishes or explodes with depth, BN layers hold mean 0 and variance
1, which no activation has, and residual branches start at 0 or 1e-6, so that whole blocks are the identity.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from edgetune.core.preprocess import PreprocessSpec, preprocess_image
from edgetune.models.backbones import build_architecture

_BATCH = 16
_TINY = 1e-6
_EPOCHS_AT_HALF, _EPOCHS_AT_FULL, _PEAK_RATE = 8, 4, 2e-3
_IMAGES_FOR_NORMS = 64


def write_random_weights(
    name: str, path: Path, images: Sequence[Path], seed: int, image_size: int | None = None
) -> int:
    """Writes a state dict for `--model name --weights path`; returns the number of its parameters.

    Constants become scattered numbers, each convolution and linear layer is scaled until its outputs on `images` have
    mean 0 and variance 1 a channel (as far as it has a bias), and BN statistics are those of all the images at once:
    averages over small batches let gated networks explode on single images.
    """
    torch.manual_seed(seed)
    architecture = build_architecture(name, image_size=image_size)
    module = architecture.module.requires_grad_(False)
    batch = _load(images, architecture.preprocess)
    _scatter_constants(module)
    module.eval()
    norms = [layer for layer in module.modules() if isinstance(layer, _BatchNorm)]
    for norm in norms:
        norm.train()
    _scale_layers(module, batch[:_BATCH])
    _measure_statistics(module, norms, batch)
    torch.save(module.state_dict(), path)
    return sum(parameter.numel() for parameter in module.parameters())


def _load(images: Sequence[Path], spec: PreprocessSpec) -> torch.Tensor:
    """Normalised float32 `(N, 3, H, W)`."""
    pixels = np.stack([preprocess_image(path.read_bytes(), spec, name=path.name) for path in images])
    values = torch.from_numpy(pixels).to(torch.float32).permute(0, 3, 1, 2) / 255.0
    mean, std = (torch.tensor(each).reshape(1, 3, 1, 1) for each in (spec.mean, spec.std))
    normalised: torch.Tensor = (values - mean) / std
    return normalised


def _scatter_constants(module: nn.Module) -> None:
    """Gains and offsets start as constants, most of them 1 and 0; in trained networks they are spread."""
    for name, parameter in module.named_parameters():
        if bool((parameter != parameter.flatten()[0]).any()):
            continue
        if name.endswith("bias"):
            parameter.normal_(0.0, 0.1)
        else:
            parameter.uniform_(0.5, 1.5)


def _scale_layers(module: nn.Module, batch: torch.Tensor) -> None:
    """In one pass: each layer is scaled by what it computes, and hands on what it would compute after that."""
    layers = [layer for layer in module.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(_scale_layer) for layer in layers]
    with torch.no_grad():
        module(batch)
    for hook in hooks:
        hook.remove()


def _scale_layer(layer: nn.Module, inputs: tuple[torch.Tensor, ...], outputs: torch.Tensor) -> torch.Tensor | None:
    weight, bias = cast(torch.Tensor, layer.weight), cast("torch.Tensor | None", layer.bias)
    if not float(outputs.std()) >= _TINY:
        return None
    if bias is None:
        weight.div_(outputs.std())
    else:
        axis = 1 if isinstance(layer, nn.Conv2d) else outputs.ndim - 1
        columns = outputs.movedim(axis, 0).flatten(1)
        # Channels that hardly vary stay quiet: they are not blown up to noise.
        std = columns.std(dim=1).clamp_min(0.1 * float(outputs.std()))
        weight.div_(std.reshape(-1, *[1] * (weight.ndim - 1)))
        bias.copy_((bias - columns.mean(dim=1)) / std)
    result: torch.Tensor = layer.forward(*inputs)
    return result


def _measure_statistics(module: nn.Module, norms: Sequence[_BatchNorm], batch: torch.Tensor) -> None:
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = 1.0
    with torch.no_grad():
        module(batch)
    module.eval()


def train_briefly(name: str, path: Path, images: Sequence[tuple[Path, int]], seed: int) -> float:
    """Trains the weights in `path` on labelled images, all layers and a head that is then dropped, and writes them
    back; returns the last epoch's accuracy. Random networks blow up any noise, trained ones do not: a few minutes take
    20 dB off the rounding noise of MobileNetV3. Most epochs are at half the resolution, for time.
    """
    torch.manual_seed(seed)
    architecture = build_architecture(name)
    module = architecture.module
    module.load_state_dict(torch.load(path, weights_only=True))
    full = _load([file for file, _ in images], architecture.preprocess)
    labels = torch.tensor([label for _, label in images])
    with torch.no_grad():
        width = int(module.eval()(full[:1]).shape[1])
    whole = nn.Sequential(module, nn.Linear(width, int(labels.max()) + 1))
    _train(whole, nn.functional.avg_pool2d(full, 2), labels, _EPOCHS_AT_HALF)
    accuracy = _train(whole, full, labels, _EPOCHS_AT_FULL)
    module.requires_grad_(False).eval()
    norms = [layer.train() for layer in module.modules() if isinstance(layer, _BatchNorm)]
    _measure_statistics(module, norms, full[:: max(1, len(full) // _IMAGES_FOR_NORMS)])
    torch.save(module.state_dict(), path)
    return accuracy


def _train(whole: nn.Module, images: torch.Tensor, labels: torch.Tensor, epochs: int) -> float:
    whole.train()
    optimizer = torch.optim.AdamW(whole.parameters(), weight_decay=0.05)
    steps = len(labels) // _BATCH  # the rest of an epoch is dropped: BN learns nothing from a batch of one
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=_PEAK_RATE, total_steps=epochs * steps)
    hits = 0
    for _ in range(epochs):
        hits = 0
        for rows in torch.split(torch.randperm(len(labels)), _BATCH)[:steps]:
            hits += _step(whole, optimizer, images[rows], labels[rows])
            schedule.step()
    return hits / (steps * _BATCH)


def _step(whole: nn.Module, optimizer: torch.optim.Optimizer, images: torch.Tensor, labels: torch.Tensor) -> int:
    logits = whole(images)
    optimizer.zero_grad()
    nn.functional.cross_entropy(logits, labels).backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(whole.parameters(), 1.0)
    optimizer.step()
    return int((logits.argmax(dim=1) == labels).sum())

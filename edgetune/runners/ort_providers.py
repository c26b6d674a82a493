"""ONNX Runtime's execution providers by edgetune's names, and their options from edgetune's words.

A provider takes a misspelt option for an error at best and for nothing at worst, so no option is written anywhere else,
and a test compares every name here with those in the providers' own libraries.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from edgetune.core.errors import UsageError
from edgetune.core.files import sha256_of_bytes, sha256_of_file
from edgetune.core.tensors import IMAGE_INPUT

CPU, CUDA, TENSORRT_EP, TENSORRT_RTX_EP = "cpu", "cuda", "tensorrt-ep", "tensorrt-rtx-ep"
PROVIDERS = (CPU, CUDA, TENSORRT_EP, TENSORRT_RTX_EP)

CPU_PROVIDER = "CPUExecutionProvider"
_ORT_NAMES = {
    CPU: CPU_PROVIDER,
    CUDA: "CUDAExecutionProvider",
    TENSORRT_EP: "TensorrtExecutionProvider",
    TENSORRT_RTX_EP: "NvTensorRTRTXExecutionProvider",
}
_LABELS = {_ORT_NAMES[TENSORRT_EP]: "TensorRT", _ORT_NAMES[TENSORRT_RTX_EP]: "TensorRT-RTX"}
# What `tensorrt-ep` and `tensorrt-rtx-ep` call the same three shapes.
_PROFILE_OPTION = {TENSORRT_EP: "trt_profile_{}_shapes", TENSORRT_RTX_EP: "nv_profile_{}_shapes"}

# With this entry, nodes left to the CPU are an error for every provider: ONNX Runtime looks once nodes are placed.
NO_CPU_NODES = ("session.disable_cpu_ep_fallback", "1")

# An ONNX file: Relu of x, float (1, 4), to y; opset 13, IR version 8. Every provider takes it.
ONE_RELU = (
    b'\x08\x08:;\n\x0c\n\x01x\x12\x01y"\x04Relu\x12\x01gZ\x13\n\x01x\x12\x0e\n\x0c\x08\x01\x12\x08\n\x02\x08\x01\n\x02\x08\x04'
    b"b\x13\n\x01y\x12\x0e\n\x0c\x08\x01\x12\x08\n\x02\x08\x01\n\x02\x08\x04B\x04\n\x00\x10\r"
)

Options = dict[str, str]


@dataclass(frozen=True)
class EpOptions:
    """What a provider on a GPU is told; it takes the first GPU that `CUDA_VISIBLE_DEVICES` leaves.

    With `crop_size`, the side in pixels of the `image` input, TensorRT makes one engine for all batches from
    `min_batch` to `max_batch` when the session opens; without it, an engine for each range of shapes when they are
    first fed. Engines are kept in `cache_folder`, one folder a model; None keeps none. `allow_cpu_nodes` lets nodes
    that the provider does not take run elsewhere: without it they are an error.
    """

    crop_size: int | None = None
    min_batch: int = 1
    opt_batch: int = 1
    max_batch: int = 8
    cache_folder: Path | None = None
    allow_cpu_nodes: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.min_batch <= self.opt_batch <= self.max_batch:
            raise UsageError(
                f"batches must be 1 <= min <= opt <= max, got {self.min_batch}, {self.opt_batch}, {self.max_batch}."
            )


@dataclass(frozen=True)
class EpChoice:
    """One of `PROVIDERS` and its options. Raises `UsageError` for a name that is none of them."""

    name: str = CPU
    options: EpOptions = field(default_factory=EpOptions)

    def __post_init__(self) -> None:
        if self.name not in PROVIDERS:
            raise UsageError(f"the provider {self.name!r} is not known; known: {', '.join(PROVIDERS)}.")

    @property
    def ort_name(self) -> str:
        return _ORT_NAMES[self.name]

    @property
    def is_plugin(self) -> bool:
        """Whether the provider is a package of its own, which ONNX Runtime must be told of."""
        return self.name == TENSORRT_RTX_EP

    @property
    def is_tensorrt(self) -> bool:
        return self.name in (TENSORRT_EP, TENSORRT_RTX_EP)

    @property
    def max_batch(self) -> int | None:
        """The most images at a time that an engine is built for; None where any number goes."""
        return self.options.max_batch if self.is_tensorrt and self.options.crop_size is not None else None


def provider_label(ort_name: str) -> str:
    """`TensorRT` for `TensorrtExecutionProvider`."""
    return _LABELS.get(ort_name, ort_name.removesuffix("ExecutionProvider"))


def model_folder(model: Path | bytes, ep: EpChoice) -> Path | None:
    """The model's own folder in the cache. TensorRT's provider names engines by the model's file name and the names
    in its graph, not by its weights: in one folder, a head fitted again would get the engine of the old one.
    """
    if ep.options.cache_folder is None:
        return None
    digest = sha256_of_file(model) if isinstance(model, Path) else sha256_of_bytes(model)
    folder = ep.options.cache_folder / f"{ep.name}-{digest[:16]}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def session_providers(ep: EpChoice, model_folder: Path | None) -> list[tuple[str, Options]]:
    """For `InferenceSession(providers=...)`, best first. CPU stays unnamed: ONNX Runtime adds it itself, and refuses
    to go without its nodes where it is named. A plugin is not chosen here, but by its devices.
    """
    if ep.is_plugin:
        return []
    chosen = [(ep.ort_name, provider_options(ep, model_folder))]
    if ep.name == TENSORRT_EP and ep.options.allow_cpu_nodes:
        chosen.append((_ORT_NAMES[CUDA], _cuda_options()))
    return chosen


def provider_options(ep: EpChoice, model_folder: Path | None) -> Options:
    """The provider's options in its own words. `model_folder` is the model's own folder in the cache."""
    if ep.name == CUDA:
        return _cuda_options()
    if ep.name == TENSORRT_EP:
        return _tensorrt_options(ep.options, model_folder)
    if ep.name == TENSORRT_RTX_EP:
        return _rtx_options(ep.options, model_folder)
    return {}


def session_entries(ep: EpChoice) -> Options:
    """Session entries that the provider needs."""
    entries: Options = {}
    if ep.name != CPU and not ep.options.allow_cpu_nodes:
        entries.update([NO_CPU_NODES])
    if ep.name == CUDA:
        # CUDA has no INT8 convolutions. This leaves Q and DQ as they are and folds weights to float; else ONNX Runtime
        # would make int32 biases, whose DequantizeLinear CUDA does not have.
        entries["session.disable_quant_qdq"] = "1"
    return entries


def _cuda_options() -> Options:
    return {
        "device_id": "0",
        # TF32 rounds what goes into a product to 10 bits of mantissa: faster, and no longer FP32 to parity.
        "use_tf32": "0",
        # The default times every algorithm anew for each batch size, and may choose otherwise on the next start.
        "cudnn_conv_algo_search": "HEURISTIC",
        # The default doubles its memory each time it grows.
        "arena_extend_strategy": "kSameAsRequested",
    }


def _tensorrt_options(options: EpOptions, model_folder: Path | None) -> Options:
    chosen = {
        "device_id": "0",
        # Leave for either makes the network weakly typed, and TensorRT free to take other types than the file's.
        "trt_int8_enable": "0",
        "trt_fp16_enable": "0",
        **_profile(TENSORRT_EP, options),
    }
    if options.cache_folder is not None and model_folder is not None:
        chosen["trt_timing_cache_enable"] = "1"
        chosen["trt_timing_cache_path"] = str(options.cache_folder)
        chosen["trt_engine_cache_enable"] = "1"
        chosen["trt_engine_cache_path"] = str(model_folder)
        chosen["trt_engine_cache_prefix"] = "edgetune"
    return chosen


def _rtx_options(options: EpOptions, model_folder: Path | None) -> Options:
    """Types are the file's and the device is chosen among the plugin's devices, so neither is an option."""
    chosen = _profile(TENSORRT_RTX_EP, options)
    if model_folder is not None:
        chosen["nv_runtime_cache_path"] = str(model_folder)
    return chosen


def _profile(name: str, options: EpOptions) -> Options:
    if options.crop_size is None:
        return {}
    size = options.crop_size
    batches = {"min": options.min_batch, "opt": options.opt_batch, "max": options.max_batch}
    return {
        _PROFILE_OPTION[name].format(which): f"{IMAGE_INPUT}:{batch}x{size}x{size}x3"
        for which, batch in batches.items()
    }

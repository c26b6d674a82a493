"""What the Open Inference Protocol V2 tells about a server and its model, beside answers: plain dicts for JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from edgetune.core.tensors import TensorSpec
from edgetune.serve.wire.v2_request import WireContract
from edgetune.serve.wire.v2_tensors import BYTES, datatype_of

SERVER_NAME = "edgetune"
EXTENSIONS = ("binary_tensor_data", "classification", "model_repository", "statistics", "model_configuration",
              "schedule_policy", "parameters")  # fmt: skip

ONNX_PLATFORM, PLAN_PLATFORM = "onnxruntime_onnx", "tensorrt_plan"
CPU_KIND, GPU_KIND = "KIND_CPU", "KIND_GPU"
READY, LOADING, UNLOADING, UNAVAILABLE = "READY", "LOADING", "UNLOADING", "UNAVAILABLE"

_BACKENDS = {ONNX_PLATFORM: "onnxruntime", PLAN_PLATFORM: "tensorrt"}
_FILENAMES = {ONNX_PLATFORM: "model.onnx", PLAN_PLATFORM: "model.plan"}


@dataclass(frozen=True)
class ModelPage:
    """A served model in its own words; `details` are parameters of the metadata that no protocol names, such as the
    digest of the bundle.
    """

    name: str
    version: str
    platform: str
    contract: WireContract
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Placement:
    """How a model runs: `instances` of it on a `kind` of device, and its thread plan as names and numbers.

    `max_queue_delay_us` is how long a batch waits for more items; None where items are not put together.
    """

    kind: str = CPU_KIND
    instances: int = 1
    thread_plan: Mapping[str, Any] = field(default_factory=dict)
    max_queue_delay_us: int | None = None


def server_metadata(version: str, models: Sequence[str]) -> dict[str, Any]:
    """With `models`, which the protocol does not have: a client that knows only the address can find the model."""
    return {"name": SERVER_NAME, "version": version, "extensions": list(EXTENSIONS), "models": list(models)}


def model_metadata(page: ModelPage) -> dict[str, Any]:
    contract = page.contract
    return {
        "name": page.name,
        "versions": [page.version],
        "platform": page.platform,
        "inputs": [_tensor(spec) for spec in contract.inputs],
        "outputs": [_tensor(spec) for spec in contract.outputs],
        "parameters": {
            **page.details,
            "classes": list(contract.classes),
            "max_batch": contract.max_batch,
            "max_json_bytes": contract.max_json_bytes,
            "image_files": [{"input": spec.name, "datatype": BYTES} for spec in _file_inputs(contract)],
        },
    }


def model_config(page: ModelPage, placement: Placement) -> dict[str, Any]:
    """Triton's model configuration as JSON. Batches are those that a client may send, 0 where the model fixes them."""
    contract = page.contract
    is_batched = contract.is_batched
    config: dict[str, Any] = {
        "name": page.name,
        "platform": page.platform,
        "backend": _BACKENDS[page.platform],
        "default_model_filename": _FILENAMES[page.platform],
        "version_policy": {"latest": {"num_versions": 1}},
        "max_batch_size": contract.max_batch if is_batched else 0,
        "input": [_configured_input(spec, contract, is_batched) for spec in contract.inputs],
        "output": [_configured(spec, is_batched) for spec in contract.outputs],
        "instance_group": [{"name": page.name, "count": placement.instances, "kind": placement.kind}],
        "parameters": {key: {"string_value": str(value)} for key, value in placement.thread_plan.items()},
    }
    if placement.max_queue_delay_us is not None:
        config["dynamic_batching"] = {"max_queue_delay_microseconds": placement.max_queue_delay_us}
    return config


def repository_index(
    name: str, version: str, *, state: str = READY, reason: str = "", only_ready: bool = False
) -> list[dict[str, str]]:
    """The one model, or nothing where only ready ones are asked for and it is not."""
    if only_ready and state != READY:
        return []
    return [{"name": name, "version": version, "state": state, "reason": reason}]


def _file_inputs(contract: WireContract) -> list[TensorSpec]:
    return [spec for spec in contract.inputs if contract.takes_files(spec)]


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": datatype_of(spec), "shape": _sizes(spec.shape)}


def _sizes(shape: Sequence[int | None]) -> list[int]:
    return [-1 if size is None else size for size in shape]


def _configured(spec: TensorSpec, is_batched: bool) -> dict[str, Any]:
    dims = _sizes(spec.shape[1:] if is_batched else spec.shape)
    return {"name": spec.name, "data_type": f"TYPE_{datatype_of(spec)}", "dims": dims}


def _configured_input(spec: TensorSpec, contract: WireContract, is_batched: bool) -> dict[str, Any]:
    """With the order of an image's axes, which the configuration knows only for images without a batch."""
    is_image = spec.name == contract.image_input and is_batched
    return {**_configured(spec, is_batched), "format": "FORMAT_NHWC" if is_image else "FORMAT_NONE"}

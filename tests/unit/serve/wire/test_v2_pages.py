from __future__ import annotations

import dataclasses
import json
from typing import Any

from edgetune.core.tensors import TensorSpec
from edgetune.serve.wire.v2_pages import (
    GPU_KIND,
    LOADING,
    PLAN_PLATFORM,
    ModelPage,
    Placement,
    model_config,
    model_metadata,
    repository_index,
    server_metadata,
)
from edgetune.serve.wire.v2_request import WireContract

CONTRACT = WireContract(
    inputs=(TensorSpec("image", "uint8", (None, 224, 224, 3)),),
    outputs=(TensorSpec("logits", "float32", (None, 2)), TensorSpec("mask", "bool", (None, None, 7))),
    image_input="image",
    classes=("ant", "bee"),
    max_batch=8,
)
PAGE = ModelPage("net", "1", "onnxruntime_onnx", CONTRACT, {"artifact": "model.onnx", "max_body_bytes": 5})


def test_the_server_names_its_extensions_and_models() -> None:
    assert server_metadata("0.1", ["net"]) == {
        "name": "edgetune",
        "version": "0.1",
        "extensions": [
            "binary_tensor_data",
            "classification",
            "model_repository",
            "statistics",
            "model_configuration",
            "schedule_policy",
            "parameters",
        ],
        "models": ["net"],
    }


def test_the_metadata_names_tensors_with_their_batch() -> None:
    assert json.loads(json.dumps(model_metadata(PAGE))) == {
        "name": "net",
        "versions": ["1"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "image", "datatype": "UINT8", "shape": [-1, 224, 224, 3]}],
        "outputs": [
            {"name": "logits", "datatype": "FP32", "shape": [-1, 2]},
            {"name": "mask", "datatype": "BOOL", "shape": [-1, -1, 7]},
        ],
        "parameters": {
            "artifact": "model.onnx",
            "max_body_bytes": 5,
            "classes": ["ant", "bee"],
            "max_batch": 8,
            "max_json_bytes": 4194304,
            "image_files": [{"input": "image", "datatype": "BYTES"}],
        },
    }


def test_the_configuration_is_tritons() -> None:
    placement = Placement(instances=2, thread_plan={"intra_op_thread_count": 1, "runners": "2"})
    assert json.loads(json.dumps(model_config(PAGE, placement))) == {
        "name": "net",
        "platform": "onnxruntime_onnx",
        "backend": "onnxruntime",
        "default_model_filename": "model.onnx",
        "version_policy": {"latest": {"num_versions": 1}},
        "max_batch_size": 8,
        "input": [{"name": "image", "data_type": "TYPE_UINT8", "dims": [224, 224, 3], "format": "FORMAT_NHWC"}],
        "output": [
            {"name": "logits", "data_type": "TYPE_FP32", "dims": [2]},
            {"name": "mask", "data_type": "TYPE_BOOL", "dims": [-1, 7]},
        ],
        "instance_group": [{"name": "net", "count": 2, "kind": "KIND_CPU"}],
        "parameters": {"intra_op_thread_count": {"string_value": "1"}, "runners": {"string_value": "2"}},
    }


def _fixed(spec: TensorSpec) -> TensorSpec:
    return dataclasses.replace(spec, shape=(4, *spec.shape[1:]))


def test_a_model_of_fixed_batches_has_them_among_its_sizes() -> None:
    contract = dataclasses.replace(
        CONTRACT,
        inputs=tuple(map(_fixed, CONTRACT.inputs)),
        outputs=tuple(map(_fixed, CONTRACT.outputs)),
        image_input=None,
    )
    page = dataclasses.replace(PAGE, contract=contract, platform=PLAN_PLATFORM)
    config: Any = model_config(page, Placement(GPU_KIND, max_queue_delay_us=0))
    assert config["max_batch_size"] == 0
    assert config["backend"] == "tensorrt"
    assert config["default_model_filename"] == "model.plan"
    assert config["input"] == [
        {"name": "image", "data_type": "TYPE_UINT8", "dims": [4, 224, 224, 3], "format": "FORMAT_NONE"}
    ]
    assert config["output"][0]["dims"] == [4, 2]
    assert config["instance_group"] == [{"name": "net", "count": 1, "kind": "KIND_GPU"}]
    assert config["dynamic_batching"] == {"max_queue_delay_microseconds": 0}
    assert model_metadata(page)["parameters"]["image_files"] == []


def test_the_index_lists_the_model_and_its_state() -> None:
    assert repository_index("net", "1") == [{"name": "net", "version": "1", "state": "READY", "reason": ""}]
    loading = repository_index("net", "1", state=LOADING, reason="self-test")
    assert loading == [{"name": "net", "version": "1", "state": "LOADING", "reason": "self-test"}]
    assert repository_index("net", "1", state=LOADING, only_ready=True) == []
    assert repository_index("net", "1", only_ready=True) == repository_index("net", "1")

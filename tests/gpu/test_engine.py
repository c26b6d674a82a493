"""An engine is built and run on the NVIDIA GPU that is here, and gives what ONNX Runtime gives on the CPU."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from edgetune.core.engine_files import ENGINE_NAME, SIDECAR_NAME, sidecar_bytes
from edgetune.core.engine_record import TENSORRT_RTX, BuildOptions, EngineHost, EngineKey, EngineTensor
from edgetune.core.errors import EngineMismatchError, TensorError
from edgetune.core.files import sha256_of_file
from edgetune.core.tensors import Array
from edgetune.runners.cuda import gpu_identity
from edgetune.runners.ort_runner import OrtRunner
from edgetune.runners.trt_library import installed_backends, load_library
from edgetune.runners.trt_runner import TrtRunner, this_host
from tests.unit.core.engine_records import engine_record

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(gpu_identity() is None, reason="no NVIDIA driver, or no GPU"),
    pytest.mark.skipif(not installed_backends(), reason="neither tensorrt nor tensorrt_rtx is installed"),
]

BATCHES = (1, 2, 8)
SIZE, CHANNELS, CLASSES = 16, 8, 5

# In a process of its own, since a mistake can crash the library. Prints the network's tensors as JSON.
_BUILD = """
import importlib, json, sys
module, onnx_path, engine_path, batches = sys.argv[1], sys.argv[2], sys.argv[3], json.loads(sys.argv[4])
trt = importlib.import_module(module)
log = trt.Logger(trt.Logger.WARNING)
builder = trt.Builder(log)
weakly_typed = hasattr(trt.BuilderFlag, "FP16")
network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED) if weakly_typed else 0)
parser = trt.OnnxParser(network, log)
assert parser.parse(open(onnx_path, "rb").read()), parser.get_error(0).desc()
config = builder.create_builder_config()
config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, 1 << 28)
config.clear_flag(trt.BuilderFlag.TF32)
profile = builder.create_optimization_profile()
image = network.get_input(0)
profile.set_shape(image.name, *[(batch, *tuple(image.shape)[1:]) for batch in batches])
assert config.add_optimization_profile(profile) >= 0
engine = builder.build_serialized_network(network, config)
assert engine is not None
open(engine_path, "wb").write(bytes(engine))
tensors = [network.get_input(0), network.get_output(0)]
print(json.dumps([[tensor.name, tensor.dtype.name, list(tensor.shape)] for tensor in tensors]))
"""
_NUMPY = {"UINT8": "uint8", "FLOAT": "float32"}


def _write_model(path: Path) -> None:
    """uint8 images through a convolution, a mean and a linear layer, with weights that keep logits around 10."""
    random = np.random.default_rng(0)
    weight = random.normal(0.0, 0.01, (CHANNELS, 3, 3, 3)).astype(np.float32)
    head = random.normal(0.0, 1.0, (CLASSES, CHANNELS)).astype(np.float32)
    helper, types = onnx.helper, onnx.TensorProto
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=types.FLOAT),
        helper.make_node("Transpose", ["float"], ["nchw"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["nchw", "weight"], ["conv"], pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("Relu", ["conv"], ["relu"]),
        helper.make_node("GlobalAveragePool", ["relu"], ["pool"]),
        helper.make_node("Flatten", ["pool"], ["flat"]),
        helper.make_node("Gemm", ["flat", "head"], ["logits"], transB=1),
    ]
    constants = [onnx.numpy_helper.from_array(weight, "weight"), onnx.numpy_helper.from_array(head, "head")]
    image = helper.make_tensor_value_info("image", types.UINT8, ["batch", SIZE, SIZE, 3])
    logits = helper.make_tensor_value_info("logits", types.FLOAT, ["batch", CLASSES])
    graph = helper.make_graph(nodes, "tiny", [image], [logits], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)


def _build(path: Path, folder: Path, host: EngineHost) -> Path:
    """The engine and its sidecar in `folder`."""
    folder.mkdir()
    module = load_library(host.backend).module.__name__
    command = [sys.executable, "-c", _BUILD, module, str(path), str(folder / ENGINE_NAME), json.dumps(BATCHES)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=540, check=False)
    assert done.returncode == 0, f"the builder ended with {done.returncode}: {done.stderr[-2000:]}"
    tensors = [
        EngineTensor(name, _NUMPY[dtype], tuple(None if size < 0 else size for size in shape))
        for name, dtype, shape in json.loads(done.stdout.splitlines()[-1])
    ]
    low, best, high = BATCHES
    options = BuildOptions(min_batch=low, opt_batch=best, max_batch=high)
    key = EngineKey(host, sha256_of_file(path), "", "fp32", options)
    engine = (folder / ENGINE_NAME).read_bytes()
    record = engine_record(key, engine, inputs=tuple(tensors[:1]), outputs=tuple(tensors[1:]))
    (folder / SIDECAR_NAME).write_bytes(sidecar_bytes(record))
    return folder


@pytest.fixture(scope="module")
def host() -> EngineHost:
    host = this_host()
    if host.backend == TENSORRT_RTX:
        known = load_library(host.backend).module.ComputeCapability.__members__
        if f"SM{host.compute_capability.replace('.', '')}" not in known:
            pytest.skip(f"TensorRT-RTX {host.backend_version} has no compute capability {host.compute_capability}")
    return host


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny.onnx"
    _write_model(path)
    return path


@pytest.fixture(scope="module")
def engine(model: Path, host: EngineHost, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _build(model, tmp_path_factory.mktemp("cache") / "engine", host)


def _images(batch: int) -> Array:
    return np.random.default_rng(batch).integers(0, 256, (batch, SIZE, SIZE, 3), dtype=np.uint8)


def _check_logits(logits: Array, images: Array, model: Path) -> None:
    """FP32 on both sides, TF32 off: they differ by the order of sums, about 1e-6 of the largest logit."""
    with OrtRunner(model, threads=1) as reference:
        expected = reference.infer({"image": images})["logits"]
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, expected, rtol=0.0, atol=1e-4 * float(np.abs(expected).max()))


def test_it_gives_what_onnx_runtime_gives(model: Path, engine: Path) -> None:
    with TrtRunner(engine) as runner:
        assert runner.max_batch == BATCHES[2]
        for batch in (8, 1, 3, 8):
            images = _images(batch)
            _check_logits(runner.infer({"image": images})["logits"], images, model)


def test_threads_may_take_turns(model: Path, engine: Path) -> None:
    with ThreadPoolExecutor(1) as first, ThreadPoolExecutor(1) as second:
        runner = first.submit(TrtRunner(engine).__enter__).result()
        for batch, thread in ((2, first), (5, second), (1, first)):
            logits = thread.submit(runner.infer, {"image": _images(batch)}).result()["logits"]
            _check_logits(logits, _images(batch), model)
        second.submit(runner.__exit__, None, None, None).result()


def test_two_runners_may_be_open_and_close_in_any_order(model: Path, engine: Path) -> None:
    first, second = TrtRunner(engine), TrtRunner(engine)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    _check_logits(second.infer({"image": _images(4)})["logits"], _images(4), model)
    second.__exit__(None, None, None)
    with first:
        _check_logits(first.infer({"image": _images(4)})["logits"], _images(4), model)


@pytest.mark.parametrize("batch", [0, BATCHES[2] + 1])
def test_a_batch_outside_the_profile_is_refused_and_does_no_harm(batch: int, model: Path, engine: Path) -> None:
    with TrtRunner(engine) as runner:
        with pytest.raises(TensorError, match=f"the batch is {batch}, the engine was built for 1 to 8"):
            runner.infer({"image": np.zeros((batch, SIZE, SIZE, 3), np.uint8)})
        _check_logits(runner.infer({"image": _images(3)})["logits"], _images(3), model)


def test_another_drivers_engine_is_refused(engine: Path, host: EngineHost) -> None:
    other = dataclasses.replace(host, driver="1.2.3")
    with pytest.raises(EngineMismatchError, match=rf"driver {re.escape(host.driver)}, and this machine has 1\.2\.3"):
        TrtRunner(engine, host=other).__enter__()


def test_the_gpu_is_the_one_that_pytorch_sees() -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("PyTorch sees no CUDA device")
    identity, properties = gpu_identity(), torch.cuda.get_device_properties(0)
    assert identity is not None
    assert identity.name == properties.name
    assert identity.compute_capability == f"{properties.major}.{properties.minor}"
    assert identity.memory_bytes == properties.total_memory

"""Models whose inputs or outputs do not all begin with an open batch: a request must not be cut in parts there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgetune.core.tensors import Array
from edgetune.serve.settings import Batching
from tests.served_models import NO_BATCHING, onnx_model, serving_onnx

triton = pytest.importorskip("tritonclient.http", reason="the standard client, tritonclient[http], is not installed")
pytestmark = pytest.mark.e2e

Serve = Callable[..., Any]


def _floats(name: str, shape: list[str | int | None]) -> Any:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


@pytest.fixture
def serve(tmp_path: Path) -> Serve:
    """Serves one node from `inputs` to `y`, and yields a client."""

    @contextmanager
    def serve(node: Any, inputs: list[Any], output: Any, batching: Batching = NO_BATCHING) -> Iterator[Any]:
        model = onnx_model([node], inputs, [output], [numpy_helper.from_array(np.array([0]), "axes")])
        with (
            serving_onnx(model, tmp_path / "bundle", "net", batching) as address,
            triton.InferenceServerClient(urlsplit(address).netloc, concurrency=4) as client,
        ):
            yield client

    return serve


def _inputs(**arrays: Array) -> list[Any]:
    return [
        triton.InferInput(name, list(array.shape), "FP32").set_data_from_numpy(array) for name, array in arrays.items()
    ]


def _infer(client: Any, **arrays: Array) -> Array:
    answer: Array = client.infer("net", _inputs(**arrays)).as_numpy("y")
    return answer


def _counting(count: int) -> Array:
    return np.arange(3 * count, dtype=np.float32).reshape(count, 3)


def test_a_batch_that_the_model_fixes(serve: Serve) -> None:
    with serve(helper.make_node("Neg", ["x"], ["y"]), [_floats("x", [4, 3])], _floats("y", [4, 3])) as client:
        assert client.get_model_config("net")["max_batch_size"] == 0
        np.testing.assert_array_equal(_infer(client, x=_counting(4)), -_counting(4))


@pytest.mark.parametrize("count", [1, 2, 5])
def test_an_input_without_a_batch(serve: Serve, count: int) -> None:
    inputs = [_floats("x", ["n", 3]), _floats("scale", [1])]
    with serve(helper.make_node("Mul", ["x", "scale"], ["y"]), inputs, _floats("y", ["n", 3])) as client:
        scale = np.array([2], np.float32)
        np.testing.assert_array_equal(_infer(client, x=_counting(count), scale=scale), 2 * _counting(count))
        np.testing.assert_array_equal(_infer(client, scale=scale, x=_counting(count)), 2 * _counting(count))


@pytest.mark.parametrize("count", [1, 2, 5])
def test_an_output_without_a_batch(serve: Serve, count: int) -> None:
    node = helper.make_node("ReduceSum", ["x", "axes"], ["y"], keepdims=0)
    with serve(node, [_floats("x", ["n", 3])], _floats("y", [3])) as client:
        np.testing.assert_array_equal(_infer(client, x=_counting(count)), _counting(count).sum(0))


@pytest.mark.parametrize("count", [1, 2, 5])
def test_an_output_without_any_axis(serve: Serve, count: int) -> None:
    node = helper.make_node("ReduceSum", ["x"], ["y"], keepdims=0)
    with serve(node, [_floats("x", ["n", 3])], _floats("y", [])) as client:
        answer = _infer(client, x=_counting(count))
    assert (answer.shape, answer.item()) == ((), _counting(count).sum())


def test_one_request_is_not_in_the_answer_of_another(serve: Serve) -> None:
    """Requests that are put together would be summed up together."""
    node = helper.make_node("ReduceSum", ["x", "axes"], ["y"], keepdims=0)
    with serve(node, [_floats("x", ["n", 3])], _floats("y", [3]), Batching(8, 0.05)) as client:
        waiting = [client.async_infer("net", _inputs(x=np.full((1, 3), value, np.float32))) for value in range(4)]
        found = [handle.get_result(timeout=30).as_numpy("y").tolist() for handle in waiting]
    assert found == [[value] * 3 for value in range(4)]

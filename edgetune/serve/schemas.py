"""The Open Inference Protocol V2 over REST: requests in, responses out, JSON and binary tensors.

Follows the protocol's `inference_rest.md` and its `binary_tensor_data` extension as Triton implements it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from edgetune.core.tensors import Array, TensorSpec

BINARY_HEADER = "inference-header-content-length"

_DATATYPES = {"bool": "BOOL", "uint8": "UINT8", "int8": "INT8", "int32": "INT32", "int64": "INT64", "float16": "FP16",
              "float32": "FP32", "float64": "FP64"}  # fmt: skip


class RequestError(Exception):
    """A request that cannot be served; `status` is the HTTP status and the message goes to the client."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


@dataclass(frozen=True)
class InferRequest:
    """`outputs` maps each wanted output to whether it is to be sent as binary."""

    id: str | None
    feed: dict[str, Array]
    outputs: dict[str, bool]


def datatype_of(spec: TensorSpec) -> str:
    return _DATATYPES[spec.dtype]


def parse_infer_request(
    body: bytes,
    header_length: str | None,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    max_batch: int,
) -> InferRequest:
    """Reads an infer request; `header_length` is the value of `Inference-Header-Content-Length`, if it was sent.

    Raises:
        RequestError: 400 with what is wrong, or 501 for an extension that is not supported.
    """
    if header_length is None:
        return _parse_message(body, b"", inputs, outputs, max_batch)
    length = _parse_length(header_length, len(body))
    if length == 0:
        return _parse_raw(body, inputs, outputs, max_batch)
    return _parse_message(body[:length], body[length:], inputs, outputs, max_batch)


def encode_infer_response(
    request: InferRequest, results: dict[str, Array], model_name: str, version: str
) -> tuple[bytes, dict[str, str]]:
    """Returns the response's body and headers.

    Raises:
        RequestError: 500 when NaN or infinity would have to be written as JSON.
    """
    entries: list[dict[str, Any]] = []
    blobs: list[bytes] = []
    for name, as_binary in request.outputs.items():
        array = results[name]
        entry: dict[str, Any] = {"name": name, "datatype": _DATATYPES[array.dtype.name], "shape": list(array.shape)}
        if as_binary:
            blob = np.ascontiguousarray(array).tobytes()
            entry["parameters"] = {"binary_data_size": len(blob)}
            blobs.append(blob)
        elif np.isfinite(array).all():
            entry["data"] = array.ravel().tolist()
        else:
            raise RequestError(
                500, f"output {name!r} holds NaN or infinity, which JSON cannot carry; ask for binary_data"
            )
        entries.append(entry)
    message: dict[str, Any] = {"model_name": model_name, "model_version": version, "outputs": entries}
    if request.id is not None:
        message["id"] = request.id
    head = orjson.dumps(message)
    if not blobs:
        return head, {"content-type": "application/json"}
    headers = {"content-type": "application/octet-stream", BINARY_HEADER: str(len(head))}
    return b"".join([head, *blobs]), headers


def _parse_length(text: str, body_bytes: int) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 12 or int(text) > body_bytes:
        raise RequestError(400, f"inference header size should be in range (0, {body_bytes}), got: {text[:32]}")
    return int(text)


def _parse_raw(
    body: bytes, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], max_batch: int
) -> InferRequest:
    """The whole body is the one input; its batch size follows from the number of bytes."""
    (spec,) = inputs
    fixed = [size for size in spec.shape[1:] if size is not None]
    item_bytes = math.prod(fixed) * np.dtype(spec.dtype).itemsize
    if not body or len(body) % item_bytes:
        raise RequestError(400, f"the raw body has {len(body)} bytes, expected a multiple of {item_bytes}")
    shape = [len(body) // item_bytes, *fixed]
    _check_shape(shape, spec, max_batch)
    array = np.frombuffer(body, dtype=spec.dtype).reshape(shape)
    return InferRequest(None, {spec.name: array}, {output.name: True for output in outputs})


def _parse_message(
    head: bytes, tail: bytes, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], max_batch: int
) -> InferRequest:
    message = _parse_json(head)
    specs = {spec.name: spec for spec in inputs}
    entries = _list_of_objects(message, "inputs")
    names = [_string(entry, "name", "input") for entry in entries]
    if sorted(names) != sorted(specs):
        raise RequestError(400, f"the inputs are {[name[:64] for name in names[:8]]}, expected {sorted(specs)}")
    feed: dict[str, Array] = {}
    offset = 0
    for name, entry in zip(names, entries, strict=True):
        feed[name], offset = _parse_tensor(entry, specs[name], tail, offset, max_batch)
    if offset != len(tail):
        raise RequestError(400, f"unexpected additional input data: {len(tail) - offset} bytes")
    identifier = message.get("id")
    if identifier is not None and not isinstance(identifier, str):
        raise RequestError(400, "'id' must be a string")
    return InferRequest(identifier, feed, _parse_outputs(message, outputs))


def _parse_json(head: bytes) -> dict[str, Any]:
    try:
        message = orjson.loads(head)
    except (orjson.JSONDecodeError, RecursionError) as error:
        raise RequestError(400, f"the request is not valid JSON: {error}") from error
    if not isinstance(message, dict):
        raise RequestError(400, "the request must be a JSON object")
    return message


def _parse_tensor(
    entry: dict[str, Any], spec: TensorSpec, tail: bytes, offset: int, max_batch: int
) -> tuple[Array, int]:
    datatype = _string(entry, "datatype", f"input {spec.name!r}")
    if datatype != datatype_of(spec):
        raise RequestError(400, f"input {spec.name!r} is {datatype[:16]}, expected {datatype_of(spec)}")
    shape = entry.get("shape")
    if not isinstance(shape, list) or not all(type(size) is int for size in shape):
        raise RequestError(400, f"input {spec.name!r}: 'shape' must be a list of integers")
    _check_shape(shape, spec, max_batch)
    size = _parameters(entry).get("binary_data_size")
    if size is None:
        return _array_from_json(entry.get("data"), shape, spec), offset
    expected = math.prod(shape) * np.dtype(spec.dtype).itemsize
    if type(size) is not int or size != expected or len(tail) - offset < size or "data" in entry:
        raise RequestError(
            400,
            f"unexpected size for input {spec.name!r}: {size!r} of the {len(tail) - offset} bytes left, "
            f"expected {expected}",
        )
    array = np.frombuffer(tail, dtype=spec.dtype, count=math.prod(shape), offset=offset).reshape(shape)
    return array, offset + size


def _check_shape(shape: list[int], spec: TensorSpec, max_batch: int) -> None:
    fits = len(shape) == len(spec.shape) and all(
        have >= 1 if want is None else have == want for have, want in zip(shape, spec.shape, strict=True)
    )
    if not fits:
        wanted = [-1 if size is None else size for size in spec.shape]
        raise RequestError(400, f"input {spec.name!r} has shape {shape[:8]}, expected {wanted}")
    if shape[0] > max_batch:
        raise RequestError(400, f"input {spec.name!r} holds {shape[0]} items, at most {max_batch} are served at once")


def _array_from_json(data: Any, shape: list[int], spec: TensorSpec) -> Array:
    if not isinstance(data, list):
        raise RequestError(400, f"input {spec.name!r} has neither 'data' nor 'binary_data_size'")
    count = _count_integers(data, spec.name)
    if count != math.prod(shape):
        raise RequestError(
            400, f"input {spec.name!r}: 'data' holds {count} values, expected {math.prod(shape)} integers"
        )  # fmt: skip
    try:
        values = np.array(data)
    except ValueError as error:
        raise RequestError(400, f"input {spec.name!r}: 'data' is not a regular array of numbers") from error
    limits = np.iinfo(spec.dtype)
    if values.min() < limits.min or values.max() > limits.max:
        raise RequestError(400, f"input {spec.name!r}: 'data' must lie in {limits.min}..{limits.max}")
    return values.astype(spec.dtype).reshape(shape)


def _count_integers(data: list[Any], name: str) -> int:
    """How many integers a flat or nested list holds, and nothing else. Types are checked before numpy sees them:
    an array of strings would be as wide as its longest element, whatever the others are.
    """
    count = 0
    pending: list[Any] = [data]
    while pending:
        item = pending.pop()
        if type(item) is int:
            count += 1
        elif not isinstance(item, list):
            raise RequestError(400, f"input {name!r}: 'data' holds a {type(item).__name__}, expected integers")
        elif all(type(value) is int for value in item):
            count += len(item)
        else:
            pending.extend(item)
    return count


def _parse_outputs(message: dict[str, Any], outputs: tuple[TensorSpec, ...]) -> dict[str, bool]:
    known = [spec.name for spec in outputs]
    default = _parameters(message).get("binary_data_output", False) is True
    if "outputs" not in message:
        return dict.fromkeys(known, default)
    wanted: dict[str, bool] = {}
    for entry in _list_of_objects(message, "outputs"):
        name = _string(entry, "name", "output")
        if name not in known or name in wanted:
            raise RequestError(400, f"output {name[:64]!r} is unknown or asked for twice; the model has {known}")
        parameters = _parameters(entry)
        if parameters.get("classification"):
            raise RequestError(501, "the classification extension is not supported; POST images to /v1/classify")
        wanted[name] = parameters.get("binary_data", default) is True
    return wanted or dict.fromkeys(known, default)


def _parameters(entry: dict[str, Any]) -> dict[str, Any]:
    parameters = entry.get("parameters") or {}
    if not isinstance(parameters, dict):
        raise RequestError(400, "'parameters' must be an object")
    return parameters


def _list_of_objects(message: dict[str, Any], key: str) -> list[dict[str, Any]]:
    entries = message.get(key)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise RequestError(400, f"{key!r} must be a list of objects")
    return entries


def _string(entry: dict[str, Any], key: str, where: str) -> str:
    value = entry.get(key)
    if not isinstance(value, str):
        raise RequestError(400, f"{where}: {key!r} must be a string")
    return value

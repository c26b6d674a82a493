"""The client's side of the Open Inference Protocol V2: metadata in, requests out, answers in.

Follows `inference_rest.md` and its `binary_tensor_data` extension. What a server sends is checked before it is used.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edgetune.core.errors import ModelError, TensorError, first_line
from edgetune.core.tensors import Array, Feed, TensorSpec
from edgetune.runners.http_client import SMALL_ANSWER_BYTES, Answer, shortened

BINARY_HEADER = "inference-header-content-length"

# The protocol's names; numpy has no BF16, and BYTES holds no numbers.
_DTYPES = {"BOOL": "bool", "UINT8": "uint8", "UINT16": "uint16", "UINT32": "uint32", "UINT64": "uint64",
           "INT8": "int8", "INT16": "int16", "INT32": "int32", "INT64": "int64", "FP16": "float16", "FP32": "float32",
           "FP64": "float64"}  # fmt: skip
_DATATYPES = {dtype: datatype for datatype, dtype in _DTYPES.items()}

# A number as JSON, with its comma and some white space.
_JSON_NUMBER_BYTES = 40
# Also where the metadata leaves the size of an output open, or says that it is huge.
_LARGEST_ANSWER_BYTES = 1 << 26


def read_json(answer: Answer) -> Any:
    """The JSON of an answer's body. Raises `ModelError`."""
    return _parse_json(answer.body, answer.source)


def _parse_json(data: bytes, source: str) -> Any:
    """Refuses NaN and Infinity too, which are no JSON, though Python takes them."""

    def refuse(word: str) -> None:
        raise ModelError(f"{source}: the answer holds {word}, which is no JSON.", hint="binary tensors can carry it")

    try:
        return json.loads(data, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise ModelError(
            f"{source}: the answer is no JSON: {shortened(first_line(error))}; it begins {data[:40]!r}.",
            hint="does the address belong to a server of the Open Inference Protocol V2?",
        ) from error


def tensor_specs(metadata: dict[str, Any], key: str, source: str) -> tuple[TensorSpec, ...]:
    """The `inputs` or `outputs` of a model's metadata. Raises `ModelError`."""
    entries = _objects(metadata, key, source)
    specs = tuple(_spec(entry, f"{source}: {key}[{index}]") for index, entry in enumerate(entries))
    names = [spec.name for spec in specs]
    if not specs or len(set(names)) < len(names):
        raise ModelError(f"{source}: {key} are {shortened(str(names))}, expected one or more names, each once.")
    return specs


def _spec(entry: dict[str, Any], where: str) -> TensorSpec:
    name, datatype, shape = entry.get("name"), entry.get("datatype"), entry.get("shape")
    if not isinstance(name, str) or not name:
        raise ModelError(f"{where}: the name is {shortened(repr(name))}, expected a word.")
    if not isinstance(datatype, str) or datatype not in _DTYPES:
        known = ", ".join(_DTYPES)
        raise ModelError(f"{where}: the datatype is {shortened(repr(datatype))}, expected one of {known}.")
    if not isinstance(shape, list) or not all(type(size) is int and (size > 0 or size == -1) for size in shape):
        raise ModelError(f"{where}: the shape is {shortened(repr(shape))}, expected sizes above 0, or -1 for any.")
    return TensorSpec(name, _DTYPES[datatype], tuple(None if size == -1 else size for size in shape))


def encode_infer(feed: Feed, outputs: Sequence[TensorSpec], *, binary: bool) -> tuple[bytes, dict[str, str]]:
    """The body and headers of a request for all `outputs`; with `binary`, tensors go and come back as bytes.

    Raises:
        TensorError: NaN or infinity would have to be written as JSON.
    """
    entries: list[dict[str, Any]] = []
    blobs: list[bytes] = []
    for name, array in feed.items():
        entry: dict[str, Any] = {"name": name, "shape": list(array.shape), "datatype": _DATATYPES[array.dtype.name]}
        if binary:
            blob = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
            entry["parameters"] = {"binary_data_size": len(blob)}
            blobs.append(blob)
        elif np.isfinite(array).all():
            # A Python float holds a float32 exactly and is written with as many digits as it needs.
            entry["data"] = array.ravel().tolist()
        else:
            raise TensorError(
                f"input {name!r} holds NaN or infinity, which JSON cannot carry.", hint="binary tensors can carry it"
            )
        entries.append(entry)
    wanted = [{"name": spec.name, "parameters": {"binary_data": binary}} for spec in outputs]
    head = json.dumps({"inputs": entries, "outputs": wanted}, separators=(",", ":")).encode()
    if not binary:
        return head, {"Content-Type": "application/json"}
    headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(head))}
    return b"".join([head, *blobs]), headers


def item_bytes(specs: Sequence[TensorSpec], *, binary: bool) -> int:
    """What one item of a batch weighs in a request, at most; sizes that are open count as 1."""
    widest = {"uint8": 4, "int8": 5, "bool": 6}  # digits and comma
    return sum(
        math.prod(size or 1 for size in spec.shape[1:])
        * (np.dtype(spec.dtype).itemsize if binary else widest.get(spec.dtype, _JSON_NUMBER_BYTES))
        for spec in specs
    )


def answer_bytes(specs: Sequence[TensorSpec], batch: int) -> int:
    """What the answer to a request of `batch` items may weigh, as JSON or as bytes."""
    shapes = [_expected_shape(spec, batch) for spec in specs]
    if any(None in shape for shape in shapes):
        return _LARGEST_ANSWER_BYTES
    numbers = sum(math.prod(size or 1 for size in shape) for shape in shapes)
    return min(SMALL_ANSWER_BYTES + numbers * _JSON_NUMBER_BYTES, _LARGEST_ANSWER_BYTES)


def _expected_shape(spec: TensorSpec, batch: int) -> tuple[int | None, ...]:
    return (batch, *spec.shape[1:]) if spec.shape[:1] == (None,) else spec.shape


def decode_infer(answer: Answer, model: str, specs: Sequence[TensorSpec], batch: int) -> dict[str, Array]:
    """The outputs of `specs` for `batch` items, by name, from JSON data or binary tensors.

    Raises:
        ModelError: the answer is of another model, or has other names, dtypes, shapes or sizes.
    """
    head, tail = _split_body(answer)
    source = answer.source
    message = _parse_json(head, source)
    if not isinstance(message, dict):
        raise ModelError(f"{source}: the answer is a JSON {type(message).__name__}, expected an object.")
    if message.get("model_name", model) != model:
        raise ModelError(f"{source}: model {shortened(repr(message['model_name']))} answers, expected {model!r}.")
    entries = _objects(message, "outputs", source)
    names = [entry.get("name") for entry in entries]
    expected = {spec.name: spec for spec in specs}
    if not all(isinstance(name, str) for name in names) or sorted(map(str, names)) != sorted(expected):
        raise ModelError(f"{source}: the outputs are {shortened(str(names))}, expected {sorted(expected)}.")
    outputs: dict[str, Array] = {}
    for entry in entries:
        spec = expected[entry["name"]]
        outputs[spec.name], tail = _read_tensor(entry, spec, tail, batch, source)
    if tail:
        raise ModelError(f"{source}: {len(tail)} bytes follow the last output, expected none.")
    return outputs


def _split_body(answer: Answer) -> tuple[bytes, memoryview]:
    text = answer.headers.get(BINARY_HEADER)
    if text is None:
        return answer.body, memoryview(b"")
    if not (text.isascii() and text.isdigit() and len(text) < 12 and int(text) <= len(answer.body)):
        raise ModelError(
            f"{answer.source}: {BINARY_HEADER} is {shortened(text)!r}, expected 0 to the {len(answer.body)} bytes "
            "of the answer."
        )  # fmt: skip
    return answer.body[: int(text)], memoryview(answer.body)[int(text) :]


def _read_tensor(
    entry: dict[str, Any], spec: TensorSpec, tail: memoryview, batch: int, source: str
) -> tuple[Array, memoryview]:
    where = f"{source}: output {spec.name!r}"
    shape = _check_kind(entry, spec, batch, where)
    parameters = entry.get("parameters")
    size = parameters.get("binary_data_size") if isinstance(parameters, dict) else None
    if size is None:
        return _array_from_json(entry.get("data"), spec, shape, where), tail
    expected = math.prod(shape) * np.dtype(spec.dtype).itemsize
    if type(size) is not int or size != expected or size > len(tail):
        raise ModelError(
            f"{where} is announced with {shortened(repr(size))} bytes and {len(tail)} came, expected {expected}."
        )  # fmt: skip
    array = np.frombuffer(tail[:size], np.dtype(spec.dtype).newbyteorder("<")).reshape(shape)
    return array.astype(spec.dtype), tail[size:]


def _check_kind(entry: dict[str, Any], spec: TensorSpec, batch: int, where: str) -> tuple[int, ...]:
    """The output's shape; the datatype and shape are the metadata's, for this batch."""
    datatype, shape, wanted = entry.get("datatype"), entry.get("shape"), _expected_shape(spec, batch)
    if datatype != _DATATYPES[spec.dtype]:
        raise ModelError(f"{where} is {shortened(repr(datatype))}, expected {_DATATYPES[spec.dtype]!r}.")
    fits = (
        isinstance(shape, list)
        and len(shape) == len(wanted)
        and all(
            type(have) is int and (0 <= have < 1 << 32 if want is None else have == want)
            for have, want in zip(shape, wanted, strict=True)
        )
    )
    if not isinstance(shape, list) or not fits:
        sizes = ["any" if size is None else size for size in wanted]
        raise ModelError(f"{where} has the shape {shortened(repr(shape))}, expected {sizes}.")
    return tuple(shape)


def _array_from_json(data: Any, spec: TensorSpec, shape: tuple[int, ...], where: str) -> Array:
    """Flat or nested lists, in row-major order. Raises `ModelError` for anything but numbers that the dtype holds."""
    if not isinstance(data, list):
        raise ModelError(f"{where} has neither 'data' nor 'binary_data_size'.")
    values = _flattened(data, len(shape))
    if len(values) != math.prod(shape):
        raise ModelError(f"{where} holds {len(values)} values, expected {math.prod(shape)}.")
    dtype = np.dtype(spec.dtype)
    kinds = {"f": (int, float), "b": (bool,)}.get(dtype.kind, (int,))
    odd = [value for value in values if type(value) not in kinds]
    if odd:
        raise ModelError(f"{where} holds {shortened(repr(odd[0]), 40)}, expected {spec.dtype} numbers.")
    if dtype.kind in "iu" and values and not np.iinfo(dtype).min <= min(values) <= max(values) <= np.iinfo(dtype).max:
        raise ModelError(f"{where} holds a number that is too large for {spec.dtype}.")
    array = finite_from_json(values, dtype, where) if dtype.kind == "f" else np.array(values, dtype)
    return array.reshape(shape)


def finite_from_json(values: list[Any], dtype: npt.DTypeLike, where: str) -> Array:
    """Python's numbers as floats. Raises `ModelError` for one that becomes infinite."""
    try:
        with np.errstate(over="ignore"):
            array = np.array(values, np.float64).astype(dtype)
        is_finite = bool(np.isfinite(array).all())
    except OverflowError:  # an integer of hundreds of digits
        is_finite = False
    if not is_finite:
        raise ModelError(f"{where} holds a number that is too large for {np.dtype(dtype).name}.")
    return array


def _flattened(data: list[Any], depth: int) -> list[Any]:
    """What nested lists hold, from left to right; lists deeper than `depth` stay as they are."""
    for _ in range(depth - 1):
        if any(isinstance(item, list) for item in data):
            data = [value for item in data for value in (item if isinstance(item, list) else [item])]
    return data


def _objects(message: dict[str, Any], key: str, source: str) -> list[dict[str, Any]]:
    entries = message.get(key)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ModelError(f"{source}: {key!r} is {shortened(repr(entries), 80)}, expected a list of objects.")
    return entries

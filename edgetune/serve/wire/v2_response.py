"""Answers of the Open Inference Protocol V2 over REST: arrays in, JSON and bytes out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import orjson

from edgetune.core.tensors import LOGITS_OUTPUT, Array
from edgetune.serve.errors import RequestError
from edgetune.serve.wire.v2_request import MAX_TOP, InferRequest, WantedOutput
from edgetune.serve.wire.v2_tensors import BINARY_HEADER, BYTES, DATATYPES, join_elements, little_endian

MAX_JSON_BYTES = 4 << 20
_DATATYPES = {np.dtype(name): datatype for name, datatype in DATATYPES.items()}  # a dtype's name is slow to ask for

# A digit and a comma, with a point and another digit for floats.
_LEAST_INTEGER_BYTES, _LEAST_FLOAT_BYTES = 2, 4


def encode_infer_response(
    request: InferRequest, results: Mapping[str, Array], model_name: str, version: str, classes: tuple[str, ...]
) -> tuple[bytes, dict[str, str]]:
    """Returns the response's body and headers; `results` holds the model's outputs, a row for each item.

    Raises:
        RequestError: 500 when NaN or infinity would have to be written as JSON, 400 for an answer that JSON is too
            large for.
    """
    entries: list[dict[str, Any]] = []
    blobs: list[bytes | memoryview] = []
    for wanted in request.outputs:
        array = results[wanted.name]
        labels = _labels(wanted.name, results, classes)
        entry, blob = _classes_entry(wanted, array, labels) if wanted.top else _tensor_entry(wanted, array)
        entries.append(entry)
        if blob is not None:
            blobs.append(blob)
    message: dict[str, Any] = {"model_name": model_name, "model_version": version, "outputs": entries}
    if request.id is not None:
        message["id"] = request.id
    head = orjson.dumps(message, option=orjson.OPT_SERIALIZE_NUMPY)
    if len(head) > MAX_JSON_BYTES:
        raise _too_large(len(head))
    if not any(wanted.binary for wanted in request.outputs):
        return head, {"content-type": "application/json"}
    headers = {"content-type": "application/octet-stream", BINARY_HEADER: str(len(head))}
    return b"".join([head, *blobs]), headers


def _tensor_entry(wanted: WantedOutput, array: Array) -> tuple[dict[str, Any], bytes | memoryview | None]:
    entry: dict[str, Any] = {"name": wanted.name, "datatype": _DATATYPES[array.dtype], "shape": array.shape}
    if wanted.binary:
        blob = little_endian(array)
        return {**entry, "parameters": {"binary_data_size": blob.nbytes}}, blob
    _check_json(wanted.name, array)
    return {**entry, "data": array.ravel()}, None


def _check_json(name: str, array: Array) -> None:
    """Raises `RequestError` before anything is written where JSON cannot carry the array."""
    if array.dtype == np.float16:
        raise RequestError(400, f"output {name!r} is FP16, which JSON cannot carry; ask for binary_data")
    least_bytes = array.size * (_LEAST_FLOAT_BYTES if array.dtype.kind == "f" else _LEAST_INTEGER_BYTES)
    if least_bytes > MAX_JSON_BYTES:
        raise _too_large(least_bytes)
    _check_finite(name, array)


def _check_finite(name: str, array: Array) -> None:
    if not np.isfinite(array).all():
        raise RequestError(
            500,
            f"output {name!r} holds NaN or infinity, which JSON cannot carry; ask for binary_data",
            reason="nonfinite",
        )


def _too_large(least_bytes: int) -> RequestError:
    return RequestError(
        400, f"the answer has at least {least_bytes} bytes of JSON, over the limit of {MAX_JSON_BYTES}; "
        "ask for binary_data"
    )  # fmt: skip


def _labels(name: str, results: Mapping[str, Array], classes: tuple[str, ...]) -> tuple[str, ...]:
    """The labels of an output's last axis: of the logits, or where there are none, of any output as long."""
    is_labelled = name == LOGITS_OUTPUT or LOGITS_OUTPUT not in results
    return classes if is_labelled and results[name].shape[-1:] == (len(classes),) else ()


def _classes_entry(
    wanted: WantedOutput, array: Array, labels: tuple[str, ...]
) -> tuple[dict[str, Any], bytes | memoryview | None]:
    """The classification extension: texts `value:index`, with `:label` where there is one."""
    rows = array.reshape(array.shape[0], -1)
    top = min(wanted.top, rows.shape[1])
    if top * len(rows) > MAX_TOP:
        raise RequestError(400, f"output {wanted.name!r}: {top * len(rows)} classes are asked for, at most {MAX_TOP}")
    if not wanted.binary:
        _check_finite(wanted.name, array)
    texts = [text for row in rows for text in _best(row, top, labels)]
    entry: dict[str, Any] = {"name": wanted.name, "datatype": BYTES, "shape": [len(rows), top]}
    if not wanted.binary:
        return {**entry, "data": texts}, None
    blob = join_elements(texts)
    return {**entry, "parameters": {"binary_data_size": len(blob)}}, blob


def _best(row: Array, top: int, labels: tuple[str, ...]) -> list[str]:
    """Largest first, equal ones by index, NaN last; values as C's `%f` or `%d` writes them.

    The complement turns the order of integers around without overflow, as the minus sign does for floats.
    """
    is_float = row.dtype.kind == "f"
    order = np.argsort(-row if is_float else ~row, kind="stable")[:top].tolist()
    form = "%f:%d" if is_float else "%d:%d"
    pairs = [form % pair for pair in zip(row[order].tolist(), order, strict=True)]
    return [f"{pair}:{labels[index]}" for pair, index in zip(pairs, order, strict=True)] if labels else pairs

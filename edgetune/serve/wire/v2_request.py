"""Infer requests of the Open Inference Protocol V2 over REST: bytes in, arrays or image files out.

Follows `inference_rest.md` and the extensions `binary_tensor_data`, `classification`, `schedule_policy` and
`parameters` as Triton implements them. Clients send any Content-Type or none, so `Inference-Header-Content-Length`
alone tells the forms of a body apart.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from edgetune.core.tensors import Array, TensorSpec
from edgetune.serve.errors import RequestError
from edgetune.serve.wire.v2_json import flag_of, objects_of, parameters_of, parse_object, shown, string_of
from edgetune.serve.wire.v2_tensors import (
    BYTES,
    array_from_bytes,
    array_from_json,
    check_count,
    check_shape,
    claimed_shape,
    datatype_of,
    raw_shape,
    split_elements,
    tensor_bytes,
)

MAX_ID_CHARACTERS = 256
MAX_TOP = 1_000_000

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG_START, _JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
_SHARED_MEMORY = "shared_memory"
# What the protocol's clients may send although they mean nothing by it.
_UNSUPPORTED = ("priority", "sequence_id", "sequence_start", "sequence_end")


@dataclass(frozen=True)
class WireContract:
    """What a model takes and gives on the wire, and the limits; made once a model.

    `image_input` names the uint8 input `(N, H, W, 3)` that may also come as image files, None where there is none.
    `classes` are in the order of the logits; `max_batch` counts the items of one request.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    image_input: str | None
    classes: tuple[str, ...]
    max_batch: int = 256
    max_json_bytes: int = 4 << 20

    @functools.cached_property
    def is_batched(self) -> bool:
        """Whether all inputs and outputs begin with the number of items, so that requests can be split and joined."""
        return all(spec.shape[:1] == (None,) for spec in (*self.inputs, *self.outputs))

    @functools.cached_property
    def all_binary(self) -> tuple[WantedOutput, ...]:
        return tuple(WantedOutput(output.name, binary=True) for output in self.outputs)

    @functools.cached_property
    def item_bytes(self) -> int:
        """What one item of the first input weighs; open sizes count as 1."""
        return tensor_bytes(self.inputs[0], [size or 1 for size in self.inputs[0].shape[1:]])

    def takes_files(self, spec: TensorSpec) -> bool:
        return spec.name == self.image_input and len(self.inputs) == 1


@dataclass(frozen=True)
class WantedOutput:
    """With `top` above 0, that many best classes of each item as text, in place of the numbers."""

    name: str
    binary: bool
    top: int = 0


@dataclass(frozen=True)
class InferRequest:
    """Either `feed` has every input, or it is empty and `files` has an encoded image for each item.

    Both may be views of the request's body.
    """

    id: str | None
    feed: dict[str, Array]
    files: tuple[memoryview, ...]
    outputs: tuple[WantedOutput, ...]
    timeout_us: int | None

    @property
    def count(self) -> int:
        """The items of the request."""
        if self.files:
            return len(self.files)
        first = next(iter(self.feed.values()))
        return first.shape[0] if first.ndim else 1


def parse_infer_request(
    body: bytes | bytearray, header_length: str | None, content_type: str, contract: WireContract
) -> InferRequest:
    """Reads an infer request; `header_length` is the value of `Inference-Header-Content-Length`, if it was sent.

    Raises:
        RequestError: 400 with what is wrong, 413 for too much JSON, 501 for an extension that is not supported.
    """
    length = len(body) if header_length is None else _parse_length(header_length, len(body))
    if header_length is not None and length == 0:
        return _parse_raw(memoryview(body), content_type, contract)
    if length > contract.max_json_bytes:
        raise RequestError(
            413,
            f"the JSON of the request has {length} bytes, over the limit of {contract.max_json_bytes}; "
            "send tensors as binary data",
            reason="too_large",
        )
    message = parse_object(body[:length])
    parameters = parameters_of(message)
    timeout_us = _parse_timeout(parameters)
    feed, files = _parse_inputs(message, memoryview(body)[length:], contract)
    return InferRequest(_parse_id(message), feed, files, _parse_outputs(message, parameters, contract), timeout_us)


def _parse_length(text: str, body_bytes: int) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 12 or int(text) > body_bytes:
        raise RequestError(400, f"inference header size should be in range (0, {body_bytes}), got: {shown(text)}")
    return int(text)


def _parse_raw(body: memoryview, content_type: str, contract: WireContract) -> InferRequest:
    """The whole body is the one input, and all outputs come as bytes."""
    if len(contract.inputs) != 1:
        raise RequestError(400, f"a raw body is for models with one input, this one has {len(contract.inputs)}")
    (spec,) = contract.inputs
    outputs = contract.all_binary
    if contract.takes_files(spec) and body.nbytes and _is_file(body, contract.item_bytes, content_type):
        return InferRequest(None, {}, (body,), outputs, None)
    shape = raw_shape(body.nbytes, spec)
    check_shape(shape, spec, contract.max_batch)
    return InferRequest(None, {spec.name: array_from_bytes(body, spec, shape)}, (), outputs, None)


def _is_file(body: memoryview, item_bytes: int, content_type: str) -> bool:
    """Whether a body is an encoded image: pixels are whole items, and begin and end as image files only by chance."""
    if content_type.strip().lower().startswith("image/"):
        return True
    if body.nbytes % item_bytes:
        return True
    return body[:8] == _PNG or (body[:3] == _JPEG_START and body[-2:] == _JPEG_END)


def _parse_id(message: dict[str, Any]) -> str | None:
    identifier = message.get("id")
    if identifier is not None and not isinstance(identifier, str):
        raise RequestError(400, f"'id' is {shown(identifier)}, expected a string")
    if identifier is not None and len(identifier) > MAX_ID_CHARACTERS:
        raise RequestError(400, f"'id' has {len(identifier)} characters, at most {MAX_ID_CHARACTERS} are echoed")
    return identifier


def _parse_timeout(parameters: dict[str, Any]) -> int | None:
    """Microseconds, None without a timeout; also refuses what this server would have to ignore in silence."""
    for key, value in parameters.items():
        if key == "headers" or key.startswith("triton_"):
            raise RequestError(400, f"the parameter {shown(key)} is reserved")
        if key in _UNSUPPORTED and value not in (None, 0, ""):
            raise RequestError(400, f"the parameter {key!r} is {shown(value)}, it is not supported; leave it out")
    timeout = parameters.get("timeout", 0)
    if type(timeout) is not int or timeout < 0:
        raise RequestError(400, f"the parameter 'timeout' is {shown(timeout)}, expected microseconds, 0 for none")
    return timeout or None


def _parse_inputs(
    message: dict[str, Any], tail: memoryview, contract: WireContract
) -> tuple[dict[str, Array], tuple[memoryview, ...]]:
    entries = objects_of(message, "inputs")
    specs = {spec.name: spec for spec in contract.inputs}
    names = [string_of(entry, "name", "an input") for entry in entries[: len(specs) + 1]]
    if sorted(names) != sorted(specs):
        found = ", ".join(map(shown, names[:8]))
        raise RequestError(400, f"the inputs are [{found}], expected {sorted(specs)}, each once")
    feed: dict[str, Array] = {}
    files: tuple[memoryview, ...] = ()
    for name, entry in zip(names, entries, strict=True):
        blob, tail = _cut_blob(entry, name, tail)
        if _is_bytes(entry, specs[name], contract):
            files = _parse_files(entry, specs[name], blob, contract)
        else:
            feed[name] = _parse_tensor(entry, specs[name], blob, contract)
    if tail.nbytes:
        raise RequestError(400, f"unexpected additional input data: {tail.nbytes} bytes follow the last input")
    _check_batches(feed, contract)
    return feed, files


def _cut_blob(entry: dict[str, Any], name: str, tail: memoryview) -> tuple[memoryview | None, memoryview]:
    """The input's bytes and what follows them; None where its data is JSON."""
    parameters = parameters_of(entry)
    _refuse_shared_memory(parameters)
    size = parameters.get("binary_data_size")
    has_data = entry.get("data") is not None
    if size is None and has_data:
        return None, tail
    if size is None or has_data:
        fault = "both 'data' and" if has_data else "neither 'data' nor"
        raise RequestError(400, f"input {name!r} has {fault} 'binary_data_size'")
    if type(size) is not int or not 0 <= size <= tail.nbytes:
        raise RequestError(
            400,
            f"unexpected size for input {name!r}: 'binary_data_size' is {shown(size)}, {tail.nbytes} bytes are left",
        )
    return tail[:size], tail[size:]


def _refuse_shared_memory(parameters: dict[str, Any]) -> None:
    for key in parameters:
        if key.startswith(_SHARED_MEMORY):
            raise RequestError(501, "shared memory is not supported; send and take tensors as binary data")


def _is_bytes(entry: dict[str, Any], spec: TensorSpec, contract: WireContract) -> bool:
    """Whether an input comes as encoded images; any datatype but that and the model's own is refused."""
    datatype = string_of(entry, "datatype", f"input {spec.name!r}")
    takes_files = contract.takes_files(spec)
    if datatype == BYTES and takes_files:
        return True
    if datatype != datatype_of(spec):
        also = f", or {BYTES} for image files" if takes_files else ""
        raise RequestError(400, f"input {spec.name!r} is {shown(datatype)}, expected {datatype_of(spec)}{also}")
    return False


def _parse_files(
    entry: dict[str, Any], spec: TensorSpec, blob: memoryview | None, contract: WireContract
) -> tuple[memoryview, ...]:
    shape = claimed_shape(entry, spec)
    if blob is None:
        raise RequestError(400, f"input {spec.name!r}: JSON cannot carry image files; send {BYTES} as binary data")
    if len(shape) not in (1, 2) or shape[0] < 1 or shape[1:] not in ([], [1]):
        raise RequestError(400, f"input {spec.name!r}: {BYTES} has shape {shape[:8]}, expected [n] or [n, 1]")
    check_count(shape[0], spec, contract.max_batch)
    return split_elements(blob, shape[0], spec.name)


def _parse_tensor(entry: dict[str, Any], spec: TensorSpec, blob: memoryview | None, contract: WireContract) -> Array:
    shape = claimed_shape(entry, spec)
    check_shape(shape, spec, contract.max_batch)
    if blob is None:
        return array_from_json(entry["data"], spec, shape)
    expected = tensor_bytes(spec, shape)
    if blob.nbytes != expected:
        raise RequestError(400, f"unexpected size for input {spec.name!r}: {blob.nbytes} bytes, expected {expected}")
    return array_from_bytes(blob, spec, shape)


def _check_batches(feed: dict[str, Array], contract: WireContract) -> None:
    batches = {feed[spec.name].shape[0] for spec in contract.inputs if spec.name in feed and spec.shape[:1] == (None,)}
    if len(batches) > 1:
        raise RequestError(400, f"the inputs hold {sorted(batches)} items, expected one number for all")


def _parse_outputs(
    message: dict[str, Any], parameters: dict[str, Any], contract: WireContract
) -> tuple[WantedOutput, ...]:
    """Those asked for, in the client's order; all where none is named."""
    specs = {spec.name: spec for spec in contract.outputs}
    default = flag_of(parameters, "binary_data_output", default=False)
    entries = objects_of(message, "outputs") if message.get("outputs") is not None else []
    if len(entries) > len(specs):
        raise RequestError(400, f"{len(entries)} outputs are asked for, the model has {len(specs)}")
    wanted: dict[str, WantedOutput] = {}
    for entry in entries or [{"name": name} for name in specs]:
        name = string_of(entry, "name", "an output")
        if name not in specs or name in wanted:
            fault = "asked for twice" if name in wanted else "unknown"
            raise RequestError(400, f"output {shown(name)} is {fault}; the model has {list(specs)}")
        wanted[name] = _parse_output(parameters_of(entry), specs[name], binary=default)
    return tuple(wanted.values())


def _parse_output(parameters: dict[str, Any], spec: TensorSpec, *, binary: bool) -> WantedOutput:
    _refuse_shared_memory(parameters)
    binary = flag_of(parameters, "binary_data", default=binary)
    top = parameters.get("classification", 0)
    if type(top) is not int or not 0 <= top <= MAX_TOP:
        raise RequestError(
            400, f"output {spec.name!r}: 'classification' is {shown(top)}, expected a number of classes in 1..{MAX_TOP}"
        )
    if top and (spec.dtype == "bool" or not spec.shape):
        raise RequestError(400, f"output {spec.name!r} is {datatype_of(spec)} {spec.shape}, which has no best classes")
    if not binary and not top and spec.dtype == "float16":
        raise RequestError(400, f"output {spec.name!r} is FP16, which JSON cannot carry; ask for binary_data")
    return WantedOutput(spec.name, binary, top)

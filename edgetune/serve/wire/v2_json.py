"""The JSON of the Open Inference Protocol V2: parsed within limits, and read key by key."""

from __future__ import annotations

from typing import Any

import orjson

from edgetune.serve.errors import RequestError

MAX_DEPTH = 100
MAX_VALUES = 10_000

_SHOWN_CHARACTERS = 64


def shown(value: Any) -> str:
    """A value of a client's JSON for an error's text: short, escaped, and cheap to make whatever it is."""
    if isinstance(value, (list, dict)):
        return "a list" if isinstance(value, list) else "an object"
    if not isinstance(value, str):
        return orjson.dumps(value).decode()
    text = repr(value[:_SHOWN_CHARACTERS])
    return text if len(text) <= _SHOWN_CHARACTERS + 2 else f"{text[:_SHOWN_CHARACTERS]}..."


def parse_object(text: bytes | bytearray) -> dict[str, Any]:
    """Raises `RequestError` for what is no JSON object, is nested deeper than `MAX_DEPTH`, or is too large."""
    try:
        message = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise RequestError(400, f"the request is not valid JSON: {error}") from error
    if not isinstance(message, dict):
        raise RequestError(400, f"the request is {shown(message)}, expected a JSON object")
    _check_depth(message)
    return message


def _check_depth(message: dict[str, Any]) -> None:
    """Level by level through all but tensor data, which may not be nested deeper than its shape anyway."""
    level: list[Any] = [message]
    for _ in range(MAX_DEPTH):
        if sum(map(len, level)) > MAX_VALUES:
            raise RequestError(400, f"the request's JSON holds over {MAX_VALUES} values beside tensor data")
        level = [child for node in level for child in _children(node)]
        if not level:
            return
    raise RequestError(400, f"the request's JSON is nested deeper than {MAX_DEPTH}")


def _children(node: list[Any] | dict[str, Any]) -> list[Any]:
    values = node if isinstance(node, list) else [value for key, value in node.items() if key != "data"]
    return [value for value in values if isinstance(value, (list, dict))]


def parameters_of(entry: dict[str, Any]) -> dict[str, Any]:
    parameters = entry.get("parameters")
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise RequestError(400, f"'parameters' is {shown(parameters)}, expected an object")
    return parameters


def objects_of(message: dict[str, Any], key: str) -> list[dict[str, Any]]:
    entries = message.get(key)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise RequestError(400, f"{key!r} must be a list of objects")
    return entries


def string_of(entry: dict[str, Any], key: str, where: str) -> str:
    value = entry.get(key)
    if not isinstance(value, str):
        raise RequestError(400, f"{where}: {key!r} is {shown(value)}, expected a string")
    return value


def flag_of(parameters: dict[str, Any], key: str, *, default: bool) -> bool:
    value = parameters.get(key, default)
    if not isinstance(value, bool):
        raise RequestError(400, f"the parameter {key!r} is {shown(value)}, expected true or false")
    return value

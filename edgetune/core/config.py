"""Frozen dataclasses to and from JSON and TOML; unknown, missing and ill-typed keys fail."""

from __future__ import annotations

import dataclasses
import importlib
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

from edgetune.core.errors import ConfigError

T = TypeVar("T")


def to_dict(record: Any) -> dict[str, Any]:
    """Tuples become lists, nested dataclasses become dicts, so that the result is plain JSON."""
    plain: dict[str, Any] = _plain(dataclasses.asdict(record))
    return plain


def from_dict(cls: type[T], data: Any, where: str) -> T:
    """Builds `cls` from JSON data; `where` names the file and key for the error text.

    Raises:
        ConfigError: a key is unknown or missing, or a value has another type than the field.
    """
    if not isinstance(data, dict):
        raise ConfigError(f"{where} is a {type(data).__name__}, not a JSON object.")
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(set(data) - set(fields))
    missing = sorted(name for name, field in fields.items() if name not in data and _is_required(field))
    if unknown or missing:
        raise ConfigError(f"{where} has unknown keys {unknown} and lacks {missing}.")
    hints = typing.get_type_hints(cls)
    return cls(**{name: _convert(hints[name], value, f"{where}.{name}") for name, value in data.items()})


def read_toml(path: Path) -> dict[str, Any]:
    """Raises `ConfigError` when the file cannot be read or is not TOML."""
    try:
        toml = importlib.import_module("tomllib")
    except ModuleNotFoundError:  # Python 3.10
        toml = importlib.import_module("tomli")
    try:
        tables: dict[str, Any] = toml.loads(path.read_bytes().decode())
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is no TOML file that can be read: {error}.") from error
    return tables


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if dataclasses.is_dataclass(hint):
        return from_dict(typing.cast("type[Any]", hint), value, where)
    if origin in (types.UnionType, typing.Union):
        return _convert_optional(arguments, value, where)
    if origin is tuple and isinstance(value, list):
        return _convert_tuple(arguments, value, where)
    if origin is dict and isinstance(value, dict):
        return {key: _convert(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if hint is float and type(value) is int and abs(value) < 2**63:
        return float(value)
    if isinstance(hint, type) and type(value) is hint:
        return value
    raise ConfigError(f"{where} is {value!r}, expected {hint}.")


def _convert_optional(arguments: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and type(None) in arguments:
        return None
    (inner,) = [argument for argument in arguments if argument is not type(None)]
    return _convert(inner, value, where)


def _convert_tuple(arguments: tuple[Any, ...], value: list[Any], where: str) -> tuple[Any, ...]:
    if arguments[-1:] == (...,):
        arguments = (arguments[0],) * len(value)
    if len(arguments) != len(value):
        raise ConfigError(f"{where} has {len(value)} items, expected {len(arguments)}.")
    pairs = zip(arguments, value, strict=True)
    return tuple(_convert(hint, item, f"{where}[{index}]") for index, (hint, item) in enumerate(pairs))

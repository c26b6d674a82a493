"""What a running server says that it serves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from edgetune.core.config import from_dict
from edgetune.core.errors import ConfigError, EdgetuneError, ModelError, UsageError
from edgetune.core.preprocess import PreprocessSpec
from edgetune.core.tensors import TensorSpec
from edgetune.runners.http_client import Call, HttpClient, accepted, shortened
from edgetune.runners.open_inference import read_json, tensor_specs

# Thousands of class names fit.
_METADATA_BYTES = 1 << 22
_OTHERS = "the server must speak the Open Inference Protocol V2, as edgetune serve, Triton and KServe do"


@dataclass(frozen=True)
class RemoteModel:
    """A server's model in its own words. Only `name`, `inputs` and `outputs` are the protocol's: the rest is empty or
    None where the server is not edgetune's.

    `bundle_digest` is the sha256 of the bundle's manifest file, `server` a name and a version, `runner` what computes.
    """

    url: str
    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    server: str = ""
    artifact: str = ""
    artifact_sha256: str = ""
    bundle_digest: str = ""
    verdict: str = ""
    runner: str = ""
    classes: tuple[str, ...] = ()
    preprocess: PreprocessSpec | None = None
    max_batch: int | None = None
    max_body_bytes: int | None = None
    max_json_bytes: int | None = None


def read_served_model(client: HttpClient, model: str) -> RemoteModel:
    """Asks for the metadata of the server, and of `model`, or of its only model where that is empty.

    Raises:
        UsageError: `model` is empty, and the server has not one model only, or does not say.
        AddressError, ModelError: it does not answer, or not as the protocol says.
    """
    server = _ask(client, Call("GET", "/v2", max_bytes=_METADATA_BYTES))
    name = model or _only_model(client, server)
    call = Call("GET", f"/v2/models/{quote(name, safe='')}", max_bytes=_METADATA_BYTES)
    metadata = _ask(client, call)
    source = f"{client.url} (GET {call.path})"
    if metadata.get("name") != name:
        raise ModelError(f"{source}: the model is {shortened(repr(metadata.get('name')))}, expected {name!r}.")
    parameters = metadata.get("parameters")
    told = _Told(parameters if isinstance(parameters, dict) else {}, f"{source}: parameters")
    inputs = tensor_specs(metadata, "inputs", source)
    return RemoteModel(
        url=client.url,
        name=name,
        inputs=inputs,
        outputs=tensor_specs(metadata, "outputs", source),
        server=" ".join(str(server[key])[:64] for key in ("name", "version") if server.get(key)),
        artifact=told.text("artifact"),
        artifact_sha256=told.text("artifact_sha256"),
        bundle_digest=told.text("bundle_digest"),
        verdict=told.text("verdict"),
        runner=told.text("runner"),
        classes=told.words("classes"),
        preprocess=told.preprocess(),
        max_batch=told.count("max_batch") or _configured_batch(client, call.path, inputs),
        max_body_bytes=told.count("max_body_bytes"),
        max_json_bytes=told.count("max_json_bytes"),
    )


def _configured_batch(client: HttpClient, model_path: str, inputs: tuple[TensorSpec, ...]) -> int | None:
    """The largest batch by the model's configuration, as Triton gives it: 0 stands for no batches, so one image at a
    time. None where the server has no such page, or the inputs' shapes fix the batch.
    """
    if any(spec.shape[:1] != (None,) for spec in inputs):
        return None
    try:
        config = _ask(client, Call("GET", f"{model_path}/config", max_bytes=_METADATA_BYTES))
    except EdgetuneError:  # an extension, which no server must have
        return None
    size = config.get("max_batch_size")
    return max(size, 1) if type(size) is int and size >= 0 else None


def _only_model(client: HttpClient, server: dict[str, Any]) -> str:
    """An edgetune server lists its models in the server's metadata, Triton in its repository's index."""
    names = server.get("models")
    extensions = server.get("extensions")
    if names is None and isinstance(extensions, list) and "model_repository" in extensions:
        call = Call("POST", "/v2/repository/index", b"{}", {"Content-Type": "application/json"}, _METADATA_BYTES)
        index = read_json(accepted(client.ask(call), _OTHERS))
        entries = index if isinstance(index, list) else []
        names = [entry.get("name") for entry in entries if isinstance(entry, dict) and entry.get("state") == "READY"]
    if names is None:
        raise UsageError(f"{client.url} does not say which models it serves.", hint="name the model")
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise ModelError(f"{client.url}: the models are {shortened(repr(names))}, expected a list of names.")
    if len(set(names)) != 1:
        known = shortened(", ".join(sorted(set(names)))) or "none"
        raise UsageError(f"{client.url} serves {len(set(names))} models, expected one: {known}.", hint="name the model")
    return str(names[0])


def _ask(client: HttpClient, call: Call) -> dict[str, Any]:
    answer = accepted(client.ask(call), _OTHERS)
    content = read_json(answer)
    if not isinstance(content, dict):
        raise ModelError(f"{answer.source}: the answer is a JSON {type(content).__name__}, expected an object.")
    return content


@dataclass(frozen=True)
class _Told:
    """The metadata's parameters, where each key may be missing, but not be something else."""

    parameters: dict[str, Any]
    where: str

    def text(self, key: str) -> str:
        value = self.parameters.get(key, "")
        if not isinstance(value, str):
            raise self._odd(key, "a string")
        return value

    def words(self, key: str) -> tuple[str, ...]:
        value = self.parameters.get(key, [])
        if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
            raise self._odd(key, "a list of strings")
        return tuple(value)

    def count(self, key: str) -> int | None:
        value = self.parameters.get(key)
        if value is not None and (type(value) is not int or value < 1):
            raise self._odd(key, "a number above 0")
        return value

    def preprocess(self) -> PreprocessSpec | None:
        value = self.parameters.get("preprocess")
        try:
            return None if value is None else from_dict(PreprocessSpec, value, "preprocess")
        except ConfigError as error:
            raise ModelError(f"{self.where}: {shortened(error.message)}") from error

    def _odd(self, key: str, expected: str) -> ModelError:
        return ModelError(f"{self.where}: {key} is {shortened(repr(self.parameters[key]), 80)}, expected {expected}.")

"""A running server under the contract of every other runner, and what it says that it serves."""

from __future__ import annotations

from types import TracebackType
from typing import Any
from urllib.parse import quote

import numpy as np
import numpy.typing as npt

from edgetune.core.errors import ImageError, ModelError, TensorError, UsageError
from edgetune.core.tensors import Array, Feed, TensorSpec, check_feed
from edgetune.runners.http_client import SMALL_ANSWER_BYTES, Answer, Call, HttpClient, accepted, refusal, shortened
from edgetune.runners.open_inference import (
    answer_bytes,
    decode_infer,
    encode_infer,
    finite_from_json,
    item_bytes,
    read_json,
)
from edgetune.runners.served_model import RemoteModel, read_served_model

BINARY, JSON = "binary", "json"
WIRES = (BINARY, JSON)
TIMEOUT_S = 30.0

# What a request weighs beside its tensors.
_HEAD_BYTES = 1 << 12
_MANY_CLASSES = 100_000
# The status of an answer that blames what was sent.
_REFUSED = (400, 413)


class ServerRunner:
    """Runs a model on a server of the Open Inference Protocol V2, edgetune's or another.

    `url` is `http://HOST:PORT`; without `model`, the server must have one only. `wire` says how tensors travel: as
    bytes, or as JSON, which cannot carry NaN. One thread at a time may use a runner.
    """

    def __init__(self, url: str, *, wire: str = BINARY, model: str = "", timeout_s: float = TIMEOUT_S) -> None:
        if wire not in WIRES:
            raise UsageError(f"the wire {wire!r} is not known; known: {', '.join(WIRES)}.")
        self._server = _Server(url, model, timeout_s)
        self._wire = wire
        self._kept_to: int | None = None

    @property
    def name(self) -> str:
        return f"server {self._server.url} ({self._wire})"

    @property
    def served(self) -> RemoteModel:
        """What the server said when this was opened."""
        return self._server.served

    @property
    def input_specs(self) -> tuple[TensorSpec, ...]:
        return self.served.inputs

    @property
    def output_specs(self) -> tuple[TensorSpec, ...]:
        return self.served.outputs

    @property
    def min_batch(self) -> int:
        return max(_fixed_batches(self.served), default=1)

    @property
    def max_batch(self) -> int | None:
        """As many as the server takes, both as items and as bytes on this wire; None where it does not say."""
        served = self.served
        limits = _fixed_batches(served)
        limits += [limit for limit in (served.max_batch, self._kept_to) if limit is not None]
        bodies = (served.max_body_bytes, served.max_json_bytes if self._wire == JSON else None)
        smallest = min((limit for limit in bodies if limit is not None), default=None)
        if smallest is not None:
            weight = item_bytes(served.inputs, binary=self._wire == BINARY)
            limits.append(max(1, (smallest - _HEAD_BYTES) // weight))
        return min(limits, default=None)

    def keep_to(self, batch: int) -> None:
        """From now on at most `batch` images at a time, or as many as the model takes at least."""
        self._kept_to = max(batch, self.min_batch)

    def __enter__(self) -> ServerRunner:
        """Raises `AddressError`, `ModelError` or `UsageError`, as their messages say."""
        self._server.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()

    def infer(self, feed: Feed) -> dict[str, Array]:
        """Raises `TensorError` for a feed that is not the model's, or that the server refuses; else `ModelError`."""
        served = self.served
        check_feed(feed, served.inputs)
        batch = self._batch_of(feed)
        body, headers = encode_infer(feed, served.outputs, binary=self._wire == BINARY)
        path = f"/v2/models/{quote(served.name, safe='')}/infer"
        answer = self._server.ask(Call("POST", path, body, headers, answer_bytes(served.outputs, batch)))
        if answer.status in _REFUSED:
            raise TensorError(refusal(answer))
        return decode_infer(accepted(answer), served.name, served.outputs, batch)

    def _batch_of(self, feed: Feed) -> int:
        """The batch that all inputs share. Raises `TensorError` when the server does not take it."""
        found = {feed[spec.name].shape[0] for spec in self.input_specs if spec.shape[:1] == (None,)}
        if len(found) > 1:
            raise TensorError(f"the inputs have batches of {sorted(found)}, the server expects one size for all.")
        smallest, largest = self.min_batch, self.max_batch
        batch = next(iter(found), smallest)
        if batch < smallest or (largest is not None and batch > largest):
            limit = "any number" if largest is None else largest
            raise TensorError(f"the batch is {batch}, {self.name} takes {smallest} to {limit}.")
        return batch


class ServerImages:
    """Classifies image files on an edgetune server, which decodes and preprocesses them itself."""

    def __init__(self, url: str, *, model: str = "", timeout_s: float = TIMEOUT_S) -> None:
        self._server = _Server(url, model, timeout_s)

    @property
    def name(self) -> str:
        return f"server {self._server.url} (image bytes)"

    @property
    def served(self) -> RemoteModel:
        """What the server said when this was opened."""
        return self._server.served

    def __enter__(self) -> ServerImages:
        """Raises `AddressError`, `ModelError` or `UsageError`, as their messages say."""
        self._server.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()

    def classify(self, data: bytes) -> npt.NDArray[np.float32]:
        """The logits `(classes,)` of one image file.

        Raises:
            ImageError: the server refuses the file.
            AddressError, ModelError: it does not answer, or not as it should.
        """
        count = len(self.served.classes)
        limit = SMALL_ANSWER_BYTES + 40 * (count or _MANY_CLASSES)
        headers = {"Content-Type": "application/octet-stream"}
        answer = self._server.ask(Call("POST", "/v1/classify?top=1&logits=1", data, headers, limit))
        if answer.status in _REFUSED:
            raise ImageError(refusal(answer))
        content = read_json(accepted(answer, "only edgetune's own server takes image files"))
        return _logits(content.get("logits") if isinstance(content, dict) else None, count, answer.source)


class _Server:
    """The connection of both runners. What answers is always the model that was there at first: a connection that
    had to be made again may lead to a server that was started anew, or to another behind the same address.
    """

    def __init__(self, url: str, model: str, timeout_s: float) -> None:
        self._client = HttpClient(url, timeout_s)
        self._model = model
        self._served: RemoteModel | None = None
        self._connections = 0

    @property
    def url(self) -> str:
        return self._client.url

    @property
    def served(self) -> RemoteModel:
        if self._served is None:
            raise ModelError(f"the runner of the server {self.url} is not open; use it in a with block.")
        return self._served

    def open(self) -> None:
        try:
            self._served = read_served_model(self._client, self._model)
        except BaseException:
            self._client.close()
            raise
        self._connections = self._client.connections

    def close(self) -> None:
        self._served = None
        self._client.close()

    def ask(self, call: Call) -> Answer:
        answer = self._client.ask(call)
        if answer.status == 200 and self._client.connections != self._connections:
            self._check_same()
        return answer

    def _check_same(self) -> None:
        before, now = vars(self.served), vars(read_served_model(self._client, self.served.name))
        changed = next((key for key in before if before[key] != now[key]), "")
        if changed:
            was, came = (shortened(str(told[changed]), 80) for told in (before, now))
            raise ModelError(
                f"{self.url} serves something else than when it was opened: {changed} was {was}, and is {came} now.",
                hint="compare again, with a server that stays as it is",
            )
        self._connections = self._client.connections


def _logits(values: Any, count: int, source: str) -> npt.NDArray[np.float32]:
    if not isinstance(values, list) or not all(type(value) in {int, float} for value in values):
        raise ModelError(f"{source}: 'logits' is {shortened(repr(values), 80)}, expected a list of numbers.")
    if not values or (count and len(values) != count):
        raise ModelError(f"{source}: {len(values)} logits came, expected {count or 'one or more'}.")
    return finite_from_json(values, np.float32, f"{source}: 'logits'")


def _fixed_batches(served: RemoteModel) -> list[int]:
    return [spec.shape[0] for spec in served.inputs if spec.shape and spec.shape[0] is not None]

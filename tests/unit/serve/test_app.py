"""The application without a network: every path and method, errors, and what is counted of them."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgetune.serve.app import App
from edgetune.serve.http.request import Request
from edgetune.serve.model import ServedModel
from edgetune.serve.scheduling.plan import plan_threads
from edgetune.serve.service import Service
from edgetune.serve.settings import Access, Limits, ServeSettings
from edgetune.serve.slot import Slot
from tests.unit.runners.mean_bundle import COLOUR
from tests.unit.serve.stand_ins import Client, in_loop

HOST = {"host": "localhost"}


def _no_other(_: Path) -> AbstractContextManager[ServedModel]:
    raise AssertionError("this server has one model only")


@contextlib.asynccontextmanager
async def serving(model: ServedModel, settings: ServeSettings | None = None) -> AsyncIterator[tuple[App, Service]]:
    settings = settings or ServeSettings()
    slot = Slot(_no_other, settings.limits)
    slot.fill(model, lambda: None)
    service = Service("m", settings, slot, plan_threads(settings, model.choice.runner, 2))
    try:
        yield App(service), service
    finally:
        assert service.inflight == 0
        assert service.admission.admitted == 0
        assert slot.current._users == 0
        service.close()


async def ask(app: App, method: str, path: str, body: bytes = b"", **headers: str) -> Client:
    path, _, query = path.partition("?")
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    client = Client([body], {**HOST, **named}, method=method, path=path, query=query)
    await app(client.scope, client.receive, client.send)
    return client


def _png() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (4, 4), COLOUR).save(stream, "PNG")
    return stream.getvalue()


GETS = [
    "/v2", "/v2/", "/v2/health/live", "/v2/health/ready", "/v2/models/stats", "/metrics", "/openapi.json",
    "/v2/models/m", "/v2/models/m/ready", "/v2/models/m/config", "/v2/models/m/stats", "/v2/models/m/versions/1",
    "/v2/models/m/versions/1/ready", "/v2/models/m/versions/1/config", "/v2/models/m/versions/1/stats",
]  # fmt: skip
POSTS = ["/v1/classify", "/v2/repository/index", "/v2/models/m/infer", "/v2/models/m/versions/1/infer"]
METHODS = ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "NONSENSE"]


@pytest.mark.parametrize("path", GETS + POSTS)
def test_every_path_knows_its_methods(mean_served: ServedModel, path: str) -> None:
    async def work() -> None:
        async with serving(mean_served) as (app, _):
            for method in METHODS:
                client = await ask(app, method, path)
                is_good = method in (("GET", "HEAD") if path in GETS else ("POST",))
                if not is_good:
                    assert client.status == 405
                    assert client.headers["allow"] == ("GET, HEAD" if path in GETS else "POST")
                    assert json.loads(client.answer) == {"error": "Method Not Allowed"}
                elif path in GETS:
                    assert client.status == 200
                    assert int(client.headers["content-length"]) == len(client.answer) > 0
                else:
                    assert client.status == (200 if path.endswith("index") else 400)

    in_loop(work)


UNKNOWN = [
    "/", "", "/v2/models", "/v2/models/", "/v2/models/m/", "/v2/models/m/versions", "/v2/models/m/versions/",
    "/v2/models/m/versions/2", "/v2/models/m/versions/01", "/v2/models/m/versions/1/", "/v2/models/m/versions/1/x",
    "/v2/models/m/versions/1/infer/", "/v2/models/m/infer/x", "/v2/models/m/nothing", "/v2/models/M", "/v2/models/n",
    "/v2/models//infer", "/v2/models/../m", "/v2/models/m/versions/1/versions/1", "/x/v2/models/m", "/V2", "//v2",
    "/v2/health", "/v2/health/live/", "/docs", "/v2/models/m/generate", "/favicon.ico",
    "/v2/models/" + "n" * 5000, "/v2/models/\u202e/ready", "/\x00",
]  # fmt: skip


@pytest.mark.parametrize("path", UNKNOWN, ids=lambda path: repr(path[:40]))
def test_any_other_path_is_404_in_json(mean_served: ServedModel, path: str) -> None:
    async def work() -> None:
        async with serving(mean_served) as (app, _):
            for method in ("GET", "POST", "DELETE"):
                client = await ask(app, method, path)
                assert client.status in (404, 405)
                assert client.status == 404 or "allow" in client.headers
                (key, message), = json.loads(client.answer).items()  # fmt: skip
                assert key == "error"
                assert 0 < len(message) < 200

    in_loop(work)


LEFT_OUT = [
    "/v2/logging", "/v2/systemsharedmemory/status", "/v2/cudasharedmemory/region/r/register", "/v2/trace/setting",
    "/v2/models/m/trace/setting", "/v2/repository/models/m/load", "/v2/repository/models/m/unload",
]  # fmt: skip


@pytest.mark.parametrize("path", LEFT_OUT)
def test_what_of_the_protocol_is_left_out_is_told(mean_served: ServedModel, path: str) -> None:
    async def work() -> None:
        async with serving(mean_served) as (app, _):
            for method in ("GET", "POST"):
                client = await ask(app, method, path)
                assert client.status == 501
                assert list(json.loads(client.answer)) == ["error"]

    in_loop(work)


def test_each_answer_carries_the_request_s_id(mean_served: ServedModel) -> None:
    async def work() -> None:
        async with serving(mean_served) as (app, _):
            for path in ("/v2", "/nothing", "/v1/classify"):
                assert (await ask(app, "GET", path, x_request_id="abc")).headers["x-request-id"] == "abc"
                assert len((await ask(app, "GET", path, x_request_id="a b")).headers["x-request-id"]) > 8

    in_loop(work)


def test_an_image_and_its_tensor_give_the_golden_logits(mean_served: ServedModel) -> None:
    async def work() -> None:
        async with serving(mean_served) as (app, service):
            image = json.loads((await ask(app, "POST", "/v1/classify?logits=1", _png())).answer)
            np.testing.assert_allclose(image["logits"], [-20, 30], atol=1e-4)
            assert [entry["label"] for entry in image["predictions"]] == ["b", "a"]
            pixels = np.full((2, 4, 4, 3), COLOUR, np.uint8).tobytes()
            tensor = await ask(app, "POST", "/v2/models/m/infer", pixels, inference_header_content_length="0")
            head = int(tensor.headers["inference-header-content-length"])
            logits = np.frombuffer(tensor.answer[head:], np.float32).reshape(2, 2)
            np.testing.assert_allclose(logits, [[-20, 30], [-20, 30]], atol=1e-4)
            assert service.stats.routes["classify"].codes == {200: 1}
            assert service.stats.routes["infer"].codes == {200: 1}
            assert service.stats.model.success_count == 2
            assert service.stats.model.images == 3

    in_loop(work)


def test_a_form_answers_for_each_image_alone(mean_served: ServedModel) -> None:
    async def work() -> None:
        parts = b"".join(
            b'--x\r\nContent-Disposition: form-data; name="f"; filename="%s"\r\n\r\n%s\r\n' % (name, data)
            for name, data in ((b"good", _png()), (b"bad", b"no image"))
        )
        async with serving(mean_served) as (app, _):
            client = await ask(
                app, "POST", "/v1/classify", parts + b"--x--\r\n", content_type="Multipart/Form-Data; boundary=x"
            )
            assert client.status == 200
            good, bad = json.loads(client.answer)["images"]
            assert (good["name"], good["predictions"][0]["label"]) == ("good", "b")
            assert (bad["name"], set(bad)) == ("bad", {"name", "error"})

    in_loop(work)


def test_refusals_are_counted_by_their_reason(mean_served: ServedModel) -> None:
    async def work() -> None:
        limits = Limits(max_body_bytes=500, max_request_bytes=500)
        async with serving(mean_served, ServeSettings(limits=limits)) as (app, service):
            assert (await ask(app, "POST", "/v1/classify", b"no image")).status == 400
            assert (await ask(app, "POST", "/v1/classify", b"x" * 501)).status == 413
            other = await ask(app, "GET", "/v2", host="evil.example")
            assert other.status == 421
            counts = {reason: count for reason, count in service.stats.rejections.items() if count}
            assert counts == {"bad_image": 1, "too_large": 1, "host": 1}
            assert service.stats.routes["other"].codes == {421: 1}

    in_loop(work)


def test_who_must_wait_and_who_must_say_who_he_is_are_told_how(mean_served: ServedModel, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("t" * 20)

    async def work() -> None:
        settings = ServeSettings(access=Access(token_file=token))
        async with serving(mean_served, settings) as (app, service):
            assert (await ask(app, "GET", "/v2")).headers["www-authenticate"] == "Bearer"
            service.is_draining = True
            unready = await ask(app, "GET", "/v2/health/ready")
            assert (unready.status, unready.headers["retry-after"]) == (503, "1")
            assert (await ask(app, "GET", "/v2/health/live")).status == 200
            drained = await ask(app, "POST", "/v1/classify", _png(), authorization="Bearer " + "t" * 20)
            assert drained.status == 200  # it is still served
            coded = await ask(
                app, "POST", "/v1/classify", b"x", authorization="Bearer " + "t" * 20, content_encoding="br"
            )
            assert (coded.status, coded.headers["accept-encoding"]) == (415, "gzip, deflate")

    in_loop(work)


def test_a_run_that_hangs_is_told_by_both_probes(mean_served: ServedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgetune.serve.scheduling.scheduler.Scheduler.oldest_run_s", property(lambda _: 11.0))

    async def work() -> None:
        async with serving(mean_served) as (app, service):
            for probe in ("live", "ready"):
                assert (await ask(app, "GET", f"/v2/health/{probe}")).status == 503
            service.stats._recent[0], service.stats._runs = 600_000_000, 1  # 0.6 s a run: 11 s are not 20 of them
            for probe in ("live", "ready"):
                assert (await ask(app, "GET", f"/v2/health/{probe}")).status == 200

    in_loop(work)


def test_a_bug_is_a_number_for_the_client_and_a_traceback_for_the_log(
    mean_served: ServedModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any) -> Any:
        raise KeyError("/secret/path")

    monkeypatch.setattr("edgetune.serve.pages.model_metadata", broken)

    async def work() -> None:
        async with serving(mean_served) as (app, service):
            client = await ask(app, "GET", "/v2/models/m")
            assert client.status == 500
            (message,) = json.loads(client.answer).values()
            assert message.startswith("internal error, id=")
            assert message[-8:] in caplog.text
            assert "secret" in caplog.text
            assert service.stats.rejections["internal"] == 1

    with caplog.at_level(logging.ERROR):
        in_loop(work)


def test_a_client_that_leaves_gets_nothing_and_is_counted(mean_served: ServedModel) -> None:
    async def work() -> None:
        async with serving(mean_served) as (app, service):
            client = Client([], HOST, path="/v1/classify")
            await app(client.scope, client.receive, client.send)
            assert client.sent == []
            assert service.stats.rejections["disconnected"] == 1
            assert service.stats.routes["classify"].codes == {}

    in_loop(work)


def test_a_request_that_is_cancelled_is_no_longer_in_flight(
    mean_served: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = asyncio.Event()

    async def hangs(_: Request, __: int) -> bytes:
        begun.set()
        await asyncio.Event().wait()
        return b""

    monkeypatch.setattr("edgetune.serve.http.request.Request.read_body", hangs)

    async def work() -> None:
        async with serving(mean_served) as (app, service):
            task = asyncio.ensure_future(ask(app, "POST", "/v1/classify"))
            await begun.wait()
            assert (service.inflight, service.admission.admitted) == (1, 1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    in_loop(work)


def test_other_scopes_are_ignored(mean_served: ServedModel) -> None:
    async def work() -> None:
        async with serving(mean_served) as (app, _):
            client = Client()
            for kind in ("lifespan", "websocket"):
                await app({"type": kind}, client.receive, client.send)
            assert client.sent == []

    in_loop(work)


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], list[Any]]]:
    with caplog.at_level(logging.INFO):
        yield lambda: [record for record in caplog.records if record.message == "request"]


def test_the_access_log_has_one_line_a_request_and_none_by_default(
    mean_served: ServedModel, logged: Callable[[], list[Any]]
) -> None:
    async def work() -> None:
        async with serving(mean_served) as (app, _):
            await ask(app, "GET", "/v2")
        assert logged() == []
        async with serving(mean_served, ServeSettings(access_log=True)) as (app, _):
            await ask(app, "GET", "/nothing?secret=1", x_request_id="id-1")

    in_loop(work)
    (record,) = logged()
    assert (record.method, record.path, record.status, record.client) == ("GET", "/nothing", 404, "127.0.0.1")
    assert (record.request_id, record.duration_ms > 0) == ("id-1", True)

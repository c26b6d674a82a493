"""The model is changed under load, by its link and by the admin socket, and no request is lost or answered wrongly."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image

from edgetune.core.bundle import Bundle, load_bundle, write_manifest
from edgetune.core.files import sha256_of_file
from edgetune.core.golden import GoldenSet, load_golden, write_golden
from tests.unit.runners.mean_bundle import COLOUR, FP32, LOGITS, mean_bundle

pytestmark = pytest.mark.e2e
WAIT_S = 20.0
CLIENTS = 4
LOGITS_OF = {"one": [-20.0, 30.0], "two": [-40.0, 60.0]}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`one`; `two`, whose logits are twice those; and `bad`, whose golden logits are not what its model gives."""
    folder = tmp_path_factory.mktemp("bundles")
    mean_bundle(folder / "one", {FP32: "PASS"})
    _double(mean_bundle(folder / "two", {FP32: "PASS"}))
    mean_bundle(folder / "bad", {FP32: "PASS"}, logits=LOGITS * np.float32(1.5))
    return folder


def _double(bundle: Bundle) -> None:
    """Another model with its own golden logits, and a manifest that vouches for both."""
    golden, files = load_golden(bundle)
    path = bundle.path / FP32
    model = onnx.load_from_string(path.read_bytes())
    (weight,) = [constant for constant in model.graph.initializer if constant.name == "weight"]
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(2), "weight"))
    path.write_bytes(model.SerializeToString())
    for file in (bundle.path / "golden").iterdir():
        file.unlink()
    (bundle.path / "golden").rmdir()
    write_golden(
        bundle.path,
        GoldenSet(golden.names, golden.pixels, {FP32: LOGITS * np.float32(2)}),
        dict(zip(golden.names, files, strict=True)),
    )
    artifact = dataclasses.replace(
        bundle.manifest.artifacts[0], sha256=sha256_of_file(path), size_bytes=path.stat().st_size
    )
    write_manifest(bundle.path, dataclasses.replace(bundle.manifest, artifacts=(artifact,)))
    load_bundle(bundle.path)


def _png() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (4, 4), COLOUR).save(stream, "PNG")
    return stream.getvalue()


PNG = _png()


class Server:
    """A process that serves a link; what it says on stderr is kept."""

    def __init__(self, link: Path, admin: Path, *options: str, port: int = 0) -> None:
        command = [sys.executable, "-m", "edgetune.cli.main", "serve", str(link), "--port", str(port)]
        self.process = subprocess.Popen(
            [*command, "--admin", str(admin), *options], stderr=subprocess.PIPE, text=True, cwd=link.parent
        )
        self.admin = admin
        self._lines: list[str] = []
        self._is_ready = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self._lines.append(line)
            if line.startswith("ready:"):
                self._is_ready.set()
        self._is_ready.set()

    @property
    def said(self) -> str:
        return "".join(self._lines)

    @property
    def address(self) -> str:
        assert self._is_ready.wait(60), self.said
        (line,) = [line for line in self._lines if line.startswith("ready:")] or [self.said]
        assert line.startswith("ready:"), self.said
        return line.split()[-1]

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    def ask_admin(self, method: str, path: str, content: Any = None) -> httpx.Response:
        transport = httpx.HTTPTransport(uds=str(self.admin))
        with httpx.Client(transport=transport, base_url="http://admin", timeout=WAIT_S) as client:
            return client.request(method, path, json=content) if content is not None else client.request(method, path)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=WAIT_S)

    def end(self) -> None:
        self.process.kill()
        self.process.wait(timeout=WAIT_S)
        self._reader.join(WAIT_S)
        assert self.process.stderr is not None
        self.process.stderr.close()


@contextlib.contextmanager
def serving(link: Path, admin: Path, *options: str, port: int = 0) -> Iterator[Server]:
    """On leaving, SIGTERM must end the process with 0, and it must have written no traceback."""
    server = Server(link, admin, *options, port=port)
    try:
        assert server.address
        yield server
        assert server.stop() == 0, server.said
        assert "Traceback" not in server.said
        assert not server.admin.exists()
    finally:
        server.end()


def _turn(link: Path, name: str) -> None:
    """Has the link lead to another bundle, in one step."""
    fresh = link.with_name("fresh-link")
    fresh.symlink_to(name)
    os.replace(fresh, link)


@pytest.fixture
def link(bundles: Path, tmp_path: Path) -> Path:
    """`current` beside links to all bundles, leading to `one`."""
    for name in ("one", "two", "bad"):
        (tmp_path / name).symlink_to(bundles / name)
    (tmp_path / "current").symlink_to("one")
    return tmp_path / "current"


@pytest.fixture
def admin(tmp_path: Path) -> Path:
    return tmp_path / "admin.sock"


@dataclass
class Load:
    """What steady clients were answered: when each request began and ended, its status, and which bundle it was."""

    answers: list[tuple[float, float, int, str]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def between(self, start: float, end: float) -> set[str]:
        """The bundles that answered requests which lay wholly within this time."""
        return {name for begun, ended, _, name in list(self.answers) if start <= begun and ended <= end}


def _bundle_of(logits: Sequence[float]) -> str:
    for name, expected in LOGITS_OF.items():
        if np.allclose(logits, expected, atol=1e-3):
            return name
    return f"neither: {logits}"


@contextlib.contextmanager
def under_load(address: str) -> Iterator[Load]:
    load, is_over = Load(), threading.Event()

    def ask(number: int) -> None:
        pixels = np.full((3, 4, 4, 3), COLOUR, np.uint8).tobytes()
        with httpx.Client(base_url=address, timeout=WAIT_S) as client:
            while not is_over.is_set():
                begun = time.monotonic()
                try:
                    if number % 2:
                        answer = client.post("/v1/classify?logits=1", content=PNG)
                        logits = [answer.json().get("logits")]
                    else:
                        answer = client.post(
                            "/v2/models/current/infer", content=pixels, headers={"Inference-Header-Content-Length": "0"}
                        )
                        head = int(answer.headers["inference-header-content-length"])
                        logits = np.frombuffer(answer.content[head:], np.float32).reshape(3, 2).tolist()
                except Exception as error:  # noqa: BLE001 - whatever a client met is what the test is about
                    load.faults.append(repr(error))
                    return
                names = {_bundle_of(row) for row in logits}
                load.answers.append((begun, time.monotonic(), answer.status_code, "/".join(sorted(names))))

    threads = [threading.Thread(target=ask, args=(number,), daemon=True) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    try:
        yield load
    finally:
        is_over.set()
        for thread in threads:
            thread.join(WAIT_S)


def _until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < deadline, f"it did not come to this: {what}"
        time.sleep(0.005)


def _loads(address: str) -> dict[str, float]:
    lines = httpx.get(f"{address}/metrics").text.splitlines()
    return {
        result: float(line.split()[-1])
        for result in ("ok", "failed")
        for line in lines
        if line.startswith("edgetune_model_loads_total") and f'result="{result}"' in line
    }


def _changed(server: Server, count: int) -> bool:
    return sum(_loads(server.address).values()) >= count


def _steady(load: Load, seconds: float = 0.2) -> set[str]:
    """The bundles that answer from now on for a while."""
    begun = time.monotonic()
    time.sleep(seconds)
    return load.between(begun, time.monotonic())


def test_ten_swaps_under_load_lose_no_request(link: Path, admin: Path) -> None:
    with serving(link, admin) as server, under_load(server.address) as load:
        assert _steady(load) == {"one"}
        for swap in range(5):
            name = ("two", "one")[swap % 2]
            _turn(link, name)
            server.process.send_signal(signal.SIGHUP)
            _until(lambda swap=swap: _changed(server, swap + 2), "the model is loaded")  # type: ignore[misc]
            assert _steady(load) == {name}
        for swap in range(5):
            name = ("one", "two")[swap % 2]
            answer = server.ask_admin("POST", "/swap", {"bundle": str(link.with_name(name))})
            assert (answer.status_code, answer.json()["ok"], answer.json()["bundle"]) == (200, True, name)
            assert _steady(load) == {name}
        assert _loads(server.address) == {"ok": 11, "failed": 0}
    assert load.faults == []
    assert {status for _, _, status, _ in load.answers} == {200}
    assert {name for _, _, _, name in load.answers} == {"one", "two"}
    assert len(load.answers) > 200


def test_a_tampered_bundle_never_serves(link: Path, admin: Path) -> None:
    with serving(link, admin) as server, under_load(server.address) as load:
        answer = server.ask_admin("POST", "/swap", {"bundle": str(link.with_name("bad"))})
        assert answer.status_code == 409
        assert not answer.json()["ok"]
        assert "gives other answers on this machine" in answer.json()["error"]
        _turn(link, "bad")
        server.process.send_signal(signal.SIGHUP)
        _until(lambda: _loads(server.address)["failed"] == 2, "the second load failed")
        status = server.ask_admin("GET", "/status").json()
        assert Path(status["bundle"]).name == "one"
        assert (status["ready"], status["last_swap"]["ok"]) == (True, False)
        assert _steady(load) == {"one"}
        assert "the model stays" in server.said
    assert load.faults == []
    assert {(status, name) for _, _, status, name in load.answers} == {(200, "one")}


@pytest.mark.parametrize("problem", ["nothing there", "a loop of links", "no bundle", "damaged"])
def test_a_link_that_leads_nowhere_good_changes_nothing(link: Path, admin: Path, problem: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "manifest.json").write_text("{")
    target = {"nothing there": "gone", "a loop of links": "current", "no bundle": "empty", "damaged": "damaged"}
    with serving(link, admin) as server:
        _turn(link, target[problem])
        server.process.send_signal(signal.SIGHUP)
        _until(lambda: _loads(server.address)["failed"] == 1, "the load failed")
        answer = server.ask_admin("POST", "/swap")
        assert (answer.status_code, answer.json()["ok"]) == (409, False)
        assert answer.json()["error"]
        assert httpx.post(f"{server.address}/v1/classify?logits=1", content=PNG).json()["logits"] == LOGITS_OF["one"]
        _turn(link, "two")
        assert server.ask_admin("POST", "/swap").status_code == 200
        assert httpx.post(f"{server.address}/v1/classify?logits=1", content=PNG).json()["logits"] == LOGITS_OF["two"]


def test_the_previous_bundle_serves_where_the_first_cannot(link: Path, admin: Path) -> None:
    _turn(link, "bad")
    with serving(link, admin, "--previous", str(link.with_name("two"))) as server:
        assert "warning: this is the previous bundle, because model.onnx gives other answers" in server.said
        answer = httpx.post(f"{server.address}/v1/classify?logits=1", content=PNG).json()
        assert (answer["model"], _bundle_of(answer["logits"])) == ("current", "two")
        assert server.ask_admin("POST", "/swap").status_code == 409  # the first is as bad as it was
        _turn(link, "one")
        assert server.ask_admin("POST", "/swap").status_code == 200


def test_without_a_good_bundle_the_process_ends_with_the_reason(link: Path, admin: Path) -> None:
    _turn(link, "bad")
    server = Server(link, admin, "--previous", str(link.with_name("gone")))
    try:
        assert server.process.wait(timeout=60) == 1
        server._reader.join(WAIT_S)
        assert "error:" in server.said
        assert not admin.exists()
    finally:
        server.end()


def test_a_killed_server_comes_back_on_its_port_and_its_admin_socket(link: Path, admin: Path) -> None:
    first = Server(link, admin)
    try:
        port = first.port
        assert stat.S_IMODE(admin.stat().st_mode) == 0o600
        with under_load(first.address) as load:
            _until(lambda: len(load.answers) > 20, "the server is in work")
            first.process.kill()
            first.process.wait(timeout=WAIT_S)
            _until(lambda: len(load.faults) == CLIENTS, "every client has seen it go")
        assert admin.exists()
    finally:
        first.end()
    with serving(link, admin, port=port) as second:
        assert second.port == port
        assert second.ask_admin("GET", "/status").json()["ready"]


def test_two_servers_do_not_share_an_admin_socket(link: Path, admin: Path) -> None:
    with serving(link, admin) as server:
        other = Server(link, admin)
        try:
            assert other.process.wait(timeout=60) == 1
            other._reader.join(WAIT_S)
            assert "a server answers there" in other.said
        finally:
            other.end()
        assert server.ask_admin("GET", "/status").status_code == 200


def test_sigterm_answers_what_is_in_work_and_ends_with_0(link: Path, admin: Path) -> None:
    with serving(link, admin, "--drain", "0.5") as server:
        with httpx.Client(base_url=server.address, timeout=WAIT_S) as client:
            assert client.get("/v2/health/ready").status_code == 200
            server.process.send_signal(signal.SIGTERM)
            _until(lambda: client.get("/v2/health/ready").status_code == 503, "it says that it is not ready")
            assert client.post("/v1/classify", content=PNG).status_code == 200
            assert client.get("/v2/health/live").status_code == 200
        assert server.process.wait(timeout=WAIT_S) == 0


def test_a_second_sigterm_ends_it_at_once(link: Path, admin: Path) -> None:
    server = Server(link, admin, "--drain", "600")
    try:
        address = server.address
        server.process.send_signal(signal.SIGTERM)
        _until(lambda: httpx.get(f"{address}/v2/health/ready").status_code == 503, "it drains")
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(timeout=WAIT_S) == 1
    finally:
        server.end()

"""The command serve: which words become which settings, and what is said when the server is ready."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgetune.cli.main import main
from edgetune.core.errors import AddressError, SelfTestError
from edgetune.runners.from_bundle import SelfTest
from edgetune.serve.server import ServerReady
from edgetune.serve.settings import Access, Batching, Limits, ServeSettings

READY = ServerReady(
    address="http://127.0.0.1:8000", model="digits", bundle="/b/digits", artifact="model.onnx", reason="FP32, PASS",
    runner="onnxruntime CPU", threads="2 runs side by side on 1 thread each, 2 usable CPUs",
    self_test=SelfTest(4, 1, 0.000123, "pillow 11"), is_public=False,
)  # fmt: skip


class FakeServer:
    """Takes the place of `run_server`; keeps what it was told, and announces once."""

    def __init__(self) -> None:
        self.bundle = Path()
        self.settings = ServeSettings()
        self.ready = READY
        self.fault: Exception | None = None

    def __call__(self, bundle: Path, settings: ServeSettings, announce: Callable[[ServerReady], None]) -> None:
        self.bundle, self.settings = bundle, settings
        if self.fault is not None:
            raise self.fault
        announce(self.ready)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> FakeServer:
    fake = FakeServer()
    monkeypatch.setattr("edgetune.serve.server.run_server", fake)
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        monkeypatch.setenv(name, "1")
    return fake


def _run(*words: str) -> int:
    try:
        main(["serve", *words])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_without_options_the_defaults_are_served(server: FakeServer) -> None:
    assert _run("b") == 0
    assert (server.bundle, server.settings) == (Path("b"), ServeSettings())


def test_every_option_is_a_setting(server: FakeServer, tmp_path: Path) -> None:
    config = tmp_path / "serve.toml"
    config.write_text("[limits]\nmax_images = 3\n[batching]\nsize = 2\n")
    words = (
        "b --host 0.0.0.0 --port 0 --model-name m --mode latency --runs 3 --threads 4 --token-file t --insecure "
        "--tls-certificate c --tls-key k --tls-ca a --allow-host x --allow-host y --previous p --admin s --drain 1.5 "
        "--access-log --log-format json --triton-metrics --artifact model.onnx --allow-failed --runner cuda --fallback"
    )
    assert _run(*words.split(), "--config", str(config)) == 0
    told = server.settings
    assert (told.host, told.port, told.model_name, told.mode, told.runs) == ("0.0.0.0", 0, "m", "latency", 3)
    assert told.access == Access(Path("t"), Path("c"), Path("k"), Path("a"), ("x", "y"), insecure=True)
    assert (told.previous, told.admin_socket, told.drain_s) == (Path("p"), Path("s"), 1.5)
    assert (told.access_log, told.log_format, told.triton_metrics) == (True, "json", True)
    assert (told.artifact, told.allow_failed) == ("model.onnx", True)
    assert (told.runner.kind, told.runner.threads, told.runner.fallback) == ("cuda", 4, True)
    assert (told.limits, told.batching) == (Limits(max_images=3), Batching(2))


def test_people_are_told_on_stderr(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run("b") == 0
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines() == [
        "artifact: model.onnx (FP32, PASS) on onnxruntime CPU",
        "threads: 2 runs side by side on 1 thread each, 2 usable CPUs",
        "self-test: 4 golden images, pixels within 1, logits within 0.00012",
        "ready: digits on http://127.0.0.1:8000",
    ]


def test_the_previous_bundle_is_a_warning_and_ready_is_still_the_last_line(
    server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.ready = ServerReady(**{**vars(READY), "instead_of": "the first is damaged."})
    assert _run("b") == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "warning: this is the previous bundle, because the first is damaged."
    assert lines[-1] == "ready: digits on http://127.0.0.1:8000"


def test_programs_are_told_in_one_envelope(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run("b", "--json") == 0
    said = capsys.readouterr()
    envelope = json.loads(said.out)
    assert (envelope["command"], envelope["ok"], envelope["exit_code"], envelope["errors"]) == ("serve", True, 0, [])
    assert envelope["data"] == {
        "address": "http://127.0.0.1:8000", "model": "digits", "bundle": "/b/digits", "artifact": "model.onnx",
        "reason": "FP32, PASS", "runner": "onnxruntime CPU",
        "threads": "2 runs side by side on 1 thread each, 2 usable CPUs", "is_public": False, "instead_of": "",
        "self_test": {"images": 4, "max_pixel_diff": 1, "max_logit_diff": 0.000123, "decoder": "pillow 11"},
    }  # fmt: skip
    assert said.err == ""


@pytest.mark.parametrize(
    ("fault", "code"), [(AddressError("it is taken.", hint="another"), "address"), (SelfTestError("no."), "self_test")]
)
def test_what_cannot_be_served_is_one_line_or_one_envelope(
    server: FakeServer, capsys: pytest.CaptureFixture[str], fault: Any, code: str
) -> None:
    server.fault = fault
    assert _run("b") == 1
    assert capsys.readouterr().err.startswith(f"error: {fault.message}")
    assert _run("b", "--json") == 1
    (error,) = json.loads(capsys.readouterr().out)["errors"]
    assert error == {"code": code, "message": fault.message, "hint": fault.hint}


@pytest.mark.parametrize(
    "words",
    [
        (), ("b", "--port", "65536"), ("b", "--port", "-1"), ("b", "--mode", "fast"), ("b", "--runs", "0"),
        ("b", "--threads", "0"), ("b", "--drain", "-1"), ("b", "--drain", "3601"), ("b", "--log-format", "xml"),
        ("b", "--nothing"), ("b", "c"), ("b", "--runner", "tpu"),
    ],
)  # fmt: skip
def test_unfit_words_end_with_2(server: FakeServer, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]) -> None:
    assert _run(*words) == 2
    assert capsys.readouterr().err.startswith("error:")


def test_an_unfit_configuration_ends_before_anything_is_opened(
    server: FakeServer, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "serve.toml").write_text("[limits]\nmax_image = 3\n")
    server.fault = AssertionError("it was served")
    assert _run("b", "--config", str(tmp_path / "serve.toml")) == 1
    assert "has unknown keys ['max_image']" in capsys.readouterr().err
    assert _run("b", "--config", str(tmp_path / "nothing.toml")) == 1
    assert "nothing.toml is no TOML file that can be read" in capsys.readouterr().err

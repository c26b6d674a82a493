"""From a bundle to a port: names, addresses, and which bundle is taken."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path
from typing import Any

import pytest

from edgetune.core.errors import ArtifactError, BundleError, SelfTestError, UsageError
from edgetune.serve.http.listener import bind
from edgetune.serve.model import ServedModel
from edgetune.serve.observe.notify import Notifier
from edgetune.serve.server import _describe, _open_first, _shown_address, model_name, run_server
from edgetune.serve.settings import Access, ServeSettings
from tests.unit.runners.mean_bundle import FP32, LOGITS, mean_bundle


@pytest.mark.parametrize(
    ("path", "given", "name"),
    [
        ("/a/bundle", "", "bundle"),
        ("/a/bundle/", "", "bundle"),
        ("/a/b/../c", "", "c"),
        ("/a/bundle", "v1.0_x-Y", "v1.0_x-Y"),
        ("/a/b c", "digits", "digits"),
        ("/a/" + "x" * 128, "", "x" * 128),
    ],
)
def test_a_model_is_named_by_its_path_or_as_told(path: str, given: str, name: str) -> None:
    assert model_name(Path(path), ServeSettings(model_name=given)) == name


def test_a_link_keeps_its_own_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "v7").mkdir()
    (tmp_path / "current").symlink_to("v7")
    assert model_name(tmp_path / "current", ServeSettings()) == "current"
    monkeypatch.chdir(tmp_path / "v7")
    assert model_name(Path("../current"), ServeSettings()) == "current"
    assert model_name(Path(), ServeSettings()) == "v7"


@pytest.mark.parametrize(
    "name", ["stats", "a/b", ".hidden", "-x", "a b", "é", "x" * 129, "a\n", "..", "a%20b", "_x"]
)  # fmt: skip
def test_a_name_that_cannot_stand_in_a_url_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="cannot stand in a URL") as caught:
        model_name(Path("/a/bundle"), ServeSettings(model_name=name))
    assert "--model-name" in caught.value.hint
    with pytest.raises(UsageError):
        model_name(Path("/"), ServeSettings())


def _opened(path: Path, settings: ServeSettings) -> tuple[str, str]:
    with contextlib.ExitStack() as stack:
        model, problem = _open_first(stack, path, settings, Notifier({}))
        return model.bundle.path.name, problem


def test_the_first_bundle_is_taken_where_it_is_good(tmp_path: Path) -> None:
    mean_bundle(tmp_path / "one", {FP32: "PASS"})
    assert _opened(tmp_path / "one", ServeSettings(previous=tmp_path / "nothing")) == ("one", "")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """`good`, and some that are not."""
    mean_bundle(tmp_path / "good", {FP32: "PASS"})
    mean_bundle(tmp_path / "lies", {FP32: "PASS"}, logits=LOGITS + 9)
    mean_bundle(tmp_path / "fails", {FP32: "FAIL"})
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").write_text("no folder")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("lies", "gives other answers"),
        ("fails", "no artifact for this CPU that passed parity"),
        ("nothing", "is not a bundle"),
        ("file", "is not a bundle"),
        ("loop", ""),
    ],
)
def test_the_previous_bundle_is_taken_where_the_first_cannot_be_served(folder: Path, name: str, words: str) -> None:
    served, problem = _opened(folder / name, ServeSettings(previous=folder / "good"))
    assert served == "good"
    assert problem
    assert words in problem


def test_without_a_good_bundle_the_problem_is_told(folder: Path) -> None:
    with pytest.raises(SelfTestError, match="gives other answers"):
        _opened(folder / "lies", ServeSettings())
    with pytest.raises(SelfTestError, match="gives other answers"):
        _opened(folder / "lies", ServeSettings(previous=folder / "nothing"))
    with pytest.raises(BundleError, match="file is not a bundle"):
        _opened(folder / "lies", ServeSettings(previous=folder / "file"))
    with pytest.raises(ArtifactError, match="has no artifact 'other'"):
        _opened(folder / "good", ServeSettings(artifact="other"))


def test_a_failed_artifact_is_served_where_that_is_allowed(folder: Path) -> None:
    assert _opened(folder / "fails", ServeSettings(allow_failed=True)) == ("fails", "")


def test_addresses_are_shown_as_a_client_takes_them(tmp_path: Path) -> None:
    with bind("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        assert _shown_address("127.0.0.1", listener) == f"127.0.0.1:{port}"
        assert _shown_address("localhost", listener) == f"localhost:{port}"
    if socket.has_ipv6:
        with contextlib.suppress(OSError), socket.create_server(("::1", 0), family=socket.AF_INET6) as listener:
            assert _shown_address("::1", listener) == f"[::1]:{listener.getsockname()[1]}"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        assert _shown_address("127.0.0.1", listener) == f"unix:{tmp_path}/s"


@pytest.mark.parametrize(
    ("settings", "scheme", "is_public"),
    [
        (ServeSettings(), "http", False),
        (ServeSettings(host="0.0.0.0"), "http", True),
        (ServeSettings(access=Access(None, Path("c"), Path("k"))), "https", False),
    ],
)
def test_the_server_describes_itself(
    mean_served: ServedModel, settings: ServeSettings, scheme: str, is_public: bool
) -> None:
    with bind("127.0.0.1", 0) as listener:
        ready = _describe("digits", mean_served, settings, listener)
        assert ready.address == f"{scheme}://{settings.host}:{listener.getsockname()[1]}"
    assert (ready.model, ready.artifact, ready.is_public, ready.instead_of) == ("digits", FP32, is_public, "")
    assert (ready.self_test.images, ready.bundle) == (1, str(mean_served.bundle.path))
    assert ready.runner.startswith("onnxruntime CPU")
    assert "side by side" in ready.threads


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_a_public_address_without_a_word_is_refused_before_anything_is_opened(tmp_path: Path, host: str) -> None:
    def never(_: Any) -> None:
        raise AssertionError("it was announced")

    with pytest.raises(UsageError, match="reachable from the network"):
        run_server(tmp_path / "nothing", ServeSettings(host=host), never)


def _open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_no_socket_is_left_where_the_start_fails(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgetune.serve.server.configure_logging", lambda *_: None)
    admin = folder / "admin"

    def broken(*_: Any) -> None:
        raise RuntimeError("cannot be described")

    monkeypatch.setattr("edgetune.serve.server._describe", broken)
    before = _open_files()
    with pytest.raises(RuntimeError, match="cannot be described"):
        run_server(folder / "good", ServeSettings(port=0, admin_socket=admin), lambda _: None)
    assert not admin.exists()
    assert _open_files() <= before

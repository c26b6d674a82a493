"""edgetune parity on bad input: real processes, one clear line each, the right exit code, and nothing half written."""

from __future__ import annotations

import contextlib
import http.server
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from edgetune.core.bundle import load_bundle
from tests.parity_refusals import NORMALISATION, check_refused, command, edgetune, tree

pytestmark = pytest.mark.e2e
pytest.importorskip("torch")

FULL_DISK = (
    "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
    "resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500));"
    "from edgetune.cli.main import main; main(sys.argv[1:])"
)


@dataclass(frozen=True)
class Place:
    """What there is to be wrong about: a good bundle, its run and images, and room for what is bad."""

    bundle: Path
    run: Path
    photos: Path
    room: Path

    def file(self, name: str, content: str | bytes) -> Path:
        path = self.room / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def gates(self, content: str | bytes) -> tuple[Path | str, ...]:
        return (self.bundle, "--gates", self.file("gates.toml", content))


@pytest.fixture(scope="module")
def bundle(small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from edgetune.steps.export import ExportOptions, export

    return export(small_run, tmp_path_factory.mktemp("parity") / "bundle", ExportOptions()).bundle_path


@pytest.fixture
def place(bundle: Path, small_run: Path, photos: Path, tmp_path: Path) -> Place:
    return Place(bundle, small_run, photos, tmp_path)


Words = tuple[str | Path, ...]
Case = tuple[Callable[[Place], Words], str, int]


def _changed_byte(place: Place) -> Words:
    copy = place.room / "copy"
    shutil.copytree(place.bundle, copy)
    content = bytearray((copy / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (copy / "model.onnx").write_bytes(content)
    return (copy,)


def _data(place: Place, **files: bytes) -> Words:
    """`files` by class name: each class gets one image with these bytes."""
    data = place.room / "data"
    data.mkdir()
    for name, content in files.items():
        (data / name[1:]).mkdir()
        (data / name[1:] / "one.png").write_bytes(content)
    return (place.bundle, "--data", data)


def _existing_report(place: Place) -> Words:
    place.file("parity.json", "{}")
    return (place.bundle, "--out", place.room)


def _below_a_bundle(place: Place) -> Words:
    """A copy, so that a report that does land in it spoils this test alone."""
    copy = place.room / "copy"
    shutil.copytree(place.bundle, copy)
    return (copy, "--out", copy / "new" / "report")


def _other_run(place: Place) -> Words:
    run = place.room / "run"
    shutil.copytree(place.run, run)
    (run / "run.json").write_bytes((run / "run.json").read_bytes().replace(b'"seed": 0', b'"seed": 1'))
    return (place.bundle, "--run", run)


BUNDLES: dict[str, Case] = {
    "no bundle": (lambda place: (place.room / "gone",), "is not a bundle", 1),
    "a folder of something else": (lambda place: (place.photos,), "is not a bundle", 1),
    "a changed byte": (_changed_byte, "model.onnx was changed", 1),
    "a run of another bundle": (_other_run, "is not the run that", 1),
    "a run that is not there": (lambda place: (place.bundle, "--run", place.room / "gone"), "is not the run that", 1),
    "no arguments": (lambda place: (), "Missing argument", 2),
    "three arguments": (lambda place: (place.bundle,) * 3, "3 paths were given", 2),
    "an unknown runner": (lambda place: (place.bundle, "--runner", "abacus"), "'abacus'", 2),
    "a drop above 1": (lambda place: (place.bundle, "--max-drop", "2"), "--max-drop", 2),
    "a drop of nan": (lambda place: (place.bundle, "--max-drop", "nan"), "--max-drop", 2),
    "options of two models": (lambda place: (place.bundle, *NORMALISATION), "--mean is for two ONNX files only", 2),
}
DATA: dict[str, Case] = {
    "no folder": (lambda place: (place.bundle, "--data", place.room / "gone"), "is not a folder", 1),
    "an empty folder": (_data, "holds no images in class folders", 1),
    "an unknown class": (lambda place: _data(place, _0=b"", _cats=b""), "that the training classes lack: cats", 1),
    "damaged images": (lambda place: _data(place, _0=b"\x89PNG", _1=b""), "none of 2 images could be read", 1),
}
GATES: dict[str, Case] = {
    "missing": (lambda place: (place.bundle, "--gates", place.room / "gone.toml"), "gone.toml", 1),
    "a folder": (lambda place: (place.bundle, "--gates", place.room), "no TOML file that can be read", 1),
    "no TOML": (lambda place: place.gates("fp32: {min: 3}"), "no TOML file that can be read", 1),
    "no text": (lambda place: place.gates(b"\xff\xfe\x00"), "no TOML file that can be read", 1),
    "unknown table": (lambda place: place.gates("[fp64]\nmax_drop = 0.1"), "fp64", 1),
    "unknown key": (lambda place: place.gates("[fp32]\nmax_dorp = 0.1"), "max_dorp", 1),
    "unknown device table": (lambda place: place.gates("[device.fp8]\nmax_drop = 0.1"), "fp8", 1),
    "text for a number": (lambda place: place.gates('[fp32]\nmin_sqnr_db = "high"'), "min_sqnr_db", 1),
    "true for a number": (lambda place: place.gates("[fp32]\nmin_sqnr_db = true"), "min_sqnr_db", 1),
    "a number for a table": (lambda place: place.gates("int8 = 3"), "int8", 1),
    "negative": (lambda place: place.gates("[int8]\nmax_drop = -0.1"), "max_drop is -0.1", 1),
    "above 1": (lambda place: place.gates("[int8]\nmin_agreement = 97"), "min_agreement is 97", 1),
    "NaN": (lambda place: place.gates("[int8]\nmax_kl = nan"), "max_kl is nan", 1),
    "infinity": (lambda place: place.gates("[fp32]\nmin_sqnr_db = inf"), "min_sqnr_db is inf", 1),
}
OUTS: dict[str, Case] = {
    "in the bundle": (lambda place: (place.bundle, "--out", place.bundle, "--force"), "a bundle never changes", 1),
    "below the bundle": (_below_a_bundle, "a bundle never changes", 1),
    "exists": (_existing_report, "exists already", 1),
    "a file": (lambda place: (place.bundle, "--out", place.file("file", "mine")), "is a file", 2),
}
URLS: dict[str, Case] = {
    "no URL": (lambda place: (place.bundle, "--url", "device"), "not the URL of a server", 2),
    "another scheme": (lambda place: (place.bundle, "--url", "ftp://device:21"), "expected http or https", 2),
    "a path": (lambda place: (place.bundle, "--url", "http://device:8000/v2"), "goes on after the host", 2),
    "no port": (lambda place: (place.bundle, "--url", "http://127.0.0.1:99999"), "is no URL", 2),
    "an unknown host": (lambda place: (place.bundle, "--url", "http://nowhere.invalid:8000"), "nowhere.invalid", 1),
}


CASES = {
    f"{group}: {name}": case
    for group, cases in {
        "bundle": BUNDLES, "data": DATA, "gates": GATES, "out": OUTS, "url": URLS,
    }.items()
    for name, case in cases.items()
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_refused_in_one_line(name: str, place: Place) -> None:
    words, said, exit_code = CASES[name]
    given = words(place)
    before = tree(place.room)
    check_refused(edgetune(*given), said, exit_code)
    assert tree(place.room) == before
    load_bundle(place.bundle)


def test_nothing_behind_the_url(place: Place) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    check_refused(edgetune(place.bundle, "--url", f"http://127.0.0.1:{port}"), "nothing listens")


class _Website(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        page = b"<html><body>It works!</body></html>"
        self.send_response(200)
        self.send_header("content-length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)

    do_POST = do_GET  # noqa: N815 - the name that the library looks for

    def log_message(self, *_: object) -> None: ...


@contextlib.contextmanager
def website() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Website) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join(20)


def test_a_website_behind_the_url(place: Place) -> None:
    with website() as url:
        check_refused(edgetune(place.bundle, "--url", url), "the answer is no JSON")


def test_a_full_disk_leaves_no_report(place: Place) -> None:
    out = place.room / "out"
    words = [sys.executable, "-c", FULL_DISK, "parity", str(place.bundle), "--out", str(out)]
    words += ["--data", str(_few(place))]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1, done.stderr
    assert [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in done.stderr
    assert not out.exists() or tree(out) == []


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_stopped_in_the_middle(number: signal.Signals, exit_code: int, place: Place) -> None:
    """Nothing half written, and the same command runs afterwards."""
    out = place.room / "out"
    words = command(place.bundle, "--out", out, "--data", _few(place))
    process = subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    _wait_until_it_works(process)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == exit_code, said
    assert "Traceback" not in said
    assert not out.exists() or tree(out) == []
    load_bundle(place.bundle)
    if number == signal.SIGKILL:
        again = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
        assert again.returncode == 0, again.stderr
        assert "parity.json" in tree(out)


def _few(place: Place) -> Path:
    data = place.room / "few"
    for folder in place.photos.iterdir():
        (data / folder.name).mkdir(parents=True)
        image = min(folder.iterdir())
        shutil.copy(image, data / folder.name / image.name)
    return data


def _wait_until_it_works(process: subprocess.Popen[str]) -> None:
    """Until the libraries are loaded that it compares with: PyTorch's is mapped into its memory."""
    deadline = time.monotonic() + 120
    maps = Path(f"/proc/{process.pid}/maps")
    if not maps.is_file():
        pytest.skip("there is no /proc here to see what the process does")
    while "onnxruntime" not in maps.read_text() or "libtorch" not in maps.read_text():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)

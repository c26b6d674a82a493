"""Shared libraries that a provider needs: read from its file, loaded where they are, named where they are not."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnxruntime
import pytest

from edgetune.core.errors import MissingDependencyError, ModelError
from edgetune.runners import ort_libraries
from edgetune.runners.ort_libraries import missing_libraries, needed_libraries, plugin_device, prepare_provider
from edgetune.runners.ort_providers import EpChoice

CAPI = Path(onnxruntime.__file__).parent / "capi"
SHARED = CAPI / "libonnxruntime_providers_shared.so"

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads the shared libraries of Linux")


@linux
@pytest.mark.skipif(shutil.which("readelf") is None, reason="no readelf to compare with")
def test_needed_libraries_are_those_that_readelf_names() -> None:
    checked = 0
    for library in CAPI.glob("*.so"):
        printed = subprocess.run(["readelf", "-dW", library], capture_output=True, text=True, check=True).stdout
        expected = [line.split("[")[1].rstrip("]") for line in printed.splitlines() if "(NEEDED)" in line]
        assert list(needed_libraries(library)) == expected
        checked += len(expected)
    assert checked > 0


@pytest.mark.parametrize("content", [None, b"", b"MZ no ELF", b"\x7fELF\x02\x01 cut short"])
def test_what_is_no_whole_elf_file_needs_nothing(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "lib.so").write_bytes(content)
    assert needed_libraries(tmp_path / "lib.so") == ()


@linux
def test_a_library_cut_short_needs_nothing(tmp_path: Path) -> None:
    (tmp_path / "lib.so").write_bytes(SHARED.read_bytes()[:200])
    assert needed_libraries(tmp_path / "lib.so") == ()


@linux
def test_libraries_beside_the_provider_are_found_under_longer_names_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shutil.copy(SHARED, tmp_path / "libbeside.so.9.8.7")
    monkeypatch.setattr(ort_libraries, "needed_libraries", lambda _: ("libc.so.6", "libbeside.so.9", "libnone.so.1"))
    assert missing_libraries(tmp_path / "provider.so") == ("libnone.so.1",)


@pytest.mark.parametrize(
    ("missing", "hint"),
    [
        (("libcuda.so.1", "libnvidia-ml.so.1"), "install the NVIDIA driver"),
        (("libcublas.so.13", "libcudnn.so.9"), "pip install 'onnxruntime-gpu[cuda,cudnn]'"),
        (("libnvinfer.so.10", "libnvonnxparser.so.10"), "pip install 'tensorrt-cu12<11'"),
        (
            ("libcuda.so.1", "libcublas.so.12", "libnvinfer.so.10"),
            "install the NVIDIA driver; pip install 'onnxruntime-gpu[cuda,cudnn]'; pip install 'tensorrt-cu12<11'",
        ),
    ],
    ids=["driver", "toolkit", "tensorrt", "all"],
)
def test_the_hint_fits_what_is_missing(missing: tuple[str, ...], hint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ort = SimpleNamespace(
        __file__=onnxruntime.__file__,
        __version__="1.31.1",
        get_available_providers=lambda: ["TensorrtExecutionProvider", "CPUExecutionProvider"],
    )
    monkeypatch.setattr(ort_libraries, "missing_libraries", lambda _: missing)
    monkeypatch.setattr(ort_libraries, "needed_libraries", lambda _: ("libcudart.so.12",))
    monkeypatch.setattr(ort_libraries.sys, "platform", "linux")  # type: ignore[attr-defined]
    with pytest.raises(MissingDependencyError, match=f"{', '.join(missing)} cannot be loaded") as caught:
        prepare_provider(ort, EpChoice("tensorrt-ep"))
    assert caught.value.hint == hint
    assert "\n" not in caught.value.message


def test_a_wheel_without_the_provider_is_named_with_what_it_has() -> None:
    ort = SimpleNamespace(__version__="1.31.1", get_available_providers=lambda: ["CPUExecutionProvider"])
    with pytest.raises(MissingDependencyError, match=r"cuda was asked for.*has CPUExecutionProvider, and no CUDA"):
        prepare_provider(ort, EpChoice("cuda"))


def test_what_preloading_prints_stays_off_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    """ONNX Runtime prints each library that it does not find, into what may be a JSON envelope."""
    ort = SimpleNamespace(
        __file__=onnxruntime.__file__,
        get_available_providers=lambda: ["CUDAExecutionProvider"],
        preload_dlls=lambda: sys.stdout.write("Failed to load libcublas.so.13"),
        __version__="1.31.1",
    )
    with contextlib.suppress(MissingDependencyError):  # onnxruntime-gpu may lack CUDA; a CPU wheel has no library
        prepare_provider(ort, EpChoice("cuda"))
    assert capsys.readouterr().out == ""


def _device(ep_name: str, **ep_options: str) -> Any:
    return SimpleNamespace(ep_name=ep_name, ep_options=ep_options)


def test_the_plugins_first_device_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    name = EpChoice("tensorrt-rtx-ep").ort_name
    devices = [_device("CPUExecutionProvider"), _device(name, device_id="1"), _device(name, device_id="0")]
    ort = SimpleNamespace(get_ep_devices=lambda: devices, __version__="1.31.1")
    monkeypatch.setattr(ort_libraries, "_register", lambda *_: None)
    assert plugin_device(ort, EpChoice("tensorrt-rtx-ep")) is devices[2]
    del devices[1:]
    with pytest.raises(ModelError, match="finds no GPU that it can use") as caught:
        plugin_device(ort, EpChoice("tensorrt-rtx-ep"))
    assert "8.6" in caught.value.hint


def test_a_plugin_that_cannot_be_registered_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("libcuda.so.1: cannot open shared object file\nand more")

    monkeypatch.setattr(ort_libraries, "_register", refuse)
    with pytest.raises(ModelError, match=r"cannot register it: libcuda\.so\.1: cannot open shared object file$"):
        plugin_device(SimpleNamespace(__version__="1.31.1"), EpChoice("tensorrt-rtx-ep"))

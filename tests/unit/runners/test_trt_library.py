"""Which backend is found, with packages made for the test on the import path."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from edgetune.core.errors import UsageError
from edgetune.runners.trt_library import load_library

_LOAD = """
import sys
sys.path[:] = [sys.argv[1], *(path for path in sys.path if "site-packages" not in path), sys.argv[2]]
from edgetune.core.errors import EdgetuneError
from edgetune.runners.trt_library import installed_backends, load_library
print(*installed_backends())
try:
    library = load_library(sys.argv[3])
    print(library.name, library.version)
except EdgetuneError as error:
    print(error.message)
"""
REPOSITORY = Path(__file__).resolve().parents[3]


def _load(folder: Path, wanted: str) -> list[str]:
    command = [sys.executable, "-S", "-c", _LOAD, str(folder), str(REPOSITORY), wanted]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    ("packages", "wanted", "expected"),
    [
        ({"tensorrt": "10.3.0"}, "auto", ["tensorrt", "tensorrt 10.3.0"]),
        ({"tensorrt_rtx": "1.7.1"}, "auto", ["tensorrt-rtx", "tensorrt-rtx 1.7.1"]),
        ({"tensorrt_rtx_bindings": "1.7.1"}, "auto", ["tensorrt-rtx", "tensorrt-rtx 1.7.1"]),
        ({"tensorrt": "11.0", "tensorrt_rtx": "1.7.1"}, "auto", ["tensorrt tensorrt-rtx", "tensorrt 11.0"]),
        ({"tensorrt": "11", "tensorrt_rtx": "1.7"}, "tensorrt-rtx", ["tensorrt tensorrt-rtx", "tensorrt-rtx 1.7"]),
        ({"tensorrt": None, "tensorrt_rtx": "1.7.1"}, "auto", ["tensorrt tensorrt-rtx", "tensorrt-rtx 1.7.1"]),
        (
            {"tensorrt": None},
            "auto",
            ["tensorrt", "tensorrt is installed, but does not load: libnvinfer.so.10: cannot open shared object file."],
        ),
        ({}, "auto", ["", "neither TensorRT nor TensorRT-RTX is installed for this Python."]),
        ({"tensorrt": "10.3.0"}, "tensorrt-rtx", ["tensorrt", "tensorrt-rtx is not installed for this Python."]),
    ],
    ids=[
        "TensorRT", "RTX", "RTX by its bindings", "both", "both, one asked for", "the first does not load",
        "none loads", "none", "another one",
    ],
)  # fmt: skip
def test_the_backend_that_works_is_found(
    packages: dict[str, str | None], wanted: str, expected: list[str], tmp_path: Path
) -> None:
    for name, version in packages.items():
        (tmp_path / name).mkdir()
        code = (
            f"__version__ = {version!r}"
            if version
            else "raise ImportError('libnvinfer.so.10: cannot open shared object file')"
        )
        (tmp_path / name / "__init__.py").write_text(code)
    assert _load(tmp_path, wanted) == expected


def test_a_folder_that_has_the_name_is_no_backend(tmp_path: Path) -> None:
    (tmp_path / "tensorrt").mkdir()
    assert _load(tmp_path, "auto")[0] == ""


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(UsageError, match="the backend 'tpu' is not known; known: auto, tensorrt, tensorrt-rtx"):
        load_library("tpu")

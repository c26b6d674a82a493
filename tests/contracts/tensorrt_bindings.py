"""The real Python bindings of several versions of TensorRT, where there is neither a GPU nor TensorRT itself.

PyPI has the wheels of the bindings, but not the libraries that they link against. A stand-in with the few C functions
that they import satisfies the dynamic linker: classes, methods and enums are then the real ones, and whatever would
make an object of the library gets a null pointer. Needs Linux on x86_64, a C compiler and, the first time, PyPI; what
was made is kept in .venv, or where EDGETUNE_TEST_BINDINGS says.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from edgetune.core.engine_record import TENSORRT, TENSORRT_RTX

REPOSITORY = Path(__file__).resolve().parents[2]

_PYTHON = sys.version_info[:2]
_IMPORTED = (
    "createInferBuilder_INTERNAL", "createInferRefitter_INTERNAL", "createInferRuntime_INTERNAL",
    "createNvOnnxParser_INTERNAL", "createNvOnnxParserRefitter_INTERNAL", "getBuilderPluginRegistry",
    "getNvOnnxParserVersion", "getPluginRegistry", "initLibNvInferPlugins",
)  # fmt: skip
_STAND_IN = "".join(f"void *{name}(void) {{ return 0; }}\n" for name in _IMPORTED)
_LIBRARIES = {
    TENSORRT: ("libnvinfer", "libnvinfer_plugin", "libnvonnxparser"),
    TENSORRT_RTX: ("libtensorrt_rtx", "libtensorrt_onnxparser_rtx"),
}
# As the source packages on PyPI lay it over their bindings; it also stands before a TensorRT of this machine.
_TOP_MODULE = "from {0}_bindings import *\nfrom {0}_bindings import __version__\n"

# Libraries that are installed would be loaded instead of the stand-ins. None in sys.modules: there is no such module.
_BEFORE = """
import json, sys
for name in ("tensorrt_libs", "tensorrt_rtx_libs", *sys.argv[2:]):
    sys.modules[name] = None
from edgetune.runners.trt_library import library_logger, load_library
library = load_library(sys.argv[1])
trt = library.module
"""
_AFTER = "\nprint(json.dumps(answer))\n"


@dataclass(frozen=True)
class Bindings:
    """One version; `last_python` is the newest Python that it has a wheel for."""

    backend: str
    version: str
    package: str
    last_python: tuple[int, int] = (3, 13)

    def __str__(self) -> str:
        return f"{self.backend} {self.version}"

    @property
    def major(self) -> int:
        return int(self.version.partition(".")[0])

    @property
    def module(self) -> str:
        return self.backend.replace("-", "_")


VERSIONS = (
    Bindings(TENSORRT, "10.3.0", "tensorrt-cu12-bindings", last_python=(3, 12)),
    Bindings(TENSORRT, "10.13.3.9", "tensorrt-cu13-bindings"),
    Bindings(TENSORRT, "10.16.1.11", "tensorrt-cu13-bindings"),
    Bindings(TENSORRT, "11.0.0.114", "tensorrt-cu13-bindings"),
    Bindings(TENSORRT, "11.4.0.106", "tensorrt-cu13-bindings"),
    Bindings(TENSORRT_RTX, "1.7.1.116", "tensorrt-rtx-cu13-bindings"),
)


class BindingsCache:
    """Fetches, unpacks and links each version once; later runs find its folder."""

    def __init__(self) -> None:
        root = os.environ.get("EDGETUNE_TEST_BINDINGS") or REPOSITORY / ".venv" / ".tensorrt-bindings"
        key = hashlib.sha256(_STAND_IN.encode()).hexdigest()[:8]
        self._root = Path(root) / f"cp{_PYTHON[0]}{_PYTHON[1]}-{key}"
        self._unreachable = ""

    def folder(self, bindings: Bindings) -> Path:
        """A folder for the module search path; skips the test, with the reason, where there can be none."""
        folder = self._root / f"{bindings.module}-{bindings.version}"
        if not folder.is_dir():
            _skip_without_means(bindings)
            self._root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self._root) as work:
                self._make(bindings, Path(work))
                with contextlib.suppress(OSError):  # another run may have been faster
                    (Path(work) / "made").rename(folder)
        return folder

    def _make(self, bindings: Bindings, work: Path) -> None:
        wheel = self._fetch(bindings, work)
        made = work / "made"
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(made)
        (made / bindings.module).mkdir()
        (made / bindings.module / "__init__.py").write_text(_TOP_MODULE.format(bindings.module))
        source, stand_in = work / "stand_in.c", work / "stand_in.so"
        source.write_text(_STAND_IN)
        subprocess.run(["cc", "-shared", "-fPIC", "-o", stand_in, source], check=True)
        for library in _LIBRARIES[bindings.backend]:  # the bindings look beside themselves first
            shutil.copy(stand_in, made / f"{bindings.module}_bindings" / f"{library}.so.{bindings.major}")

    def _fetch(self, bindings: Bindings, work: Path) -> Path:
        if self._unreachable:
            pytest.skip(self._unreachable)
        command = [
            sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--retries=1",
            "--timeout=30", "--dest", str(work), f"{bindings.package}=={bindings.version}",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            lines = done.stderr.splitlines()
            said = next((line for line in lines if line.startswith("ERROR")), lines[-1] if lines else "no reason given")
            reason = f"pip cannot fetch {bindings.package} {bindings.version}: {said[:300]}"
            if re.search(r"from versions: (?!none)", done.stderr):  # the index answers, and lacks this version
                pytest.fail(reason)
            self._unreachable = reason
            pytest.skip(reason)
        return next(work.glob("*.whl"))


def _skip_without_means(bindings: Bindings) -> None:
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        pytest.skip("the bindings of every version exist for Linux on x86_64 only")
    if bindings.last_python < _PYTHON:
        pytest.skip(f"{bindings} has no bindings for Python {_PYTHON[0]}.{_PYTHON[1]}")
    if shutil.which("cc") is None:
        pytest.skip("no C compiler (cc) to link a stand-in for the libraries of TensorRT")


def ask(folder: Path, backend: str, program: str, hidden: Sequence[str] = ()) -> Any:
    """What a program leaves in `answer`, run in a process that has edgetune's `library` and its module `trt`.

    `hidden` modules are not found there. The process must end well and say nothing on stderr: a library that crashes
    while Python ends fails here.
    """
    before = os.environ.get("PYTHONPATH")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *([before] if before else [])])}
    environment.pop("LD_LIBRARY_PATH", None)  # some versions would find a real library there first
    command = [sys.executable, "-c", _BEFORE + program + _AFTER, backend, *hidden]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)
    assert (done.returncode, done.stderr) == (0, ""), f"{folder.name} ended with {done.returncode}: {done.stderr}"
    return json.loads(done.stdout)

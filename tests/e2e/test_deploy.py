"""What `deploy/` promises: a device builds its engine from a bundle, a script and pip, without PyTorch or root."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edgetune.runners.cuda import gpu_identity

pytestmark = pytest.mark.e2e

REPOSITORY = Path(__file__).resolve().parents[2]
DEPLOY = REPOSITORY / "deploy"
SCRIPT = DEPLOY / "build-engine.sh"
TARGETS = ("--backend", "tensorrt-rtx", "--targets", "sm86")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that a workstation would hand over; building it needs the package index."""
    folder = tmp_path_factory.mktemp("wheel house")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--wheel-dir",
        str(folder),
        str(REPOSITORY),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode != 0 and ("No matching distribution" in done.stderr or "Connection" in done.stderr):
        pytest.skip(f"pip cannot reach the package index: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    return next(folder.glob("*.whl"))


def run_script(
    folder: Path, *words: str | Path, variables: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environment |= {
        "HOME": str(folder),
        "EDGETUNE_CACHE": str(folder / "cache"),
        "EDGETUNE_CONSTRAINTS": str(REPOSITORY / "constraints.txt"),
        "PYTHON": sys.executable,
    }
    return subprocess.run(
        ["sh", str(SCRIPT), *map(str, words)], env=environment | (variables or {}), cwd=folder, capture_output=True,
        text=True, timeout=1200, check=False,
    )  # fmt: skip


def read(path: Path) -> Any:
    return json.loads(path.read_bytes())


@pytest.mark.skipif(
    platform.machine() not in ("x86_64", "aarch64"), reason="TensorRT-RTX has no wheels for this machine"
)
def test_an_engine_is_built_ahead_of_time_without_torch(
    small_bundle: Path, photos: Path, wheel: Path, tmp_path: Path
) -> None:
    here = tmp_path / "a device"
    shutil.copytree(small_bundle, here / "my bundle")
    words = ("--wheel", wheel, "--venv", here / "env", "--data", photos, "my bundle", *TARGETS)
    done = run_script(here, *words)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    if gpu_identity() is None:
        assert "skipped: no GPU is here, so the engine was built and not run" in done.stderr
    python = here / "env" / "bin" / "python"
    listed = subprocess.run([python, "-m", "pip", "list", "--format=json"], capture_output=True, text=True, check=True)
    installed = {entry["name"].lower().replace("_", "-") for entry in json.loads(listed.stdout)}
    assert {"edgetune", "onnx", "onnxruntime", "tensorrt-rtx-cu13-bindings"} <= installed
    assert not {"torch", "torchvision", "timm", "scikit-learn", "safetensors"} & installed

    (folder,) = (here / "cache" / "engines").glob("*/model.engine")
    sidecar = read(folder.parent / "engine.json")
    assert sidecar["artifact"] == "model.int8.tensorrt.onnx"
    assert sidecar["key"]["options"]["targets"] == ["sm86"]
    assert sidecar["proof"]["lost"] == {}
    assert sidecar["proof"]["seen"]["int8"] == sidecar["proof"]["planned"]["int8"] > 0

    evidence = read(here / "edgetune-evidence.json")
    assert [engine["sha256"] for engine in evidence["engines"]] == [sidecar["sha256"]]
    assert "tensorrt-rtx" in evidence["backends"]
    assert evidence["bench"]["rows"]
    # The stored reference knows a fifth of these images, so parity here is on a part of them.
    assert evidence["parity"]["verdict"] == "NOT-RUN"
    assert {entry["images"] > 0 for entry in evidence["parity"]["artifacts"]} == {True}
    assert str(tmp_path) not in (here / "edgetune-evidence.json").read_text()

    again = run_script(here, *words)
    assert again.returncode == 0, again.stderr
    assert "is there" in again.stderr.splitlines()[0]
    assert "found in the cache" in again.stdout
    assert read(folder.parent / "engine.json")["sha256"] == sidecar["sha256"]


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        ((), 2, "usage: build-engine.sh"),
        (("--help",), 0, "usage: build-engine.sh"),
        (("--bogus", "bundle"), 2, "unknown option --bogus; options of edgetune build go behind BUNDLE"),
        (("--wheel",), 2, "--wheel needs a value"),
        (("nowhere",), 1, "nowhere is no bundle"),
        (("--wheel", "gone.whl", "bundle"), 1, "--wheel gone.whl does not exist"),
        (("--data", "gone", "bundle"), 1, "--data gone is no folder"),
    ],
    ids=lambda value: " ".join(value) or "nothing" if isinstance(value, tuple) else None,
)
def test_wrong_words_are_told_before_anything_is_made(
    words: tuple[str, ...], code: int, sentence: str, tmp_path: Path
) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "manifest.json").write_text("{}")
    done = run_script(tmp_path, *words)
    assert (done.returncode, sentence in done.stdout + done.stderr) == (code, True), done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.parametrize(
    ("interpreter", "sentence"),
    [
        ("edgetune-has-no-such-python", "there is no edgetune-has-no-such-python"),
        ("{old}", "is Python 3.9; edgetune needs 3.10 to 3.13"),
    ],
)
def test_a_python_that_does_not_do_is_named(interpreter: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "manifest.json").write_text("{}")
    old = tmp_path / "old-python"
    old.write_text("#!/bin/sh\necho 3.9\n")
    old.chmod(0o755)
    done = run_script(tmp_path, "bundle", variables={"PYTHON": interpreter.format(old=old)})
    assert (done.returncode, sentence in done.stderr) == (1, True), done.stderr


@pytest.mark.skipif(Path("/etc/nv_tegra_release").exists(), reason="a Jetson's environment always sees outside")
@pytest.mark.parametrize(
    ("has_tensorrt", "words"), [(True, "venv --system-site-packages env"), (False, "venv env")], ids=["with", "without"]
)
def test_an_environment_sees_the_tensorrt_of_the_system(has_tensorrt: bool, words: str, tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "manifest.json").write_text("{}")
    python = tmp_path / "python"
    python.write_text(
        '#!/bin/sh\ncase "$*" in\n'
        "*version_info*) echo 3.10 ;;\n"
        f"*find_spec*) exit {0 if has_tensorrt else 1} ;;\n"
        f'*) echo "$*" >>{tmp_path}/asked; exit 1 ;;\nesac\n'
    )
    python.chmod(0o755)
    done = run_script(tmp_path, "--venv", "env", "bundle", variables={"PYTHON": str(python)})
    assert done.returncode == 1
    assert "the environment cannot be made" in done.stderr
    assert (tmp_path / "asked").read_text() == f"-m {words}\n"


@pytest.mark.skipif(Path("/etc/nv_tegra_release").exists(), reason="a Jetson's environment always sees outside")
def test_a_folder_here_that_is_called_tensorrt_is_not_the_systems(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "manifest.json").write_text("{}")
    (tmp_path / "tensorrt").mkdir()
    system_python = f"{sys.base_prefix}/bin/python{sys.version_info[0]}.{sys.version_info[1]}"
    find = "import importlib.util; print(importlib.util.find_spec('tensorrt'))"
    command = [system_python, "-c", find]
    if subprocess.run(command, cwd="/", capture_output=True, text=True, check=True).stdout != "None\n":
        pytest.skip("the system has TensorRT")
    assert subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout != "None\n"
    done = run_script(tmp_path, "--venv", "bundle/manifest.json/env", "bundle", variables={"PYTHON": system_python})
    assert (done.returncode, "the environment cannot be made" in done.stderr) == (1, True), done.stderr
    assert f"+ {system_python} -m venv bundle/manifest.json/env\n" in done.stderr


def stand_in_environment(folder: Path, build_code: int) -> None:
    """An environment whose `edgetune` notes what it was asked and whose `python` finds every module."""
    (folder / "env" / "bin").mkdir(parents=True)
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    scripts = {
        "python": f'#!/bin/sh\ncase "$*" in *version_info*) echo {version} ;; esac\n',
        "edgetune": f'#!/bin/sh\necho "$*" >>{folder}/asked\n'
        f'{{ printf "<%s>" "$@"; echo; }} >>{folder}/words\n'
        f'[ "$1" != build ] || exit {build_code}\n',
    }
    for name, text in scripts.items():
        (folder / "env" / "bin" / name).write_text(text)
        (folder / "env" / "bin" / name).chmod(0o755)
    (folder / "bundle").mkdir()
    (folder / "bundle" / "manifest.json").write_text("{}")


@pytest.mark.skipif(Path("/etc/nv_tegra_release").exists(), reason="the stand-in environment is not a Jetson's")
@pytest.mark.parametrize(
    ("build_code", "code", "steps"),
    [
        (0, 0, ["doctor", "build", "parity", "bench", "doctor"]),
        (3, 3, ["doctor", "build", "parity", "bench", "doctor"]),
        (1, 1, ["doctor", "build", "doctor"]),
        (139, 1, ["doctor", "build", "doctor"]),
        (2, 2, ["doctor", "build"]),
        (130, 130, ["doctor", "build"]),
    ],
    ids=["built", "a gate failed", "an error", "a crash", "wrong usage", "stopped"],
)
def test_with_a_gpu_the_engine_is_proved_and_what_fails_is_told(
    build_code: int, code: int, steps: list[str], tmp_path: Path
) -> None:
    stand_in_environment(tmp_path, build_code)
    (tmp_path / "photos").mkdir()
    done = run_script(tmp_path, "--venv", "env", "--data", "photos", "bundle", "--max-batch", "4")
    assert done.returncode == code, done.stderr
    asked = (tmp_path / "asked").read_text().splitlines()
    assert [line.split()[0] for line in asked] == steps
    assert asked[1] == "build bundle --max-batch 4"
    if "bench" in steps:
        assert asked[2] == "parity bundle --runner engine --data photos"
        assert asked[3] == "bench bundle --runner cpu --runner engine"
    if len(steps) > 2:
        assert asked[-1] == "doctor --evidence edgetune-evidence.json --bundle bundle --data photos --force"


@pytest.mark.skipif(Path("/etc/nv_tegra_release").exists(), reason="the stand-in environment is not a Jetson's")
@pytest.mark.parametrize("words", [("--engine-cache", "my engines"), ("--engine-cache=my engines",)])
def test_where_the_engine_goes_every_step_looks_for_it(words: tuple[str, ...], tmp_path: Path) -> None:
    stand_in_environment(tmp_path, 0)
    (tmp_path / "photos").mkdir()
    done = run_script(tmp_path, "--venv", "env", "--data", "photos", "bundle", "--max-batch", "4", *words)
    assert done.returncode == 0, done.stderr
    cache = "<--engine-cache><my engines>"
    assert (tmp_path / "words").read_text().splitlines() == [
        f"<doctor>{cache}",
        "<build><bundle><--max-batch><4>" + "".join(f"<{word}>" for word in words),
        f"<parity><bundle><--runner><engine>{cache}<--data><photos>",
        f"<bench><bundle><--runner><cpu><--runner><engine>{cache}",
        f"<doctor><--evidence><edgetune-evidence.json><--bundle><bundle>{cache}<--data><photos><--force>",
    ]


@pytest.mark.skipif(Path("/etc/nv_tegra_release").exists(), reason="the stand-in environment is not a Jetson's")
def test_a_cache_that_is_called_like_a_backend_is_none(tmp_path: Path) -> None:
    stand_in_environment(tmp_path, 0)
    python = tmp_path / "env" / "bin" / "python"
    python.write_text(f'{python.read_text()}echo "$*" >>{tmp_path}/asked_python\n')
    done = run_script(tmp_path, "--venv", "env", "bundle", "--backend", "tensorrt-rtx", "--engine-cache", "tensorrt")
    assert done.returncode == 0, done.stderr
    (modules,) = [line for line in (tmp_path / "asked_python").read_text().splitlines() if "u.find_spec" in line]
    assert modules.endswith(" tensorrt_rtx tensorrt_rtx_bindings")


def unit_folder(folder: Path, *, gpu: bool) -> Path:
    """The unit with a program that exists here, and the drop-in beside it."""
    program = "/opt/edgetune/bin/edgetune"
    text = (DEPLOY / "edgetune.service").read_text()
    assert program in text
    (folder / "edgetune.service").write_text(text.replace(program, shutil.which("true") or "/bin/true"))
    if gpu:
        (folder / "edgetune.service.d").mkdir()
        shutil.copy(DEPLOY / "edgetune-gpu.conf", folder / "edgetune.service.d" / "gpu.conf")
    return folder / "edgetune.service"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
@pytest.mark.parametrize("gpu", [False, True], ids=["cpu", "gpu"])
def test_systemd_takes_the_unit_with_and_without_a_gpu(gpu: bool, tmp_path: Path) -> None:
    unit = unit_folder(tmp_path, gpu=gpu)
    done = subprocess.run(
        ["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, timeout=60, check=False
    )  # fmt: skip
    said = [line for line in done.stderr.splitlines() if str(tmp_path) in line or "edgetune" in line]
    assert (done.returncode, said) == (0, [])


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_would_tell_of_a_mistake(tmp_path: Path) -> None:
    unit = unit_folder(tmp_path, gpu=True)
    drop_in = tmp_path / "edgetune.service.d" / "gpu.conf"
    drop_in.write_text(drop_in.read_text() + "DevicePolicy=sometimes\n")
    done = subprocess.run(
        ["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, timeout=60, check=False
    )  # fmt: skip
    assert "sometimes" in done.stderr

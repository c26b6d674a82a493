"""The README's walk, as it stands there, on a folder of images."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edgetune.core.bundle import load_bundle
from edgetune.core.engine_files import check_engine, engine_cache, find_engines
from edgetune.core.engine_record import TENSORRT_RTX
from edgetune.runners.trt_library import installed_backends
from tests.serving import running_server

pytestmark = pytest.mark.e2e
REPOSITORY = Path(__file__).resolve().parents[2]
README = (REPOSITORY / "README.md").read_text()


def _commands_that_run(where: str = "") -> list[str]:
    blocks = re.findall(rf"<!-- runs as a test{where} -->\n```console\n(.*?)```", README, flags=re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


def _run(line: str, folder: Path, expect: int = 0) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        shlex.split(line), cwd=folder, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False
    )
    assert done.returncode == expect, f"{line}\n{done.stdout}{done.stderr}"


def test_the_walk_runs_as_written(photos: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    shutil.copytree(photos, tmp_path / "photos")
    shutil.copy(next((photos / "7").iterdir()), tmp_path / "photo.jpg")
    commands = _commands_that_run()
    assert len(commands) == 8
    served = [words for words in map(shlex.split, commands) if words[:2] == ["edgetune", "serve"]]
    assert served == [["edgetune", "serve", "bundles/first"]]
    for line in commands[:5]:
        _run(line, tmp_path)
    with running_server(tmp_path / "bundles" / "first") as address:
        for line in commands[6:]:
            call = line.replace("http://127.0.0.1:8000", address)
            answer = subprocess.run(shlex.split(call), cwd=tmp_path, capture_output=True, text=True, check=True)
            assert "error" not in answer.stdout
            assert "first" in answer.stdout


def test_every_way_to_fit_runs_as_written(photos: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    for folder in photos.iterdir():
        (tmp_path / "data" / folder.name).mkdir(parents=True)
        for index, image in enumerate(sorted(folder.iterdir())):
            shutil.copy(image, tmp_path / "data" / folder.name / f"seq_{index // 2:02d}_{index}.png")
    commands = _commands_that_run(" of fit")
    assert len(commands) == 5
    for line in commands:
        _run(line.partition("#")[0], tmp_path)
    assert len(list((tmp_path / "runs").glob("*/report.html"))) == 5


def _copy_some(photos: Path, folder: Path) -> None:
    """Four images a class."""
    for source in photos.iterdir():
        (folder / source.name).mkdir(parents=True)
        for image in sorted(source.iterdir())[:4]:
            shutil.copy(image, folder / source.name / image.name)


def test_parity_runs_as_written(small_bundle: Path, photos: Path, tmp_path: Path) -> None:
    """What cannot run here, an engine, fails with --require; all else passes."""
    shutil.copytree(small_bundle, tmp_path / "bundles" / "first")
    for name in ("data", "photos"):
        _copy_some(photos, tmp_path / name)
    shutil.copy(small_bundle / "model.onnx", tmp_path / "model.onnx")
    shutil.copy(small_bundle / "model.int8.cpu-x86.onnx", tmp_path / "model.int8.onnx")
    commands = _commands_that_run(" of parity")
    assert len(commands) == 5
    with running_server(tmp_path / "bundles" / "first") as address:
        for line in commands:
            words = line.partition("#")[0].replace("http://device:8000", address)
            _run(words, tmp_path, expect=3 if "--require" in words else 0)
    assert {path.name for path in (tmp_path / "parity").iterdir()} >= {"parity.json", "parity.md", "parity.xml"}


def test_questions_to_the_server_run_as_written(small_bundle: Path, photos: Path, tmp_path: Path) -> None:
    shutil.copytree(small_bundle, tmp_path / "bundles" / "first")
    shutil.copy(next((photos / "7").iterdir()), tmp_path / "photo.jpg")
    commands = _commands_that_run(" of the server")
    assert len(commands) == 4
    with running_server(tmp_path / "bundles" / "first") as address:
        said = []
        for line in commands:
            call = line.partition("  #")[0].replace("http://127.0.0.1:8000", address).replace("curl", "curl --fail", 1)
            done = subprocess.run(shlex.split(call), cwd=tmp_path, capture_output=True, text=True, check=True)
            said.append(done.stdout)
    assert [text.count('"label":"7"') for text in said] == [1, 2, 0, 0]
    assert (tmp_path / "logits").stat().st_size > 40
    assert '"name":"first"' in said[3]


def test_pythons_parity_runs_as_written(small_bundle: Path, photos: Path, tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    shutil.copytree(small_bundle, tmp_path / "bundles" / "first")
    _copy_some(photos, tmp_path / "data")
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(
    TENSORRT_RTX not in installed_backends(),
    reason="TensorRT-RTX is not installed; pip install 'edgetune[tensorrt-rtx]'",
)
def test_engines_are_built_as_written(small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (line,) = _commands_that_run(" where TensorRT-RTX is installed")
    shutil.copytree(small_bundle, tmp_path / "bundles" / "first")
    artifact = load_bundle(small_bundle).artifact("model.int8.tensorrt.onnx")
    monkeypatch.setenv("EDGETUNE_CACHE", str(tmp_path / "cache"))
    _run(line, tmp_path)
    ((folder, record),) = find_engines(engine_cache(), artifact.sha256)
    assert check_engine(folder) == record
    assert record.key.options.targets == ("sm86", "sm89", "sm120")
    assert record.proof.holds
    assert record.proof.seen == {"int8": 49, "fp16": 0, "fp32": 0}


def test_every_command_is_in_the_table() -> None:
    from edgetune.cli.main import _COMMANDS

    for name in _COMMANDS:
        assert f"| `edgetune {name}" in README


def test_every_link_to_a_file_leads_somewhere() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)", README):
        assert (REPOSITORY / target).exists(), target

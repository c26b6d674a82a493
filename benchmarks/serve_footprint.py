"""What `edgetune serve` takes from a device: disk, seconds to the first answer, memory, and CPU while nobody asks.

Installs this repository with its extras `serve` and `cpu` into a fresh environment, with the pinned versions. Start-up
is from the start of the process to the line that says ready, and to the first 200 of the readiness probe, with the
files in the page cache.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.parity_journal import markdown_table
from benchmarks.serve_processes import REPOSITORY, ask, cpu_seconds, end, free_port, rss_bytes, spawn, wait_until_ready
from benchmarks.serve_requests import binary_call, classify_call, read_image

_READY_PATH = "/v2/health/ready"
_START_LIMIT_S = 60.0
# What `python -m venv` itself puts there.
_NOT_OURS = ("pip", "setuptools", "wheel", "pkg_resources", "_distutils_hack", "distutils-precedence")
_LARGEST = 8


def main() -> None:
    arguments = _parse_arguments()
    work: Path = arguments.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    venv = work / "venvs" / "footprint"
    if not (arguments.keep and (venv / "bin" / "edgetune").exists()):
        _install(venv)
    command = [str(venv / "bin" / "edgetune"), "serve", str(arguments.bundle.absolute())]
    command += ["--artifact", arguments.artifact, *arguments.option]
    starts = [_time_start(command, work) for _ in range(arguments.starts + 1)][1:]  # the first one fills the page cache
    line_s, answer_s = ([start[index] for start in starts] for index in (0, 1))
    result = {
        **_sizes(venv),
        "ready_line_s": {"median": statistics.median(line_s), "max": max(line_s)},
        "first_200_s": {"median": statistics.median(answer_s), "max": max(answer_s)},
        **_run(command, work, arguments),
    }
    (work / "footprint.json").write_text(json.dumps(result, indent=2))
    print(markdown_table(("figure", "value"), [(key, json.dumps(value)) for key, value in result.items()]))


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--artifact", default="model.int8.cpu-x86.onnx")
    parser.add_argument("--image", type=Path, help="a JPEG; the bundle's first golden image by default")
    parser.add_argument("--starts", type=int, default=10)
    parser.add_argument("--idle-seconds", type=float, default=20.0)
    parser.add_argument("--keep", action="store_true", help="measure the environment that is there from the last run")
    parser.add_argument("--work", type=Path, default=Path("build/serve"))
    parser.add_argument("--option", action="append", default=[], help="a further word for edgetune serve: --option=--x")
    return parser.parse_args()


def _install(venv: Path) -> None:
    """From a copy, so that the build leaves nothing in the repository."""
    source = venv.parent / "source"
    shutil.rmtree(source, ignore_errors=True)
    source.mkdir(parents=True)
    shutil.copytree(REPOSITORY / "edgetune", source / "edgetune", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "constraints.txt"):
        shutil.copy(REPOSITORY / name, source / name)
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(venv)], check=True)
    install = [str(venv / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*install, "--constraint", "constraints.txt", ".[serve,cpu]"], cwd=source, check=True, timeout=900)
    shutil.rmtree(source)


def _sizes(venv: Path) -> dict[str, object]:
    """Megabytes of all files, without those of pip and setuptools; as disk blocks where it says so."""
    (site,) = (venv / "lib").glob("python*/site-packages")
    whole, bytecode, blocks = 0, 0, 0
    packages: dict[str, int] = {}
    for path in site.rglob("*"):
        top = path.relative_to(site).parts[0]
        if not path.is_file() or top.startswith(_NOT_OURS):
            continue
        stat = path.stat()
        whole += stat.st_size
        blocks += 512 * stat.st_blocks
        bytecode += stat.st_size if path.suffix == ".pyc" else 0
        packages[top] = packages.get(top, 0) + stat.st_size
    largest = sorted(packages.items(), key=lambda item: -item[1])[:_LARGEST]
    return {
        "installed_mb": round(whole / 1e6, 1),
        "installed_without_bytecode_mb": round((whole - bytecode) / 1e6, 1),
        "installed_disk_blocks_mb": round(blocks / 1e6, 1),
        "largest_mb": {name: round(size / 1e6, 1) for name, size in largest},
    }


def _time_start(command: list[str], work: Path) -> tuple[float, float]:
    """Seconds to the line and to the first 200."""
    port, log = free_port(), work / "footprint.log"
    started = time.perf_counter()
    process = spawn([*command, "--port", str(port)], log, _environment(), work)
    line_s = answer_s = 0.0
    try:
        while not (line_s and answer_s):
            now = time.perf_counter() - started
            if now > _START_LIMIT_S or process.poll() is not None:
                raise RuntimeError(f"the server did not start: {log.read_text(errors='replace')[-2000:]}")
            line_s = line_s or (now if b"\nready:" in b"\n" + log.read_bytes() else 0.0)
            answer_s = answer_s or (time.perf_counter() - started if _is_ready(port) else 0.0)
            time.sleep(0.001)
    finally:
        end(process)
    return line_s, answer_s


def _is_ready(port: int) -> bool:
    with contextlib.suppress(OSError, http.client.HTTPException):
        return ask(port, "GET", _READY_PATH)[0] == 200
    return False


def _environment() -> dict[str, str]:
    """Ours without what would let the fresh interpreter find this repository."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


def _run(command: list[str], work: Path, arguments: argparse.Namespace) -> dict[str, object]:
    pixels, image = read_image(arguments.bundle, arguments.image)
    log = work / "footprint.log"
    process = spawn([*command, "--port", "0"], log, _environment(), work)
    try:
        model, port = wait_until_ready(process, log)
        time.sleep(1)
        loaded = rss_bytes(process.pid)
        for _ in range(50):
            binary_call(model, pixels).logits(port)
            classify_call(image).logits(port)
        time.sleep(1)
        asked = rss_bytes(process.pid)
        before = cpu_seconds(process.pid)
        time.sleep(arguments.idle_seconds)
        idle = (cpu_seconds(process.pid) - before) / arguments.idle_seconds
    finally:
        end(process)
    return {
        "rss_loaded_mb": round(loaded / 1e6, 1),
        "rss_after_100_requests_mb": round(asked / 1e6, 1),
        "idle_cpu_percent": round(100 * idle, 3),
    }


if __name__ == "__main__":
    main()

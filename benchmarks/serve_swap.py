"""Changing the model under full load: no request may fail, and no bundle that is not right may ever serve.

A link is turned from one bundle to another (`os.replace`) and the server told by SIGHUP, again and again, while a
closed loop runs at concurrency 8. Then bundles that must not serve: one with tampered golden logits and a manifest that
vouches for them, and one with a damaged model file. Last, the server is killed and started anew.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.serve_load import LoadGenerator, Plan, Report, Template, load_generator
from benchmarks.serve_processes import RssWatch, Server, ask, edgetune_command, edgetune_server, free_port
from benchmarks.serve_requests import binary_call, classify_call, read_image
from edgetune.core.bundle import load_bundle, write_manifest
from edgetune.core.files import sha256_of_file

_MODEL = "model"
_CONCURRENCY = 8
_SWAP_LIMIT_S = 30.0
_LONG_S = 3600.0


class Field:
    """Bundles in a folder, a link `current` to one of them, and the server that follows it."""

    def __init__(self, folder: Path, bundle: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self.folder = folder
        self.link = folder / "current"
        shutil.copytree(bundle, folder / "a")
        # The same answers under another digest, so that every answer can be checked at every moment.
        _changed_copy(folder / "a", folder / "b", lambda _: None)
        _changed_copy(folder / "a", folder / "tampered", _tamper_golden)
        shutil.copytree(folder / "a", folder / "damaged")
        self.turn("a")

    def turn(self, name: str) -> None:
        temporary = self.folder / "current.new"
        temporary.symlink_to(name)
        os.replace(temporary, self.link)

    def digest(self, name: str) -> str:
        return sha256_of_file(self.folder / name / "manifest.json")


def main() -> None:
    arguments = _parse_arguments()
    work: Path = arguments.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    field = Field(work / "swap", arguments.bundle)
    _damage(field.folder / "damaged" / arguments.artifact)
    pixels, image = read_image(arguments.bundle, arguments.image)
    options = ["--artifact", arguments.artifact, "--model-name", _MODEL, *arguments.option]
    log, port = work / "swap.log", free_port()
    result: dict[str, Any] = {}
    with load_generator() as load:
        with edgetune_server(field.link, log, *options, port=port) as server:
            calls = [binary_call(_MODEL, pixels), classify_call(image)]
            templates = [call.template(equals=call.steady_answer(port)) for call in calls]
            load.run(port, templates, Plan(_CONCURRENCY, requests=200))
            result["swaps"] = _swap_often(field, server, load, templates, arguments.swaps)
            for name in ("tampered", "damaged"):
                result[name] = {**_refuse(field, server, load, templates, name), "said": _last_line(log)}
            result["swap_after_refusals_s"] = _swap(field, server, "b")
            result["killed"] = _kill_and_restart(field, server, load, templates, options)
        for name in ("tampered", "damaged"):
            result[f"start_from_{name}"] = _start_alone(field.folder / name, options)
    (work / "swap.json").write_text(json.dumps(result, indent=2))
    print(json.dumps(result, indent=2))


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--artifact", default="model.int8.cpu-x86.onnx")
    parser.add_argument("--image", type=Path, help="a JPEG; the bundle's first golden image by default")
    parser.add_argument("--swaps", type=int, default=100)
    parser.add_argument("--work", type=Path, default=Path("build/serve"))
    parser.add_argument("--option", action="append", default=[], help="a further word for edgetune serve: --option=--x")
    return parser.parse_args()


def _changed_copy(source: Path, target: Path, change: Callable[[Path], None]) -> None:
    """Another bundle, whole in itself: its manifest vouches for what was changed."""
    shutil.copytree(source, target)
    manifest = load_bundle(source).manifest
    change(target)
    write_manifest(target, replace(manifest, created="2000-01-01T00:00:00+00:00"))


def _tamper_golden(bundle: Path) -> None:
    table = bundle / "golden" / "golden.npz"
    with np.load(table, allow_pickle=False) as found:
        arrays = {key: found[key] + 5 if key.startswith("logits/") else found[key] for key in found.files}
    np.savez_compressed(table, **arrays)


def _damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _served_digest(port: int) -> str:
    status, body, _ = ask(port, "GET", f"/v2/models/{_MODEL}")
    if status != 200:
        raise RuntimeError(f"the model's metadata answered {status}: {body[:200]!r}")
    digest: str = json.loads(body)["parameters"]["bundle_digest"]
    return digest


def _swap(field: Field, server: Server, name: str) -> float:
    """Seconds from turning the link to the first answer that tells the new bundle."""
    started = time.monotonic()
    field.turn(name)
    os.kill(server.pid, signal.SIGHUP)
    wanted = field.digest(name)
    while _served_digest(server.port) != wanted:
        if time.monotonic() - started > _SWAP_LIMIT_S:
            raise RuntimeError(f"{name} is not served {_SWAP_LIMIT_S:g} s after the swap")
        time.sleep(0.01)
    return time.monotonic() - started


def _swap_often(
    field: Field, server: Server, load: LoadGenerator, templates: list[Template], count: int
) -> dict[str, Any]:
    with load.running(server.port, templates, Plan(_CONCURRENCY, _LONG_S)) as running, RssWatch(server.pid) as watch:
        time.sleep(2)
        before = server.rss_bytes()
        seconds, memory = [], []
        for index in range(count):
            seconds.append(_swap(field, server, "ba"[index % 2]))
            memory.append(server.rss_bytes())
        time.sleep(2)
        after = server.rss_bytes()
        report = running.stop()
    return {
        **_short(report), "swaps": count, "swap_s": {"median": float(np.median(seconds)), "max": max(seconds)},
        "rss_mb": {"before": before / 1e6, "every_10_swaps": [value / 1e6 for value in memory[9::10]],
                   "after": after / 1e6, "peak": watch.peak_bytes / 1e6},
    }  # fmt: skip


def _refuse(field: Field, server: Server, load: LoadGenerator, templates: list[Template], name: str) -> dict[str, Any]:
    """What was served before the swap goes on, and at no moment anything else."""
    before = _served_digest(server.port)
    seen = set()
    with load.running(server.port, templates, Plan(_CONCURRENCY, _LONG_S)) as running:
        field.turn(name)
        os.kill(server.pid, signal.SIGHUP)
        end_s = time.monotonic() + 5
        while time.monotonic() < end_s:
            seen.add(_served_digest(server.port))
            time.sleep(0.02)
        report = running.stop()
    return {**_short(report), "only_the_old_one_served": seen == {before}}


def _last_line(log: Path) -> str:
    return log.read_text(errors="replace").splitlines()[-1]


def _kill_and_restart(
    field: Field, server: Server, load: LoadGenerator, templates: list[Template], options: list[str]
) -> dict[str, Any]:
    """As a supervisor does that starts it anew at once, on the same port, under load."""
    wanted = field.digest("b")
    with load.running(server.port, templates, Plan(_CONCURRENCY, _LONG_S)) as running:
        time.sleep(2)
        server.process.kill()
        server.process.wait()
        killed = time.monotonic()
        log = field.folder / "restarted.log"
        with edgetune_server(field.link, log, *options, port=server.port):
            restarted_s = time.monotonic() - killed
            digest = _served_digest(server.port)
            time.sleep(3)
            report = running.stop()
    answering = [ok for ok, _ in report["timeline"]]
    return {
        **_short(report), "ready_again_s": restarted_s, "serves_what_the_link_says": digest == wanted,
        "ok_by_second": answering,
    }  # fmt: skip


def _start_alone(bundle: Path, options: list[str]) -> dict[str, Any]:
    """A server that is started with such a bundle ends, and says why, without having opened its port."""
    done = subprocess.run(
        edgetune_command(bundle, *options), capture_output=True, text=True, timeout=_SWAP_LIMIT_S, check=False
    )
    return {"exit_code": done.returncode, "said_ready": "ready:" in done.stderr, "said": done.stderr.strip()[-400:]}


def _short(report: Report) -> dict[str, Any]:
    keys = ("requests", "ok", "wrong_body", "connect_errors", "disconnects", "timeouts", "no_http", "statuses")
    return {
        "failed": report["requests"] - report["ok"],
        **{key: report[key] for key in keys},
        "p99_ms": report["latency_ms"]["p99"] if report["latency_ms"] else None,
        "max_ms": report["latency_ms"]["max"] if report["latency_ms"] else None,
    }


if __name__ == "__main__":
    main()

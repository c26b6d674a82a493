"""What serving costs: `edgetune serve` against a bare ONNX Runtime loop and other servers of the same graph.

Every server gets its work from one module: the same session options with one thread, the same decoder. In each round
the cells of a kind (tensor or JPEG, concurrency 1 or 8) run right after one another, in another order each round, while
all servers but one stand still. Ratios are taken within a round. The bare loop has one thread at concurrency 1, and
one a CPU, sharing a session, at concurrency 8. The load generator runs on the same CPUs as the servers.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.serve_contenders import (
    CONTENDERS,
    CONTROL,
    CONTROL_CPUS,
    EDGETUNE,
    Setup,
    Workload,
    check,
    start,
    workloads,
)
from benchmarks.serve_load import LoadGenerator, Plan, load_generator
from benchmarks.serve_processes import REPOSITORY, Server, end
from benchmarks.serve_report import BARE, Cell, cells_table, targets_table
from benchmarks.serve_requests import Logits, read_image
from edgetune.core.machine import usable_cpus

_CONCURRENCIES = (1, 8)


class Bare:
    """The bare loop's process, and the logits that it gives."""

    def __init__(self, setup: Setup, image: Path) -> None:
        command = [sys.executable, "-m", "benchmarks.serve_bare", str(setup.bundle), setup.artifact, str(image)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY, start_new_session=True
        )
        self.logits: Logits = np.array(self._read()["logits"], np.float32)

    def measure(self, kind: str, concurrency: int, seconds: float) -> dict[str, float]:
        assert self.process.stdin is not None
        cell = {"workload": kind, "threads": 1 if concurrency == 1 else usable_cpus(), "seconds": seconds}
        self.process.stdin.write(json.dumps(cell) + "\n")
        self.process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("the bare loop has died")
        answer: dict[str, Any] = json.loads(line)
        return answer


@dataclass(frozen=True)
class Measured:
    """A workload of a server, or of the bare loop where there is no server."""

    workload: Workload | None
    server: Server | None
    kind: str
    equals: bytes | None = None


def main() -> None:
    arguments = _parse_arguments()
    arguments.work.mkdir(parents=True, exist_ok=True)
    setup = Setup(arguments.bundle.absolute(), arguments.artifact, arguments.work.absolute(), tuple(arguments.option))
    image: Path = (arguments.image or arguments.bundle / "golden" / "0.jpg").absolute()
    cells: list[Cell] = []
    with contextlib.ExitStack() as stack:
        bare = Bare(setup, image)
        stack.callback(end, bare.process)  # type: ignore[arg-type]
        load = stack.enter_context(load_generator())
        groups = _groups(list(_open(stack, setup, image, bare, arguments)))
        journal = stack.enter_context((arguments.work / "serve.jsonl").open("w"))
        for number in range(arguments.rounds):
            for cell in _one_round(number, groups, bare, load, arguments):
                journal.write(json.dumps(asdict(cell)) + "\n")
                journal.flush()
                cells.append(cell)
            print(f"round {number + 1} of {arguments.rounds}", file=sys.stderr)
    report = cells_table(cells) + "\n" + targets_table(cells, EDGETUNE, (CONTROL, CONTROL_CPUS))
    (arguments.work / "serve.md").write_text(report)
    print(report)


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--artifact", default="model.int8.cpu-x86.onnx")
    parser.add_argument("--image", type=Path, help="a JPEG; the bundle's first golden image by default")
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=CONTENDERS)
    parser.add_argument("--workloads", nargs="+", help="of edgetune: binary raw json jpeg; all by default")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each cell")
    parser.add_argument("--settle", type=float, default=0.3, help="seconds between cells")
    parser.add_argument("--work", type=Path, default=Path("build/serve"), help="environments, logs and results")
    parser.add_argument("--option", action="append", default=[], help="a further word for edgetune serve: --option=--x")
    return parser.parse_args()


def _open(
    stack: contextlib.ExitStack, setup: Setup, image: Path, bare: Bare, arguments: argparse.Namespace
) -> Iterator[Measured]:
    """Starts and checks the servers and leaves them standing still; a peer that cannot run is told and left out."""
    pixels, body = read_image(setup.bundle, image)
    yield from (Measured(None, None, kind) for kind in ("tensor", "jpeg"))
    for name in arguments.only:
        try:
            server = stack.enter_context(start(name, setup))
        except (RuntimeError, OSError) as error:
            if name == EDGETUNE:
                raise
            print(f"left out: {name}: {error}", file=sys.stderr)
            continue
        found = workloads(server, pixels, body)
        if name == EDGETUNE and arguments.workloads:
            found = [workload for workload in found if workload.name in arguments.workloads]
        check(server, found, bare.logits)
        for workload in found:
            yield Measured(workload, server, workload.kind, workload.call.steady_answer(server.port))
        server.pause()


def _groups(measured: list[Measured]) -> list[tuple[int, list[Measured]]]:
    return [
        (concurrency, [one for one in measured if one.kind == kind])
        for concurrency in _CONCURRENCIES
        for kind in ("tensor", "jpeg")
    ]


def _rotated(items: list[Any], number: int) -> list[Any]:
    shift = number % len(items)
    return items[shift:] + items[:shift]


def _one_round(
    number: int,
    groups: list[tuple[int, list[Measured]]],
    bare: Bare,
    load: LoadGenerator,
    arguments: argparse.Namespace,
) -> Iterator[Cell]:
    for concurrency, group in _rotated(groups, number):
        for measured in _rotated(group, number):
            time.sleep(arguments.settle)
            if measured.server is None:
                figures = bare.measure(measured.kind, concurrency, arguments.seconds)
                rps, p50_ms, p99_ms = (figures[key] for key in ("rps", "p50_ms", "p99_ms"))
                yield Cell(number, BARE, measured.kind, measured.kind, concurrency, rps, p50_ms, p99_ms)
            else:
                yield _serve_cell(number, measured, concurrency, load, arguments.seconds)


def _serve_cell(number: int, measured: Measured, concurrency: int, load: LoadGenerator, seconds: float) -> Cell:
    server, workload = measured.server, measured.workload
    assert server is not None
    assert workload is not None
    server.resume()
    template = workload.call.template(equals=measured.equals)
    load.run(server.port, [template], Plan(concurrency, requests=4 * concurrency))  # connections and pages warm
    report = load.run(server.port, [template], Plan(concurrency, seconds))
    memory = server.rss_bytes()
    server.pause()
    latency = report["latency_ms"] or {"p50": float("nan"), "p99": float("nan")}
    return Cell(
        number, server.name, workload.name, measured.kind, concurrency, report["goodput"], latency["p50"],
        latency["p99"], report["requests"] - report["ok"], memory, report["cpu_s"],
    )  # fmt: skip


if __name__ == "__main__":
    main()

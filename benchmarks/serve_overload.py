"""What `edgetune serve` does at five times the load that it can carry, and how soon it is itself again.

The peak is that of a closed loop at concurrency 8. Then requests are due at five times that rate, at random (Poisson)
over up to 200 connections; one that finds none free is counted as unsent. Right after, the closed loop again. `goodput`
is right answers per second during the overload, over the peak; the latency is that of these answers.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.parity_journal import markdown_table
from benchmarks.serve_load import LoadGenerator, Plan, Report, Template, load_generator
from benchmarks.serve_processes import RssWatch, Server, edgetune_server
from benchmarks.serve_requests import binary_call, classify_call, read_image

_CONCURRENCY = 8
_RECOVERED = 0.95


def main() -> None:
    arguments = _parse_arguments()
    arguments.work.mkdir(parents=True, exist_ok=True)
    pixels, image = read_image(arguments.bundle, arguments.image)
    results = []
    with load_generator() as load:
        for name in arguments.workloads:
            log = arguments.work / f"overload-{name}.log"
            options = ("--artifact", arguments.artifact, *arguments.option)
            with edgetune_server(arguments.bundle.absolute(), log.absolute(), *options) as server:
                call = binary_call(server.model, pixels) if name == "binary" else classify_call(image)
                template = call.template(equals=call.steady_answer(server.port))
                results.append(_measure(name, server, template, load, arguments))
    (arguments.work / "overload.json").write_text(json.dumps(results, indent=2))
    table = markdown_table(_HEAD, [_row(result) for result in results])
    (arguments.work / "overload.md").write_text(table)
    print(table)


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--artifact", default="model.int8.cpu-x86.onnx")
    parser.add_argument("--image", type=Path, help="a JPEG; the bundle's first golden image by default")
    parser.add_argument("--workloads", nargs="+", choices=("binary", "jpeg"), default=("binary", "jpeg"))
    parser.add_argument("--factor", type=float, default=5.0)
    parser.add_argument("--connections", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=60.0, help="of the overload")
    parser.add_argument("--peak-seconds", type=float, default=15.0, help="of the closed loops before and after it")
    parser.add_argument("--work", type=Path, default=Path("build/serve"))
    parser.add_argument("--option", action="append", default=[], help="a further word for edgetune serve: --option=--x")
    return parser.parse_args()


def _measure(
    name: str, server: Server, template: Template, load: LoadGenerator, arguments: argparse.Namespace
) -> dict[str, Any]:
    closed = Plan(_CONCURRENCY, arguments.peak_seconds)
    load.run(server.port, [template], Plan(_CONCURRENCY, requests=10 * _CONCURRENCY))
    peak = load.run(server.port, [template], closed)
    before = server.rss_bytes()
    flood = Plan(
        arguments.connections, arguments.seconds, rate=arguments.factor * peak["goodput"], poisson=True, patience_s=0
    )
    with RssWatch(server.pid) as watch:
        overload = load.run(server.port, [template], flood)
        recovery = load.run(server.port, [template], closed)
    time.sleep(1)
    return {
        "workload": name, "peak": peak, "overload": overload, "recovery": recovery,
        "gap_s": recovery["started_unix_s"] - overload["started_unix_s"] - overload["seconds"],
        "recovered_after_s": _first_good_second(recovery, peak["goodput"]),
        "steady_after_s": _first_good_second(recovery, _steady_rps(recovery)),
        "rss_before_bytes": before, "rss_peak_bytes": watch.peak_bytes, "rss_after_bytes": server.rss_bytes(),
        "rss_samples": watch.samples,
    }  # fmt: skip


def _first_good_second(recovery: Report, rps: float) -> int | None:
    """Whole seconds of the recovery before the first that reached the rate, or nearly; None if none did."""
    return next((second for second, ok in enumerate(_by_second(recovery)) if ok >= _RECOVERED * rps), None)


def _steady_rps(recovery: Report) -> float:
    """Of the recovery's second half: what the machine gives now, where other work on it has come or gone."""
    seconds = _by_second(recovery)
    return float(np.median(seconds[len(seconds) // 2 :]))


def _by_second(report: Report) -> list[int]:
    return [ok for ok, _ in report["timeline"][: int(report["seconds"])]]


_HEAD = (
    "workload", "peak/s", "offered/s", "goodput/s", "goodput/peak (>= 0.95)", "p50 ms", "p99 ms", "statuses", "unsent",
    "other errors", "s until 95 % of peak, of its own steady rate", "recovery/peak", "RSS before, peak, after MB",
    "generator CPU s",
)  # fmt: skip


def _row(result: dict[str, Any]) -> list[str]:
    peak, overload, recovery = result["peak"], result["overload"], result["recovery"]
    latency = overload["service_ms"] or {"p50": float("nan"), "p99": float("nan")}
    errors = sum(overload[key] for key in ("connect_errors", "disconnects", "timeouts", "no_http", "wrong_body"))
    memory = [result[key] / 1e6 for key in ("rss_before_bytes", "rss_peak_bytes", "rss_after_bytes")]
    return [
        result["workload"],
        f"{peak['goodput']:.0f}",
        f"{(overload['requests'] + overload['unsent']) / overload['seconds']:.0f}",
        f"{overload['goodput']:.0f}",
        f"{overload['goodput'] / peak['goodput']:.3f}",
        f"{latency['p50']:.1f}",
        f"{latency['p99']:.1f}",
        " ".join(f"{status}:{count}" for status, count in overload["statuses"].items()),
        str(overload["unsent"]),
        str(errors),
        f"{result['recovered_after_s']}, {result['steady_after_s']}",
        f"{recovery['goodput'] / peak['goodput']:.3f}",
        ", ".join(f"{value:.0f}" for value in memory),
        f"{overload['cpu_s']:.1f} of {overload['seconds']:.0f}",
    ]


if __name__ == "__main__":
    main()

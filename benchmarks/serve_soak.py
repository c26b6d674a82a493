"""Whether the memory of `edgetune serve` grows over many requests of mixed sizes, faulty ones among them.

Binary batches of 1 to 16, JSON, JPEGs of several sizes and requests that are refused, 8 at a time. Every answer must be
the same as the first of its kind, and every faulty request must get its status. Memory is that after a warm-up of all
kinds, against that at the end.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np

from benchmarks.serve_load import Plan, Report, Template, load_generator
from benchmarks.serve_processes import Server, edgetune_server
from benchmarks.serve_requests import (
    Call,
    Pixels,
    binary_call,
    classify_call,
    faulty_templates,
    json_call,
    read_image,
    sized_jpegs,
)

_CONCURRENCY = 8
_PARTS = 10
_WARM_UP = 1500
_LIMIT = 0.02
# Most requests are small, so that 200,000 of them end within minutes rather than hours.
_BATCHES = {1: 40, 2: 8, 4: 4, 8: 2, 16: 1}
_JPEG_SIDES = {320: 20, 640: 8, 1280: 2, 2048: 1}
_JSON_WEIGHT, _FAULTY_WEIGHT = 3, 2


def main() -> None:
    arguments = _parse_arguments()
    arguments.work.mkdir(parents=True, exist_ok=True)
    pixels, image = read_image(arguments.bundle, arguments.image)
    options = ("--artifact", arguments.artifact, *arguments.option)
    log = (arguments.work / "soak.log").absolute()
    with load_generator() as load, edgetune_server(arguments.bundle.absolute(), log, *options) as server:
        templates = _mix(server, pixels, image)
        faults = _faults(load.run(server.port, templates, Plan(_CONCURRENCY, requests=_WARM_UP)))
        memory = [_resting_rss_bytes(server)]
        for part in range(_PARTS):
            report = load.run(server.port, templates, Plan(_CONCURRENCY, requests=arguments.requests // _PARTS))
            faults += _faults(report)
            memory.append(_resting_rss_bytes(server))
            print(f"part {part + 1}: {report['rps']:.0f}/s, {memory[-1] / 1e6:.1f} MB", file=sys.stderr)
    growth = memory[-1] / memory[0] - 1
    result = {"requests": arguments.requests, "rss_bytes": memory, "growth": growth, "not_as_expected": faults}
    (arguments.work / "soak.json").write_text(json.dumps(result, indent=2))
    print(f"{arguments.requests} requests, {faults} not answered as expected (0)")
    print(f"RSS {memory[0] / 1e6:.1f} MB after the warm-up, {memory[-1] / 1e6:.1f} MB at the end")
    print(f"growth {growth:+.2%} (<= {_LIMIT:.0%}), in the second half {memory[-1] / memory[_PARTS // 2] - 1:+.2%}")


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--artifact", default="model.int8.cpu-x86.onnx")
    parser.add_argument("--image", type=Path, help="a JPEG; the bundle's first golden image by default")
    parser.add_argument("--requests", type=int, default=200_000)
    parser.add_argument("--work", type=Path, default=Path("build/serve"))
    parser.add_argument("--option", action="append", default=[], help="a further word for edgetune serve: --option=--x")
    return parser.parse_args()


def _mix(server: Server, pixels: Pixels, image: bytes) -> list[Template]:
    calls: list[tuple[Call, int]] = [
        (binary_call(server.model, np.repeat(pixels, batch, axis=0)), weight) for batch, weight in _BATCHES.items()
    ]
    calls.append((json_call(server.model, pixels), _JSON_WEIGHT))
    jpegs = sized_jpegs(image, tuple(_JPEG_SIDES))
    calls += [(classify_call(jpeg), weight) for jpeg, weight in zip(jpegs, _JPEG_SIDES.values(), strict=True)]
    templates = [
        call.template(weight=weight, equals=call.steady_answer(server.port)) for call, weight in calls
    ]  # fmt: skip
    return templates + faulty_templates(server.model, pixels, image, weight=_FAULTY_WEIGHT)


def _faults(report: Report) -> int:
    faults: int = report["requests"] - report["ok"]
    if faults:
        kinds = [index for index, kind in enumerate(report["templates"]) if kind["ok"] != kind["requests"]]
        print(f"not as expected: requests {kinds}, statuses {report['statuses']}", file=sys.stderr)
    return faults


def _resting_rss_bytes(server: Server) -> int:
    """The median of a few seconds without requests."""
    samples = []
    for _ in range(5):
        time.sleep(0.5)
        samples.append(server.rss_bytes())
    return int(np.median(samples))


if __name__ == "__main__":
    main()

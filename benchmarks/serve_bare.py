"""The bare loop in a process of its own: `serve_bare.py BUNDLE ARTIFACT IMAGE`, which reads what to time from stdin.

A line `{"workload": "tensor" | "jpeg", "threads": N, "seconds": S}` is answered by one with what came of it. All
threads share one session with one thread of its own, the same that the servers have.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.serve_peers.work import Work


def main() -> None:
    work, image = Work(Path(sys.argv[1]), sys.argv[2]), Path(sys.argv[3]).read_bytes()
    pixels = work.decode(image)
    computations: dict[str, Callable[[], object]] = {
        "tensor": lambda: work.infer(pixels),
        "jpeg": lambda: work.infer(work.decode(image)),
    }
    print(json.dumps({"logits": work.infer(pixels)[0].tolist()}), flush=True)
    for line in sys.stdin:
        cell = json.loads(line)
        print(json.dumps(_time(computations[cell["workload"]], cell["threads"], cell["seconds"])), flush=True)


def _time(compute: Callable[[], object], threads: int, seconds: float) -> dict[str, Any]:
    """Calls that ended within the time, by all threads."""
    durations: list[list[float]] = [[] for _ in range(threads)]
    start = threading.Barrier(threads)

    def loop(index: int) -> None:
        start.wait()
        now = time.perf_counter()
        end = now + seconds
        while now < end:
            before = now
            compute()
            now = time.perf_counter()
            if now <= end:
                durations[index].append((now - before) * 1e3)

    workers = [threading.Thread(target=loop, args=(index,)) for index in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    calls = np.concatenate(durations)
    p50, p99 = np.percentile(calls, (50, 99)) if len(calls) else (np.nan, np.nan)
    return {"rps": len(calls) / seconds, "p50_ms": float(p50), "p99_ms": float(p99)}


if __name__ == "__main__":
    main()

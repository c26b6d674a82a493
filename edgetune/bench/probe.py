"""Cold start and memory of one artifact, seen from a fresh process: `python -m edgetune.bench.probe` and a request."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from edgetune.core.bundle import load_bundle
from edgetune.core.errors import EdgetuneError, ModelError
from edgetune.runners.choice import Choice, RunnerOptions


@dataclass(frozen=True)
class ColdStart:
    """Seconds from an interpreter with libraries loaded to the first answer, and the process's peak memory."""

    first_answer_s: float
    peak_memory_bytes: int


def probe_cold_start(bundle: Path, choice: Choice, options: RunnerOptions) -> ColdStart:
    """Raises `ModelError` when the process dies, for instance of too little memory."""
    request = {
        "bundle": str(bundle),
        "artifact": choice.artifact.name,
        "runner": choice.runner,
        "engine": str(choice.engine) if choice.engine is not None else "",
        "cache": str(options.cache) if options.cache is not None else "",
        "threads": options.threads,
    }
    command = [sys.executable, "-m", "edgetune.bench.probe", json.dumps(request)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        name = choice.artifact.name
        raise ModelError(f"{name} cannot be started in a process of its own (exit {done.returncode}): {last}")
    answer = json.loads(done.stdout)
    return ColdStart(answer["first_answer_s"], answer["peak_memory_bytes"])


def _measure(request: dict[str, str]) -> ColdStart:
    import numpy as np

    from edgetune.core.machine import peak_memory_bytes
    from edgetune.core.tensors import LOGITS_OUTPUT
    from edgetune.runners.base import infer_images
    from edgetune.runners.from_bundle import open_runner
    from edgetune.runners.ort_runner import available_providers

    available_providers()
    bundle = load_bundle(Path(request["bundle"]))
    engine, cache = (Path(request[key]) if request[key] else None for key in ("engine", "cache"))
    choice = Choice(bundle.artifact(request["artifact"]), "", request["runner"], engine)
    size = bundle.manifest.preprocess.crop_size
    start = time.perf_counter()
    with open_runner(bundle, choice, RunnerOptions(threads=int(request["threads"]), cache=cache)) as runner:
        infer_images(runner, np.zeros((1, size, size, 3), dtype=np.uint8), LOGITS_OUTPUT)
    return ColdStart(time.perf_counter() - start, peak_memory_bytes())


if __name__ == "__main__":
    try:
        sys.stdout.write(json.dumps(vars(_measure(json.loads(sys.argv[1])))))
    except EdgetuneError as error:
        sys.exit(error.message)

"""Cold start and memory of one artifact, seen from a fresh process: `python -m edgetune.bench.probe MODEL SIZE`."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from edgetune.core.errors import ModelError


@dataclass(frozen=True)
class ColdStart:
    """Seconds from an interpreter with libraries loaded to the first answer, and the process's peak memory."""

    first_answer_s: float
    peak_memory_bytes: int


def probe_cold_start(model: Path, crop_size: int, threads: int) -> ColdStart:
    """Raises `ModelError` when the process dies, for instance of too little memory."""
    command = [sys.executable, "-m", "edgetune.bench.probe", str(model), str(crop_size), str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ModelError(f"{model.name} cannot be started in a process of its own (exit {done.returncode}): {last}")
    answer = json.loads(done.stdout)
    return ColdStart(answer["first_answer_s"], answer["peak_memory_bytes"])


def _measure(model: Path, crop_size: int, threads: int) -> ColdStart:
    import numpy as np

    from edgetune.core.machine import peak_memory_bytes
    from edgetune.core.tensors import LOGITS_OUTPUT
    from edgetune.runners.base import infer_images
    from edgetune.runners.ort_runner import OrtRunner, available_providers

    available_providers()
    start = time.perf_counter()
    with OrtRunner(model, threads=threads) as runner:
        infer_images(runner, np.zeros((1, crop_size, crop_size, 3), dtype=np.uint8), LOGITS_OUTPUT)
    return ColdStart(time.perf_counter() - start, peak_memory_bytes())


if __name__ == "__main__":
    measured = _measure(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
    sys.stdout.write(json.dumps(vars(measured)))

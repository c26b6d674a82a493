"""Cold start and memory of one artifact, seen from a fresh process, which gets its request as JSON."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from edgetune.core.bundle import load_bundle
from edgetune.core.child import child_command, how_it_ended, last_words
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
    done = subprocess.run(child_command("edgetune.bench.probe", json.dumps(request)), capture_output=True, check=False)
    answer = _read(done.stdout) if done.returncode == 0 else None
    if answer is None:
        how, said = how_it_ended(done.returncode), last_words(done.stderr) or "no message"
        raise ModelError(f"{choice.artifact.name} cannot be started: a process of its own {how}: {said}")
    return answer


def _read(said: bytes) -> ColdStart | None:
    """The last line; libraries print before it."""
    try:
        answer = json.loads(said.splitlines()[-1])
        return ColdStart(answer["first_answer_s"], answer["peak_memory_bytes"])
    except (ValueError, IndexError):
        return None


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


def main() -> None:
    """What the process does."""
    try:
        answer = json.dumps(vars(_measure(json.loads(sys.argv[1]))))
    except EdgetuneError as error:
        sys.exit(error.message)
    sys.stdout.write(f"\n{answer}\n")

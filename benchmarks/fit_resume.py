"""A fit killed at random moments and resumed gives, bit for bit, the head of a fit that was left alone.

Each round starts `edgetune fit` with an empty cache in a process of its own, kills it (SIGKILL) at a moment drawn from
the whole length of the undisturbed fit, and runs the same command with `--resume`; every other round is killed twice.
Prints the moment, what the cache held by then, and the digest of the head; ends with 1 if one differs.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

_HERE = Path(__file__).resolve().parent
_DATA = Path(os.environ.get("EDGETUNE_TEST_DATA", _HERE.parent.parent / "shared" / "data")) / "hymenoptera"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=_DATA)
    parser.add_argument("--work", type=Path, default=Path("build/resume"))
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--options", nargs=argparse.REMAINDER, default=[], help="for edgetune fit; must come last")
    arguments = parser.parse_args()
    shutil.rmtree(arguments.work, ignore_errors=True)
    arguments.work.mkdir(parents=True)
    draw = random.Random(arguments.seed)
    start = time.perf_counter()
    _wait(_start(arguments, "alone"))
    length_s = time.perf_counter() - start
    expected = _digest(arguments.work / "alone")
    print(f"undisturbed: {length_s:.1f} s, head {expected[:16]}")
    differing = 0
    for number in range(1, arguments.rounds + 1):
        name = f"round{number}"
        moments = [draw.uniform(0.3, length_s) for _ in range(1 + number % 2)]
        held = [_kill_after(_start(arguments, name), moment, arguments.work / f"{name}-cache") for moment in moments]
        _wait(_start(arguments, name))
        digest = _digest(arguments.work / name)
        differing += digest != expected
        told = ", ".join(f"{moment:.1f} s ({state})" for moment, state in zip(moments, held, strict=True))
        print(f"round {number}: killed after {told}; head {digest[:16]}{'' if digest == expected else ' DIFFERS'}")
        shutil.rmtree(arguments.work / f"{name}-cache")
    print(f"{arguments.rounds - differing} of {arguments.rounds} heads are identical")
    raise SystemExit(1 if differing else 0)


def _start(arguments: argparse.Namespace, name: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "edgetune.cli.main", "fit", str(arguments.data), "--device", "cpu", "--resume",
               "--out", str(arguments.work / name), *arguments.options]  # fmt: skip
    environment = {**os.environ, "EDGETUNE_CACHE": str(arguments.work / f"{name}-cache")}
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _wait(process: subprocess.Popen[bytes]) -> None:
    if process.wait(timeout=1800) != 0:
        raise SystemExit(f"a fit that nobody disturbed ended with {process.returncode}")


def _kill_after(process: subprocess.Popen[bytes], moment_s: float, cache: Path) -> str:
    """What the cache held when the process died."""
    try:
        process.wait(timeout=moment_s)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
    else:
        return "was done by then"
    graphs, shards = (len(list(cache.glob(pattern))) for pattern in ("graphs/*.onnx", "features/*/*.npy"))
    return f"{graphs} graph, {shards} shards"


def _digest(run: Path) -> str:
    return hashlib.sha256((run / "head.safetensors").read_bytes()).hexdigest()


if __name__ == "__main__":
    main()

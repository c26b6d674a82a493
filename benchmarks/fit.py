"""`edgetune fit` against the loop that tutorials teach, and against the floor under any fit, side by side in one run.

Every figure is of a whole process, imports included, but for the floor (`fit_floor.py`: passes only). The tutorial's
loop (`fit_tutorial.py`) is timed for a few epochs and scaled to all of them; the table says so. Parts:

    hymenoptera   244 photos: tutorial of 25 epochs, fit cold (empty cache), fit warm, floor
    thousand      1,000 Fashion-MNIST images: tutorial of 30 epochs, fit with only the backbone's graph cached
    fashion       10,000 + 10,000 Fashion-MNIST images: fit cold, warm, floor
    memory        peak memory of cold fits on 2,000 and 10,000 images, above `import torch`

Fashion-MNIST comes from `fashion_mnist.py`. Results lie in --work, as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_HERE = Path(__file__).resolve().parent
_DATA = Path(os.environ.get("EDGETUNE_TEST_DATA", _HERE.parent.parent / "shared" / "data")) / "hymenoptera"
_TIMED_EPOCHS = 2
_MIB = 1 << 20


@dataclass(frozen=True)
class Measured:
    """A whole process: wall seconds, its peak resident memory, and what it printed."""

    seconds: float
    peak_mib: float
    output: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=_DATA, help="hymenoptera: train/ and val/")
    parser.add_argument("--fashion", type=Path, default=Path("build/fashion_mnist"))
    parser.add_argument("--work", type=Path, default=Path("build/fit"))
    parser.add_argument("--only", nargs="+", choices=sorted(PARTS), default=sorted(PARTS))
    parser.add_argument("--rounds", type=int, default=3, help="of the short measurements")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    for name in arguments.only:
        rows = PARTS[name](arguments)
        (arguments.work / f"{name}.json").write_text(json.dumps(rows, indent=2))
        print(f"\n{name}")
        for label, value in rows.items():
            print(f"  {label:<58} {value:>10.2f}" if isinstance(value, float) else f"  {label:<58} {value}")


def hymenoptera(arguments: argparse.Namespace) -> dict[str, Any]:
    """Rounds go through all contenders in turn; medians."""
    cold, warm, loop, floor = [], [], [], []
    cache = arguments.work / "cache"
    for _ in range(arguments.rounds):
        loop.append(_tutorial_s(arguments.data, 25))
        shutil.rmtree(cache, ignore_errors=True)
        cold.append(_fit(arguments, arguments.data, cache).seconds)
        warm.append(_fit(arguments, arguments.data, cache).seconds)
        floor.append(_floor_s(arguments.data, cache))
    tutorial, first, again, lowest = (_median(values) for values in (loop, cold, warm, floor))
    return {
        f"tutorial, 25 epochs ({_TIMED_EPOCHS} timed), s": tutorial, "fit cold, s": first, "fit warm, s": again,
        "floor, s": lowest, "tutorial / fit cold (target 15)": tutorial / first,
        "tutorial / fit warm": tutorial / again, "fit cold / floor": first / lowest,
    }  # fmt: skip


def thousand(arguments: argparse.Namespace) -> dict[str, Any]:
    data, other = arguments.work / "thousand", arguments.work / "other"
    _part_of(arguments.fashion, data, {"train": 80, "val": 20})
    _part_of(arguments.fashion, other, {"train": 2, "val": 1}, skip=200)
    cache = arguments.work / "cache-thousand"
    loop, fitted = [], []
    for _ in range(arguments.rounds):
        loop.append(_tutorial_s(data, 30))
        shutil.rmtree(cache, ignore_errors=True)
        _fit(arguments, other, cache)  # leaves the backbone's graph in the cache, and features of other images
        fitted.append(_fit(arguments, data, cache).seconds)
    tutorial, fit = _median(loop), _median(fitted)
    return {
        f"tutorial, 30 epochs ({_TIMED_EPOCHS} timed), s": tutorial, "fit, backbone's graph cached, s": fit,
        "tutorial / fit (target 50)": tutorial / fit,
    }  # fmt: skip


def fashion(arguments: argparse.Namespace) -> dict[str, Any]:
    cache = arguments.work / "cache-fashion"
    shutil.rmtree(cache, ignore_errors=True)
    cold = _fit(arguments, arguments.fashion, cache)
    lowest = _floor_s(arguments.fashion, cache)
    warm = _fit(arguments, arguments.fashion, cache)
    return {
        "fit cold, s": cold.seconds, "fit warm, s": warm.seconds, "floor, s": lowest,
        "fit cold / floor (target at most 1.3)": cold.seconds / lowest,
    }  # fmt: skip


def memory(arguments: argparse.Namespace) -> dict[str, Any]:
    base = _measure([sys.executable, "-c", "import torch"]).peak_mib
    rows: dict[str, Any] = {"import torch, MiB": base}
    for count in (2000, 10_000):
        data = arguments.work / f"fashion-{count}"
        _part_of(arguments.fashion, data, {"train": count // 10 - 20, "val": 20})
        cache = arguments.work / "cache-memory"
        shutil.rmtree(cache, ignore_errors=True)
        for kind in ("cold", "warm"):
            rows[f"fit {kind}, {count} images, MiB above"] = _fit(arguments, data, cache).peak_mib - base
    return rows


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "hymenoptera": hymenoptera, "thousand": thousand, "fashion": fashion, "memory": memory,
}  # fmt: skip


def _fit(arguments: argparse.Namespace, data: Path, cache: Path) -> Measured:
    command = [sys.executable, "-m", "edgetune.cli.main", "fit", str(data), "--out", str(arguments.work / "run"),
               "--device", "cpu", "--force", "--json"]  # fmt: skip
    return _measure(command, EDGETUNE_CACHE=str(cache))


def _tutorial_s(data: Path, epochs: int) -> float:
    """Of the whole process, had it run all epochs: the first epochs are timed, the others taken to be like them."""
    script = str(_HERE / "fit_tutorial.py")
    told = json.loads(_measure([sys.executable, script, str(data), str(_TIMED_EPOCHS)]).output)
    return float(told["setup_s"] + epochs * sum(told["epochs_s"]) / len(told["epochs_s"]))


def _floor_s(data: Path, cache: Path) -> float:
    (graph,) = (cache / "graphs").glob("*.onnx")
    told = json.loads(_measure([sys.executable, str(_HERE / "fit_floor.py"), str(data), str(graph)]).output)
    return float(told["decode_s"] + told["infer_s"])


def _measure(command: list[str], **environment: str) -> Measured:
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment}) as process:
        assert process.stdout is not None
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}:\n{output}")
    return Measured(time.perf_counter() - start, usage.ru_maxrss * 1024 / _MIB, output)


def _part_of(source: Path, folder: Path, per_class: dict[str, int], skip: int = 0) -> None:
    """The first images of each class, by name."""
    shutil.rmtree(folder, ignore_errors=True)
    for split, count in per_class.items():
        for group in sorted((source / split).iterdir()):
            target = folder / split / group.name
            target.mkdir(parents=True)
            for image in sorted(group.iterdir())[skip : skip + count]:
                shutil.copy(image, target / image.name)


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


if __name__ == "__main__":
    main()

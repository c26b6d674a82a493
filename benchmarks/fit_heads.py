"""What each kind of head reaches on a labelled dataset, all on the same cached features, and how long it takes.

`fit_heads.py --data FOLDER` with `train/` and `val/`; the validation images are looked at by nothing but the last
judgement. The first fit fills the cache; seconds are those of whole warm processes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from edgetune.core.head_recipe import HEAD_KINDS

_COLUMNS = ("head", "accuracy", "95 % interval", "calibration error", "temperature", "chosen", "s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("build/fit_heads"))
    parser.add_argument("--heads", nargs="+", choices=HEAD_KINDS, default=HEAD_KINDS)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    fit(arguments, "linear")
    print("| " + " | ".join(_COLUMNS) + " |\n|" + "---|" * len(_COLUMNS))
    for kind in arguments.heads:
        start = time.perf_counter()
        told = fit(arguments, kind)
        print("| " + " | ".join([kind, *_row(told), f"{time.perf_counter() - start:.1f}"]) + " |", flush=True)


def fit(arguments: argparse.Namespace, kind: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "edgetune.cli.main", "fit", str(arguments.data), "--out",
               str(arguments.work / kind), "--head", kind, "--device", "cpu", "--force", "--json"]  # fmt: skip
    environment = {**os.environ, "EDGETUNE_CACHE": str(arguments.work / "cache")}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    data: dict[str, Any] = json.loads(done.stdout)["data"]
    return data


def _row(told: dict[str, Any]) -> list[str]:
    metrics, head = told["metrics"], told["head"]
    low, high = metrics["top1_accuracy_ci95"]
    chosen = f"L2 {head['l2']:.3g}" if head["training"] is None else f"{head['training']['epochs']} epochs"
    return [f"{metrics['top1_accuracy']:.2%}", f"{low:.2%} to {high:.2%}",
            f"{metrics['expected_calibration_error']:.4f}", f"{head['temperature']:.2f}", chosen]  # fmt: skip


if __name__ == "__main__":
    main()

"""EfficientNet-Lite with its 1000 ImageNet classes: edgetune's INT8 graphs against those of other quantizers.

Every tool calibrates on the same 128 images in a process of its own; all graphs are then judged in this process, on
other images, by the same runner with one thread. Prints, by target: top-1, agreement with FP32, SQNR of the logits,
KL divergence in nats, latency, integer operators, time and memory of the tool; then how much better edgetune is than
each other tool, with 95 % intervals over the images.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.quantize_data import Prepared, compute_logits, prepare
from benchmarks.quantize_metrics import Errors, Lead, bootstrap_lead, count_operators, measure_errors
from benchmarks.quantize_peers import TOOLS
from benchmarks.quantize_report import FP32, Row, print_leads, print_table
from benchmarks.quantize_tools import ToolRun, run_tool, to_json
from edgetune.bench.latency import time_runners
from edgetune.core.errors import EdgetuneError
from edgetune.runners.base import Runner
from edgetune.runners.ort_runner import OrtRunner

Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]
Logits = npt.NDArray[np.float32]

_REPOSITORY = Path(__file__).resolve().parent.parent
_DATA = Path(os.environ.get("EDGETUNE_TEST_DATA", _REPOSITORY.parent / "shared" / "data")) / "imagenet-sample"
# Latency is told for graphs that are meant for this kind of machine; the others are judged by their numbers alone.
_TIMED_TARGET = "cpu-x86"
_OURS = {"cpu-x86": "edgetune", "cpu-arm": "edgetune-arm", "tensorrt": "edgetune-trt"}


def main() -> None:
    arguments = _parse_arguments()
    with tempfile.TemporaryDirectory() as scratch:
        folder: Path = arguments.work or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            prepared = prepare(folder.absolute(), arguments.data, arguments.model, fresh=arguments.fresh)
        except EdgetuneError as error:
            sys.exit(str(error))
        runs = _run_tools(prepared, arguments)
        rows = _judge(prepared, runs, arguments.runs)
    print_table(rows)
    leads = _compare(rows)
    if leads:
        print_leads(leads)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(_to_json(arguments.model, rows, leads), indent=2))


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="efficientnet_lite0", help="or efficientnet_lite1, efficientnet_lite2")
    parser.add_argument("--data", type=Path, default=_DATA, help="images, and labels.csv: file,imagenet_class_index")
    parser.add_argument("--only", nargs="+", choices=list(TOOLS), default=list(TOOLS), metavar="TOOL")
    parser.add_argument("--peers-venv", type=Path, default=Path("build/peers"), help="folder of venvs nncf, modelopt")
    parser.add_argument("--work", type=Path, help="keep model, images and the peers' graphs here for the next run")
    parser.add_argument("--fresh", action="store_true", help="make everything in --work anew")
    parser.add_argument("--runs", type=int, default=40, help="timed calls of each graph")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def _run_tools(prepared: Prepared, arguments: argparse.Namespace) -> dict[str, ToolRun]:
    """What cannot run here is told and left out, so that one missing peer does not cost the others."""
    runs = {}
    for name in TOOLS:
        if name not in arguments.only:
            continue
        try:
            runs[name] = run_tool(name, prepared, arguments.peers_venv, fresh=arguments.fresh)
        except EdgetuneError as error:
            print(f"left out: {error}", file=sys.stderr)
        else:
            print(f"{name}: {runs[name].seconds:.1f} s", file=sys.stderr)
    return runs


def _judge(prepared: Prepared, runs: dict[str, ToolRun], count: int) -> list[Row]:
    images, labels = np.load(prepared.evaluation), np.load(prepared.labels)
    reference = np.load(prepared.reference)
    models = {FP32: prepared.model, **{name: run.model for name, run in runs.items()}}
    errors = {name: _measure(model, images, labels, reference) for name, model in models.items()}
    timed = {name: models[name] for name in models if name == FP32 or TOOLS[name].target == _TIMED_TARGET}
    latencies = _time(timed, images[:1], count)
    return [
        Row(
            name, "" if name == FP32 else TOOLS[name].target, errors[name], count_operators(model),
            runs.get(name), latencies.get(name),
        )
        for name, model in models.items()
    ]  # fmt: skip


def _measure(model: Path, images: Images, labels: Labels, reference: Logits) -> Errors:
    with OrtRunner(model, threads=1) as runner:
        return measure_errors(reference, compute_logits(runner, images), labels)


def _time(models: dict[str, Path], images: Images, count: int) -> dict[str, float]:
    """Median milliseconds of one image with one thread, all graphs in alternating rounds."""
    with contextlib.ExitStack() as stack:
        runners: dict[str, Runner] = {
            name: stack.enter_context(OrtRunner(model, threads=1)) for name, model in models.items()
        }
        return {name: latency.p50_ms for name, latency in time_runners(runners, images, count).items()}


def _compare(rows: list[Row]) -> dict[tuple[str, str], Lead]:
    by_name = {row.name: row for row in rows}
    return {
        (ours, row.name): bootstrap_lead(by_name[ours].errors, row.errors)
        for row in rows
        if (ours := _OURS.get(row.target, "")) in by_name and row.name != ours
    }


def _to_json(model: str, rows: list[Row], leads: dict[tuple[str, str], Lead]) -> dict[str, object]:
    return {
        "model": model,
        "images": len(rows[0].errors.kl),
        "graphs": {row.name: _row_to_json(row) for row in rows},
        "leads": {f"{ours} over {peer}": asdict(lead) for (ours, peer), lead in leads.items()},
    }


def _row_to_json(row: Row) -> dict[str, object]:
    errors = row.errors
    return {
        "target": row.target,
        "top1": float(errors.hits.mean()),
        "agreement": float(errors.agrees.mean()),
        "sqnr_db": None if row.name == FP32 else errors.sqnr_db,
        "kl_nats": float(errors.kl.mean()),
        "latency_ms": row.latency_ms,
        "operators": asdict(row.census),
        "cost": None if row.run is None else to_json(row.run),
    }


if __name__ == "__main__":
    main()

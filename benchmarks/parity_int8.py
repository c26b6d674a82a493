"""What INT8 costs EfficientNet-Lite against the PyTorch model, as `edgetune parity` counts it.

Two tasks: ants and bees (hymenoptera) with a fitted head, quantized and refitted as `edgetune export --int8` does; and
ImageNet's 1000 classes with the published head, quantized as `edgetune quantize` does on 128 images, judged on others.
Prints, by graph: top-1 with a 95 % interval (Wilson), the paired drop with one, agreement and how many of the labels
that differ are near ties, KL divergence in nats, SQNR of the logits, and the verdict of the default gates.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.parity_journal import Journal, Record, markdown_table, shown
from benchmarks.quantize_data import prepare
from edgetune.core.preprocess import preprocess_image
from edgetune.core.stats import wilson_interval
from edgetune.core.tensors import LOGITS_OUTPUT
from edgetune.models.checkpoint import read_state_dict
from edgetune.models.head import Classifier, FeatureExtractor
from edgetune.models.weights import load_backbone
from edgetune.parity.gate_set import DEFAULT_GATES
from edgetune.parity.gates import judge
from edgetune.parity.metrics import Comparison, compare_logits
from edgetune.runners.base import Runner, infer_images
from edgetune.runners.ort_runner import OrtRunner
from edgetune.runners.torch_runner import TorchRunner
from edgetune.steps.export import FLOAT_NAME, ExportOptions, export
from edgetune.steps.fit import FitOptions, fit
from edgetune.steps.int8 import int8_name
from edgetune.steps.quantize import QuantizeOptions, quantize_file
from edgetune.verify.reference import load_run_backbone, open_classifier

_REPOSITORY = Path(__file__).resolve().parent.parent
_DATA = Path(os.environ.get("EDGETUNE_TEST_DATA", _REPOSITORY.parent / "shared" / "data"))
TARGETS = ("cpu-x86", "tensorrt")
_BATCH = 8


@dataclass(frozen=True)
class Judged:
    """Images uint8 `(N, H, W, 3)` with labels int64 `(N,)`, the PyTorch model, and ONNX files by their precision."""

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    reference: Runner
    graphs: tuple[tuple[Path, str], ...]


def main() -> None:
    arguments = _parse_arguments()
    journal = Journal(arguments.work / "parity_int8.jsonl")
    names = []
    for model in arguments.models:
        for dataset, make in (("hymenoptera", _hymenoptera), ("imagenet-sample", _imagenet)):
            name = f"{model} {dataset}"
            names.append(name)
            if arguments.again or journal.get(name) is None:
                folder = (arguments.work / name.replace(" ", "-")).absolute()
                folder.mkdir(parents=True, exist_ok=True)
                graphs = list(_measure(make(model, arguments.data / dataset, folder)))
                journal.add({"name": name, "graphs": graphs})
                print(f"{name}: done", file=sys.stderr)
    table = to_markdown(journal.records(names))
    (arguments.work / "parity_int8.md").write_text(table)
    print(table)


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["efficientnet_lite0", "efficientnet_lite1"])
    parser.add_argument("--data", type=Path, default=_DATA, help="folder of hymenoptera/ and imagenet-sample/")
    parser.add_argument("--work", type=Path, default=Path("build/parity_int8"))
    parser.add_argument("--again", action="store_true", help="measure what the journal has already")
    return parser.parse_args()


def _hymenoptera(model: str, data: Path, folder: Path) -> Judged:
    fitted = fit(data, folder / "run", FitOptions(model, device="cpu", force=True))
    export(folder / "run", folder / "bundle", ExportOptions(int8=True, targets=TARGETS, force=True))
    files, spec = fitted.run.split.val, fitted.run.preprocess
    images = [preprocess_image((data / file.path).read_bytes(), spec, name=file.path) for file in files]
    reference = open_classifier(folder / "run", fitted.run, load_run_backbone(fitted.run))
    graphs = tuple((folder / "bundle" / int8_name(target), "int8") for target in TARGETS)
    float_graph = (folder / "bundle" / FLOAT_NAME, "fp32")
    return Judged(np.stack(images), np.array([file.label for file in files]), reference, (float_graph, *graphs))


def _imagenet(model: str, data: Path, folder: Path) -> Judged:
    prepared = prepare(folder, data, model)
    graphs = [(prepared.model, "fp32")]
    for target in TARGETS:
        path = folder / int8_name(target)
        quantize_file(prepared.model, prepared.calibration_files, path, QuantizeOptions(target, force=True))
        graphs.append((path, "int8"))
    backbone = load_backbone(model)
    state = read_state_dict(backbone.weights_path)
    weight, bias = (state[name].numpy().astype(np.float32) for name in ("_fc.weight", "_fc.bias"))
    spec = backbone.architecture.preprocess
    classifier = Classifier(FeatureExtractor(backbone.module, spec), weight, bias)
    reference = TorchRunner(classifier, spec.crop_size, LOGITS_OUTPUT)
    return Judged(np.load(prepared.evaluation), np.load(prepared.labels), reference, tuple(graphs))


def _measure(judged: Judged) -> Iterator[Record]:
    reference = _logits(judged.reference, judged.images)
    for path, precision in judged.graphs:
        candidate = _logits(OrtRunner(path), judged.images)
        comparison = compare_logits(reference, candidate, judged.labels)
        judgement = judge(comparison, DEFAULT_GATES.named(precision))
        figures = asdict(comparison)
        for bulky in ("per_class", "flip_rows"):
            figures.pop(bulky)
        yield {
            "graph": path.name, **figures, "ties": judgement.ties, "verdict": judgement.verdict,
            "reasons": judgement.reasons, "top1_ci95": _interval(comparison), "certified": judgement.certified,
            "detectable_drop": judgement.detectable_drop,
        }  # fmt: skip


def _logits(runner: Runner, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    with runner:
        starts = range(0, len(images), _BATCH)
        parts = [infer_images(runner, images[start : start + _BATCH], LOGITS_OUTPUT) for start in starts]
    return np.concatenate(parts)


def _interval(comparison: Comparison) -> tuple[float, float]:
    hits = round((comparison.candidate_accuracy or 0.0) * comparison.images)
    return wilson_interval(hits, comparison.images)


def to_markdown(records: list[Record]) -> str:
    head = ("task", "graph", "images", "PyTorch", "top-1", "95 % interval", "drop", "95 % interval", "agreement",
            "differ, near ties", "KL mean", "KL p99", "SQNR dB", "verdict")  # fmt: skip
    rows = [_row(record["name"], graph) for record in records for graph in record["graphs"]]
    return markdown_table(head, rows)


def _row(name: str, graph: Record) -> list[str]:
    return [
        name,
        graph["graph"],
        str(graph["images"]),
        shown(graph["reference_accuracy"], ".2%"),
        shown(graph["candidate_accuracy"], ".2%"),
        "{:.1%} to {:.1%}".format(*graph["top1_ci95"]),
        shown(graph["drop"], "+.2%"),
        "{:+.1%} to {:+.1%}".format(*graph["drop_ci95"]),
        shown(graph["top1_agreement"], ".2%"),
        f"{len(graph['flip_margins'])}, {graph['ties']}",
        shown(graph["kl_mean"], ".2e"),
        shown(graph["kl_p99"], ".2e"),
        shown(graph["sqnr_db"], ".1f"),
        "; ".join((graph["verdict"], *graph["reasons"])),
    ]


if __name__ == "__main__":
    main()

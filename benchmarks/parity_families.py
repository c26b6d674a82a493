"""FP32 parity of exported ONNX with PyTorch, one or two small members of every family of CNNs that can be exported.

Weights are random but lively (see `parity_weights.py`), so figures are those of the graphs, not of any training. Each
backbone gets a head for a random part of an image folder, is exported, and judged on validation images, in a process
of its own: one that fails is a line of the table. PyTorch in FP64 tells rounding from a fault: where PyTorch's own
FP32 is as far from it as the ONNX file, neither is wrong. A stopped run goes on where it was; `--again` measures anew.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.parity_data import SPLITS, some_images, write_part
from benchmarks.parity_exact import rounding_figures
from benchmarks.parity_journal import Journal, Record, is_done, markdown_table, shown
from benchmarks.parity_weights import write_random_weights
from edgetune.core.errors import EdgetuneError
from edgetune.graph.compose import read_model
from edgetune.steps.export import FLOAT_NAME, ExportOptions, ExportResult, export
from edgetune.steps.fit import FitOptions, fit
from edgetune.verify.reference import REFERENCE_NAME

_REPOSITORY = Path(__file__).resolve().parent.parent
_DATA = Path(os.environ.get("EDGETUNE_TEST_DATA", _REPOSITORY.parent / "shared" / "data")) / "hymenoptera"
_PART = {"train": 8, "val": 16}
_LIMIT_S = 2400

_TORCHVISION = (
    "resnet18", "resnext50_32x4d", "wide_resnet50_2", "squeezenet1_1", "mobilenet_v2", "mobilenet_v3_small",
    "mnasnet0_5", "shufflenet_v2_x0_5", "efficientnet_b0", "efficientnet_v2_s", "regnet_y_400mf", "regnet_x_400mf",
    "convnext_tiny", "densenet121", "googlenet", "inception_v3", "vgg11", "vgg11_bn", "alexnet",
)  # fmt: skip
_TIMM = (
    # The families that devices run, and those of the same file in timm.
    "mobilenetv4_conv_small", "mobilenetv3_small_050", "tf_mobilenetv3_small_minimal_100", "mobilenetv2_050",
    "mobilenet_edgetpu_v2_xs", "mnasnet_small", "semnasnet_075", "spnasnet_100", "fbnetc_100", "fbnetv3_b",
    "mixnet_s", "tinynet_e", "lcnet_050", "hardcorenas_a", "efficientnet_es", "tf_efficientnetv2_b0",
    "ghostnet_100", "ghostnetv2_100", "repghostnet_050", "rexnet_100", "rexnetr_100",
    # Blocks that merge for inference.
    "repvgg_a0", "mobileone_s0", "repvit_m0_9",
    # Plain, split and gated residual networks.
    "resnet18d", "seresnet18", "ecaresnet26t", "gcresnet33ts", "skresnet18", "resnest14d", "legacy_seresnet18",
    "res2net50_14w_8s", "resnetv2_18", "gernet_s", "nf_resnet26", "nf_regnet_b0", "regnetz_005", "resnet50_gn",
    "test_resnet",
    # Networks of other shapes.
    "cspresnet50", "cspdarknet53", "darknet53", "dla46_c", "dpn48b", "hrnet_w18_small", "hgnetv2_b0", "selecsls42b",
    "ese_vovnet19b_dw", "tresnet_m", "xception41", "legacy_xception", "inception_v4", "inception_resnet_v2",
    "nasnetalarge", "pnasnet5large", "rdnet_tiny",
    # Convolutions arranged like a transformer.
    "convnext_atto", "convnextv2_atto", "inception_next_atto", "starnet_s1", "fasternet_t0", "poolformer_s12",
    "convmixer_768_32", "mambaout_femto", "edgenext_xx_small", "caformer_s18",
)  # fmt: skip
BACKBONES = (*_TORCHVISION, *(f"timm/{name}" for name in _TIMM))


def main() -> None:
    arguments = _parse_arguments()
    if arguments.one is not None:
        print(json.dumps(measure(arguments.one, arguments)))
        return
    arguments.work.mkdir(parents=True, exist_ok=True)
    write_part(arguments.data, arguments.work / "data", _PART, arguments.seed)
    journal = Journal(arguments.work / "families.jsonl")
    for name in arguments.backbones:
        if arguments.again or not is_done(journal.get(name)):
            record = _measure_apart(name, arguments)
            journal.add(record)
            print(f"{name}: {record['verdict']} {record['error']}", file=sys.stderr)
    table = to_markdown(journal.records(arguments.backbones))
    (arguments.work / "families.md").write_text(table)
    print(table)


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", nargs="+", default=list(BACKBONES), metavar="NAME")
    parser.add_argument("--data", type=Path, default=_DATA, help="train/CLASS and val/CLASS folders of photographs")
    parser.add_argument("--work", type=Path, default=Path("build/parity_families"))
    parser.add_argument("--seed", type=int, default=0, help="of the weights and of the part of the images")
    parser.add_argument("--image-size", type=int, help="instead of each backbone's own")
    parser.add_argument("--no-fp64", action="store_true", help="do not tell rounding from a fault, in half the time")
    parser.add_argument("--again", action="store_true", help="measure what the journal has already")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    return parser.parse_args()


def _measure_apart(name: str, arguments: argparse.Namespace) -> Record:
    """In a process of its own, with a folder of its own that goes when it is done."""
    scratch = arguments.work / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    (scratch / "data").symlink_to((arguments.work / "data").resolve())
    command = [sys.executable, __file__, "--one", name, "--work", str(scratch), "--seed", str(arguments.seed)]
    if arguments.image_size is not None:
        command += ["--image-size", str(arguments.image_size)]
    command += ["--no-fp64"] if arguments.no_fp64 else []
    environment = {**os.environ, "EDGETUNE_CACHE": str(scratch / "cache")}
    start = time.perf_counter()
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=_LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        record = failure(name, f"not done after {_LIMIT_S} s")
    else:
        lines = done.stdout.strip().splitlines()
        last_words = (done.stderr.strip().splitlines() or ["no message"])[-1]
        record = json.loads(lines[-1]) if done.returncode == 0 else failure(name, f"{done.returncode}: {last_words}")
    shutil.rmtree(scratch)
    return {**record, "seconds": time.perf_counter() - start}


def failure(name: str, error: str) -> Record:
    return {"name": name, "verdict": "ERROR", "error": error}


def measure(name: str, arguments: argparse.Namespace) -> Record:
    """Weights, fit, export with parity. What edgetune itself refuses is a record, too."""
    work, seed, image_size = arguments.work, arguments.seed, arguments.image_size
    try:
        images = some_images(work / "data", sys.maxsize, SPLITS)  # BN shall suit the judged images, too
        parameters = write_random_weights(name, work / "weights.pth", images, seed, image_size)
        start = time.perf_counter()
        options = FitOptions(name, work / "weights.pth", image_size=image_size, device="cpu", seed=seed)
        fitted = fit(work / "data", work / "run", options)
        fit_s = time.perf_counter() - start
        exported = export(work / "run", work / "bundle", ExportOptions())
    except EdgetuneError as error:
        return failure(name, f"{error.code}: {error.message}")
    export_s = time.perf_counter() - start - fit_s
    figures = _figures(exported)
    if not arguments.no_fp64:
        figures |= rounding_figures(work / "run", fitted.run, work / "bundle" / FLOAT_NAME)
    return {
        "name": name,
        "error": "",
        "parameters": parameters,
        "features": fitted.run.backbone.feature_dim,
        "crop_size": fitted.run.preprocess.crop_size,
        "fit_s": fit_s,
        "export_s": export_s,
        **figures,
        "versions": {"torch": str(torch.__version__), **exported.report.machine},
    }


def _figures(exported: ExportResult) -> dict[str, Any]:
    entry = exported.report.artifacts[0]
    with np.load(exported.bundle_path / REFERENCE_NAME, allow_pickle=False) as stored:
        reference = stored["logits"]
    return {
        "nodes": len(read_model(exported.bundle_path / FLOAT_NAME).graph.node),
        "images": entry.images,
        "verdict": entry.verdict,
        "reasons": list(entry.reasons),
        "max_abs_diff": entry.max_abs_diff,
        "reference_max_abs": float(np.abs(reference).max()),
        "reference_std_over_images": float(reference.std(axis=0).mean()),
        "sqnr_db": entry.sqnr_db,
        "top1_agreement": entry.top1_agreement,
        "reference_accuracy": entry.reference_accuracy,
        "kl_mean": entry.kl_mean,
        "ties": entry.ties,
    }


def to_markdown(records: list[Record]) -> str:
    head = ("backbone", "parameters", "nodes", "images", "max abs diff", "largest logit", "SQNR dB", "PyTorch to FP64",
            "ONNX to FP64", "agreement", "verdict", "s")  # fmt: skip
    rows = [_row(record) for record in records]
    judged = [record for record in records if record.get("sqnr_db") is not None]
    text = markdown_table(head, rows)
    if judged:
        worst = min(judged, key=lambda record: float(record["sqnr_db"]))
        text += f"\n{len(judged)} of {len(records)} backbones judged; lowest SQNR {worst['sqnr_db']:.1f} dB"
        text += f" ({worst['name']}), largest relative difference {max(map(_relative, judged)):.2g}\n"
    return text


def _relative(record: Record) -> float:
    """As the gate takes it: of the largest logit, or of 1."""
    return float(record["max_abs_diff"]) / max(1.0, float(record["reference_max_abs"]))


def _row(record: Record) -> list[str]:
    if record["error"]:
        return [record["name"], *["-"] * 9, record["error"], shown(record["seconds"], ".0f")]
    return [
        record["name"],
        f"{record['parameters'] / 1e6:.1f} M",
        str(record["nodes"]),
        str(record["images"]),
        shown(record["max_abs_diff"], ".2e"),
        shown(record["reference_max_abs"], ".2f"),
        shown(record["sqnr_db"], ".1f", missing="exact" if record["max_abs_diff"] == 0 else "-"),
        shown(record.get("torch_vs_fp64_db"), ".1f"),
        shown(record.get("onnx_vs_fp64_db"), ".1f"),
        shown(record["top1_agreement"], ".2%"),
        "; ".join((record["verdict"], *record["reasons"])),
        shown(record["seconds"], ".0f"),
    ]


if __name__ == "__main__":
    main()

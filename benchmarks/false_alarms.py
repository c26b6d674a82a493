"""Unfaulted bundles that must all pass `edgetune parity`: backbones x seeds x datasets, each with INT8 and FP16.

Each case is what a user does, by the command line: fit on a random part of a dataset, export, parity. Another seed
means other images. EfficientNet-Lite has its published weights; other backbones are trained for minutes on the case's
own images, from random weights of its seed, because networks that were never trained blow up any noise.

The bundles stay in --work: a stopped run goes on where it was, and `--again` judges the same bundles anew, after
a change of the gates.

Prints every verdict, how close the figures of each precision come to their gates, and each FAIL with what tells a false
alarm from a true one: briefly trained weights may really lose accuracy in INT8.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.false_alarms_report import to_markdown
from benchmarks.parity_data import some_images, write_part
from benchmarks.parity_journal import Journal, Record, is_done
from benchmarks.parity_weights import train_briefly, write_random_weights
from edgetune.core.bundle import FAIL
from edgetune.data.digits import write_digits
from edgetune.models.backbones import LITE_BACKBONES

_REPOSITORY = Path(__file__).resolve().parent.parent
_HYMENOPTERA = Path(os.environ.get("EDGETUNE_TEST_DATA", _REPOSITORY.parent / "shared" / "data")) / "hymenoptera"
# Images a class: enough for the head to learn, and for a gate of one point in a hundred to mean something.
_PARTS = {
    "hymenoptera": {"train": 80, "val": 55},
    "digits": {"train": 40, "val": 24},
    "fashion": {"train": 40, "val": 24},
}
_IMAGES_FOR_STATISTICS = 32
_SEARCH_S = 60  # per target; with the default of 300 the whole takes hours
_OK, _GATE_FAILED = 0, 3
_BULKY = ("flips", "per_class", "localisation", "gate")


@dataclass(frozen=True)
class Case:
    backbone: str
    dataset: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.backbone.replace('/', '-')} {self.dataset} {self.seed}"

    @property
    def folder(self) -> str:
        return self.name.replace(" ", "-")


def _cases(backbone: str, dataset: str, seeds: int) -> tuple[Case, ...]:
    return tuple(Case(backbone, dataset, seed) for seed in range(seeds))


CASES = (
    *_cases("efficientnet_lite0", "hymenoptera", 4),
    *_cases("efficientnet_lite0", "digits", 3),
    *_cases("efficientnet_lite0", "fashion", 3),
    *_cases("resnet18", "digits", 2),
    *_cases("squeezenet1_1", "digits", 2),
    *_cases("mobilenet_v3_small", "digits", 2),
    *_cases("shufflenet_v2_x0_5", "digits", 2),
    *_cases("efficientnet_lite1", "hymenoptera", 2),
    *_cases("efficientnet_lite1", "digits", 2),
    *_cases("efficientnet_lite1", "fashion", 2),
    *_cases("regnet_y_400mf", "digits", 1),
    *_cases("regnet_x_400mf", "fashion", 1),
    *_cases("resnet18", "fashion", 1),
    *_cases("mobilenet_v2", "fashion", 1),
    *_cases("efficientnet_lite2", "hymenoptera", 2),
    *_cases("efficientnet_lite2", "digits", 1),
    *_cases("efficientnet_lite2", "fashion", 1),
)


class CaseError(Exception):
    """A command of a case neither worked nor failed a gate."""


def main() -> None:
    arguments = _parse_arguments()
    sources = {"hymenoptera": arguments.hymenoptera, "digits": arguments.work / "digits", "fashion": arguments.fashion}
    if not sources["digits"].is_dir():
        write_digits(sources["digits"])
    wanted = [case for case in CASES if not arguments.only or any(word in case.name for word in arguments.only)]
    journal = Journal(arguments.work / "false_alarms.jsonl")
    for case in wanted:
        source = sources[case.dataset]
        if source is None:
            print(f"{case.name}: left out, for want of --fashion", file=sys.stderr)
        elif arguments.again or not is_done(journal.get(case.name)):
            record = _run_case(case, source, arguments.work)
            journal.add(record)
            print(f"{case.name}: {record['error'] or record['verdict']}", file=sys.stderr)
    text = to_markdown(journal.records([case.name for case in wanted]))
    (arguments.work / "false_alarms.md").write_text(text)
    print(text)


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], metavar="WORD", help="cases with one of these in their name")
    parser.add_argument("--hymenoptera", type=Path, default=_HYMENOPTERA)
    parser.add_argument("--fashion", type=Path, help="Fashion-MNIST as fashion_mnist.py writes it")
    parser.add_argument("--work", type=Path, default=Path("build/false_alarms"))
    parser.add_argument("--again", action="store_true", help="judge what the journal has already")
    return parser.parse_args()


def _run_case(case: Case, source: Path, work: Path) -> Record:
    folder = (work / "cases" / case.folder).absolute()
    start = time.perf_counter()
    try:
        if not (folder / "bundle" / "manifest.json").is_file():
            _make_bundle(case, source, folder)
        made_s = time.perf_counter() - start
        record = _judge(folder)
    except CaseError as error:
        return {"name": case.name, "error": str(error)}
    seconds = {"make_s": made_s, "parity_s": time.perf_counter() - start - made_s}
    return {"name": case.name, "brief_training": _is_trained_here(case), **record, **seconds, "error": ""}


def _is_trained_here(case: Case) -> bool:
    return case.backbone not in LITE_BACKBONES


def _make_bundle(case: Case, source: Path, folder: Path) -> None:
    write_part(source, folder / "data", _PARTS[case.dataset], case.seed)
    weights = []
    if _is_trained_here(case):
        _train(case, folder)
        weights = ["--weights", "weights.pth"]
    _edgetune(
        folder, "fit", "data", "--out", "run", "--model", case.backbone, *weights, "--seed", str(case.seed),
        "--device", "cpu", "--force",
    )  # fmt: skip
    _edgetune(
        folder, "export", "run", "--out", "bundle", "--int8", "--fp16", "--search-seconds", str(_SEARCH_S), "--force"
    )


def _train(case: Case, folder: Path) -> None:
    images = some_images(folder / "data", sys.maxsize)
    classes = sorted({path.parent.name for path in images})
    labelled = [(path, classes.index(path.parent.name)) for path in images]
    write_random_weights(case.backbone, folder / "weights.pth", images[:_IMAGES_FOR_STATISTICS], case.seed)
    accuracy = train_briefly(case.backbone, folder / "weights.pth", labelled, case.seed)
    print(f"{case.name}: trained to {accuracy:.1%} of the training images", file=sys.stderr)


def _judge(folder: Path) -> Record:
    _edgetune(folder, "parity", "bundle", "--out", "parity", "--force")
    report = json.loads((folder / "parity" / "parity.json").read_text())
    return {
        "verdict": report["verdict"],
        "machine": report["machine"],
        "stages": [stage for stage in report.get("stages", []) if stage["verdict"] == FAIL],
        "artifacts": [
            {key: value for key, value in entry.items() if key not in _BULKY} for entry in report["artifacts"]
        ],
        "held_out": _held_out(folder / "bundle" / "calibration.json"),
    }


def _held_out(calibration: Path) -> Record:
    """By INT8 artifact, what it lost on held-out training images, and how many layers stayed in float."""
    record = json.loads(calibration.read_text())
    return {
        f"model.int8.{target['target']}.onnx": {**target["drops"], "kept_float": len(target["kept_float"])}
        for target in record["targets"]
    }


def _edgetune(folder: Path, *words: str) -> None:
    """Raises `CaseError` where a command ends otherwise than well or with a failed gate."""
    environment = {**os.environ, "EDGETUNE_CACHE": str(folder.parent.parent / "cache")}
    command = [sys.executable, "-m", "edgetune.cli.main", *words]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode not in (_OK, _GATE_FAILED):
        last_words = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise CaseError(f"edgetune {words[0]} ended with {done.returncode}: {last_words}")


if __name__ == "__main__":
    main()

"""Reports as parity writes them, made by hand: what every kind of report is tested on."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
from PIL import Image

from edgetune.core.bundle import FAIL, NOT_RUN, PASS
from edgetune.core.run import Skipped
from edgetune.parity.gate_set import DEFAULT_GATES
from edgetune.parity.records import (
    BlockError,
    ClassResult,
    Flip,
    Localisation,
    LogitsPair,
    ParityEntry,
    ParityReport,
    Rung,
    StageCheck,
    Variation,
    entry_not_run,
)

HOSTILE = "<script>alert(1)</script>|`x`*_\u202egpj.exe\x1b[31m\n@octocat #1\x00\udc80"

GOOD = ParityEntry(
    artifact="model.onnx",
    runner="onnxruntime CPU",
    reference="torch cpu",
    images=153,
    max_abs_diff=5.25e-06,
    sqnr_db=127.43,
    top1_agreement=1.0,
    reference_accuracy=146 / 153,
    candidate_accuracy=146 / 153,
    certified=False,
    verdict=PASS,
    reasons=(),
    remarks=(
        "153 images cannot prove a drop of at most 1.00% (95 % bound: 1.50%); about 274 images would; "
        "they show a drop of 5.2% or more",
    ),
    drop=0.0,
    drop_ci95=(-0.0179, 0.0179),
    kl_mean=1.2e-12,
    kl_p99=8e-12,
    detectable_drop=0.0521,
    images_to_certify=274,
    gate=DEFAULT_GATES.fp32,
    variations=(
        Variation("batch of 1", 64, 0.0, None, 0, 1e-4, PASS),
        Variation("reversed order", 64, 4.8e-06, 128.1, 0, 1e-4, PASS),
        Variation("one thread", 64, 0.0, None, 0, 1e-4, PASS),
        Variation("no optimisation of the graph", 64, 5.1e-06, 127.6, 0, None, PASS),
    ),
    stages=(
        StageCheck("pixels", PASS, 0.0, 0.0),
        StageCheck("features", PASS, 3.1e-05, 1e-3),
        StageCheck("logits", PASS, 5.25e-06, 1e-4),
        StageCheck("labels", PASS, None, None),
    ),
    per_class=(ClassResult(0, 70, 67, 67, is_proven=False), ClassResult(1, 83, 79, 79, is_proven=False)),
)

BLOCKS = tuple(
    BlockError(
        block=f"blocks.{index // 3}.{index % 3}",
        module=f"backbone.blocks.{index // 3}.{index % 3}",
        tensor=f"/backbone/blocks/{index // 3}/{index % 3}/conv_pwl/Conv_output_0",
        cumulative_db=None if index == 0 else (38.0 - 0.3 * index if index < 9 else 11.0 - 0.2 * index),
        injected_db=None if index == 0 else (12.5 if index == 9 else 41.0 - 0.2 * index),
        expected_db=39.0 - 0.3 * index,
        max_abs_diff=0.01 * (index + 1),
    )
    for index in range(18)
)

LOCALISED = Localisation(
    culprit="blocks.3.0",
    module="backbone.blocks.3.0",
    kind="saturation",
    explanation="31 % of the values lie beyond the range that calibration chose (-2.1 to 2.1; seen -9.8 to 11.3)",
    option="--keep-float blocks.3.0",
    repro="python repro/run_block.py --block blocks.3.0 --images repro/images.npy\n# compares 8 images",
    images=16,
    blocks=BLOCKS,
)

BAD = ParityEntry(
    artifact="model.int8.tensorrt.onnx",
    runner="onnxruntime CPU",
    reference="torch cpu",
    images=153,
    max_abs_diff=3.91,
    sqnr_db=9.47,
    top1_agreement=130 / 153,
    reference_accuracy=146 / 153,
    candidate_accuracy=125 / 153,
    certified=False,
    verdict=FAIL,
    reasons=(
        "the probabilities diverge by 0.41 nats an image, expected at most 0.05",
        "23 of 153 labels differ from the reference, expected at most 4",
        "accuracy drops by 13.73% (21 of 153 images), expected at most 1.00%",
    ),
    remarks=("2 of the 23 labels that differ are near ties",),
    stage="features",
    diagnosis="one block is far below what calibration recorded; the ranges are of other images",
    drop=21 / 153,
    drop_ci95=(0.0795, 0.1882),
    kl_mean=0.41,
    kl_p99=2.9,
    ties=2,
    detectable_drop=0.0871,
    images_to_certify=4012,
    gate=DEFAULT_GATES.int8,
    rung=Rung("the same graph in exact integers", 32, 0.012, 51.2, 1.0, 1.0, PASS, ()),
    variations=(
        Variation("batch of 1", 64, 0.0, None, 0, 0.05, PASS, "", 0.0),
        Variation("no optimisation of the graph", 64, 0.31, 30.2, 1, 0.05, FAIL, "5 steps, expected at most 4", 5.0),
        Variation("three threads", 0, None, None, 0, 0.05, NOT_RUN, "this machine has one core"),
    ),
    stages=(
        StageCheck("pixels", PASS, 0.0, 0.0),
        StageCheck("features", FAIL, 2.41, 0.1, "9.4 dB, expected at least 20 dB"),
        StageCheck("logits", FAIL, 3.91, 0.5, "follows from features"),
        StageCheck("labels", FAIL, None, None, "23 labels differ"),
    ),
    localisation=LOCALISED,
    per_class=(ClassResult(0, 70, 67, 48, is_proven=True), ClassResult(1, 83, 79, 77, is_proven=False)),
    flips=tuple(
        Flip(
            f"val/ants/{1000 + row}_ab12cd34.jpg",
            f"{row:064x}",
            row % 2,
            row % 2,
            1 - row % 2,
            3.0 / (row + 1),
            row > 20,
        )
        for row in range(23)
    ),
)

UNJUDGED = entry_not_run(
    "model.fp16.onnx", "tensorrt-rtx 1.1", "torch cpu", "the engine needs an NVIDIA GPU, and this machine has none"
)

REPORT = ParityReport(
    schema_version=2,
    created="2026-03-04T05:06:07+00:00",
    data="data/hymenoptera",
    classes=2,
    machine={"cpu": "Intel(R) Xeon(R)", "architecture": "x86_64", "onnxruntime": "1.23.2"},
    artifacts=(GOOD, BAD, UNJUDGED),
    skipped=(Skipped("val/ants/imageNotFound.gif", "is no JPEG, PNG, BMP or WebP image"),),
    class_names=("ants", "bees"),
    stages=(StageCheck("pixels", PASS, 0.0, 0.0), StageCheck("normalised", PASS, 2.4e-07, 1e-6)),
)


def hostile_report() -> ParityReport:
    """Names that a report must neither obey nor be broken by."""
    localisation = dataclasses.replace(
        LOCALISED, culprit=HOSTILE, module=HOSTILE, kind=HOSTILE, explanation=HOSTILE, option=HOSTILE,
        repro=f"```\n{HOSTILE}", blocks=(dataclasses.replace(BLOCKS[3], block=HOSTILE, tensor="t" * 300),),
    )  # fmt: skip
    bad = dataclasses.replace(
        BAD, artifact=HOSTILE, runner=HOSTILE, reference=HOSTILE, reasons=(HOSTILE,), remarks=(HOSTILE,), stage=HOSTILE,
        diagnosis=HOSTILE, localisation=localisation, rung=Rung(HOSTILE, 1, 0.1, 1.0, 1.0, None, FAIL, (HOSTILE,)),
        variations=(dataclasses.replace(BAD.variations[1], name=HOSTILE, reason=HOSTILE),),
        stages=(dataclasses.replace(BAD.stages[1], reason=HOSTILE),),
        flips=(
            Flip(HOSTILE, "0" * 64, 0, 0, 1, 1.0, is_tie=False),
            Flip("L" * 200, "1" * 64, None, 1, 0, 0.5, is_tie=True),
        ),
    )  # fmt: skip
    return dataclasses.replace(
        REPORT, data=HOSTILE, created=HOSTILE, class_names=(HOSTILE, "الفئة الطويلة جدا"), machine={HOSTILE: HOSTILE},
        artifacts=(bad, dataclasses.replace(UNJUDGED, artifact="n" * 300, reasons=(HOSTILE,))),
        skipped=(Skipped(HOSTILE, HOSTILE),), stages=(StageCheck(HOSTILE, FAIL, 1.0, 0.0, HOSTILE),),
    )  # fmt: skip


def big_report(artifacts: int = 10, classes: int = 1000) -> ParityReport:
    """Many classes of five images, and a different set of labels turned in each artifact."""
    random = np.random.default_rng(1)
    entries = []
    for number in range(artifacts):
        right = random.integers(3, 6, size=classes)
        lost = random.integers(-1, 2, size=classes) * (random.random(classes) < 0.3)
        per_class = tuple(
            ClassResult(index, 6, int(right[index]), int(right[index] - lost[index]), is_proven=index == 7)
            for index in range(classes)
        )
        flips = tuple(
            Flip(f"val/{row}.jpg", f"{row:064x}", row % classes, row % classes, row % 7, 2.0 / (row + 1), row % 3 == 0)
            for row in range(60)
        )
        entries.append(dataclasses.replace(BAD, artifact=f"model.{number}.onnx", per_class=per_class, flips=flips))
    names = tuple(f"n{index:08d} a class with a rather long name, number {index}" for index in range(classes))
    return dataclasses.replace(REPORT, classes=classes, class_names=names, artifacts=tuple(entries))


def logits_pair(images: int = 153, classes: int = 2, noise: float = 0.3) -> LogitsPair:
    random = np.random.default_rng(0)
    reference = 3.0 * random.standard_normal((images, classes), dtype=np.float32)
    return LogitsPair(reference, reference + np.float32(noise) * random.standard_normal((images, classes), np.float32))


def thumbnail(seed: int = 0) -> bytes:
    """A picture of about the bytes that a photo of 128 px has."""
    random = np.random.default_rng(seed)
    small = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    stream = io.BytesIO()
    small.resize((128, 96), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=80)
    return stream.getvalue()

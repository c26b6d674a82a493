from __future__ import annotations

import io
import re

import numpy as np
import pytest
from PIL import Image

from edgetune.core.preprocess import PreprocessSpec
from edgetune.core.run import BackboneRecord, FeaturesRecord, HeadRecord, Run, Skipped, Split
from edgetune.heads.evaluate import Metrics, evaluate
from edgetune.heads.linear import PathPoint
from edgetune.heads.report import confusion_png, path_png, report_html, results_csv

PATH = (PathPoint(1000.0, 0.693147, 0.5), PathPoint(10**0.5, 0.25, 0.9375), PathPoint(0.01, 0.3, 0.90625))


def _metrics(*classes: str) -> Metrics:
    count = len(classes)
    return evaluate(np.eye(count, dtype=np.float32), np.arange(count), classes)


def _run(*skipped: Skipped) -> Run:
    half = (0.5, 0.5, 0.5)
    return Run(
        schema_version=1,
        task="classification",
        created="2026-01-02",
        options={},
        versions={},
        classes=("ant", "bee"),
        preprocess=PreprocessSpec(4, 4, "bilinear", half, half),
        backbone=BackboneRecord("net<1>", "/w.pt", "0123456789abcdef" * 4, "b" * 64, 5, 358, 152),
        features=FeaturesRecord("onnxruntime CPU", "fp32", 0, 6),
        head=HeadRecord("linear", 1.0, 5, "c" * 64),
        split=Split("/data", (), (), skipped),
    )


def _size(png: bytes) -> tuple[int, int]:
    with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
        image.load()
        assert len(set(image.convert("L").tobytes())) > 2
        width, height = image.size
    return width, height


def test_the_path_is_written_as_csv() -> None:
    assert results_csv(PATH) == (
        b"l2,cv_log_loss,cv_top1_accuracy\n1000,0.693147,0.500000\n3.16228,0.250000,0.937500\n0.01,0.300000,0.906250\n"
    )


def test_the_plots_are_pictures() -> None:
    pytest.importorskip("matplotlib")
    assert min(_size(path_png(PATH, 0.01))) > 200
    assert min(_size(confusion_png(_metrics("ant", "bee")))) > 200


@pytest.mark.parametrize(
    "classes",
    [
        ("a" * 40, "b" * 40),
        tuple(f"class {index}" for index in range(100)),
        ("$5 off", "$9 off"),
        ("$^$", "$_$"),
        ("\u732b", "\u72ac"),
        ("a" * 120, "b" * 120),
    ],
    ids=["long names", "many classes", "dollar signs", "broken formulas", "no such glyph", "very long names"],
)
def test_any_folder_name_can_be_plotted_without_a_warning(classes: tuple[str, ...]) -> None:
    pytest.importorskip("matplotlib")
    width, height = _size(confusion_png(_metrics(*classes)))
    assert max(width, height) < 2000


def test_the_page_tells_the_accuracy_and_its_interval() -> None:
    """2 of 2 right: the Wilson interval is 2 / (2 + 3.84146) = 34.2 % to 100 %."""
    page = report_html(_run(), _metrics("ant", "bee"), {}).decode()
    assert "net&lt;1&gt;, 2 classes: 100.00% top-1 (95 % interval 34.2% to 100.0%) on 2 validation images" in page


def test_the_page_tells_what_was_proved_of_the_backbone() -> None:
    page = report_html(_run(), _metrics("ant", "bee"), {}).decode()
    assert "all 358 tensors of the backbone, 152 of them buffers" in page
    assert "(sha256 0123456789abcdef...)" in page


def test_the_page_lists_the_classes() -> None:
    metrics = evaluate(np.eye(3, dtype=np.float32)[[0, 0]], np.array([0, 1]), ("ant", "b<e>e", "cat"))
    page = report_html(_run(), metrics, {}).decode()
    rows = [re.sub("<.*?>", " ", row).split() for row in re.findall("<tr><td>.*?</tr>", page)]
    assert rows == [
        ["ant", "1", "0.500", "1.000", "0.667"],
        ["b&lt;e&gt;e", "1", "-", "0.000", "0.000"],
        ["cat", "0", "-", "-", "-"],
    ]


def test_the_page_carries_the_pictures_and_the_skipped_files() -> None:
    page = report_html(_run(Skipped("x&y.gif", "no image")), _metrics("ant", "bee"), {"A plot": b"png"}).decode()
    assert "<h2>A plot</h2><figure><img src='data:image/png;base64,cG5n' alt='A plot'>" in page
    assert "<td>x&amp;y.gif</td><td>no image</td>" in page


def test_without_skipped_files_the_page_has_no_such_heading() -> None:
    assert "Skipped files" not in report_html(_run(), _metrics("ant", "bee"), {}).decode()

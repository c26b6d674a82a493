"""The page that shows what quantizing did."""

from __future__ import annotations

import base64
import dataclasses
import functools
import html
import io
import math
import re

import pytest
from PIL import Image

from edgetune.core.run import Skipped, SplitFile
from edgetune.quantize.budget import Trial
from edgetune.quantize.calibrate import CalibrationRecord, Drops, LayerRecord, RangeRecord, TargetRecord
from edgetune.quantize.report import quantization_html
from edgetune.quantize.sensitivity import Sensitivity

pytest.importorskip("matplotlib")

COLUMNS = ("artifact", "verdict", "accuracy")
ROWS = [("model.onnx", "PASS", "95.42%"), ("model.int8.cpu-x86.onnx", "FAIL", "-")]
EVIL = "<script>alert('&')</script>"
EMPTY = TargetRecord("cpu-x86", "to nearest", "the FP32 head", 0, {}, Drops(None, None, 0, False), (), (), (), {})
FULL = TargetRecord(
    "tensorrt", "compensated", "fitted on the quantized backbone's features", 12,
    {"stem": "its INT8 error is too large"}, Drops(0.03125, -0.0041, 244, True),
    (Trial(0, 0.03125), Trial(1, 0.012), Trial(2, -0.0041)),
    tuple(Sensitivity(f"deaf {index}", index / 100, 0.25) for index in range(17)),
    tuple(LayerRecord(f"conv {index}", 30.0 - index, 40.0) for index in range(12)),
    {"div": RangeRecord(-1.0, 0.99609375, "min-max", 48.02), "relu": RangeRecord(0.0, 5.88, "MSE 0.98", None)},
)  # fmt: skip


def _record(*targets: TargetRecord, skipped: tuple[Skipped, ...] = ()) -> CalibrationRecord:
    images = tuple(SplitFile(f"{index}.png", f"{index:064d}", label) for index, label in enumerate((0, 0, 2)))
    return CalibrationRecord(2, "squared error", 1, images, skipped, targets)


def _page(*targets: TargetRecord, skipped: tuple[Skipped, ...] = (), classes: tuple[str, ...] = ("a", "b", "c")) -> str:
    return quantization_html(_record(*targets, skipped=skipped), COLUMNS, ROWS, classes).decode()


@functools.cache
def _full() -> str:
    return _page(FULL)


def _section(page: str, title: str) -> list[list[str]]:
    """The rows of the tables under a heading."""
    part = page.partition(f"<h2>{title}</h2>")[2].partition("<h2>")[0]
    cells = [re.findall("<td.*?>(.*?)</td>", row) for row in re.findall("<tr>.*?</tr>", part)]
    return [[html.unescape(cell) for cell in row] for row in cells if row]


def _titles(page: str) -> list[str]:
    return re.findall("<h2>(.*?)</h2>", page)


def _pictures(page: str) -> list[tuple[int, int]]:
    """Their sizes, of pictures that are not blank."""
    sizes = []
    for data in re.findall("src='data:image/png;base64,(.*?)'", page):
        with Image.open(io.BytesIO(base64.b64decode(data)), formats=["PNG"]) as image:
            assert len(set(image.convert("L").tobytes())) > 2
            sizes.append(image.size)
    return sizes


def test_the_page_begins_with_what_was_calibrated_and_the_verdicts() -> None:
    page = _full()
    assert "3 training images calibrated tensorrt. 1 group of layers had channels equalised." in page
    assert _section(page, "Against the PyTorch model") == [list(row) for row in ROWS]
    assert "<td class='FAIL'>FAIL</td>" in page


def test_a_target_begins_with_its_layers() -> None:
    assert "3 images calibrated 12 integer layers; 1 layer stayed in float." in _full()
    assert "Weights are rounded to nearest. The head is the FP32 head." in _page(EMPTY)


def test_both_heads_tell_their_drop_and_which_is_in_the_bundle() -> None:
    page = _full() + _page(EMPTY)
    names = ("FP32 head", "head fitted again on INT8 features")
    assert _section(page, "tensorrt: accuracy lost") == [
        [names[0], "3.12%", "no"], [names[1], "-0.41%", "yes"]]  # fmt: skip
    assert _section(page, "cpu-x86: accuracy lost") == [[names[0], "-", "yes"], [names[1], "-", "no"]]
    assert "Measured on 244 held-out training images" in page
    assert "Not measured: too few training images" in page


def test_no_loss_has_no_minus_sign() -> None:
    target = dataclasses.replace(EMPTY, drops=Drops(-0.00001, -0.0, 9, False))
    assert [row[1] for row in _section(_page(target), "cpu-x86: accuracy lost")] == ["0.00%", "0.00%"]


def test_layers_in_float_come_with_the_reason() -> None:
    assert _section(_full(), "tensorrt: layers kept in float") == [["stem", "its INT8 error is too large"]]


def test_the_search_tells_every_trial_in_the_order_made() -> None:
    rows = _section(_full(), "tensorrt: search for layers to keep in float")
    assert rows == [["0", "3.12%"], ["1", "1.20%"], ["2", "-0.41%"]]


def test_one_attempt_is_no_search() -> None:
    target = dataclasses.replace(FULL, trials=FULL.trials[:1])
    assert "tensorrt: search for layers to keep in float" not in _titles(_page(target))
    assert len(_pictures(_page(target))) == len(_pictures(_full())) - 1


def test_the_fifteen_most_sensitive_layers_come_first() -> None:
    rows = _section(_full(), "tensorrt: most sensitive layers")
    assert (len(rows), rows[0], rows[-1][0]) == (15, ["deaf 16", "16.0%", "25.0%"], "deaf 2")


def test_the_ten_layers_with_the_lowest_sqnr_keep_their_number_in_the_graph() -> None:
    rows = _section(_full(), "tensorrt: layers with the lowest SQNR")
    assert (len(rows), rows[0], rows[-1]) == (
        10, ["12", "conv 11", "19.0", "40.0"], ["3", "conv 2", "28.0", "40.0"])  # fmt: skip


def test_ranges_are_listed_in_graph_order() -> None:
    assert _section(_full(), "tensorrt: ranges of tensors") == [
        ["1", "div", "-1", "0.9961", "min-max", "48.0"],
        ["2", "relu", "0", "5.88", "MSE 0.98", "-"],
    ]


def test_images_are_counted_by_class() -> None:
    assert _section(_full(), "Calibration images") == [["a", "2"], ["b", "0"], ["c", "1"]]


def test_skipped_images_are_named() -> None:
    page = _page(EMPTY, skipped=(Skipped("x&y.png", "was changed after the fit"),))
    assert _section(page, "Skipped calibration images") == [["x&y.png", "was changed after the fit"]]
    assert "Skipped calibration images" not in _titles(_full())


def test_the_pictures_are_sqnr_ranges_and_search() -> None:
    page = _full()
    assert min(min(size) for size in _pictures(page)) > 200
    assert re.findall("alt='(.*?)'", page) == [
        "Accuracy lost by the number of layers kept in float",
        "SQNR of outputs and weights by layer, in graph order",
        "Range by tensor, in graph order",
    ]


def test_a_target_without_layers_or_ranges_says_so() -> None:
    page = _page(EMPTY)
    assert "No layer computes with integers." in page
    assert "No tensor has a range of its own." in page
    assert not _pictures(page)
    assert "cpu-x86: layers kept in float" not in _titles(page)
    assert "cpu-x86: most sensitive layers" not in _titles(page)


def test_without_targets_and_verdicts_there_is_still_a_page() -> None:
    page = quantization_html(_record(), (), (), ("a",)).decode()
    assert _titles(page) == ["Calibration images"]


@pytest.mark.parametrize("value", [None, math.inf, -math.inf, math.nan])
def test_figures_that_are_no_numbers_are_dashes(value: float | None) -> None:
    wild = math.inf if value is None else value
    layers = (LayerRecord("odd", value, value), LayerRecord("even", 20.0, value))
    target = dataclasses.replace(
        FULL, layers=layers, drops=Drops(value, value, 9, True), sensitivity=(Sensitivity("odd", wild, wild),),
        ranges={"odd": RangeRecord(wild, wild, "min-max", value), "even": RangeRecord(0.0, 1.0, "min-max", value)},
    )  # fmt: skip
    page = _page(target)
    cells = re.findall("<td.*?>(.*?)</td>", page)
    assert not {cell for cell in cells if re.search(r"inf|nan|None", cell)}
    assert ["1", "odd", "-", "-"] in _section(page, "tensorrt: layers with the lowest SQNR")
    assert len(_pictures(page)) == 3


def test_layers_that_all_lose_nothing_are_not_plotted() -> None:
    target = dataclasses.replace(FULL, layers=(LayerRecord("copy", None, None),), ranges={}, trials=())
    page = _page(target)
    assert not _pictures(page)
    assert _section(page, "tensorrt: layers with the lowest SQNR") == [["1", "copy", "-", "-"]]


def test_a_single_layer_is_plotted() -> None:
    target = dataclasses.replace(FULL, layers=FULL.layers[:1], ranges={"div": FULL.ranges["div"]})
    assert len(_pictures(_page(target))) == 3


def test_every_name_is_escaped() -> None:
    target = dataclasses.replace(
        FULL, target=EVIL, kept_float={EVIL: EVIL}, sensitivity=(Sensitivity(EVIL, 0.5, 0.5),),
        layers=(LayerRecord(EVIL, 20.0, 20.0),), ranges={EVIL: RangeRecord(0.0, 1.0, EVIL, 20.0)}, head=EVIL,
    )  # fmt: skip
    page = _page(target, skipped=(Skipped(EVIL, EVIL),), classes=(EVIL,))
    assert "<script" not in page
    assert page.count(html.escape(EVIL)) > 10


@pytest.mark.parametrize("name", ["$^$", "$9 off", "\u732b", "W" * 200, "two\nlines", ""])
def test_any_name_can_be_plotted(name: str) -> None:
    target = dataclasses.replace(EMPTY, layers=(LayerRecord(name, 20.0, 40.0), *FULL.layers))
    assert max(max(size) for size in _pictures(_page(target))) < 1200


def test_many_layers_fold_their_tables_and_fit_the_same_picture() -> None:
    layers = tuple(LayerRecord(f"conv {index}", index % 37, 40.0) for index in range(500))
    ranges = {f"tensor {index}": RangeRecord(-1.0, float(index), "MSE 0.98", 30.0) for index in range(500)}
    page = _page(dataclasses.replace(FULL, layers=layers, ranges={**ranges, "far": RangeRecord(0.0, 1e6, "new", 1.0)}))
    assert "<details><summary>All 501 rows</summary><table>" in page
    assert len(_section(page, "tensorrt: ranges of tensors")) == 501
    assert _pictures(page) == _pictures(_full())


def test_the_page_needs_no_other_file() -> None:
    sources = re.findall("(?:src|href)=['\"](.{0,10})", _full())
    assert set(sources) == {"data:image"}

from __future__ import annotations

import dataclasses
import io
import math
import sys

import numpy as np
import pytest
from PIL import Image

from edgetune.parity import plots
from edgetune.parity.records import LogitsPair
from tests.unit.parity.sample_reports import BLOCKS, LOCALISED, logits_pair


def _colours(data: bytes | None) -> np.ndarray:
    assert data is not None
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def _inked(data: bytes | None, colour: tuple[int, int, int]) -> int:
    """How many pixels have nearly this colour."""
    return int((np.abs(_colours(data) - colour).max(axis=2) < 40).sum())


_BLUE, _ORANGE, _RED = (31, 119, 180), (255, 127, 14), (214, 39, 40)


def test_without_matplotlib_nothing_can_be_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert not plots.can_draw()


class TestDrawing:
    @pytest.fixture(autouse=True)
    def _matplotlib(self) -> None:
        pytest.importorskip("matplotlib")

    def test_blocks_have_two_lines_and_the_culprit_a_mark(self) -> None:
        png = plots.blocks_png(LOCALISED)
        assert _inked(png, _BLUE) > 500
        assert _inked(png, _ORANGE) > 300
        assert _inked(png, _RED) > 300
        unknown = plots.blocks_png(dataclasses.replace(LOCALISED, culprit=""))
        assert _inked(unknown, _RED) < 50

    def test_blocks_without_any_error_are_not_drawn(self) -> None:
        exact = dataclasses.replace(BLOCKS[0], cumulative_db=None, injected_db=None, expected_db=None)
        assert plots.blocks_png(dataclasses.replace(LOCALISED, blocks=(exact, exact))) is None
        assert plots.blocks_png(dataclasses.replace(LOCALISED, blocks=())) is None

    def test_a_histogram_has_a_bar_where_the_errors_are(self) -> None:
        reference = np.zeros((50, 4), dtype=np.float32)
        candidate = reference.copy()
        candidate[:, 0] = 1.0  # 50 errors of 1, 150 of 0, none between
        picture = _colours(plots.histogram_png(LogitsPair(reference, candidate)))
        columns = np.flatnonzero((np.abs(picture - _BLUE).max(axis=2) < 40).sum(axis=0) > 20)
        gaps = int((np.diff(columns) > 20).sum())
        assert gaps == 1

    def test_of_equal_logits_there_is_no_histogram_and_a_line_of_points(self) -> None:
        same = logits_pair(noise=0.0)
        assert plots.histogram_png(same) is None
        assert plots.scatter_png(same) is not None

    def test_labels_stand_out_among_a_thousand_classes(self) -> None:
        assert _inked(plots.scatter_png(logits_pair(500, 1000)), _ORANGE) > 200

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_logits_that_are_no_numbers_are_not_drawn(self, value: float) -> None:
        pair = logits_pair()
        pair.candidate[3, 1] = value
        assert plots.histogram_png(pair) is None
        assert plots.scatter_png(pair) is None

    def test_names_that_are_formulas_or_strange_are_drawn_as_they_are(self) -> None:
        blocks = (dataclasses.replace(BLOCKS[3], block="$\\frac{日本"),)
        assert plots.blocks_png(dataclasses.replace(LOCALISED, culprit="$\\frac{日本", blocks=blocks)) is not None


def _shown(images: int, classes: int) -> set[tuple[int, int]]:
    pair = logits_pair(images, classes)
    rows, columns = plots._chosen(pair.candidate - pair.reference, pair.reference.argmax(axis=1))
    return set(zip(rows.tolist(), columns.tolist(), strict=True))


def test_few_points_are_all_shown() -> None:
    assert len(_shown(40, 100)) == plots.SCATTER_POINTS


def test_of_many_points_a_fixed_choice_is_shown_with_the_worst_and_labels() -> None:
    pair = logits_pair(3000, 100)
    shown = _shown(3000, 100)
    assert 3500 < len(shown) <= plots.SCATTER_POINTS
    assert shown == _shown(3000, 100)
    difference = np.abs(pair.candidate - pair.reference)
    assert np.unravel_index(difference.argmax(), difference.shape) in shown
    labels = pair.reference.argmax(axis=1)
    assert sum((row, int(labels[row])) in shown for row in range(3000)) >= 1000


def test_a_block_that_lost_everything_leaves_the_others_readable() -> None:
    assert [plots._plotted(value) for value in (-1000.0, -3.0, 40.0)] == [-20.0, -3.0, 40.0]
    assert all(math.isnan(plots._plotted(value)) for value in (None, math.nan))

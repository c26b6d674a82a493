"""One bar for nested phases, with fractions worked out by hand."""

from __future__ import annotations

import pytest

from edgetune.engine.phases import PhaseTree


def test_an_open_phase_fills_a_share_of_its_parent_s_step() -> None:
    tree = PhaseTree()
    assert tree.fraction() == 0.0
    tree.start("build", None, 4)
    assert tree.fraction() == 0.0
    tree.step("build", 0)
    assert tree.fraction() == 0.25
    tree.start("optimize", "build", 10)
    tree.step("optimize", 4)
    assert tree.fraction() == pytest.approx((1 + 5 / 10) / 4, abs=1e-12)
    tree.start("time", "optimize", 2)
    tree.step("time", 0)
    assert tree.fraction() == pytest.approx((1 + (5 + 1 / 2) / 10) / 4, abs=1e-12)
    tree.finish("time")
    tree.finish("optimize")
    tree.step("build", 3)
    assert tree.fraction() == 1.0


def test_phases_side_by_side_share_the_step_evenly() -> None:
    tree = PhaseTree()
    tree.start("build", None, 2)
    tree.start("left", "build", 4)
    tree.start("right", "build", 4)
    tree.step("left", 3)
    tree.step("right", 0)
    assert tree.fraction() == pytest.approx((0 + (4 / 4 + 1 / 4) / 2) / 2, abs=1e-12)


def test_the_bar_never_falls() -> None:
    tree = PhaseTree()
    tree.start("build", None, 2)
    tree.start("formats", "build", 2)
    tree.step("formats", 1)
    assert tree.fraction() == 0.5
    tree.finish("formats")
    assert tree.fraction() == 0.5
    tree.start("formats", "build", 2)
    assert tree.fraction() == 0.5
    tree.finish("build")
    assert tree.fraction() == 0.5


@pytest.mark.parametrize(("steps", "index", "fraction"), [(0, 0, 1.0), (3, 7, 1.0), (3, 1, 2 / 3)])
def test_counts_that_do_not_add_up_stay_within_the_bar(steps: int, index: int, fraction: float) -> None:
    tree = PhaseTree()
    tree.start("build", None, steps)
    tree.step("build", index)
    assert tree.fraction() == pytest.approx(fraction, abs=1e-12)


def test_a_phase_that_was_never_opened_is_ignored() -> None:
    tree = PhaseTree()
    tree.step("nothing", 3)
    tree.finish("nothing")
    assert tree.fraction() == 0.0

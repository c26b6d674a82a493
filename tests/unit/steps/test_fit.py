"""Where a fit may read and write."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgetune.core.errors import RunError, UsageError
from edgetune.core.run import METRICS_NAME, RUN_NAME
from edgetune.steps.fit import FitOptions, _resolved, fit
from tests.unit.steps.fitted_run import write_fitted_run


def _images(folder: Path) -> Path:
    for name in ("ant", "bee"):
        (folder / name).mkdir(parents=True)
        (folder / name / "1.png").write_bytes(b"")
    return folder


def test_images_or_weights_in_the_run_that_would_be_replaced_stay(tmp_path: Path) -> None:
    out = tmp_path / "run"
    write_fitted_run(out, {})
    images = _images(out / "images")
    (out / "weights.pth").write_bytes(b"weights")
    before = sorted(out.rglob("*"))
    with pytest.raises(UsageError, match=r"holds .*images, which the fit reads"):
        fit(images, out, FitOptions(force=True))
    with pytest.raises(UsageError, match=r"holds .*weights\.pth, which the fit reads"):
        fit(_images(tmp_path / "images"), out, FitOptions(force=True, weights=out / "weights.pth"))
    assert sorted(out.rglob("*")) == before


def test_a_link_into_the_run_is_followed(tmp_path: Path) -> None:
    out = tmp_path / "run"
    write_fitted_run(out, {})
    _images(out / "images")
    (tmp_path / "link").symlink_to(out / "images")
    with pytest.raises(UsageError, match=r"holds .*link, which the fit reads"):
        fit(tmp_path / "link", out, FitOptions(force=True))
    with pytest.raises(UsageError, match="lies inside the images' folder"):
        fit(out / "images", tmp_path / "link" / "run", FitOptions())


@pytest.mark.parametrize("place", ["data", "weights", "out", "group_by"])
def test_words_that_run_json_cannot_hold_are_refused_before_anything_is_written(place: str, tmp_path: Path) -> None:
    odd = os.fsdecode(b"\xff")
    data, out = tmp_path / "images", tmp_path / "run"
    options = FitOptions(weights=tmp_path / odd if place == "weights" else None, group_by=odd * (place == "group_by"))
    with pytest.raises(UsageError, match=f"{place} is .*not valid UTF-8"):
        fit(tmp_path / odd if place == "data" else data, tmp_path / odd if place == "out" else out, options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("figures", [None, b"{", b"{}", b"3"], ids=["gone", "no JSON", "no keys", "a number"])
def test_a_finished_run_with_damaged_figures_says_what_to_do(figures: bytes | None, tmp_path: Path) -> None:
    data, out = _images(tmp_path / "images"), tmp_path / "run"
    options = FitOptions(resume=True, weights=Path("weights.pth"))
    write_fitted_run(out, _resolved(data, options))
    if figures is not None:
        (out / METRICS_NAME).write_bytes(figures)
    with pytest.raises(RunError, match=r"figures are damaged: .*metrics\.json") as caught:
        fit(data, out, options)
    assert "--force" in caught.value.hint
    assert (out / RUN_NAME).is_file()


def test_a_path_is_the_same_option_from_every_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = _images(tmp_path / "images")
    (tmp_path / "link").symlink_to(data)
    monkeypatch.chdir(tmp_path)
    here = _resolved(Path("images"), FitOptions(weights=Path("w.pth")))
    assert (here["data"], here["weights"]) == (str(data), str(tmp_path / "w.pth"))
    assert _resolved(tmp_path / "link", FitOptions(weights=tmp_path / "images" / ".." / "w.pth")) == here
    monkeypatch.chdir(data)
    assert _resolved(Path(), FitOptions(weights=Path("../w.pth"))) == here
    assert _resolved(Path(), FitOptions(weights=Path("w.pth"))) != here

"""A fit that was killed leaves its options; resuming with others is refused, and a finished run is left as it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgetune.core.errors import EdgetuneError, OutputExistsError, UsageError
from edgetune.steps.fit_journal import finished_run, journal
from tests.unit.steps.fitted_run import write_fitted_run

OPTIONS: dict[str, Any] = {"data": "/data", "model": "resnet18", "seed": 0, "force": False, "resume": False}


def _kept(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def _kill_a_fit(out: Path, options: dict[str, Any]) -> None:
    """What a killed process leaves: the journal, since no code of its own ran any more."""
    with pytest.raises(KeyboardInterrupt), journal(out, options):
        raise KeyboardInterrupt


def test_the_options_lie_beside_the_output_while_the_fit_runs(tmp_path: Path) -> None:
    with journal(tmp_path / "run", OPTIONS):
        (name,) = _kept(tmp_path)
        assert name == ".run.fit.json"
        kept = json.loads((tmp_path / name).read_text())["options"]
        assert kept == {"data": "/data", "model": "resnet18", "seed": 0}
    assert _kept(tmp_path) == []


def test_an_error_that_the_fit_reports_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UsageError), journal(tmp_path / "run", OPTIONS):
        raise UsageError("no such backbone")
    assert _kept(tmp_path) == []


def test_a_fit_that_was_killed_goes_on_with_the_same_options(tmp_path: Path) -> None:
    _kill_a_fit(tmp_path / "run", OPTIONS)
    assert _kept(tmp_path) == [".run.fit.json"]
    assert finished_run(tmp_path / "run", {**OPTIONS, "resume": True, "force": True}) is None


def test_other_options_than_those_of_the_killed_fit_are_named(tmp_path: Path) -> None:
    _kill_a_fit(tmp_path / "run", OPTIONS)
    with pytest.raises(UsageError, match=r"other options: model was 'resnet18', is 'vgg11', views was None, is 2\."):
        finished_run(tmp_path / "run", {**OPTIONS, "model": "vgg11", "views": 2})


def test_nothing_to_resume_is_a_start(tmp_path: Path) -> None:
    assert finished_run(tmp_path / "run", OPTIONS) is None


@pytest.mark.parametrize("content", ["", "{", "[]", '{"options": 3}', "null"])
def test_a_damaged_journal_is_a_start(tmp_path: Path, content: str) -> None:
    (tmp_path / ".run.fit.json").write_text(content)
    assert finished_run(tmp_path / "run", OPTIONS) is None


def test_a_finished_run_with_these_options_is_given_back(tmp_path: Path) -> None:
    run = write_fitted_run(tmp_path / "run", OPTIONS)
    assert finished_run(tmp_path / "run", {**OPTIONS, "resume": True}) == run


def test_a_finished_run_with_other_options_is_kept(tmp_path: Path) -> None:
    write_fitted_run(tmp_path / "run", OPTIONS)
    with pytest.raises(OutputExistsError, match="finished run with other options: seed was 0, is 7"):
        finished_run(tmp_path / "run", {**OPTIONS, "seed": 7})


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EdgetuneError, match="file cannot be written"), journal(tmp_path / "file" / "run", OPTIONS):
        pass


def test_an_error_leaves_no_folders_that_were_not_there(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    with pytest.raises(UsageError), journal(tmp_path / "new" / "runs" / "run", OPTIONS):
        assert _kept(tmp_path) == ["new", "old"]
        raise UsageError("no such backbone")
    with pytest.raises(UsageError), journal(tmp_path / "old" / "run", OPTIONS):
        raise UsageError("no such backbone")
    assert _kept(tmp_path) == ["old"]


def test_an_error_leaves_what_others_put_beside_the_output(tmp_path: Path) -> None:
    with pytest.raises(UsageError), journal(tmp_path / "new" / "run", OPTIONS):
        (tmp_path / "new" / "notes.txt").write_text("mine")
        raise UsageError("no such backbone")
    assert _kept(tmp_path / "new") == ["notes.txt"]

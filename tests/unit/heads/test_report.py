from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from edgetune.core.config import from_dict
from edgetune.core.files import read_json
from edgetune.heads.evaluate import Metrics
from edgetune.heads.report import TEST_METRICS_NAME, write_reports
from tests.unit.heads.report_cases import EPOCHS, fitted, perfect, report

COMMON = {"metrics.json", "results.csv", "confusion_matrix.png", "reliability.png", "report.html"}


def _written(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir() if file.stat().st_size}


def test_a_head_with_a_path_has_its_files(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    write_reports(tmp_path, report())
    assert _written(tmp_path) == COMMON | {"regularisation_path.png"}
    assert from_dict(Metrics, read_json(tmp_path / "metrics.json"), "metrics.json") == perfect("ant", "bee")
    page = (tmp_path / "report.html").read_text()
    assert page.count("<img src='data:image/png;base64,") == 3


def test_a_head_trained_in_epochs_has_other_files(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    write_reports(tmp_path, report(fit=fitted(path=(), epochs=EPOCHS), test_metrics=perfect("ant", "cat")))
    assert _written(tmp_path) == COMMON | {"learning_curve.png", TEST_METRICS_NAME}
    assert list(json.loads((tmp_path / TEST_METRICS_NAME).read_bytes())["per_class"]) == ["ant", "cat"]
    assert (tmp_path / "results.csv").read_text().startswith("epoch,")


def test_the_same_report_is_the_same_bytes(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_reports(tmp_path / name, report())
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes(), file.name


def test_nothing_slow_is_imported_before_it_is_used() -> None:
    code = (
        "import sys, edgetune.heads.report, edgetune.heads.evaluate\n"
        "print([name for name in ('matplotlib', 'sklearn', 'scipy', 'torch') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"

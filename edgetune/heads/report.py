"""The files that tell how good a fitted head is: figures as JSON and CSV, plots, and one page for people."""

from __future__ import annotations

from pathlib import Path

from edgetune.core.config import to_dict
from edgetune.core.files import pretty_json
from edgetune.core.run import METRICS_NAME
from edgetune.heads import report_plots
from edgetune.heads.report_page import CONFUSION, LEARNING, PATH, RELIABILITY, report_html
from edgetune.heads.report_record import FitReport
from edgetune.heads.report_tables import results_csv

TEST_METRICS_NAME = "test_metrics.json"
_PICTURE_NAMES = {
    CONFUSION: "confusion_matrix.png", PATH: "regularisation_path.png", LEARNING: "learning_curve.png",
    RELIABILITY: "reliability.png",
}  # fmt: skip


def write_reports(folder: Path, report: FitReport) -> None:
    """Writes `metrics.json`, `test_metrics.json` where there is a test split, `results.csv`, the plots and
    `report.html` into `folder`.
    """
    (folder / METRICS_NAME).write_bytes(pretty_json(to_dict(report.metrics)))
    if report.test_metrics is not None:
        (folder / TEST_METRICS_NAME).write_bytes(pretty_json(to_dict(report.test_metrics)))
    (folder / "results.csv").write_bytes(results_csv(report.fit))
    pictures = _draw(report)
    for name, png in pictures.items():
        (folder / _PICTURE_NAMES[name]).write_bytes(png)
    (folder / "report.html").write_bytes(report_html(report, pictures))


def _draw(report: FitReport) -> dict[str, bytes]:
    fit = report.fit
    pictures = {
        CONFUSION: report_plots.confusion_png(report.metrics),
        RELIABILITY: report_plots.reliability_png(fit.calibration, report.metrics),
    }
    if fit.epochs:
        pictures[LEARNING] = report_plots.learning_png(fit.epochs)
    elif fit.path:
        pictures[PATH] = report_plots.path_png(fit.path, report.run.head.l2)
    return pictures

"""The part of the fit's page that tells whether its probabilities can be believed."""

from __future__ import annotations

from edgetune.core import html
from edgetune.heads.evaluate import Metrics, Rejection
from edgetune.heads.report_record import FitReport
from edgetune.heads.report_words import percent


def calibration_section(report: FitReport, diagram: bytes | None) -> list[str]:
    """`diagram` is the reliability diagram as PNG."""
    found, metrics = report.fit.calibration, report.metrics
    rows = [
        _row("training images held out, before", found.images, found.ece_before, found.log_loss_before),
        _row("training images held out, after", found.images, found.ece_after, found.log_loss_after),
        _row("validation, after", metrics.images, metrics.expected_calibration_error, metrics.log_loss),
    ]
    said = (
        f"The logits are divided by the temperature {found.temperature:.3f}, chosen on training images that the "
        "head had not seen. The expected calibration error is how far probability and share of right answers are "
        "apart; 0 is best."
    )
    return [
        html.heading("Can the probabilities be believed?"),
        html.paragraph(said),
        *([] if diagram is None else [html.picture(diagram, "Reliability diagram")]),
        html.table(("probabilities of", "images", "calibration error", "log loss"), rows),
        *_reject(report),
    ]


def _row(what: str, images: int, error: float, log_loss: float) -> tuple[str, str, str, str]:
    return what, f"{images:,}", f"{error:.4f}", f"{log_loss:.4f}"


def _reject(report: FitReport) -> list[str]:
    """What the threshold turns away, of the images that it was set on and of others; empty without one."""
    reject = report.fit.reject
    if reject is None:
        return []
    held_out = [percent(share) for share in (reject.rejected, reject.rejected_of_right, reject.rejected_of_wrong)]
    rows = [("training images held out", *held_out, "-")]
    for what, metrics in (("validation", report.metrics), ("test", report.test_metrics)):
        if metrics is not None and metrics.rejection is not None:
            rows.append((what, *_rejected(metrics, metrics.rejection)))
    columns = ("images", "rejected", "of right answers", "of mistakes", "accuracy of the rest")
    said = (
        f"An image whose best probability is below {reject.below:.4f} is none of the classes; the threshold was set "
        f"to reject {percent(reject.share)} of the training images."
    )
    return [html.subheading("None of these"), html.paragraph(said), html.table(columns, rows)]


def _rejected(metrics: Metrics, seen: Rejection) -> list[str]:
    right = sum(images for true, called, images in metrics.confusion if true == called)
    wrong, rejected_right = metrics.images - right, seen.rejected - seen.rejected_mistakes
    shares = (
        seen.rejected / metrics.images, rejected_right / right if right else None,
        seen.rejected_mistakes / wrong if wrong else None, seen.kept_accuracy,
    )  # fmt: skip
    return [percent(share) for share in shares]

"""The fit's report as one self-contained page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edgetune.core import html
from edgetune.core.head_recipe import LINEAR
from edgetune.core.run import Finding, Run
from edgetune.heads.evaluate import ClassMetrics, Metrics
from edgetune.heads.report_calibration import calibration_section
from edgetune.heads.report_gallery import gallery
from edgetune.heads.report_made import how_it_was_made
from edgetune.heads.report_record import FitReport
from edgetune.heads.report_tables import top_confusions, worst_classes
from edgetune.heads.report_words import counted, percent, share, short, visible

CONFUSION, PATH, LEARNING, RELIABILITY = "confusion matrix", "regularisation path", "learning curve", "reliability"
MATRIX_CLASSES = 30
_SHOWN_CLASSES = 20
_TOP_CONFUSIONS = 20
_SHOWN_PATHS = 12
_MOST_PATHS = 500
_CLASS_COLUMNS = ("class", "images", "precision", "recall", "F1")


def report_html(report: FitReport, pictures: Mapping[str, bytes]) -> bytes:
    """`pictures` are PNG by one of the names above; what is not there is left out."""
    run, metrics = report.run, report.metrics
    body = [
        *_to_look_at(report),
        *_classes(metrics),
        *_confusions(metrics, pictures),
        *_mistakes(report),
        *calibration_section(report, pictures.get(RELIABILITY)),
        *_curves(report, pictures),
        *_test(report.test_metrics),
        *how_it_was_made(report),
    ]
    return html.page(f"Head fit: {visible(run.backbone.name)}, {run.head.kind} head", _lead(run, metrics), body)


def _lead(run: Run, metrics: Metrics) -> str:
    low, high = metrics.top1_accuracy_ci95
    head = f"{_article(run.head.kind)} {run.head.kind} head"
    return (
        f"{visible(run.backbone.name)} with {head}, {counted(len(run.classes), 'class', 'classes')}: "
        f"{percent(metrics.top1_accuracy)} of {counted(metrics.images, 'validation image')} are named rightly (95 % "
        f"interval {low:.1%} to {high:.1%}), after {counted(len(run.split.train), 'training image')}."
    )


def _article(kind: str) -> str:
    return "a" if kind == LINEAR else "an"  # the others' first letter is spoken with a vowel


def _to_look_at(report: FitReport) -> list[str]:
    """What the owner of the images should know first; empty where all is well."""
    findings = report.run.split.findings
    said = [*_own_findings(report), *(visible(finding.message) for finding in findings if not finding.paths)]
    parts = [html.items(said)] if said else []
    parts += [_finding(finding) for finding in findings if finding.paths]
    parts += _skipped(report.run)
    return [html.heading("What to look at"), html.box(parts, "NOT-RUN")] if parts else []


def _finding(finding: Finding) -> str:
    """The sentence, and folded away the files that it is about."""
    shown = [visible(path) for path in finding.paths[:_MOST_PATHS]]
    if len(finding.paths) > _MOST_PATHS:
        shown.append(f"and {len(finding.paths) - _MOST_PATHS:,} more, see run.json")
    return html.folded(visible(finding.message), html.items(shown))


def _own_findings(report: FitReport) -> list[str]:
    metrics = report.metrics
    said = []
    if metrics.duplicates:
        said.append(
            f"{counted(metrics.duplicates, 'validation image is an exact copy', 'validation images are exact copies')} "
            f"of a training image; the accuracy on the others is {percent(metrics.accuracy_without_duplicates)}."
        )
    missed = [name for name, each in metrics.per_class.items() if each.images and not each.recall]
    if missed:
        said.append(f"{counted(len(missed), 'class is', 'classes are')} never recognised: {_named(missed)}.")
    return said + _edge_of_path(report)


def _edge_of_path(report: FitReport) -> list[str]:
    strengths = sorted(point.l2 for point in report.fit.path)
    chosen = report.run.head.l2
    if len(strengths) < 2 or chosen not in (strengths[0], strengths[-1]):
        return []
    kind = "weakest" if chosen == strengths[0] else "strongest"
    return [f"The L2 strength that was chosen, {chosen:g}, is the {kind} that was tried; a better one may lie beyond."]


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN_PATHS:,} more" if len(names) > _SHOWN_PATHS else ""
    return ", ".join(short(name, 60) for name in names[:_SHOWN_PATHS]) + more


def _skipped(run: Run) -> list[str]:
    skipped = run.split.skipped
    if not skipped:
        return []
    rows = [(visible(file.path), visible(file.reason)) for file in skipped[:_MOST_PATHS]]
    table = html.table(("file", "reason"), rows)
    said = f"{counted(len(skipped), 'file was', 'files were')} skipped"
    if len(skipped) > _MOST_PATHS:
        said += f"; the first {_MOST_PATHS}"
    return [html.folded(said, table) if len(rows) > _SHOWN_PATHS else html.paragraph(f"{said}:") + table]


def _classes(metrics: Metrics) -> list[str]:
    """The worst F1 first; of many classes the worst, and all of them folded away."""
    rows = [_class_row(name, each) for name, each in worst_classes(metrics)]
    said = html.paragraph(
        f"Macro F1 {share(metrics.macro_f1)}, balanced accuracy {percent(metrics.balanced_accuracy)}, log loss "
        f"{metrics.log_loss:.3f} nats per image. The worst F1 comes first."
    )
    if len(rows) <= _SHOWN_CLASSES:
        return [html.heading("Classes"), said, html.table(_CLASS_COLUMNS, rows)]
    worst = html.table(_CLASS_COLUMNS, rows[:_SHOWN_CLASSES])
    everything = html.folded(f"All {len(rows):,} classes", html.table(_CLASS_COLUMNS, rows))
    return [html.heading("Classes"), said, worst, everything]


def _class_row(name: str, each: ClassMetrics) -> tuple[object, ...]:
    return visible(name), f"{each.images:,}", share(each.precision), share(each.recall), share(each.f1)


def _confusions(metrics: Metrics, pictures: Mapping[str, bytes]) -> list[str]:
    drawn = [html.picture(pictures[CONFUSION], "Confusion matrix")] if CONFUSION in pictures else []
    if len(metrics.per_class) <= MATRIX_CLASSES:
        return [html.heading("Confusion matrix"), *drawn] if drawn else []
    names = list(metrics.per_class)
    rows = [
        (visible(names[true]), visible(names[called]), images, percent(images / metrics.per_class[names[true]].images))
        for true, called, images in top_confusions(metrics, _TOP_CONFUSIONS)
    ]
    columns = ("true class", "called", "images", "of the class")
    table = html.table(columns, rows) if rows else html.paragraph("No image was given another class.")
    folded = [html.folded("Confusion matrix", "".join(drawn))] if drawn else []
    return [html.heading("What is taken for what"), table, *folded]


def _mistakes(report: FitReport) -> list[str]:
    wrong = sum(images for true, called, images in report.metrics.confusion if true != called)
    if not report.mistakes:
        said = "None of the validation images was given another class." if not wrong else ""
        return [html.heading("Mistakes"), html.paragraph(said)] if said else []
    shown = len(report.mistakes)
    what = f"the {shown} most confident ones" if shown < wrong else "the most confident first"
    said = (
        f"{counted(wrong, 'mistake')} on validation images, {what}, as the model sees them. A wrong label in the data "
        "shows here first."
    )
    return [html.heading("Mistakes"), html.paragraph(said), gallery(report.run, report.mistakes)]


def _curves(report: FitReport, pictures: Mapping[str, bytes]) -> list[str]:
    if PATH in pictures:
        said = (
            f"Cross-validation in {report.fit.folds} folds inside the training images chose the L2 strength "
            f"{report.run.head.l2:g}."
        )
        return [html.heading("Choice of the regularisation"), html.paragraph(said),
                html.picture(pictures[PATH], "Log loss and accuracy against the L2 strength")]  # fmt: skip
    if LEARNING in pictures:
        held_out = any(point.held_out_loss is not None for point in report.fit.epochs)
        said = counted(len(report.fit.epochs), "epoch")
        said += "; what was held out belongs to the training images." if held_out else "; nothing was held out."
        return [html.heading("Learning curves"), html.paragraph(said),
                html.picture(pictures[LEARNING], "Loss and accuracy by epoch")]  # fmt: skip
    return []


def _test(metrics: Metrics | None) -> list[str]:
    if metrics is None:
        return []
    low, high = metrics.top1_accuracy_ci95
    said = (
        f"{percent(metrics.top1_accuracy)} of {counted(metrics.images, 'test image')} are named rightly (95 % interval "
        f"{low:.1%} to {high:.1%}); macro F1 {share(metrics.macro_f1)}, calibration error "
        f"{metrics.expected_calibration_error:.4f}."
    )
    rows = [_class_row(name, each) for name, each in worst_classes(metrics)]
    table = html.table(_CLASS_COLUMNS, rows)
    classes = html.folded(f"All {len(rows):,} classes", table) if len(rows) > _SHOWN_CLASSES else table
    return [html.heading("Test images"), html.paragraph(said), classes]

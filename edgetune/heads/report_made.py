"""The part of the fit's page that tells how the run was made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgetune.core import html
from edgetune.core.head_recipe import UNWEIGHTED, TrainingRecipe
from edgetune.core.run import HeadRecord, Run
from edgetune.heads.report_record import FitReport
from edgetune.heads.report_words import counted, seconds, visible

_FEATURES = "features"
_Rows = list[tuple[str, str]]


def how_it_was_made(report: FitReport) -> list[str]:
    run = report.run
    rows = [*_backbone(run), *_features(report), *_head(run.head), *_images(run), *_times(report.seconds)]
    return [
        html.heading("How it was made"),
        html.table(("what", "how"), [*rows, ("made", visible(run.created))]),
        html.folded("All options", html.table(("option", "value"), _plain(run.options))),
        html.folded("Versions", html.table(("library", "version"), _plain(run.versions))),
        html.heading("The backbone is as it was"),
        html.paragraph(proof_sentence(run)),
    ]


def proof_sentence(run: Run) -> str:
    backbone = run.backbone
    return (
        f"After the fit all {backbone.unchanged_tensors} tensors of the backbone, {backbone.unchanged_buffers} of them "
        f"buffers such as BN statistics, were bit-identical to the weights file "
        f"(sha256 {visible(backbone.weights_sha256[:16])}...)."
    )


def _backbone(run: Run) -> _Rows:
    backbone, spec = run.backbone, run.preprocess
    layer = f"layer {visible(backbone.layer)}, pooled" if backbone.layer else "its own features"
    return [
        ("backbone", f"{visible(backbone.name)}, {layer}: {backbone.feature_dim} numbers an image"),
        ("weights", visible(backbone.weights_path)),
        ("image", f"short side {spec.resize_size} px, {spec.interpolation}, centre {spec.crop_size} x "
                  f"{spec.crop_size} px"),
    ]  # fmt: skip


def _features(report: FitReport) -> _Rows:
    features = report.run.features
    took = report.seconds.get(_FEATURES, 0.0)
    speed = f", {features.computed / took:.1f} a second" if features.computed and took > 0.0 else ""
    rows = [
        ("features", f"{visible(features.runner)}, {visible(features.precision)}"),
        ("computed", f"{features.computed:,}{speed}; {features.from_cache:,} from the cache"),
    ]
    views = counted(features.views, "augmented view")
    return [*rows, ("views", f"{views} of each training image, beside the image itself")] if features.views else rows


def _head(head: HeadRecord) -> _Rows:
    rows = [("head", f"{head.kind}, seed {head.seed}, temperature {head.temperature:.4g}")]
    if head.training is None:
        rows.append(("L2 strength", f"{head.l2:g}, by {head.folds}-fold cross-validation"))
    else:
        rows.append(("training", _training(head.training)))
    if head.class_weights != UNWEIGHTED:
        rows.append(("class weights", head.class_weights))
    return rows


def _training(recipe: TrainingRecipe) -> str:
    words = [
        recipe.optimizer, counted(recipe.epochs, "epoch"), f"batches of {recipe.batch_size}",
        f"learning rate {recipe.learning_rate:g}", f"weight decay {recipe.weight_decay:g}",
    ]  # fmt: skip
    if recipe.hidden:
        words += [f"{recipe.hidden} hidden units", f"dropout {recipe.dropout:g}"]
    return ", ".join(words)


def _images(run: Run) -> _Rows:
    split = run.split
    test = f", {len(split.test):,} test" if split.test else ""
    counts = f"{len(split.train):,} training, {len(split.val):,} validation{test}"
    rows = [("images", counts), ("from", visible(split.root))]
    return [*rows, ("kept together", visible(split.group_by))] if split.group_by else rows


def _times(took: Mapping[str, float]) -> _Rows:
    return [("time", ", ".join(f"{visible(stage)} {seconds(value)}" for stage, value in took.items()))] if took else []


def _plain(values: Mapping[str, Any], before: str = "") -> _Rows:
    """One row a value; those of a group of options have its name before theirs."""
    rows: _Rows = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            rows += _plain(value, f"{before}{key}.")
        else:
            rows.append((visible(f"{before}{key}"), visible("-" if value in (None, "") else str(value))))
    return rows

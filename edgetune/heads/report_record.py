"""What a fit's report is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edgetune.core.run import Run
from edgetune.heads.evaluate import Metrics, Mistake

if TYPE_CHECKING:
    from edgetune.heads.fit import HeadFit


@dataclass(frozen=True)
class FitReport:
    """`metrics` and `mistakes` are of the validation images, a mistake's `row` being its place in `run.split.val`.
    `seconds` tells by stage how long it took, in the order of the stages; `features` is the one that `run.features`
    counts the images of.
    """

    run: Run
    metrics: Metrics
    fit: HeadFit
    mistakes: tuple[Mistake, ...] = ()
    test_metrics: Metrics | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)

"""What a fit saw on its way: the points of its curves."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class PathPoint:
    """What cross-validation inside the training set saw at one L2 strength: log loss in nats per image, of an SVM with
    the best temperature; and the mean of the loss that the head minimises, by which the strength was chosen. For linear
    heads that is the log loss itself, for an SVM the squared hinge, summed over classes.
    """

    l2: float
    log_loss: float
    accuracy: float
    loss: float = math.nan


@dataclass(frozen=True)
class EpochPoint:
    """One epoch of training, counted from 1; losses in nats per image, `learning_rate` of its first batch.

    `train_loss` is the mean over the epoch's batches as they were trained on, dropout included. What was held out of
    the training images is judged behind the epoch; both figures are None where nothing was held out.
    """

    epoch: int
    train_loss: float
    held_out_loss: float | None
    held_out_accuracy: float | None
    learning_rate: float

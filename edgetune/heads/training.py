"""Heads trained in epochs over cached features: a linear layer by SGD or AdamW, an MLP with early stopping.

Everything random, the first weights, the order of rows and the dropout, comes from generators with the recipe's seed,
and PyTorch works with one CPU thread meanwhile: sums split over threads are rounded otherwise for another number of
them. So the same features give the same bits on every run, on one kind of CPU or GPU.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from edgetune.core.head_recipe import SGD, TrainingRecipe
from edgetune.core.progress import Progress
from edgetune.heads.calibration import answers
from edgetune.heads.examples import Examples
from edgetune.heads.head import Head
from edgetune.heads.history import EpochPoint

PATIENCE = 10
_MOMENTUM = 0.9
# Enough held-out images to choose and calibrate by: small sets hold out every fold in turn, large ones only the first.
_ENOUGH_IMAGES = 1000
_BLOCK_ROWS = 1024

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class TrainedFit:
    """`logits` float32 `(M, classes)` are of the rows `judged` `(M,)`, by heads trained with the same recipe without
    the fold that a row is in; `folds` were held out.
    """

    head: Head
    recipe: TrainingRecipe
    folds: int
    epochs: tuple[EpochPoint, ...]
    judged: Rows
    logits: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Place:
    """Where and from which seed a head is trained; `device` is cpu or cuda."""

    device: str
    seed: int


def fit_trained(
    examples: Examples, recipe: TrainingRecipe, place: Place, *, stops_early: bool, progress: Progress
) -> TrainedFit:
    """Trains on all rows for as many epochs as the recipe says; with `stops_early` for the number of them, at most
    those, behind which the held-out images' loss was lowest.
    """
    with _one_thread():
        points: tuple[EpochPoint, ...] = ()
        if stops_early:
            points, best = _Watch(examples, recipe, place).run("early stopping", progress, patience=PATIENCE)
            recipe = replace(recipe, epochs=best)
        watch = _Watch(examples, recipe, place)
        watched, _ = watch.run("held-out training", progress)
        head = _train(examples, recipe, place, progress)
    return TrainedFit(head, recipe, watch.folds, points or watched, watch.judged, watch.logits())


def retrain(examples: Examples, recipe: TrainingRecipe, place: Place, progress: Progress) -> Head:
    """The head that `fit_trained` gives where the number of epochs has been chosen already."""
    with _one_thread():
        return _train(examples, recipe, place, progress)


def _train(examples: Examples, recipe: TrainingRecipe, place: Place, progress: Progress) -> Head:
    trainer = _Trainer(examples, np.arange(len(examples.labels)), recipe, place)
    for epoch in range(1, recipe.epochs + 1):
        trainer.run_epoch(epoch)
        progress("training", epoch, recipe.epochs)
    return trainer.head()


class _Watch:
    """One head for each of the first folds, trained without it and judged on it, epoch by epoch."""

    def __init__(self, examples: Examples, recipe: TrainingRecipe, place: Place) -> None:
        self._examples = examples
        self._recipe = recipe
        self.folds = _count_folds(examples)
        held_out = [np.flatnonzero(examples.is_judged & (examples.fold == part)) for part in range(self.folds)]
        self._held_out = held_out
        self.judged = np.concatenate(held_out)
        fitted = [np.flatnonzero(examples.fold != part) for part in range(self.folds)]
        self._trainers = [_Trainer(examples, rows, recipe, place) for rows in fitted]

    def logits(self) -> npt.NDArray[np.float32]:
        """Of the rows `judged`, by the heads as they are now."""
        parts = zip(self._trainers, self._held_out, strict=True)
        return np.concatenate([trainer.head().logits(self._examples.features[rows]) for trainer, rows in parts])

    def run(self, stage: str, progress: Progress, *, patience: int | None = None) -> tuple[tuple[EpochPoint, ...], int]:
        """Until `patience` epochs in a row have not lowered the held-out loss, or to the recipe's end. Returns also the
        number of the epoch, from 1, behind which that loss was lowest.
        """
        points: list[EpochPoint] = []
        lowest, best = math.inf, 1
        for epoch in range(1, self._recipe.epochs + 1):
            point, loss = self._run_epoch(epoch)
            points.append(point)
            if loss < lowest:
                lowest, best = loss, epoch
            is_over = patience is not None and epoch - best >= patience
            progress(stage, self._recipe.epochs if is_over else epoch, self._recipe.epochs)
            if is_over:
                break
        return tuple(points), best

    def _run_epoch(self, epoch: int) -> tuple[EpochPoint, float]:
        """The epoch's point, and the held-out loss in it."""
        rate = self._trainers[0].learning_rate(epoch)
        losses = [trainer.run_epoch(epoch) for trainer in self._trainers]
        answered = answers(self.logits(), self._examples.labels[self.judged])
        weights = self._examples.weights[self.judged].astype(np.float64)
        loss = float(np.average(answered.losses, weights=weights))
        return EpochPoint(epoch, float(np.mean(losses)), loss, float(answered.is_right.mean()), rate), loss


def _count_folds(examples: Examples) -> int:
    counts = np.bincount(examples.fold[examples.is_judged], minlength=examples.folds)
    return int(min(examples.folds, np.searchsorted(np.cumsum(counts), _ENOUGH_IMAGES) + 1))


class _Trainer:
    """A head in training on some rows of the examples."""

    def __init__(self, examples: Examples, rows: Rows, recipe: TrainingRecipe, place: Place) -> None:
        self._examples, self._rows, self._recipe = examples, rows, recipe
        self._device = torch.device(place.device)
        self._order = torch.Generator().manual_seed(place.seed)
        self._noise = torch.Generator(self._device).manual_seed(place.seed)
        self._centre, self._scale = _centre_and_scale(examples.features, rows)
        self._mean_weight = float(examples.weights[rows].mean(dtype=np.float64))
        self._layers = self._build_layers()
        self._optimizer = self._build_optimizer()
        self._batch = min(recipe.batch_size, len(rows))
        self._steps = math.ceil(len(rows) / self._batch)

    def _build_layers(self) -> list[nn.Linear]:
        """The last layer starts at zero, where all classes are alike; a hidden one as He et al. (2015) have it."""
        width, hidden = self._examples.features.shape[1], self._recipe.hidden
        sizes = [(width, hidden), (hidden, self._examples.classes)] if hidden else [(width, self._examples.classes)]
        layers = [nn.Linear(*size, device="meta").to_empty(device="cpu") for size in sizes]
        with torch.no_grad():
            for layer in layers:
                layer.weight.zero_()
                layer.bias.zero_()
            if hidden:
                layers[0].weight.normal_(0.0, math.sqrt(2.0 / width), generator=self._order)
        return [layer.to(self._device) for layer in layers]

    def _build_optimizer(self) -> torch.optim.Optimizer:
        """Weights decay, biases do not."""
        groups = [
            {"params": [layer.weight for layer in self._layers], "weight_decay": self._recipe.weight_decay},
            {"params": [layer.bias for layer in self._layers], "weight_decay": 0.0},
        ]
        if self._recipe.optimizer == SGD:
            return torch.optim.SGD(groups, lr=self._recipe.learning_rate, momentum=_MOMENTUM)
        return torch.optim.AdamW(groups, lr=self._recipe.learning_rate)

    def learning_rate(self, epoch: int, step: int = 0) -> float:
        """Of a step in an epoch counted from 1."""
        done = ((epoch - 1) * self._steps + step) / (self._recipe.epochs * self._steps)
        return 0.5 * self._recipe.learning_rate * (1.0 + math.cos(math.pi * done))

    def run_epoch(self, epoch: int) -> float:
        """Returns the mean loss of its rows, as they were when they were trained on."""
        order = self._rows[torch.randperm(len(self._rows), generator=self._order).numpy()]
        total = 0.0
        for step in range(self._steps):
            for group in self._optimizer.param_groups:
                group["lr"] = self.learning_rate(epoch, step)
            total += self._step(order[step * self._batch : (step + 1) * self._batch])
        return total / len(order)

    def _step(self, rows: Rows) -> float:
        """Returns the summed loss. A short last batch moves the head by less, each row counting as in any other."""
        labels = torch.from_numpy(self._examples.labels[rows]).to(self._device)
        weights = torch.from_numpy(self._examples.weights[rows] / np.float32(self._mean_weight)).to(self._device)
        losses = functional.cross_entropy(self._logits(self._batch_of(rows)), labels, reduction="none")
        loss = (losses * weights).sum()
        self._optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss / self._batch)
        self._optimizer.step()
        return float(loss.detach())

    def _batch_of(self, rows: Rows) -> torch.Tensor:
        scaled = (self._examples.features[rows] - self._centre) / np.float32(self._scale)
        return torch.from_numpy(scaled).to(self._device)

    def _logits(self, inner: torch.Tensor) -> torch.Tensor:
        for layer in self._layers[:-1]:
            inner = self._drop(functional.relu(layer(self._drop(inner))))
        logits: torch.Tensor = self._layers[-1](inner)
        return logits

    def _drop(self, values: torch.Tensor) -> torch.Tensor:
        if self._recipe.dropout == 0.0:
            return values
        kept = torch.rand(values.shape, generator=self._noise, device=self._device) >= self._recipe.dropout
        return values * kept / (1.0 - self._recipe.dropout)

    def head(self) -> Head:
        """As it is now, for features as they came."""
        arrays = [(_numpy(layer.weight), _numpy(layer.bias)) for layer in self._layers]
        weight = arrays[0][0] / self._scale
        bias = arrays[0][1] - weight @ self._centre
        arrays[0] = (weight, bias)
        *hidden, last = [(each.astype(np.float32), other.astype(np.float32)) for each, other in arrays]
        return Head(*last, *(hidden[0] if hidden else (None, None)))


def _numpy(values: torch.Tensor) -> npt.NDArray[np.float64]:
    array: npt.NDArray[np.float64] = values.detach().cpu().numpy().astype(np.float64)
    return array


def _centre_and_scale(features: npt.NDArray[np.float32], rows: Rows) -> tuple[npt.NDArray[np.float32], float]:
    """The rows' mean `(D,)`, and one factor that scales all of them to variance 1 around it; 1 where they are equal."""
    blocks = [rows[first : first + _BLOCK_ROWS] for first in range(0, len(rows), _BLOCK_ROWS)]
    centre = sum(features[block].sum(axis=0, dtype=np.float64) for block in blocks) / len(rows)
    moved = centre.astype(np.float32)
    squares = sum(float(np.square(features[block] - moved).sum(dtype=np.float64)) for block in blocks)
    return moved, math.sqrt(squares / (len(rows) * features.shape[1])) or 1.0


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)

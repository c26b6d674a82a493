"""What a user may choose about a head: checked against the kind, and completed with the kind's defaults."""

from __future__ import annotations

from dataclasses import dataclass

from edgetune.core.errors import UsageError
from edgetune.core.head_recipe import (
    ADAMW,
    CLASS_WEIGHTS,
    HEAD_KINDS,
    LINEAR,
    MLP,
    SGD,
    UNWEIGHTED,
    TrainingRecipe,
)

DEVICES = ("cpu", "cuda")

# Found by cross-validation inside the training images of photos (244) and of small pictures of clothes (10,000). Rates
# go with features of variance 1; `epochs` of mlp are the most there may be.
DEFAULTS = {
    MLP: TrainingRecipe(ADAMW, 60, 128, 1e-3, 0.01, hidden=256, dropout=0.5),
    SGD: TrainingRecipe(SGD, 30, 128, 3e-3, 1e-3),
    ADAMW: TrainingRecipe(ADAMW, 30, 128, 1e-3, 0.1),
}
_TRAINED = (MLP, SGD, ADAMW)
_USED_BY = {
    "epochs": _TRAINED,
    "learning_rate": _TRAINED,
    "batch_size": _TRAINED,
    "weight_decay": _TRAINED,
    "hidden": (MLP,),
    "dropout": (MLP,),
}
_MOST = 1_000_000


@dataclass(frozen=True)
class HeadOptions:
    """None leaves a figure to the kind's default; a figure that the kind does not use is a `UsageError`.

    `epochs`, `learning_rate`, `batch_size` and `weight_decay` are for mlp, sgd and adamw (for mlp `epochs` is the
    most there may be), `hidden` and `dropout` for mlp. `reject_share` is the share of training images, between 0 and
    1, that the reject threshold may turn away. `device` is cpu or cuda, and matters for mlp, sgd and adamw alone.
    """

    kind: str = LINEAR
    seed: int = 0
    class_weights: str = UNWEIGHTED
    epochs: int | None = None
    learning_rate: float | None = None
    batch_size: int | None = None
    weight_decay: float | None = None
    hidden: int | None = None
    dropout: float | None = None
    reject_share: float | None = None
    device: str = "cpu"


def check_options(options: HeadOptions) -> None:
    """Raises `UsageError` for an option that the kind does not use or that is out of range; needs no features."""
    choices = {"head": (options.kind, HEAD_KINDS), "class weights": (options.class_weights, CLASS_WEIGHTS)}
    for name, (value, allowed) in {**choices, "device": (options.device, DEVICES)}.items():
        if value not in allowed:
            raise UsageError(f"the {name} {value!r} is unknown, expected one of {', '.join(allowed)}.")
    for name, kinds in _USED_BY.items():
        if getattr(options, name) is not None and options.kind not in kinds:
            raise UsageError(
                f"{_words(name)} is not used by the head {options.kind}, only by {' and '.join(kinds)}.",
                hint=f"leave it out, or choose another head: {', '.join(kinds)}",
            )
    _check_ranges(options)


def _check_ranges(options: HeadOptions) -> None:
    for name in ("epochs", "batch_size", "hidden"):
        count = getattr(options, name)
        if count is not None and not 1 <= count <= _MOST:
            raise UsageError(f"{_words(name)} is {count}, expected 1 to {_MOST}.")
    if not 0 <= options.seed < 2**63:
        raise UsageError(f"the seed is {options.seed}, expected 0 to 2^63 - 1.")
    rate, decay, dropout, share = options.learning_rate, options.weight_decay, options.dropout, options.reject_share
    if rate is not None and not 0.0 < rate <= 1000.0:
        raise UsageError(f"the learning rate is {rate:g}, expected more than 0 and at most 1000.")
    if decay is not None and not 0.0 <= decay <= 1000.0:
        raise UsageError(f"the weight decay is {decay:g}, expected 0 to 1000.")
    if dropout is not None and not 0.0 <= dropout < 1.0:
        raise UsageError(f"the dropout is {dropout:g}, expected at least 0 and less than 1.")
    if share is not None and not 0.0 < share < 1.0:
        raise UsageError(f"the reject share is {share:g}, expected more than 0 and less than 1.")


def _words(name: str) -> str:
    return "the " + name.replace("_", " ")


def training_recipe(options: HeadOptions) -> TrainingRecipe | None:
    """The loop over batches that the options ask for; None for heads that are solved to convergence."""
    default = DEFAULTS.get(options.kind)
    if default is None:
        return None
    given = {name: getattr(options, name) for name in _USED_BY}
    return TrainingRecipe(
        optimizer=default.optimizer,
        **{name: getattr(default, name) if value is None else value for name, value in given.items()},
    )

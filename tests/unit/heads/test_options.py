"""Which options go with which head."""

from __future__ import annotations

from typing import Any

import pytest

from edgetune.core.errors import UsageError
from edgetune.core.head_recipe import HEAD_KINDS, TrainingRecipe
from edgetune.heads.options import HeadOptions, check_options, training_recipe


@pytest.mark.parametrize("kind", HEAD_KINDS)
def test_every_kind_goes_with_its_defaults(kind: str) -> None:
    check_options(HeadOptions(kind=kind))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kind": "linear", "epochs": 30}, "the epochs is not used by the head linear, only by mlp and sgd and adamw"),
        ({"kind": "svm", "learning_rate": 0.1}, "the learning rate is not used by the head svm"),
        ({"kind": "linear", "batch_size": 8}, "the batch size is not used by the head linear"),
        ({"kind": "svm", "weight_decay": 0.0}, "the weight decay is not used by the head svm"),
        ({"kind": "sgd", "hidden": 64}, "the hidden is not used by the head sgd, only by mlp"),
        ({"kind": "adamw", "dropout": 0.0}, "the dropout is not used by the head adamw, only by mlp"),
        ({"kind": "forest"}, "the head 'forest' is unknown, expected one of linear, svm, mlp, sgd, adamw"),
        ({"class_weights": "even"}, "the class weights 'even' is unknown, expected one of none, balanced"),
        ({"device": "tpu"}, "the device 'tpu' is unknown, expected one of cpu, cuda"),
        ({"kind": "sgd", "epochs": 0}, "the epochs is 0, expected 1 to 1000000"),
        ({"kind": "sgd", "batch_size": -3}, "the batch size is -3"),
        ({"kind": "mlp", "hidden": 0}, "the hidden is 0"),
        ({"kind": "sgd", "learning_rate": 0.0}, "the learning rate is 0, expected more than 0"),
        ({"kind": "sgd", "learning_rate": float("nan")}, "the learning rate is nan"),
        ({"kind": "sgd", "weight_decay": -1.0}, "the weight decay is -1, expected 0 to 1000"),
        ({"kind": "mlp", "dropout": 1.0}, "the dropout is 1, expected at least 0 and less than 1"),
        ({"reject_share": 0.0}, "the reject share is 0, expected more than 0 and less than 1"),
        ({"reject_share": 1.0}, "the reject share is 1, expected"),
        ({"seed": -1}, "the seed is -1, expected 0"),
    ],
    ids=lambda value: " ".join(f"{key}={each}" for key, each in value.items()) if isinstance(value, dict) else "",
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        check_options(HeadOptions(**options))


def test_a_figure_of_another_kind_comes_with_a_hint() -> None:
    with pytest.raises(UsageError) as caught:
        check_options(HeadOptions(kind="linear", dropout=0.1))
    assert caught.value.hint == "leave it out, or choose another head: mlp"


def test_heads_solved_to_convergence_have_no_loop() -> None:
    assert training_recipe(HeadOptions(kind="linear")) is None
    assert training_recipe(HeadOptions(kind="svm")) is None


def test_given_figures_replace_the_defaults_and_zero_is_one() -> None:
    default = training_recipe(HeadOptions(kind="mlp"))
    assert default == TrainingRecipe("adamw", 60, 128, 1e-3, 0.01, 256, 0.5)
    given = HeadOptions(
        kind="mlp", epochs=7, learning_rate=0.5, batch_size=3, weight_decay=0.0, hidden=11, dropout=0.0
    )  # fmt: skip
    assert training_recipe(given) == TrainingRecipe("adamw", 7, 3, 0.5, 0.0, 11, 0.0)
    assert training_recipe(HeadOptions(kind="sgd", epochs=7)) == TrainingRecipe("sgd", 7, 128, 3e-3, 1e-3)
    adamw = training_recipe(HeadOptions(kind="adamw"))
    assert adamw is not None
    assert (adamw.optimizer, adamw.epochs, adamw.hidden) == ("adamw", 30, 0)

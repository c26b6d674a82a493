"""Items that run together give what they give alone, whatever befalls one of them."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetune.core.errors import ImageError
from edgetune.core.tensors import Array, Feed
from edgetune.serve.errors import RequestError
from edgetune.serve.scheduling.batches import Item, Outcome, run_items, signature
from tests.unit.serve.stand_ins import INPUT, Doubling, rows


def _raises(error: Exception) -> Any:
    def prepare() -> Feed:
        raise error

    return prepare


def _values(outcome: Outcome) -> list[float]:
    assert outcome.outputs is not None
    return [float(value) for value in outcome.outputs["y"][:, 0]]


def test_a_batch_is_one_run_and_each_item_gets_its_own_rows() -> None:
    model = Doubling()
    outcomes = run_items(model, [Item(1, rows(1)), Item(3, rows(2, 3, 4)), Item(2, rows(5, 6))])
    assert [_values(outcome) for outcome in outcomes] == [[2], [4, 6, 8], [10, 12]]
    assert model.runs == [6]
    assert [outcome.batch for outcome in outcomes] == [6, 6, 6]
    assert len({outcome.infer_ns for outcome in outcomes}) == 1
    assert all(outcome.started_ns > 0 and outcome.infer_ns > 0 for outcome in outcomes)


def test_one_item_is_run_as_it_came() -> None:
    model = Doubling()
    feed = rows(1, 2)
    (outcome,) = run_items(model, [Item(2, feed)])
    assert _values(outcome) == [2, 4]
    assert (outcome.batch, model.runs) == (1, [2])


def test_an_item_that_cannot_be_prepared_is_not_run_and_the_others_are_together() -> None:
    model = Doubling()
    fault = ImageError("it is no image")
    outcomes = run_items(model, [Item(1, rows(1)), Item(1, prepare=_raises(fault)), Item(1, prepare=lambda: rows(3))])
    error = outcomes[1].error
    assert error is not None
    assert (error.status, error.message, error.reason) == (400, "it is no image", "bad_image")
    assert (outcomes[1].outputs, outcomes[1].infer_ns) == (None, 0)
    assert [_values(outcomes[0]), _values(outcomes[2])] == [[2], [6]]
    assert model.runs == [2]


def test_a_batch_that_fails_is_run_one_by_one_and_only_the_guilty_one_fails() -> None:
    model = Doubling(poison=[13])
    outcomes = run_items(model, [Item(1, rows(1)), Item(2, rows(13, 2)), Item(1, rows(3))])
    assert [outcome.error is None for outcome in outcomes] == [True, False, True]
    assert "poisoned by [13" in str(outcomes[1].error)
    assert [_values(outcomes[0]), _values(outcomes[2])] == [[2], [6]]
    assert model.runs == [4, 1, 2, 1]
    assert [outcome.batch for outcome in outcomes] == [1, 1, 1]


def test_feeds_that_differ_are_run_alone() -> None:
    model = Doubling()
    wide = {INPUT: np.ones((1, 3), np.float32)}
    double = {INPUT: np.ones((1, 2), np.float64)}
    outcomes = run_items(model, [Item(1, rows(1)), Item(1, wide), Item(1, double)])
    assert all(outcome.error is None for outcome in outcomes)
    assert model.runs == [1, 1, 1]
    assert [outcome.outputs["y"].dtype.str for outcome in outcomes if outcome.outputs] == ["<f4", "<f4", "<f8"]


class _Misshapen:
    """A model whose answers to more than one row are not one row each."""

    def __init__(self, answer: Array) -> None:
        self._answer = answer

    def infer(self, feed: Feed) -> dict[str, Array]:
        return {"y": feed[INPUT] * 2} if len(feed[INPUT]) == 1 else {"y": self._answer}


@pytest.mark.parametrize(
    "answer", [np.float32(7).reshape(()), np.zeros((1, 2), np.float32), np.zeros((5, 2), np.float32)],
    ids=["a scalar", "one row for all", "more rows than images"],
)  # fmt: skip
def test_outputs_that_are_not_one_row_an_image_are_never_cut_into_pieces(answer: Array) -> None:
    outcomes = run_items(_Misshapen(answer), [Item(1, rows(1)), Item(1, rows(2))])
    assert [_values(outcome) for outcome in outcomes] == [[2], [4]]


def test_what_cannot_be_joined_does_not_end_the_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_: Any) -> Array:
        raise MemoryError

    monkeypatch.setattr("edgetune.serve.scheduling.batches.np.concatenate", no_memory)
    outcomes = run_items(Doubling(), [Item(1, rows(1)), Item(1, rows(2))])
    assert [_values(outcome) for outcome in outcomes] == [[2], [4]]


def test_an_item_is_prepared_once() -> None:
    calls: list[int] = []

    def prepare() -> Feed:
        calls.append(1)
        return rows(1)

    item = Item(1, prepare=prepare)
    run_items(Doubling(), [item])
    run_items(Doubling(), [item, Item(1, rows(2))])
    assert calls == [1]


def test_an_item_with_nothing_in_it_is_a_fault_of_ours() -> None:
    (outcome,) = run_items(Doubling(), [Item(1)])
    assert outcome.error is not None
    assert (outcome.error.status, outcome.error.reason) == (500, "internal")
    assert re.fullmatch(r"internal error, id=[0-9a-f]{8}", outcome.error.message)


def test_a_kept_error_holds_nothing_of_where_it_was_raised() -> None:
    outcomes = run_items(Doubling(poison=[1]), [Item(1, rows(1)), Item(1, prepare=_raises(RequestError(413, "no")))])
    for outcome in outcomes:
        assert outcome.error is not None
        assert outcome.error.__traceback__ is None
        assert outcome.error.__cause__ is None


def test_the_signature_is_names_dtypes_and_all_sizes_but_the_first() -> None:
    one: Feed = {"b": np.zeros((1, 2), np.uint8), "a": np.zeros((1,), np.float32)}
    other: Feed = {"a": np.zeros((9,), np.float32), "b": np.zeros((9, 2), np.uint8)}
    assert signature(one) == signature(other) == (("a", "<f4", ()), ("b", "|u1", (2,)))
    assert signature(one) != signature({**one, "b": np.zeros((1, 3), np.uint8)})
    assert signature(one) != signature({**one, "b": np.zeros((1, 2), np.int8)})


ITEMS = st.lists(st.tuples(st.integers(0, 99), st.integers(1, 4), st.sampled_from("gggpu")), min_size=1, max_size=8)


@given(ITEMS)
def test_together_is_the_same_as_alone(described: list[tuple[int, int, str]]) -> None:
    """g: good; p: cannot be prepared; u: unfit, its run fails (and any run with it)."""

    def items() -> list[Item]:
        made = []
        for value, count, kind in described:
            values = [1000.0 if kind == "u" else value + step for step in range(count)]
            prepare = _raises(ImageError(f"image {value}")) if kind == "p" else None
            made.append(Item(count, None if prepare else rows(*values), prepare))
        return made

    together = run_items(Doubling(poison=[1000]), items())
    alone = [run_items(Doubling(poison=[1000]), [item])[0] for item in items()]
    for one, other in zip(together, alone, strict=True):
        assert repr(one.error) == repr(other.error)
        if other.error is None:
            assert _values(one) == _values(other)

"""Where ONNX Runtime's u8 x s8 sums would saturate, the runner asks for exact ones, and only there."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
import onnxruntime
import pytest

from edgetune.core.machine import cpu_flags, has_int8_dot_product, is_x86
from edgetune.runners import ort_runner
from edgetune.runners.ort_runner import OrtRunner, int8_saturates
from tests.unit.runners.test_contract import mean_model


@pytest.fixture
def ask_anew() -> Iterator[None]:
    int8_saturates.cache_clear()
    yield
    int8_saturates.cache_clear()


class _Session:
    """A session whose product is `sums`, as another CPU would compute it."""

    sums = 8 * 255 * 127

    def __init__(self, *_: object, **__: object) -> None: ...

    def run(self, *_: object) -> list[np.ndarray]:
        return [np.full((2, 16), self.sums, np.int32)]


class _SaturatingSession(_Session):
    sums = 4 * 32767  # what AVX2 gives: four pairs, each clipped at 16 bits


class _RefusingSession(_Session):
    def run(self, *_: object) -> list[np.ndarray]:
        raise RuntimeError("no kernel")


@pytest.mark.parametrize(
    ("session", "saturates"),
    [(_Session, False), (_SaturatingSession, True), (_RefusingSession, True)],
    ids=["exact", "saturating", "unknown"],
)
@pytest.mark.usefixtures("ask_anew")
def test_saturation_is_seen_in_a_product(
    session: type[_Session], saturates: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    assert int8_saturates() is saturates


@pytest.mark.usefixtures("ask_anew")
def test_the_product_agrees_with_the_flags_of_this_cpu() -> None:
    if is_x86() and "avx2" not in cpu_flags():
        pytest.skip("no flags to hold the product against, or a CPU whose kernels add in 32 bits")
    assert int8_saturates() is (is_x86() and not has_int8_dot_product())


def test_the_product_is_the_model_that_its_comment_describes() -> None:
    model = onnx.load_from_string(ort_runner._U8_S8_PRODUCT)
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node] == ["MatMulInteger"]
    assert (model.ir_version, model.opset_import[0].version) == (8, 13)


@pytest.mark.parametrize(
    ("saturates", "wanted", "entry"),
    [(True, None, True), (False, None, False), (True, False, False), (False, True, True)],
    ids=["this CPU needs it", "it does not", "switched off", "switched on"],
)
def test_a_session_adds_exactly_where_needed(
    saturates: bool, wanted: bool | None, entry: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ort_runner, "int8_saturates", lambda: saturates)
    with OrtRunner(mean_model(), threads=1, exact_int8=wanted) as runner:
        options = runner._open_session().get_session_options()
        try:
            value = options.get_session_config_entry("session.x64quantprecision")
        except RuntimeError:  # no such entry
            value = "0"
    assert (value == "1") is entry

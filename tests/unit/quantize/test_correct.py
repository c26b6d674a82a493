"""A layer is fitted on what the quantized layers before it give, so it makes up for their errors too."""

from __future__ import annotations

import numpy as np

from edgetune.graph.network import Network
from edgetune.quantize.canonical import canonical_network
from edgetune.quantize.correct import correct
from edgetune.quantize.placement import place
from edgetune.quantize.qdq import QdqNetwork, QuantParams
from edgetune.quantize.rounding import WeightOptions
from edgetune.quantize.targets import TARGETS
from tests.unit.quantize.small_graphs import chain, images, run, spool, sqnr_db


def _c2_sqnr_db(*, rounding: bool) -> float:
    """Of c2's outputs where a tenth of r1 is clipped off before it, which no rounding alone can take back."""
    network, _ = canonical_network(chain().model())
    network = Network.of_model(network.model())
    target, pictures = TARGETS["tensorrt"], images(64)
    (x, r1) = run(network.model(), pictures, ["x", "r1"])
    reach = {"x": float(np.abs(x).max()), "r1": float(np.quantile(r1, 0.9))}
    params = {name: QuantParams(np.float32(value / 127), 0) for name, value in reach.items()}
    quantized = QdqNetwork(network, target, place(network, target), params)
    with spool(pictures) as held:
        correct(quantized, network, held, options=WeightOptions(rounding=rounding))
    others = images(64, seed=2)
    (exact,), (got,) = run(network.model(), others, ["c2"]), run(quantized.model(), others, ["c2"])
    return sqnr_db(exact, got)


def test_weights_make_up_for_what_was_clipped_before_the_layer() -> None:
    plain, fitted = _c2_sqnr_db(rounding=False), _c2_sqnr_db(rounding=True)
    assert fitted > plain + 1.0

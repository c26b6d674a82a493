"""How far quantized logits are from the FP32 model's, how sure that is, and which operators run as integers."""

from __future__ import annotations

import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime

from edgetune.core.tensors import softmax

Floats = npt.NDArray[np.float64]

RESAMPLES = 10_000
_INTERVAL_PERCENT = (2.5, 97.5)
_FLOAT_LAYERS = ("Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul")


@dataclass(frozen=True)
class Errors:
    """One candidate against the FP32 model, image by image: arrays `(N,)`.

    `signal` and `noise` are sums of squares over the classes, `kl` is in nats.
    """

    hits: npt.NDArray[np.bool_]
    agrees: npt.NDArray[np.bool_]
    signal: Floats
    noise: Floats
    kl: Floats

    @property
    def sqnr_db(self) -> float:
        """Over all images at once: 10 log10 of summed signal over summed noise."""
        noise = float(self.noise.sum())
        return 10.0 * float(np.log10(self.signal.sum() / noise)) if noise else float("inf")


@dataclass(frozen=True)
class Lead:
    """95 % intervals of how much better ours is than a peer: SQNR in dB, KL in nats; both ends above 0 is better."""

    sqnr_db: tuple[float, float]
    kl: tuple[float, float]


@dataclass(frozen=True)
class Census:
    """Operators of the graph as ONNX Runtime optimised it for this CPU: integer ones, and layers left in float."""

    integer: dict[str, int]
    float_layers: int


def measure_errors(
    reference: npt.NDArray[np.float32], candidate: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]
) -> Errors:
    """Logits float32 `(N, classes)`, row by row; `labels` `(N,)`."""
    exact = reference.astype(np.float64)
    named = candidate.argmax(axis=1)
    wanted, given = softmax(reference), softmax(candidate)
    tiny = np.finfo(np.float64).tiny
    logs = np.log(np.maximum(wanted, tiny)) - np.log(np.maximum(given, tiny))
    return Errors(
        hits=named == labels,
        agrees=named == reference.argmax(axis=1),
        signal=np.sum(exact**2, axis=1),
        noise=np.sum((candidate - exact) ** 2, axis=1),
        kl=np.sum(wanted * logs, axis=1),
    )


def bootstrap_lead(ours: Errors, peer: Errors, *, seed: int = 0) -> Lead:
    """Draws the images anew with replacement, the same draws for both sides: their errors are strongly paired."""
    count = len(ours.kl)
    draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1.0 / count), size=RESAMPLES)
    tiny = np.finfo(np.float64).tiny
    gains = 10.0 * np.log10((draws @ peer.noise + tiny) / (draws @ ours.noise + tiny))
    return Lead(_interval(gains), _interval(draws @ (peer.kl - ours.kl) / count))


def count_operators(model: Path) -> Census:
    """Lets ONNX Runtime write its optimised graph and counts in it: what a Q/DQ file asks for may not be fused."""
    with tempfile.TemporaryDirectory() as scratch:
        optimised = Path(scratch) / "optimised.onnx"
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.optimized_model_filepath = str(optimised)
        onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        counts = Counter(node.op_type for node in onnx.load(optimised).graph.node)
    integer = {name: count for name, count in sorted(counts.items()) if _is_integer(name)}
    return Census(integer, sum(counts[name] for name in _FLOAT_LAYERS))


def _is_integer(op_type: str) -> bool:
    return op_type.startswith("QLinear") or op_type == "QGemm" or "Integer" in op_type


def _interval(values: Floats) -> tuple[float, float]:
    low, high = np.percentile(values, _INTERVAL_PERCENT)
    return float(low), float(high)

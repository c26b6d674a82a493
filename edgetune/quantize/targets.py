"""Where an INT8 graph runs, and what that machine's integer kernels ask of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgetune.core.errors import UsageError


@dataclass(frozen=True)
class Target:
    """`symmetric` activations have zero point 0. With `dense` placement every output of an integer operator is
    quantized (ONNX Runtime fuses Q/DQ around an operator); without, only inputs and residuals are (TensorRT fuses
    an Add into the convolution before it). `integer_bias` asks for int32, else the bias stays float.
    `reads_uint8` tells whether the uint8 image may go to the first convolution as it is.
    """

    name: str
    activation: npt.DTypeLike
    symmetric: bool
    dense: bool
    integer_bias: bool
    reads_uint8: bool

    @property
    def limits(self) -> tuple[int, int]:
        """The lowest and highest activation; symmetric ones leave out -128, so that both sides reach as far."""
        info: Any = np.iinfo(np.dtype(self.activation))
        return (-127 if self.symmetric else int(info.min)), int(info.max)


TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target("cpu-x86", np.uint8, symmetric=False, dense=True, integer_bias=True, reads_uint8=True),
        Target("cpu-arm", np.int8, symmetric=False, dense=True, integer_bias=True, reads_uint8=False),
        Target("tensorrt", np.int8, symmetric=True, dense=False, integer_bias=False, reads_uint8=False),
    )
}


def find_target(name: str) -> Target:
    """Raises `UsageError` naming the targets there are."""
    if name not in TARGETS:
        raise UsageError(f"--target {name!r} is not supported; supported: {', '.join(TARGETS)}.")
    return TARGETS[name]

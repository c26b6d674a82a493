"""How exact PyTorch's own float32 is: what no other program that computes in float32 can be held to."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from edgetune.core.bundle import Bundle
from edgetune.core.errors import DataError
from edgetune.core.files import read_json
from edgetune.core.tensors import LOGITS_OUTPUT
from edgetune.parity.metrics import sqnr_db
from edgetune.runners.base import infer_images

if TYPE_CHECKING:
    from edgetune.runners.torch_runner import TorchRunner

_IMAGES = 4


def float32_noise_db(live: TorchRunner, pixels: npt.NDArray[np.uint8]) -> float | None:
    """SQNR in dB of the open model's logits against the same model in float64, on a few images uint8 `(N, H, W, 3)`;
    None where they do not differ, are not finite, or where the images are not of the model's size.
    """
    from edgetune.runners.torch_runner import TorchRunner

    few = pixels[:_IMAGES]
    if few.shape[1:] != live.input_specs[0].shape[1:]:
        return None
    given = infer_images(live, few, LOGITS_OUTPUT).astype(np.float64)
    with TorchRunner(live.module, few.shape[1], LOGITS_OUTPUT, precision="fp64") as exact:
        truth = infer_images(exact, few, LOGITS_OUTPUT).astype(np.float64)
    if not (np.isfinite(given).all() and np.isfinite(truth).all()):
        return None
    found = sqnr_db(float(np.sum(truth**2)), float(np.sum((given - truth) ** 2)))
    return found if found is not None and math.isfinite(found) else None


def known_noise_db(bundle: Bundle) -> float | None:
    """What the bundle's own parity report says, for machines without PyTorch."""
    try:
        content = read_json(bundle.path / "parity.json")
    except DataError:
        return None
    found = content.get("noise_db") if isinstance(content, dict) else None
    return found if isinstance(found, float) else None

"""The served model: a checked bundle, an open runner, and proof that both give the golden answers here."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgetune.core.bundle import Bundle, load_bundle
from edgetune.core.errors import UsageError
from edgetune.core.preprocess import preprocess_image
from edgetune.core.tensors import LOGITS_OUTPUT, Array
from edgetune.runners.base import Runner, infer_images, infer_parts
from edgetune.runners.choice import Choice
from edgetune.runners.from_bundle import SelfTest, open_chosen, self_test
from edgetune.serve.settings import ServeSettings

VERSION = "1"
_MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True)
class ServedModel:
    name: str
    bundle: Bundle
    choice: Choice
    runner: Runner
    tested: SelfTest

    def infer(self, feed: dict[str, Array]) -> dict[str, Array]:
        return infer_parts(self.runner, feed)

    def preprocess(self, data: bytes, max_pixels: int) -> npt.NDArray[np.uint8]:
        """One image file to uint8 `(1, H, W, 3)`; raises `ImageError`."""
        return preprocess_image(data, self.bundle.manifest.preprocess, max_pixels=max_pixels)[np.newaxis]

    def logits(self, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Logits `(classes,)` of one image `(1, H, W, 3)`."""
        row: npt.NDArray[np.float32] = infer_images(self.runner, image, LOGITS_OUTPUT)[0]
        return row


@contextmanager
def open_model(bundle_path: Path, settings: ServeSettings) -> Iterator[ServedModel]:
    """Checks the bundle, opens the artifact that suits this machine, and tests it on the golden images.

    Raises:
        BundleError, ArtifactError, SelfTestError: as their messages say; nothing is served then.
    """
    if settings.model_name and not _MODEL_NAME.fullmatch(settings.model_name):
        raise UsageError(
            f"the model name {settings.model_name!r} cannot stand in a URL.", hint="letters, digits, '.', '_' and '-'"
        )
    bundle = load_bundle(bundle_path)
    wanted, options = settings.artifact, settings.runner
    with open_chosen(bundle, wanted, options, allow_failed=settings.allow_failed) as (choice, runner):
        tested = self_test(bundle, choice.artifact, runner)
        name = settings.model_name or bundle_path.resolve().name
        yield ServedModel(name, bundle, choice, runner, tested)

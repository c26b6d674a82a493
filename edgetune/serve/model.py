"""The served model: a checked bundle, an open runner, and proof that both give the golden answers here."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgetune.core.bundle import MANIFEST_NAME, Bundle, load_bundle
from edgetune.core.errors import BundleError, ModelError, SelfTestError, first_line
from edgetune.core.files import sha256_of_file
from edgetune.core.machine import usable_memory_bytes
from edgetune.core.preprocess import open_image, preprocess_opened
from edgetune.core.tensors import Array, Feed
from edgetune.runners.base import Runner, infer_parts
from edgetune.runners.choice import AUTO, Choice, explained
from edgetune.runners.from_bundle import SelfTest, open_chosen, self_test
from edgetune.runners.ort_providers import CPU
from edgetune.serve.scheduling.plan import ThreadPlan, plan_threads, threads_of_a_run
from edgetune.serve.settings import Limits, ServeSettings
from edgetune.serve.wire.v2_tensors import DATATYPES

VERSION = "1"
_FILE = "the file"  # as errors name what a client sent

# An image of more pixels takes up to 350 MB while it is decoded, so few are at a time, whatever the threads.
_LARGE_PIXELS = 4_000_000
_large_images = threading.Semaphore(max(1, min(4, usable_memory_bytes() >> 30)))

Progress = Callable[[str], None]


@dataclass(frozen=True)
class ServedModel:
    """`digest` is the sha256 of the bundle's manifest, which vouches for every other file. Threads run the model under
    `turn`: side by side on a CPU, one after the other on a GPU's context.
    """

    bundle: Bundle
    digest: str
    choice: Choice
    runner: Runner
    tested: SelfTest
    turn: AbstractContextManager[object]

    def infer(self, feed: Feed) -> dict[str, Array]:
        with self.turn:
            return infer_parts(self.runner, feed)

    def preprocess(self, data: bytes | memoryview, limits: Limits) -> npt.NDArray[np.uint8]:
        """One image file to uint8 `(1, H, W, 3)`; raises `ImageError`."""
        spec = self.bundle.manifest.preprocess
        image = open_image(data, name=_FILE, max_pixels=limits.max_pixels, formats=limits.image_formats)
        is_large = image.width * image.height > _LARGE_PIXELS
        with _large_images if is_large else contextlib.nullcontext():
            return preprocess_opened(image, spec, name=_FILE, max_pixels=limits.max_pixels)[np.newaxis]


def _followed(path: Path) -> Path:
    """Where a link leads now. Raises `BundleError` for links that lead in a ring."""
    try:
        return path.resolve()
    except (OSError, RuntimeError) as error:
        raise BundleError(f"{path} cannot be followed: {first_line(error)}.") from error


@contextmanager
def open_model(bundle_path: Path, settings: ServeSettings, say: Progress = lambda _: None) -> Iterator[ServedModel]:
    """Checks the bundle, opens the artifact that suits this machine, and tests it on the golden images. Where nothing
    was asked for and a GPU fails that test, the CPU is tried, and the choice's reason says so.

    Raises:
        BundleError, ArtifactError, SelfTestError: as their messages say; nothing is served then.
    """
    say("checking the bundle")
    # What `current` points to now: the link may be turned while the old bundle is still served.
    bundle = load_bundle(_followed(bundle_path))
    with contextlib.ExitStack() as stack:
        model = _open_tested(stack, bundle, settings, say)
        _check_types(model)
        say("warming up")
        _warm_up(model, plan_threads(settings, model.choice.runner))
        yield model


def _open_tested(stack: contextlib.ExitStack, bundle: Bundle, settings: ServeSettings, say: Progress) -> ServedModel:
    options = dataclasses.replace(settings.runner, threads=threads_of_a_run(settings))
    say("loading the model")
    attempt = stack.enter_context(contextlib.ExitStack())
    opening = open_chosen(bundle, settings.artifact, options, allow_failed=settings.allow_failed)
    choice, runner = attempt.enter_context(opening)
    say("testing it on the golden images")
    try:
        tested = self_test(bundle, choice.artifact, runner)
    except SelfTestError as error:
        attempt.close()
        if choice.runner == CPU or options.kind != AUTO:
            raise
        on_cpu = dataclasses.replace(settings, runner=dataclasses.replace(options, kind=CPU))
        model = _open_tested(stack, bundle, on_cpu, say)
        return dataclasses.replace(model, choice=explained(model.choice, f"on the CPU, because {error.message}"))
    turn = contextlib.nullcontext() if choice.runner == CPU else threading.Lock()
    return ServedModel(bundle, sha256_of_file(bundle.path / MANIFEST_NAME), choice, runner, tested, turn)


def _check_types(model: ServedModel) -> None:
    """Raises `ModelError` for a tensor type that has no name on the wire."""
    for spec in (*model.runner.input_specs, *model.runner.output_specs):
        if spec.dtype not in DATATYPES:
            raise ModelError(f"{spec.name} of the model is {spec.dtype}, expected one of {', '.join(DATATYPES)}.")


def _warm_up(model: ServedModel, plan: ThreadPlan) -> None:
    """Runs each batch size that will come, so that no client waits for a provider's first choice of kernels."""
    for batch in range(1, plan.batch + 1):
        model.infer({
            spec.name: np.zeros([batch if size is None else size for size in spec.shape], np.dtype(spec.dtype))
            for spec in model.runner.input_specs
        })  # fmt: skip

"""Image files to samples: reading, hashing and preprocessing in threads, in order, in bounded memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from edgetune.core.errors import ImageError
from edgetune.core.files import sha256_of_bytes
from edgetune.core.machine import usable_cpus
from edgetune.core.preprocess import PreprocessSpec, preprocess_image
from edgetune.data.image_folder import ImageFile, SkippedFile

# 256 images of 224 px are 39 MB: enough to keep decoding while a backbone is being exported.
PREFETCH_IMAGES = 256

_Made = TypeVar("_Made")


@dataclass(frozen=True)
class Sample:
    """`image` is uint8 `(H, W, 3)`; None in a batch, which holds the images of its samples as one array."""

    file: ImageFile
    sha256: str
    image: npt.NDArray[np.uint8] | None


class SampleStream:
    """Iterates over samples in the order of `files`; a file that cannot be read comes out as a `SkippedFile`.

    Decoding starts at once, in threads, and stays at most `PREFETCH_IMAGES` images ahead of the consumer.
    """

    def __init__(self, files: Sequence[ImageFile], spec: PreprocessSpec) -> None:
        self._spec = spec
        self._remaining = iter(files)
        self._pool = ThreadPoolExecutor(usable_cpus(), thread_name_prefix="decode")
        self._pending: deque[Future[Sample | SkippedFile]] = deque()
        for _ in range(PREFETCH_IMAGES):
            self._submit_next()

    def __enter__(self) -> SampleStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)

    def __iter__(self) -> Iterator[Sample | SkippedFile]:
        while self._pending:
            sample = self._pending.popleft().result()
            self._submit_next()
            yield sample

    def _submit_next(self) -> None:
        file = next(self._remaining, None)
        if file is not None:
            self._pending.append(self._pool.submit(self._load, file))

    def _load(self, file: ImageFile) -> Sample | SkippedFile:
        def decode(data: bytes) -> Sample:
            return Sample(file, sha256_of_bytes(data), preprocess_image(data, self._spec, name=file.path.name))

        return from_bytes(file, decode)


def from_bytes(file: ImageFile, make: Callable[[bytes], _Made]) -> _Made | SkippedFile:
    """What `make` makes of the file's bytes, or why nothing: it cannot be read, or `make` raised an `ImageError`."""
    try:
        return make(file.path.read_bytes())
    except ImageError as error:
        return SkippedFile(file.path, error.message)
    except OSError as error:
        return SkippedFile(file.path, f"cannot be read: {error.strerror or error}")


def batches(
    stream: SampleStream, size: int, on_skip: Callable[[SkippedFile], None]
) -> Iterator[tuple[list[Sample], npt.NDArray[np.uint8]]]:
    """Yields up to `size` samples with their images uint8 `(N, H, W, 3)`; files that cannot be read go to `on_skip`."""
    gathered: list[Sample] = []
    images: list[npt.NDArray[np.uint8]] = []
    for sample in stream:
        if isinstance(sample, SkippedFile):
            on_skip(sample)
        elif sample.image is not None:
            images.append(sample.image)
            gathered.append(Sample(sample.file, sample.sha256, None))
        if len(images) == size:
            yield gathered, np.stack(images)
            gathered, images = [], []
    if images:
        yield gathered, np.stack(images)

"""The images that a head is most sure of and wrong about, as cards."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from PIL import Image

from edgetune.core import html
from edgetune.core.errors import ImageError
from edgetune.core.machine import usable_cpus
from edgetune.core.preprocess import PreprocessSpec, open_image, preprocess_opened
from edgetune.core.run import Run
from edgetune.heads.evaluate import Mistake
from edgetune.heads.report_words import short

THUMBNAIL_PX = 160
_MAX_RESIZE_PX = 4096  # of a preprocess spec
_MAX_NAME = 60


def gallery(run: Run, mistakes: Sequence[Mistake]) -> str:
    """A card a mistake; only these images are opened. One that cannot be read has a card without a picture."""
    paths = [Path(run.split.root) / run.split.val[mistake.row].path for mistake in mistakes]
    with ThreadPoolExecutor(usable_cpus()) as pool:
        pictures = list(pool.map(lambda path: thumbnail(path, run.preprocess), paths))
    return html.cards(
        (picture, _lines(run, mistake, is_seen=picture is not None))
        for picture, mistake in zip(pictures, mistakes, strict=True)
    )


def _lines(run: Run, mistake: Mistake, *, is_seen: bool) -> list[str]:
    name = PurePosixPath(run.split.val[mistake.row].path).name
    lines = [
        f"is: {short(run.classes[mistake.label], _MAX_NAME)}",
        f"called: {short(run.classes[mistake.called], _MAX_NAME)}, {mistake.probability:.1%}",
        f"then: {short(run.classes[mistake.second], _MAX_NAME)}, {mistake.second_probability:.1%}",
        short(name, _MAX_NAME),
    ]
    return lines if is_seen else ["(the file cannot be read any more)", *lines]


def thumbnail(path: Path, spec: PreprocessSpec) -> bytes | None:
    """The part of the image that the model sees, as JPEG of `THUMBNAIL_PX` px; None if it cannot be read."""
    resize_size = min(_MAX_RESIZE_PX, round(THUMBNAIL_PX * spec.resize_size / spec.crop_size))
    small = dataclasses.replace(spec, resize_size=resize_size, crop_size=THUMBNAIL_PX)
    try:
        image = open_image(path.read_bytes(), name=str(path))
        image.draft(None, (resize_size, resize_size))  # a large JPEG is decoded at a fraction
        pixels = preprocess_opened(image, small, name=str(path))
    except (ImageError, OSError):
        return None
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="JPEG", quality=80)
    return stream.getvalue()

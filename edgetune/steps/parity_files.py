"""The images that parity judges on, and the folder that its reports go to."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

from PIL import Image

from edgetune.core.bundle import MANIFEST_NAME, Bundle
from edgetune.core.errors import DataError, ImageError, OutputExistsError
from edgetune.core.files import sha256_of_file, write_bytes_atomic
from edgetune.core.preprocess import decode_image
from edgetune.core.run import Run
from edgetune.data.image_folder import ImageFile, SkippedFile, labelled_root, scan_labelled
from edgetune.parity.compare import LogitsTable
from edgetune.parity.junit import report_junit
from edgetune.parity.markdown import report_markdown
from edgetune.parity.page import report_html
from edgetune.parity.records import LogitsPair, ParityReport, report_json

REPORT_NAME = "parity.json"
_THUMBNAIL_PX = 128
_SHOWN_FLIPS = 24


def validation_files(run: Run, root: Path) -> tuple[ImageFile, ...]:
    """The run's validation images below `root`, each with the content it had at the fit.

    Raises:
        DataError: the data folder is gone, or an image is missing or was changed: a proof on other images than the
            run's would prove something else.
    """
    if not root.is_dir():
        raise DataError(f"the run's images are no longer at {root}.", hint="say where they are with --data DIR")
    lost = [file.path for file in run.split.val if not _is_unchanged(root / file.path, file.sha256)]
    if lost:
        raise DataError(
            f"{len(lost)} of the run's {len(run.split.val)} validation images below {root} are missing or were "
            f"changed after the fit; the first is {lost[0]}.",
            hint="put the images back, or fit again",
        )
    return tuple(ImageFile(root / file.path, file.label) for file in run.split.val)


def _is_unchanged(path: Path, sha256: str) -> bool:
    try:
        return sha256_of_file(path) == sha256
    except OSError:
        return False


def files_to_judge(
    bundle: Bundle, data: Path | None, run: Run | None
) -> tuple[tuple[ImageFile, ...], tuple[SkippedFile, ...]]:
    """Labelled images below `data`, or the run's validation images; and what lies there and is no image.

    Raises:
        DataError: there are none, or a class folder is not one of the bundle's classes.
    """
    if data is not None:
        if not data.is_dir():
            raise DataError(f"{data} is not a folder.", hint="give a folder with one folder of images a class")
        return scan_labelled(labelled_root(data), bundle.manifest.classes)
    if run is None:
        raise DataError(
            "there are no images to compare on: the bundle's run is gone or has changed.",
            hint="give labelled images with --data DIR, or the run with --run RUN",
        )
    return validation_files(run, Path(run.split.root)), ()


def check_report_folder(out: Path, *, force: bool) -> None:
    """Raises `OutputExistsError` where a report must not go; before minutes of comparing, not after them."""
    whole = out.absolute()
    bundle = next((folder for folder in (whole, *whole.parents) if (folder / MANIFEST_NAME).exists()), None)
    if bundle is not None:
        where = "is a bundle" if bundle == whole else f"lies in the bundle {bundle}"
        raise OutputExistsError(f"{out} {where}, and a bundle never changes.", hint="choose another --out")
    if (out / REPORT_NAME).exists() and not force:
        raise OutputExistsError(f"{out / REPORT_NAME} exists already.", hint="choose another --out, or add --force")


def write_reports(
    out: Path, report: ParityReport, pairs: Mapping[str, LogitsPair], images: LogitsTable | Mapping[str, Path]
) -> None:
    """JSON for programs, Markdown for a pull request, JUnit XML for CI, and a page for people; `pairs` by title. The
    `images` tell the files of those whose label changed: a table, or paths by content hash.
    """
    small = thumbnails(report, paths_by_hash(images) if isinstance(images, LogitsTable) else images)
    write_bytes_atomic(out / REPORT_NAME, report_json(report))
    write_bytes_atomic(out / "parity.md", report_markdown(report).encode())
    write_bytes_atomic(out / "parity.xml", report_junit(report))
    write_bytes_atomic(out / "parity.html", report_html(report, pairs, small))


def paths_by_hash(table: LogitsTable) -> dict[str, Path]:
    return {sha256: file.path for sha256, file in zip(table.hashes, table.files, strict=True)}


def thumbnails(report: ParityReport, paths: Mapping[str, Path]) -> dict[str, bytes]:
    """Small JPEGs, by content hash as `paths` are, of images whose label changed; what cannot be read any more has
    none.
    """
    wanted = {flip.sha256 for entry in report.artifacts for flip in entry.flips[:_SHOWN_FLIPS]}
    small = {sha256: _thumbnail(path) for sha256, path in paths.items() if sha256 in wanted}
    return {sha256: jpeg for sha256, jpeg in small.items() if jpeg}


def _thumbnail(path: Path) -> bytes:
    try:
        image = decode_image(path.read_bytes())
    except (ImageError, OSError):
        return b""
    image.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX), Image.Resampling.BILINEAR)
    stream = io.BytesIO()
    image.save(stream, format="JPEG", quality=80)
    return stream.getvalue()

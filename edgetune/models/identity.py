"""What a backbone is, remembered from the last time it was built and proved; knowing it takes no torch.

A fit whose features are all cached needs the backbone's digests and nothing else of it. Importing torch and timm to
compute them again would take longer than the fit.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgetune.core.config import from_dict, to_dict
from edgetune.core.errors import ConfigError, DataError
from edgetune.core.files import cache_root, pretty_json, read_json, sha256_of_file, write_bytes_atomic
from edgetune.core.fingerprint import fingerprint
from edgetune.core.preprocess import PreprocessSpec
from edgetune.core.versions import installed_version

if TYPE_CHECKING:
    from edgetune.models.weights import Backbone, FrozenProof

_PACKAGE = "_pytorch_model"  # what the packages with a backbone's weights are called behind its name
_SCHEMA_VERSION = 2  # raised whenever the same arguments build another backbone


@dataclass(frozen=True)
class BackboneIdentity:
    """A backbone by its digests; `tensors` were compared with the weights file bit for bit, `buffers` of them buffers
    such as BN statistics. `layer` is empty for the backbone's own features. `notes` are sentences for the user.
    """

    name: str
    layer: str
    preprocess: PreprocessSpec
    feature_dim: int
    weights_path: str
    weights_sha256: str
    tensors_sha256: str
    tensors: int
    buffers: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Record:
    """`digest` is of the identity: a digest in it that a failing disk has changed would be believed."""

    schema_version: int
    key: str
    identity: BackboneIdentity
    digest: str


def identity_of(backbone: Backbone, proof: FrozenProof) -> BackboneIdentity:
    """The digests of a backbone that `check_frozen` has found unchanged."""
    return BackboneIdentity(
        name=backbone.name,
        layer=backbone.layer,
        preprocess=backbone.preprocess,
        feature_dim=backbone.feature_dim,
        weights_path=str(backbone.weights_path),
        weights_sha256=backbone.weights_sha256,
        tensors_sha256=proof.tensors_sha256,
        tensors=proof.tensors,
        buffers=proof.buffers,
        notes=backbone.lasting_notes,
    )


def remember_identity(backbone: Backbone, proof: FrozenProof) -> BackboneIdentity:
    """Writes the identity for `find_identity`; a cache that cannot be written only costs time later."""
    identity = identity_of(backbone, proof)
    try:
        record = _Record(_SCHEMA_VERSION, backbone.key, identity, fingerprint(to_dict(identity)))
        write_bytes_atomic(_path(backbone.key), pretty_json(to_dict(record)))
    except (OSError, UnicodeError):  # a path whose name is no UTF-8 has no JSON
        return identity
    return identity


def find_identity(
    name: str, weights: Path | None = None, *, layer: str = "", image_size: int | None = None
) -> BackboneIdentity | None:
    """What `load_backbone` with these arguments would build, or None where that is not known for certain.

    The weights file is hashed now: an identity whose file is gone, holds other bytes, or is not the newest that was
    downloaded, is not given.
    """
    key = identity_key(name, weights, layer=layer, image_size=image_size)
    try:
        record = from_dict(_Record, read_json(_path(key)), "identity")
        identity = record.identity
        found = record.schema_version, record.key, record.digest
        is_current = found == (_SCHEMA_VERSION, key, fingerprint(to_dict(identity)))
        if not is_current or not _is_in_place(Path(identity.weights_path), identity.weights_sha256):
            return None
    except (DataError, ConfigError, OSError, ValueError):
        return None
    return identity


def identity_key(name: str, weights: Path | None, *, layer: str, image_size: int | None) -> str:
    """All that the building of a backbone depends on, but for the bytes of the weights file."""
    libraries = ("torch", "timm", "torchvision", f"{name}{_PACKAGE}")
    return fingerprint({
        "name": name, "layer": layer, "image_size": image_size,
        "weights": "published" if weights is None else os.fsencode(weights.absolute()).hex(),
        "code": {library: installed_version(library) for library in libraries},
    })  # fmt: skip


def _is_in_place(path: Path, sha256: str) -> bool:
    if path.parent.parent.name == "snapshots":  # of Hugging Face's cache, which keeps older revisions beside the newest
        newest = path.parents[2] / "refs" / "main"
        if newest.is_file() and newest.read_text().strip() != path.parent.name:
            return False
    return path.is_file() and sha256_of_file(path) == sha256


def _path(key: str) -> Path:
    return cache_root() / "backbones" / f"{key}.json"

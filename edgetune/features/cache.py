"""Features on disk, found by the content of the image they were computed from."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgetune.core.files import sha256_of_bytes, sha256_of_file, write_bytes_atomic

_Shard = npt.NDArray[np.void]


class FeatureCache:
    """One folder of shards for one key: everything that features depend on besides the image's bytes.

    A shard is a structured `.npy` array of content hashes and float32 features `(D,)`, named by its own
    sha256, so that a damaged shard is noticed and dropped. Shards are only ever added: a killed process loses
    at most the shard it was filling, and processes may share the folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._shards: list[_Shard] = []
        self._places: dict[str, tuple[int, int]] = {}
        for path in sorted(folder.glob("*.npy")):
            self._open_shard(path)

    @property
    def known(self) -> dict[str, tuple[int, int]]:
        """The content hashes that are in the cache, mapped to where."""
        return self._places

    def __getitem__(self, sha256: str) -> npt.NDArray[np.float32]:
        shard, row = self._places[sha256]
        features: npt.NDArray[np.float32] = self._shards[shard]["features"][row]
        return features

    def append(self, hashes: Sequence[str], features: npt.NDArray[np.float32]) -> None:
        """Writes one shard: `features` float32 `(N, D)` with their N content hashes."""
        shard = np.empty(len(hashes), dtype=[("sha256", "S64"), ("features", "<f4", features.shape[1:])])
        shard["sha256"] = np.array(hashes, dtype="S64")
        shard["features"] = features
        stream = io.BytesIO()
        np.save(stream, shard)
        data = stream.getvalue()
        path = self._folder / f"{sha256_of_bytes(data)}.npy"
        write_bytes_atomic(path, data)
        self._open_shard(path)

    def _open_shard(self, path: Path) -> None:
        if sha256_of_file(path) != path.stem:
            path.unlink(missing_ok=True)
            return
        shard: _Shard = np.load(path, mmap_mode="r", allow_pickle=False)
        index = len(self._shards)
        self._shards.append(shard)
        for row, sha256 in enumerate(shard["sha256"]):
            self._places[sha256.decode()] = (index, row)

"""Features on disk, found by the content of the image they were computed from."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgetune.core.files import sha256_of_bytes, sha256_of_file, write_bytes_atomic


class FeatureCache:
    """One folder of shards for one key: everything that features depend on besides the image's bytes.

    A shard is a structured `.npy` array of content hashes and float32 features `(D,)`, named by its own
    sha256, so that a damaged shard is noticed and dropped. Shards are only ever added: a killed process loses
    at most the shard it was filling, and processes may share the folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._shards: list[Path] = []
        self._places: dict[str, tuple[int, int]] = {}
        for path in sorted(folder.glob("*.npy")):
            self._add_shard(path)

    @property
    def known(self) -> dict[str, tuple[int, int]]:
        """The content hashes that are in the cache, mapped to where."""
        return self._places

    def gather(self, hashes: Sequence[str]) -> npt.NDArray[np.float32]:
        """Features float32 `(N, D)` of the images with these content hashes, in their order; one shard is open
        at a time. Raises `KeyError` for a hash that is not in the cache.
        """
        by_shard: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for target, sha256 in enumerate(hashes):
            shard, row = self._places[sha256]
            by_shard[shard].append((target, row))
        width = self._read(self._shards[next(iter(by_shard))])["features"].shape[1]
        features = np.empty((len(hashes), width), dtype=np.float32)
        for index, pairs in by_shard.items():
            targets, rows = zip(*pairs, strict=True)
            features[list(targets)] = self._read(self._shards[index])["features"][list(rows)]
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
        self._add_shard(path)

    def _add_shard(self, path: Path) -> None:
        try:
            if sha256_of_file(path) != path.stem:
                path.unlink(missing_ok=True)
                return
            hashes = self._read(path)["sha256"].tolist()
        except FileNotFoundError:
            return  # another process found it damaged and dropped it
        self._shards.append(path)
        for row, sha256 in enumerate(hashes):
            self._places[sha256.decode()] = (len(self._shards) - 1, row)

    @staticmethod
    def _read(path: Path) -> npt.NDArray[np.void]:
        shard: npt.NDArray[np.void] = np.load(path, mmap_mode="r", allow_pickle=False)
        return shard

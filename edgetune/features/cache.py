"""Features on disk, found by the content of the image they were computed from."""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgetune.core.errors import DataError
from edgetune.core.files import sha256_of_bytes, sha256_of_file, write_bytes_atomic
from edgetune.features.hash_index import HashIndex, digests_of

# A shard is written within seconds; a temporary file that has not been touched for this long is nobody's.
_ABANDONED_S = 3600.0


class FeatureCache:
    """One folder of shards for one key: everything that features depend on besides the image's bytes.

    A shard is a structured `.npy` array of content hashes and float32 features `(D,)`, named by its own
    sha256, so that a damaged shard is noticed and dropped. Shards are only ever added: a killed process loses
    at most the shard it was filling, and processes may share the folder. Where two shards have an image, the one
    that was written first counts, now and for every later process.

    Raises:
        DataError: the folder cannot be read, or its shards hold features of different widths.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._shards: list[Path] = []
        self._starts: list[int] = [0]  # the row that each shard begins with; the last is the number of rows
        self._width: int | None = None
        self._index = HashIndex()
        _remove_abandoned(folder)
        self._add_shards(_by_age(folder))

    def __len__(self) -> int:
        return len(self._index)

    def __contains__(self, sha256: str) -> bool:
        return bool(self._index.find(digests_of([sha256]))[0] >= 0)

    @property
    def rows(self) -> int:
        """Rows on disk so far; `rows_of` gives what is added from now on no smaller number."""
        return self._starts[-1]

    def rows_of(self, hashes: Sequence[str]) -> npt.NDArray[np.int64]:
        """The row of each image, counted from the first that was written; -1 where the cache lacks it."""
        return self._index.find(digests_of(hashes))

    def gather(self, hashes: Sequence[str]) -> npt.NDArray[np.float32]:
        """Features float32 `(N, D)` of the images with these content hashes, in their order; one shard is open
        at a time. Raises `KeyError` for a hash that is not in the cache.
        """
        rows = self.rows_of(hashes)
        if (rows < 0).any():
            raise KeyError(hashes[int(rows.argmin())])
        features = np.empty((len(hashes), self._width or 0), dtype=np.float32)
        shards = np.searchsorted(self._starts, rows, side="right") - 1
        for shard in np.unique(shards):
            here = shards == shard
            features[here] = self._read(self._shards[shard])["features"][rows[here] - self._starts[shard]]
        return features

    def append(self, hashes: Sequence[str], features: npt.NDArray[np.float32]) -> None:
        """Writes one shard, whole or not at all: `features` float32 `(N, D)` with their N content hashes.

        Raises:
            DataError: the disk is full or refuses, or the features have another width than those in the cache.
        """
        self._check_width(features.shape[1])
        shard = np.empty(len(hashes), dtype=[("sha256", "S64"), ("features", "<f4", features.shape[1:])])
        shard["sha256"] = np.array(hashes, dtype="S64")
        shard["features"] = features
        stream = io.BytesIO()
        np.save(stream, shard)
        data = stream.getvalue()
        path = self._folder / f"{sha256_of_bytes(data)}.npy"
        try:
            write_bytes_atomic(path, data)
        except OSError as error:
            raise DataError(
                f"the feature cache {self._folder} cannot take {len(data)} more bytes: {error.strerror or error}.",
                hint="make room, or set EDGETUNE_CACHE to a folder that takes them; what was cached before is kept",
            ) from error
        self._add_shards([path])

    def _add_shards(self, paths: Sequence[Path]) -> None:
        digests = [np.empty(0, "S32")]
        for path in paths:
            hashes = self._hashes_of(path)
            if hashes is not None:
                self._shards.append(path)
                self._starts.append(self._starts[-1] + len(hashes))
                digests.append(hashes)
        added = np.concatenate(digests)
        self._index.add(added, np.arange(self._starts[-1] - len(added), self._starts[-1]))

    def _hashes_of(self, path: Path) -> npt.NDArray[np.bytes_] | None:
        """The digests in a shard; None where it is damaged, and then it is removed."""
        try:
            if sha256_of_file(path) == path.stem:
                shard = self._read(path)
                self._check_width(shard["features"].shape[1])
                return digests_of([sha256.decode() for sha256 in shard["sha256"].tolist()])
        except FileNotFoundError:
            return None  # another process found it damaged and dropped it
        except OSError as error:
            raise DataError(f"the feature cache's file {path} cannot be read: {error.strerror or error}.") from error
        with contextlib.suppress(OSError):  # in a folder that may only be read, it is passed over
            path.unlink()
        return None

    def _check_width(self, width: int) -> None:
        if self._width not in (None, width):
            raise DataError(
                f"the feature cache {self._folder} has features of {self._width} values, and now of {width}.",
                hint="remove that folder: its features will be computed again",
            )
        self._width = width

    @staticmethod
    def _read(path: Path) -> npt.NDArray[np.void]:
        shard: npt.NDArray[np.void] = np.load(path, mmap_mode="r", allow_pickle=False)
        return shard


def _by_age(folder: Path) -> list[Path]:
    """The shards, first the one that was written first."""
    aged = []
    for path in folder.glob("*.npy"):
        with contextlib.suppress(FileNotFoundError):
            aged.append((path.stat().st_mtime_ns, path))
    return [path for _, path in sorted(aged)]


def _remove_abandoned(folder: Path) -> None:
    """Removes temporary files of killed processes; those of a process that is writing now are young."""
    for path in folder.glob(".*.partial"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _ABANDONED_S:
                path.unlink()

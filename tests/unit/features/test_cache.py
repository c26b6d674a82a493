from __future__ import annotations

import errno
import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from edgetune.core.errors import DataError
from edgetune.features.cache import FeatureCache

Features = npt.NDArray[np.float32]


def _hash(index: int) -> str:
    return hashlib.sha256(str(index).encode()).hexdigest()


def _rows(*indices: int) -> tuple[list[str], Features]:
    features = [[index, index + 0.25, -index] for index in indices]
    return [_hash(index) for index in indices], np.array(features, dtype=np.float32)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two shards: images 0, 1, 2 and images 3, 4."""
    cache = FeatureCache(tmp_path / "key")
    cache.append(*_rows(0, 1, 2))
    cache.append(*_rows(3, 4))
    return tmp_path / "key"


def _found(cache: FeatureCache) -> set[int]:
    """Which of images 0 to 9 the cache has; it has no others."""
    found = {index for index in range(10) if _hash(index) in cache}
    assert len(cache) == len(found)
    return found


def _shard_with(folder: Path, index: int) -> Path:
    (path,) = [path for path in folder.glob("*.npy") if _hash(index).encode() in path.read_bytes()]
    return path


def test_a_new_cache_is_empty(tmp_path: Path) -> None:
    assert _found(FeatureCache(tmp_path / "gone")) == set()


def test_what_was_appended_is_found_at_once(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path)
    cache.append(*_rows(5, 6))
    assert _found(cache) == {5, 6}
    np.testing.assert_array_equal(cache.gather([_hash(6)])[0], np.array([6, 6.25, -6], np.float32))


def test_what_was_appended_is_found_later(folder: Path) -> None:
    cache = FeatureCache(folder)
    assert _found(cache) == {0, 1, 2, 3, 4}
    for index in range(5):
        row = cache.gather([_hash(index)])[0]
        assert row.dtype == np.float32
        np.testing.assert_array_equal(row, np.array([index, index + 0.25, -index], np.float32))


def test_an_unknown_hash_is_a_key_error(folder: Path) -> None:
    with pytest.raises(KeyError):
        FeatureCache(folder).gather([_hash(9)])[0]


def test_a_shard_is_a_plain_array_named_by_its_digest(folder: Path) -> None:
    path = _shard_with(folder, 3)
    assert path.stem == hashlib.sha256(path.read_bytes()).hexdigest()
    shard = np.load(path, allow_pickle=False)
    assert [name.decode() for name in shard["sha256"]] == [_hash(3), _hash(4)]
    np.testing.assert_array_equal(shard["features"], _rows(3, 4)[1])


@pytest.mark.parametrize("place", [0, 70, -1], ids=["first byte", "header", "last byte"])
def test_a_damaged_shard_is_dropped_and_the_others_stay(folder: Path, place: int) -> None:
    path = _shard_with(folder, 0)
    data = bytearray(path.read_bytes())
    data[place] ^= 0x10
    path.write_bytes(data)
    assert _found(FeatureCache(folder)) == {3, 4}
    assert not path.exists()


@pytest.mark.parametrize("length", [0, 64, -4], ids=["empty", "header only", "one value short"])
def test_a_truncated_shard_is_dropped(folder: Path, length: int) -> None:
    path = _shard_with(folder, 3)
    path.write_bytes(path.read_bytes()[:length])
    assert _found(FeatureCache(folder)) == {0, 1, 2}
    assert not path.exists()


def test_a_killed_write_leaves_nothing_that_loads(folder: Path) -> None:
    """The process dies after the bytes are written and before the file has its name."""
    code = """
import os, signal, sys
from pathlib import Path
import numpy as np
from edgetune.features.cache import FeatureCache
os.fsync = lambda handle: os.kill(os.getpid(), signal.SIGKILL)
FeatureCache(Path(sys.argv[1])).append(["f" * 64], np.ones((1, 3), np.float32))
"""
    before = sorted(folder.glob("*.npy"))
    done = subprocess.run([sys.executable, "-c", code, str(folder)], timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    assert sorted(folder.glob("*.npy")) == before
    assert len(list(folder.iterdir())) == len(before) + 1
    assert _found(FeatureCache(folder)) == {0, 1, 2, 3, 4}


def test_two_caches_may_share_a_folder(tmp_path: Path) -> None:
    one, two = FeatureCache(tmp_path), FeatureCache(tmp_path)
    one.append(*_rows(1, 2))
    two.append(*_rows(2, 3))
    assert _found(one) == {1, 2}
    assert _found(two) == {2, 3}
    both = FeatureCache(tmp_path)
    assert _found(both) == {1, 2, 3}
    for index in (1, 2, 3):
        np.testing.assert_array_equal(
            both.gather([_hash(index)])[0], np.array([index, index + 0.25, -index], np.float32)
        )


def test_the_same_shard_written_twice_is_one_file(tmp_path: Path) -> None:
    one, two = FeatureCache(tmp_path), FeatureCache(tmp_path)
    one.append(*_rows(1))
    two.append(*_rows(1))
    assert len(list(tmp_path.glob("*.npy"))) == 1
    np.testing.assert_array_equal(one.gather([_hash(1)])[0], two.gather([_hash(1)])[0])


def test_more_shards_than_open_files_are_allowed_can_be_read(tmp_path: Path) -> None:
    """Every run on a growing data folder adds a shard."""
    for index in range(80):
        FeatureCache(tmp_path / str(index)).append(*_rows(index))
        (shard,) = (tmp_path / str(index)).glob("*.npy")
        shard.rename(tmp_path / shard.name)
    code = """
import resource, sys
from pathlib import Path
from edgetune.features.cache import FeatureCache
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
print(len(FeatureCache(Path(sys.argv[1]))))
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "80\n", done.stderr


def _rewritten(index: int, value: float) -> tuple[list[str], Features]:
    return [_hash(index)], np.full((1, 3), value, np.float32)


@pytest.mark.parametrize("first", [1.0, 2.0])
def test_the_features_that_were_written_first_count(tmp_path: Path, first: float) -> None:
    """Whichever of the two shards has the smaller name; the images around them are found too."""
    one, two = FeatureCache(tmp_path), FeatureCache(tmp_path)
    one.append(*_rewritten(7, first))
    two.append(*_rows(6, 8))
    two.append(*_rewritten(7, 3.0 - first))
    for cache in (one, FeatureCache(tmp_path)):
        np.testing.assert_array_equal(cache.gather([_hash(7)]), _rewritten(7, first)[1])
    np.testing.assert_array_equal(FeatureCache(tmp_path).gather(_rows(8, 6)[0]), _rows(8, 6)[1])
    assert FeatureCache(tmp_path).rows == 4


def test_what_is_added_later_has_higher_rows(folder: Path) -> None:
    cache = FeatureCache(folder)
    before = cache.rows
    cache.append(*_rows(9, 4))
    hashes = [_hash(index) for index in (9, 4, 0, 5)]
    np.testing.assert_array_equal(cache.rows_of(hashes) >= before, [True, False, False, False])
    assert cache.rows_of(hashes)[3] == -1


def test_no_hashes_are_no_features(folder: Path) -> None:
    assert FeatureCache(folder).gather([]).shape == (0, 3)


def test_features_of_another_width_are_refused(folder: Path) -> None:
    cache = FeatureCache(folder)
    with pytest.raises(DataError, match=r"has features of 3 values, and now of 5\.") as caught:
        cache.append([_hash(9)], np.zeros((1, 5), np.float32))
    assert "remove that folder" in caught.value.hint
    assert _found(FeatureCache(folder)) == {0, 1, 2, 3, 4}
    FeatureCache(folder / "other").append([_hash(9)], np.zeros((1, 5), np.float32))
    (stranger,) = (folder / "other").glob("*.npy")
    stranger.rename(folder / stranger.name)
    with pytest.raises(DataError, match=r"has features of 3 values, and now of 5\."):
        FeatureCache(folder)


@pytest.mark.parametrize(("age_s", "stays"), [(7200.0, False), (60.0, True)], ids=["old", "young"])
def test_temporary_files_of_killed_processes_go_when_they_are_old(folder: Path, age_s: float, stays: bool) -> None:
    partial = folder / f".{'a' * 64}.npy.0123456789abcdef.partial"
    partial.write_bytes(b"half")
    written = partial.stat().st_mtime - age_s
    os.utime(partial, (written, written))
    assert _found(FeatureCache(folder)) == {0, 1, 2, 3, 4}
    assert partial.exists() == stays


def test_a_full_disk_is_a_data_error_and_leaves_nothing_half_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    cache = FeatureCache(folder)
    before = sorted(folder.iterdir())
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match=r"cannot take \d+ more bytes: No space left on device\.") as caught:
        cache.append(*_rows(9))
    assert "EDGETUNE_CACHE" in caught.value.hint
    assert sorted(folder.iterdir()) == before
    assert _found(cache) == {0, 1, 2, 3, 4}


def test_a_cache_that_cannot_be_made_is_a_data_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=r"cannot take \d+ more bytes: "):
        FeatureCache(tmp_path / "file" / "key").append(*_rows(1))

"""One build at a time for each engine, and only an intact engine of the right key is taken."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from edgetune.core.errors import EngineError
from edgetune.engine.cache import engine_lock, find_intact, new_engine, write_sidecar
from tests.unit.core.engine_records import ENGINE, KEY, engine_record, key_with, write_engine


def test_the_second_waits_until_the_first_is_done(tmp_path: Path) -> None:
    waits, done = threading.Event(), threading.Event()

    def second() -> None:
        with engine_lock(tmp_path, "one", progress=lambda *_: waits.set()):
            done.set()

    thread = threading.Thread(target=second)
    with engine_lock(tmp_path, "one"):
        thread.start()
        assert waits.wait(timeout=10)
        assert not done.is_set()
    thread.join(timeout=10)
    assert done.is_set()


def test_the_second_waits_no_longer_than_it_was_told(tmp_path: Path) -> None:
    late = engine_lock(tmp_path, "one", timeout_s=0.3)
    with engine_lock(tmp_path, "one"), pytest.raises(EngineError, match=r"for more than 0\.3 s"), late:
        pass
    with engine_lock(tmp_path, "one", timeout_s=0.3):
        pass


def test_a_file_where_the_engine_belongs_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "one").write_text("mine")
    with pytest.raises(EngineError, match="is in the way"), new_engine(tmp_path / "one"):
        pass
    assert (tmp_path / "one").read_text() == "mine"


def test_other_engines_and_later_builds_do_not_wait(tmp_path: Path) -> None:
    waits = []
    with engine_lock(tmp_path, "one"), engine_lock(tmp_path, "two", progress=lambda *_: waits.append(1)):
        pass
    with pytest.raises(KeyError), engine_lock(tmp_path, "one"):
        raise KeyError
    with engine_lock(tmp_path, "one", progress=lambda *_: waits.append(1)):
        pass
    assert waits == []


def test_a_cache_that_is_a_file_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EngineError, match="file cannot be written: File exists"), engine_lock(tmp_path / "file", "x"):
        pass


def test_only_an_intact_engine_of_this_key_is_found(tmp_path: Path) -> None:
    assert find_intact(tmp_path / "no", KEY) is None
    folder = write_engine(tmp_path / "one")
    assert find_intact(folder, KEY) == engine_record()
    with pytest.raises(EngineError, match="another fingerprint than its name"):
        find_intact(folder, key_with(max_batch=4))
    (folder / "model.engine").write_bytes(ENGINE[:-1])
    with pytest.raises(EngineError, match="was changed after it was built"):
        find_intact(folder, KEY)


def test_an_engine_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    folder = tmp_path / "one"
    with pytest.raises(EngineError), new_engine(folder) as partial:
        (partial / "model.engine").write_bytes(ENGINE)
        raise EngineError("no")
    assert list(tmp_path.iterdir()) == []
    for _ in range(2):  # the second replaces the first
        with new_engine(folder) as partial:
            (partial / "model.engine").write_bytes(ENGINE)
            write_sidecar(partial, engine_record())
            assert partial.name.startswith(".one.")
        assert find_intact(folder, KEY) == engine_record()
    assert list(tmp_path.iterdir()) == [folder]

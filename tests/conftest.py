"""What tests share: caches of their own, real weights and images, and a small bundle made once."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("EDGETUNE_TEST_DATA", REPOSITORY.parent / "shared" / "data"))


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """`-m gpu` looks only where such tests are: a machine that has a GPU may lack what the others import."""
    if config.getoption("markexpr") != "gpu" or collection_path == REPOSITORY / "tests":
        return None
    files = [collection_path] if collection_path.is_file() else collection_path.rglob("test_*.py")
    return None if any("mark.gpu" in file.read_text() for file in files) else True


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """No test reads or fills the user's cache."""
    folder = tmp_path_factory.mktemp("cache")
    before = os.environ.get("EDGETUNE_CACHE")
    os.environ["EDGETUNE_CACHE"] = str(folder)
    yield folder
    if before is None:
        del os.environ["EDGETUNE_CACHE"]
    else:
        os.environ["EDGETUNE_CACHE"] = before


@pytest.fixture(scope="session")
def hymenoptera() -> Path:
    """Ants and bees: 245 training and 153 validation files, one of them a placeholder GIF."""
    folder = DATA / "hymenoptera"
    if not folder.is_dir():
        pytest.skip(f"no hymenoptera images at {folder}; EDGETUNE_TEST_DATA says where they are")
    return folder


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 real handwritten digits of three classes, as a flat image folder."""
    pytest.importorskip("sklearn")
    from edgetune.data.digits import write_digits

    everything = tmp_path_factory.mktemp("digits")
    write_digits(everything)
    folder = tmp_path_factory.mktemp("photos")
    for name in ("0", "1", "7"):
        (folder / name).mkdir()
        for image in sorted(everything.glob(f"*/{name}/*.png"), key=lambda path: path.name)[:20]:
            shutil.copy(image, folder / name / image.name)
    return folder


@pytest.fixture(scope="session")
def small_run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the default backbone with its real weights on the digits."""
    pytest.importorskip("torch")
    from edgetune.steps.fit import FitOptions, fit

    return fit(photos, tmp_path_factory.mktemp("runs") / "small", FitOptions()).run_path


@pytest.fixture(scope="session")
def small_bundle(small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from edgetune.steps.export import ExportOptions, export

    return export(small_run, tmp_path_factory.mktemp("bundles") / "small", ExportOptions(int8=True)).bundle_path

"""An open model for tests of the rooms that need a whole one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from edgetune.serve.model import ServedModel, open_model
from edgetune.serve.settings import ServeSettings
from tests.unit.runners.mean_bundle import FP32, mean_bundle


@pytest.fixture(scope="session")
def mean_served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedModel]:
    """The mean colour of an image of 4 x 4 pixels times a matrix; the logits of its golden image are -20 and 30."""
    bundle = mean_bundle(tmp_path_factory.mktemp("served") / "mean", {FP32: "PASS"})
    with open_model(bundle.path, ServeSettings()) as model:
        yield model

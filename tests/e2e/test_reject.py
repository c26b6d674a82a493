"""A bundle with a reject threshold: `predict` and a real server say which images are none of the classes."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from edgetune.core.bundle import load_bundle, write_manifest
from edgetune.core.tensors import softmax
from tests.served_models import CLASSES, SIDE, colour_answers, colour_bundle, encoded
from tests.serving import running_server

pytestmark = pytest.mark.e2e
# Black has the same logit for all five classes, 0.2 each; blue is certain.
BLACK = np.zeros((SIDE, SIDE, 3), np.uint8)
BLUE = np.full((SIDE, SIDE, 3), (0, 0, 200), np.uint8)
BELOW = 0.3


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return colour_bundle(tmp_path_factory.mktemp("plain") / "bundle")


@pytest.fixture(scope="module")
def rejecting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    bundle = colour_bundle(tmp_path_factory.mktemp("rejecting") / "bundle")
    write_manifest(bundle, dataclasses.replace(load_bundle(bundle).manifest, reject_below=BELOW))
    return bundle


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    (folder / "black.png").write_bytes(encoded(BLACK))
    (folder / "blue.png").write_bytes(encoded(BLUE))
    (folder / "none.png").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def address(rejecting: Path) -> Iterator[str]:
    with running_server(rejecting, "--model-name", "colours") as address:
        yield address


def _predict(bundle: Path, *words: str | Path) -> str:
    command = [sys.executable, "-m", "edgetune.cli.main", "predict", str(bundle), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False).stdout


def _predicted(bundle: Path, images: Path) -> list[dict[str, Any]]:
    names = ("black.png", "blue.png", "none.png")
    answer = json.loads(_predict(bundle, *(images / name for name in names), "--top", "2", "--json"))
    found: list[dict[str, Any]] = answer["data"]["images"]
    return found


def test_predict_marks_what_is_below_the_threshold_and_still_lists_the_labels(rejecting: Path, images: Path) -> None:
    black, blue, none = _predicted(rejecting, images)
    assert [image["rejected"] for image in (black, blue, none)] == [True, False, False]
    assert [each["label"] for each in black["predictions"]] == ["red", "green"]
    assert black["predictions"][0]["probability"] == pytest.approx(0.2, rel=0, abs=1e-6)
    assert none["error"]


def test_predict_says_it_in_words(rejecting: Path, images: Path) -> None:
    first, second = _predict(rejecting, images / "black.png", images / "blue.png", "--top", "1").splitlines()
    assert first.endswith("black.png: none of these: red 20.0%")
    assert second.endswith("blue.png: blue 100.0%")


def test_without_a_threshold_nothing_is_rejected(plain: Path, images: Path) -> None:
    assert [image["rejected"] for image in _predicted(plain, images)] == [False, False, False]
    assert "none of these" not in _predict(plain, images / "black.png")


def test_the_server_says_it_of_one_image(address: str) -> None:
    black = httpx.post(f"{address}/v1/classify?top=1&logits=1", content=encoded(BLACK)).json()
    assert black["rejected"] is True
    assert [each["label"] for each in black["predictions"]] == ["red"]
    assert black["logits"] == [0.0] * len(CLASSES)
    assert httpx.post(f"{address}/v1/classify", content=encoded(BLUE)).json()["rejected"] is False


def test_the_server_says_it_of_each_part_of_a_form(address: str) -> None:
    parts = [("image", (name, data)) for name, data in
             (("a.png", encoded(BLACK)), ("b.png", encoded(BLUE)), ("c.png", b"no"))]  # fmt: skip
    answer = httpx.post(f"{address}/v1/classify", files=parts).json()
    assert [entry.get("rejected") for entry in answer["images"]] == [True, False, None]
    assert set(answer["images"][2]) == {"name", "error"}


def test_the_server_and_predict_draw_the_same_line(address: str, rejecting: Path, tmp_path: Path) -> None:
    """A row of greys from black on, whose best probability rises through the threshold."""
    greys = [np.full((SIDE, SIDE, 3), (level, 0, 0), np.uint8) for level in range(4)]
    expected = [bool(softmax(colour_answers(grey[np.newaxis])[1])[0].max() < BELOW) for grey in greys]
    assert expected == sorted(expected, reverse=True)
    assert set(expected) == {True, False}
    for index, grey in enumerate(greys):
        (tmp_path / f"{index}.png").write_bytes(encoded(grey))
    files = [tmp_path / f"{index}.png" for index in range(len(greys))]
    told = json.loads(_predict(rejecting, *files, "--json"))["data"]["images"]
    assert [image["rejected"] for image in told] == expected
    served = [httpx.post(f"{address}/v1/classify", content=file.read_bytes()).json() for file in files]
    assert [answer["rejected"] for answer in served] == expected


def test_a_server_without_a_threshold_says_nothing_of_it(plain: Path) -> None:
    with running_server(plain) as address:
        assert set(httpx.post(f"{address}/v1/classify", content=encoded(BLACK)).json()) == {
            "model", "artifact", "predictions",
        }  # fmt: skip


def test_the_answers_fit_the_servers_document(address: str) -> None:
    schemathesis = pytest.importorskip("schemathesis", reason="schemathesis, which reads the document, is missing")
    document = httpx.get(f"{address}/openapi.json").json()
    schema = schemathesis.openapi.from_dict(document)
    schema.config.update(base_url=address)
    form = [("a", ("a.png", encoded(BLACK))), ("b", ("b.png", b"no"))]
    for options in ({"content": encoded(BLACK)}, {"files": form}):
        answer = httpx.post(f"{address}/v1/classify?logits=1", **options)
        assert "rejected" in answer.text
        answer.request.read()
        schema["/v1/classify"]["POST"].Case().validate_response(answer)

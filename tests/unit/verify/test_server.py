"""A running server as a candidate: what it says that it serves, how it is run otherwise, and what it lacks."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest

from edgetune.core.bundle import FAIL, MANIFEST_NAME, NOT_RUN, PASS, Bundle
from edgetune.core.errors import ModelError, TensorError
from edgetune.core.files import sha256_of_file
from edgetune.core.preprocess import PreprocessSpec
from edgetune.core.tensors import Array, Feed, TensorSpec
from edgetune.parity.compare import LogitsTable
from edgetune.parity.gate_set import GateSet
from edgetune.parity.records import ParityEntry, Variation, entry_failed, entry_not_run
from edgetune.parity.variations import DEVICE_LIMITS
from edgetune.runners.served_model import RemoteModel
from edgetune.runners.server_runner import ServerImages, ServerRunner
from edgetune.verify.judging import judge_table, live_reference
from edgetune.verify.server import (
    FILES_KEY,
    NO_FILES,
    SERVED,
    TENSORS_KEY,
    Server,
    open_server,
    what_differs,
    with_server_details,
)
from tests.unit.runners.mean_bundle import FP32, INT8, SPEC, mean_bundle
from tests.unit.runners.raw_server import METADATA, Request, http, serving

INPUTS = (TensorSpec("image", "uint8", (None, 4, 4, 3)),)
OUTPUTS = (TensorSpec("logits", "float32", (None, 2)),)
OTHER_SPEC = PreprocessSpec(4, 4, "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
IMAGES = np.random.default_rng(0).integers(0, 256, (16, 4, 4, 3), dtype=np.uint8)
# The largest logit of the images, which limits are shares of.
LARGEST = 120.0

Answer = Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float32]]


def _plain(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Two logits an image, the first of all `LARGEST`."""
    mean = images.reshape(len(images), -1).mean(axis=1, dtype=np.float32) / 8
    return np.stack([mean, np.full(len(images), LARGEST)], axis=1).astype(np.float32)


class _Connection:
    """A `ServerRunner` without a server."""

    def __init__(self, served: RemoteModel, answer: Answer = _plain, takes: int | None = None) -> None:
        self.name, self.served = "server http://host (played)", served
        self.input_specs, self.output_specs = INPUTS, OUTPUTS
        self.min_batch = 1
        self.batches: list[int] = []
        self._answer, self._takes, self.max_batch = answer, takes, served.max_batch

    def keep_to(self, batch: int) -> None:
        self.max_batch = min(batch, self.max_batch or batch)

    def infer(self, feed: Feed) -> dict[str, Array]:
        count = len(feed["image"])
        self.batches.append(count)
        if self._takes is not None and count > self._takes:
            raise TensorError(f"HTTP 400: the batch is {count}, at most {self._takes} are taken.")
        return {"logits": self._answer(feed["image"])}


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return mean_bundle(tmp_path / "bundle", {FP32: PASS, INT8: PASS})


def _told(bundle: Bundle, name: str = FP32, **changes: Any) -> RemoteModel:
    """What a right edgetune server says."""
    told = RemoteModel(
        "http://host", "mean", INPUTS, OUTPUTS, "edgetune 1", name, bundle.artifact(name).sha256,
        sha256_of_file(bundle.path / MANIFEST_NAME), PASS, "onnxruntime CPU", ("a", "b"), SPEC, 64,
    )  # fmt: skip
    return dataclasses.replace(told, **changes)


FOREIGN = RemoteModel("http://host", "mean", INPUTS, OUTPUTS, "triton 2.60")


def _server(
    bundle: Bundle, told: RemoteModel, texts: Answer | _Connection = _plain, files: RemoteModel | None = None,
    tensors: _Connection | None = None,
) -> Server:  # fmt: skip
    found = next((each for each in bundle.manifest.artifacts if each.name == told.artifact), None)
    other = texts if isinstance(texts, _Connection) else _Connection(told, texts)
    images = None if told is FOREIGN else cast("ServerImages", _Connection(files or told))
    return Server(
        told, found, cast("ServerRunner", tensors or _Connection(told)), cast("ServerRunner", other), images
    )  # fmt: skip


def _right() -> ParityEntry:
    """An entry that passed."""
    entry = entry_not_run("model.onnx", "server", "torch", "")
    return dataclasses.replace(entry, verdict=PASS, reasons=(), max_abs_diff=0.0, images=16, remarks=("before",))


def _details(server: Server, bundle: Bundle, entry: ParityEntry | None = None) -> dict[str, ParityEntry]:
    entries = {FP32: _right(), TENSORS_KEY: entry or _right()}
    if server.files is not None:
        entries[FILES_KEY] = _right()
    return with_server_details(entries, server, bundle, IMAGES)


def _variation(entry: ParityEntry, name: str) -> Variation:
    (found,) = [each for each in entry.variations if each.name == name]
    return found


class TestWhatDiffers:
    def test_the_bundles_own_server_and_one_that_tells_nothing(self, bundle: Bundle) -> None:
        assert what_differs(bundle, _told(bundle)) == []
        assert what_differs(bundle, FOREIGN) == []

    @pytest.mark.parametrize(
        ("changes", "stage", "words"),
        [
            ({"artifact_sha256": "f" * 64}, SERVED, "its model.onnx has the sha256 ffffffffffff"),
            ({"artifact_sha256": "f" * 64, "bundle_digest": "e" * 64}, SERVED, "which no artifact of this bundle has"),
            ({"bundle_digest": "e" * 64}, SERVED, "its manifest has the sha256 eeeeeeeeeeee"),
            ({"classes": ("b", "a")}, "labels", "other classes, or in another order"),
            ({"classes": ("a", "b", "c")}, "labels", "other classes, or in another order"),
            ({"preprocess": OTHER_SPEC}, "pixels", "bicubic"),
        ],
        ids=["artifact", "artifact and digest", "digest", "order", "classes", "preprocess"],
    )
    def test_one_thing_that_is_not_the_bundles(
        self, bundle: Bundle, changes: dict[str, Any], stage: str, words: str
    ) -> None:
        told = _told(bundle, **changes)
        ((found, reason),) = what_differs(bundle, told)
        assert found == stage
        assert words in reason
        for entry in _details(_server(bundle, told), bundle).values():
            assert (entry.verdict, entry.stage, entry.reasons) == (FAIL, stage, (reason,))


class TestConnections:
    @pytest.mark.parametrize(
        "changes",
        [{"artifact_sha256": "f" * 64}, {"bundle_digest": "e" * 64}, {"classes": ("b", "a")},
         {"preprocess": OTHER_SPEC}],
        ids=["artifact", "digest", "classes", "preprocess"],
    )  # fmt: skip
    @pytest.mark.parametrize("which", ["texts", "files"])
    def test_another_bundle_over_another_connection_fails(
        self, bundle: Bundle, which: str, changes: dict[str, Any]
    ) -> None:
        other = _told(bundle, **changes)
        texts = _Connection(other if which == "texts" else _told(bundle))
        server = _server(bundle, _told(bundle), texts, other if which == "files" else None)
        for entry in _details(server, bundle).values():
            assert (entry.verdict, entry.stage, len(entry.reasons)) == (FAIL, SERVED, 1)
            assert f"has another {next(iter(changes))}" in entry.reasons[0]

    def test_one_bundle_over_all_of_them_passes(self, bundle: Bundle) -> None:
        """What does not say which bundle it is, as the version, may differ."""
        told = _told(bundle)
        entries = _details(_server(bundle, told, files=dataclasses.replace(told, server="edgetune 2")), bundle)
        assert {name: (entry.verdict, entry.reasons) for name, entry in entries.items()} == {
            TENSORS_KEY: (PASS, ()), FILES_KEY: (PASS, ()),
        }  # fmt: skip

    def test_servers_behind_one_address(self, bundle: Bundle) -> None:
        """Real connections: the first two lead to one server, the third to another."""
        digests = iter(["a" * 64, "a" * 64, "b" * 64])

        def model(_request: Request) -> Iterator[bytes]:
            told = {"artifact": FP32, "artifact_sha256": bundle.artifact(FP32).sha256, "bundle_digest": next(digests)}
            yield http({**METADATA, "parameters": {**told, "max_batch": 8}})

        with serving(model=model, keeps=False) as raw, contextlib.ExitStack() as stack:
            server = open_server(stack, raw.url, bundle)
            entries = with_server_details({FILES_KEY: _right()}, server, bundle, IMAGES)
        reason = entries[FILES_KEY].reasons[-1]
        assert "(image bytes) has another bundle_digest" in reason
        assert raw.url in reason


class TestJson:
    @pytest.mark.parametrize("factor", [0.9, 1.1])
    @pytest.mark.parametrize("name", [FP32, INT8])
    def test_the_limit_is_that_of_a_call_made_again(self, bundle: Bundle, name: str, factor: float) -> None:
        precision = bundle.artifact(name).precision
        limit = DEVICE_LIMITS[precision].same * LARGEST
        off = np.float32(factor * limit)
        server = _server(bundle, _told(bundle, name), lambda images: _plain(images) + off)
        entry = _details(server, bundle)[TENSORS_KEY]
        found = _variation(entry, "json")
        assert found.limit == pytest.approx(limit)
        assert found.max_abs_diff == pytest.approx(factor * limit, rel=1e-2)
        assert (entry.verdict, found.verdict) == ((PASS, PASS) if factor < 1 else (FAIL, FAIL))
        assert ("the answer as JSON differs" in found.reason) == (factor > 1)

    def test_nan_fails(self, bundle: Bundle) -> None:
        entry = _details(_server(bundle, _told(bundle), lambda images: _plain(images) * np.float32("nan")), bundle)
        found = _variation(entry[TENSORS_KEY], "json")
        assert (found.verdict, found.max_abs_diff, found.limit, found.reason) == (
            FAIL, None, None, "the logits hold NaN or infinity",
        )  # fmt: skip
        assert entry[TENSORS_KEY].verdict == FAIL

    def test_an_error_fails(self, bundle: Bundle) -> None:
        def broken(_images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
            raise ModelError("HTTP 500: no JSON here.")

        entry = _details(_server(bundle, _told(bundle), broken), bundle)[TENSORS_KEY]
        assert (entry.verdict, _variation(entry, "json").reason) == (FAIL, "HTTP 500: no JSON here.")


class TestOtherServers:
    def test_a_batch_that_an_unknown_limit_refuses_was_not_run(self, bundle: Bundle) -> None:
        tensors, texts = _Connection(FOREIGN, takes=8), _Connection(FOREIGN, takes=8)
        entry = _details(_server(bundle, FOREIGN, texts, tensors=tensors), bundle)[TENSORS_KEY]
        assert (entry.verdict, entry.reasons) == (PASS, ())
        assert {each.name: each.verdict for each in entry.variations} == {
            "repeated": PASS, "position": PASS, "order": PASS, "batch 1": PASS, "batch 3": PASS, "batch 16": NOT_RUN,
            "json": PASS,
        }  # fmt: skip
        assert "the batch is 16, at most 8 are taken" in _variation(entry, "batch 16").reason
        assert tensors.batches.count(16) == 1

    def test_an_unknown_limit_that_is_not_reached(self, bundle: Bundle) -> None:
        entry = _details(_server(bundle, FOREIGN), bundle)[TENSORS_KEY]
        assert {each.verdict for each in entry.variations} == {PASS}
        assert _variation(entry, "batch 16").images == 16

    def test_a_known_limit_that_is_not_kept_fails(self, bundle: Bundle) -> None:
        entry = _details(_server(bundle, _told(bundle), tensors=_Connection(_told(bundle), takes=8)), bundle)
        assert entry[TENSORS_KEY].verdict == FAIL
        assert "the batch is 16" in entry[TENSORS_KEY].reasons[0]

    def test_a_large_batch_that_breaks_the_server_fails(self, bundle: Bundle) -> None:
        def breaks(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
            if len(images) > 8:
                raise ModelError("HTTP 500: out of memory.")
            return _plain(images)

        entry = _details(_server(bundle, FOREIGN, tensors=_Connection(FOREIGN, breaks)), bundle)[TENSORS_KEY]
        assert (entry.verdict, entry.stage) == (FAIL, "invariance")
        assert "out of memory" in entry.reasons[0]

    def test_image_files_that_it_cannot_take_are_a_remark(self, bundle: Bundle) -> None:
        """An entry that did not run would fail where all must."""
        entries = _details(_server(bundle, FOREIGN), bundle)
        assert list(entries) == [TENSORS_KEY]
        assert entries[TENSORS_KEY].remarks == ("before", NO_FILES)
        ours = _details(_server(bundle, _told(bundle)), bundle)
        assert [entry.remarks for entry in ours.values()] == [("before",), ("before",)]


class TestArithmetic:
    @pytest.mark.parametrize(
        ("runner", "name", "expected"),
        [
            ("onnxruntime TensorRT", FP32, "tf32"),
            ("onnxruntime TensorRT", INT8, "int8"),
            ("onnxruntime TensorRT-RTX", FP32, "fp32"),
            ("onnxruntime CUDA", FP32, "fp32"),
            ("onnxruntime CPU", FP32, "fp32"),
            ("tensorrt", FP32, "fp32"),
            ("", FP32, "fp32"),
        ],
    )
    def test_what_the_server_computes_with_picks_gate_and_limits(
        self, bundle: Bundle, runner: str, name: str, expected: str
    ) -> None:
        server = _server(bundle, _told(bundle, name, runner=runner))
        candidates = server.candidates()
        assert {key: each.arithmetic for key, each in candidates.items()} == {
            TENSORS_KEY: expected, FILES_KEY: expected,
        }  # fmt: skip
        limits = [each.limit for each in _details(server, bundle)[TENSORS_KEY].variations]
        assert limits == pytest.approx([DEVICE_LIMITS[expected].same * LARGEST] * 7)


class TestFailures:
    @pytest.mark.parametrize("failure", ["the connection was closed without an answer", "nothing listens"])
    def test_a_server_that_died_is_one_failed_entry(self, bundle: Bundle, failure: str) -> None:
        tensors = _Connection(_told(bundle))
        server = _server(bundle, _told(bundle), tensors=tensors)
        table = LogitsTable((), ("h",), np.zeros(1, np.int64), {}, (), {TENSORS_KEY: failure, FILES_KEY: failure})
        reference = live_reference("torch", np.zeros((1, 2), np.float32))
        entries, pairs = judge_table(table, reference, server.candidates(), GateSet())
        found = with_server_details(entries, server, bundle, IMAGES)
        assert pairs == {}
        assert {name: (entry.verdict, entry.reasons) for name, entry in found.items()} == {
            TENSORS_KEY: (FAIL, (failure,)), FILES_KEY: (FAIL, (failure,)),
        }  # fmt: skip
        assert tensors.batches == []  # nor is it waited for again

    def test_a_server_that_dies_while_a_few_images_are_looked_at(self, bundle: Bundle) -> None:
        def gone(_images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
            raise ModelError("the connection broke in the middle of the answer.")

        entry = _details(_server(bundle, _told(bundle), tensors=_Connection(_told(bundle), gone)), bundle)[TENSORS_KEY]
        assert (entry.verdict, entry.stage) == (FAIL, "invariance")
        assert entry.reasons == ("a few images alone do not run: the connection broke in the middle of the answer.",)

    def test_what_failed_and_is_also_another_bundle_says_both(self, bundle: Bundle) -> None:
        entry = entry_failed("model.onnx", "server", "torch", "HTTP 500", "logits")
        found = _details(_server(bundle, _told(bundle, bundle_digest="e" * 64)), bundle, entry)[TENSORS_KEY]
        assert (found.stage, len(found.reasons)) == (SERVED, 2)

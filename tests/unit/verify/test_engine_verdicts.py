"""What parity writes beside an engine."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from edgetune.core.bundle import FAIL, NOT_RUN, PASS, Artifact
from edgetune.core.engine_files import SIDECAR_NAME, read_sidecar
from edgetune.core.errors import EngineError
from edgetune.parity.records import ParityEntry, entry_not_run
from edgetune.runners.choice import ENGINE, Choice
from edgetune.runners.trt_runner import TrtRunner
from edgetune.verify import engine_verdicts
from edgetune.verify.subjects import Subject
from tests.unit.core.engine_records import HOST, engine_record, write_engine

ARTIFACT = Artifact("model.onnx", "onnx", "fp32", "any", "a" * 64, 1, PASS, 1.0)


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(engine_verdicts, "this_host", lambda _backend: HOST)
    return write_engine(tmp_path / "engine")


def _tell(engine: Path, verdict: str) -> ParityEntry:
    entry = entry_not_run("model.onnx", "tensorrt", "torch", "a reason")
    entry = dataclasses.replace(entry, verdict=verdict, images=20, top1_agreement=0.95, sqnr_db=float("-inf"))
    subject = Subject(Choice(ARTIFACT, "", ENGINE, engine), TrtRunner(engine), engine_record())
    return engine_verdicts.told(subject, entry)


@pytest.mark.parametrize("verdict", [PASS, FAIL])
def test_an_engines_verdict_lies_beside_it_with_the_machine_it_holds_for(engine: Path, verdict: str) -> None:
    assert _tell(engine, verdict).reasons == ("a reason",)
    found = read_sidecar(engine).parity
    assert found is not None
    assert (found.verdict, found.host, found.images, found.top1_agreement, found.sqnr_db) == (
        verdict, HOST, 20, 0.95, None,
    )  # fmt: skip


def test_what_was_not_judged_takes_no_earlier_verdict_away(engine: Path) -> None:
    _tell(engine, PASS)
    before = (engine / SIDECAR_NAME).read_bytes()
    _tell(engine, NOT_RUN)
    assert (engine / SIDECAR_NAME).read_bytes() == before


def test_a_verdict_that_cannot_be_written_is_a_remark(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise EngineError("the engine's verdict cannot be written: Read-only file system.")

    monkeypatch.setattr(engine_verdicts, "record_parity", refuse)
    told = _tell(engine, PASS)
    assert told.verdict == PASS
    assert told.reasons == ("a reason",)
    assert told.remarks == ("the engine's verdict cannot be written: Read-only file system.",)

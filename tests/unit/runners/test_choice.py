"""Which artifact a machine takes, and what runs it there."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest

from edgetune.core.engine_files import ENGINE_NAME
from edgetune.core.engine_record import EngineHost, EngineParity
from edgetune.core.errors import ArtifactError, EngineError, EngineMismatchError, MissingDependencyError, UsageError
from edgetune.runners import choice
from edgetune.runners.choice import AUTO, ENGINE, RunnerOptions, choose, choose_all, suits_machine, suits_runner
from edgetune.runners.ort_providers import CPU, CUDA, TENSORRT_EP
from tests.unit.core.engine_records import HOST, KEY, RTX_ANYWHERE, engine_record, write_engine
from tests.unit.runners.mean_bundle import ARM, FP16, FP32, INT8, TENSORRT, mean_bundle

ON_CPU = RunnerOptions(CPU)


@pytest.fixture(params=[True, False], ids=["VNNI", "no VNNI"])
def vnni(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(choice, "is_x86", lambda: True)
    monkeypatch.setattr(choice, "int8_saturates", lambda: not request.param)
    return bool(request.param)


@pytest.mark.parametrize(
    ("verdicts", "with_vnni", "without"),
    [
        ({FP32: "PASS", INT8: "PASS"}, INT8, FP32),
        ({FP32: "PASS", INT8: "FAIL"}, FP32, FP32),
        ({FP32: "PASS", INT8: "NOT-RUN"}, FP32, FP32),
        ({FP32: "FAIL", INT8: "PASS"}, INT8, INT8),
        ({FP32: "PASS", TENSORRT: "PASS"}, FP32, FP32),
        ({FP32: "FAIL", TENSORRT: "PASS"}, None, None),
        ({FP32: "PASS", TENSORRT: "PASS", INT8: "PASS"}, INT8, FP32),
        ({FP32: "PASS", ARM: "PASS"}, FP32, FP32),
        ({FP32: "PASS", FP16: "PASS"}, FP32, FP32),
        ({FP32: "FAIL", FP16: "PASS"}, None, None),
        ({FP32: "FAIL", INT8: "FAIL"}, None, None),
        ({FP32: "PASS"}, FP32, FP32),
    ],
)
def test_the_artifact_passed_parity_and_is_right_here(
    verdicts: dict[str, str], with_vnni: str | None, without: str | None, vnni: bool, tmp_path: Path
) -> None:
    bundle = mean_bundle(tmp_path / "b", verdicts)
    expected = with_vnni if vnni else without
    if expected is None:
        with pytest.raises(ArtifactError, match="no artifact for this CPU that passed parity"):
            choose(bundle, AUTO, ON_CPU)
    else:
        assert choose(bundle, AUTO, ON_CPU).artifact.name == expected
        assert choose(bundle, AUTO, ON_CPU, allow_failed=True).artifact.name == expected


@pytest.mark.parametrize(
    ("machine", "suitable"),
    [("x86_64", INT8), ("AMD64", INT8), ("aarch64", ARM), ("arm64", ARM), ("riscv64", None)],
)
def test_int8_is_for_the_cpu_that_its_target_names(
    machine: str, suitable: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    bundle = mean_bundle(tmp_path / "b", dict.fromkeys((FP32, FP16, INT8, ARM, TENSORRT), "PASS"))
    suiting = [artifact.name for artifact in bundle.manifest.artifacts if suits_machine(artifact)]
    assert suiting == [FP32, *([suitable] if suitable else [])]


@pytest.mark.parametrize(
    ("verdicts", "words"),
    [
        ({FP32: "PASS"}, "the bundle has no INT8 artifact"),
        ({FP32: "PASS", INT8: "FAIL", TENSORRT: "PASS"}, "INT8 is FAIL"),
        ({FP32: "PASS", ARM: "PASS", TENSORRT: "PASS"}, "INT8 for cpu-arm, tensorrt, not for this CPU"),
        ({FP32: "PASS", INT8: "PASS"}, "this CPU has no VNNI"),
    ],
)
def test_the_reason_for_fp32_is_told(
    verdicts: dict[str, str], words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr(choice, "int8_saturates", lambda: True)
    chosen = choose(mean_bundle(tmp_path / "b", verdicts), AUTO, ON_CPU)
    assert chosen.artifact.name == FP32
    assert words in chosen.reason


def test_what_failed_is_taken_only_when_told_to(tmp_path: Path) -> None:
    bundle = mean_bundle(tmp_path / "b", {FP32: "FAIL"})
    with pytest.raises(ArtifactError, match="failed parity"):
        choose(bundle, FP32, ON_CPU)
    assert choose(bundle, FP32, ON_CPU, allow_failed=True).artifact.name == FP32
    assert choose(bundle, AUTO, ON_CPU, allow_failed=True).artifact.name == FP32
    with pytest.raises(ArtifactError, match="has no artifact 'engine'") as caught:
        choose(bundle, "engine", ON_CPU)
    assert FP32 in caught.value.hint


@pytest.mark.parametrize(
    ("kind", "suited"),
    [(CUDA, [FP32, FP16]), (TENSORRT_EP, [TENSORRT, FP16, FP32]), (ENGINE, [TENSORRT, FP16, FP32])],
)
def test_what_is_made_for_a_runner_comes_best_first(kind: str, suited: list[str], tmp_path: Path) -> None:
    bundle = mean_bundle(tmp_path / "b", dict.fromkeys((FP32, FP16, INT8, ARM, TENSORRT), "PASS"))
    assert [artifact.name for artifact in choice.best_first(bundle.manifest.artifacts, kind)] == suited
    assert not suits_runner(bundle.artifact(INT8), kind)
    if kind != ENGINE:
        chosen = choose(bundle, AUTO, RunnerOptions(kind))
        assert (chosen.artifact.name, chosen.runner, chosen.engine) == (suited[0], kind, None)


def test_an_unknown_runner_is_refused() -> None:
    with pytest.raises(UsageError, match="the runner 'tpu' is not known; known: auto, cpu, cuda"):
        RunnerOptions("tpu")


class _Device:
    """A bundle with an INT8 and an FP32 artifact, and an engine cache, on a machine with a GPU and TensorRT."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bundle = mean_bundle(folder / "b", {FP32: "PASS", TENSORRT: "PASS"})
        self.cache = folder / "engines"
        self.host = HOST
        monkeypatch.setattr(choice, "installed_backends", lambda: ("tensorrt", "tensorrt-rtx"))
        monkeypatch.setattr(choice, "this_host", self._this_host)

    def _this_host(self, backend: str) -> EngineHost:
        assert backend in ("tensorrt", "tensorrt-rtx")
        return self.host

    def add(
        self, name: str, verdict: str | None = None, created: str = "2026-01-01", host: EngineHost = HOST,
        judged_on: EngineHost = HOST,
    ) -> Path:  # fmt: skip
        key = dataclasses.replace(KEY, onnx_sha256=self.bundle.artifact(name).sha256, host=host)
        parity = None if verdict is None else EngineParity(judged_on, verdict, 10, 1.0, 40.0, created)
        folder = self.cache / f"{key.fingerprint}-{created}"
        return write_engine(folder, engine_record(key, created=created, parity=parity))

    def choose(self, kind: str, wanted: str = AUTO, *, fallback: bool = False) -> choice.Choice:
        return choose(self.bundle, wanted, RunnerOptions(kind, cache=self.cache, fallback=fallback))


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> _Device:
    return _Device(tmp_path, monkeypatch)


def test_the_engine_of_the_best_artifact_is_taken(device: _Device) -> None:
    device.add(FP32)
    assert device.choose(ENGINE).artifact.name == FP32
    folder = device.add(TENSORRT)
    chosen = device.choose(ENGINE)
    assert (chosen.artifact.name, chosen.runner, chosen.engine) == (TENSORRT, ENGINE, folder)
    assert device.choose(ENGINE, FP32).artifact.name == FP32


def test_the_newest_engine_that_fits_is_taken(device: _Device) -> None:
    device.add(TENSORRT, created="2026-01-01")
    newer = device.add(TENSORRT, created="2026-01-02")
    device.add(TENSORRT, created="2026-01-03", host=dataclasses.replace(HOST, backend_version="10.3.0"))
    assert device.choose(ENGINE).engine == newer


@pytest.mark.parametrize(
    ("verdict", "runner"), [(None, CPU), ("FAIL", CPU), ("NOT-RUN", CPU), ("PASS", ENGINE)], ids=str
)
def test_an_engine_runs_unasked_only_once_it_passed_parity_itself(
    verdict: str | None, runner: str, device: _Device
) -> None:
    device.add(TENSORRT, verdict)
    assert device.choose(AUTO).runner == runner


def test_an_engine_that_no_longer_fits_makes_way_and_the_reason_says_so(device: _Device) -> None:
    device.add(TENSORRT, "PASS")
    device.host = dataclasses.replace(HOST, driver="590.0")
    chosen = device.choose(AUTO)
    assert chosen.runner == CPU
    assert (
        "an engine is there, but the engine was built for driver 580.65.06, and this machine has 590.0" in chosen.reason
    )


def test_the_verdict_of_another_machine_is_not_this_ones(device: _Device) -> None:
    """An engine compiled ahead of time has no GPU in its key, and is copied with its verdict."""
    folder = device.add(TENSORRT, "PASS", host=RTX_ANYWHERE, judged_on=dataclasses.replace(HOST, gpu="another card"))
    device.host = dataclasses.replace(RTX_ANYWHERE, gpu="a card", compute_capability="8.6", driver="580.1")
    chosen = device.choose(AUTO)
    assert chosen.runner == CPU
    assert "has not passed parity on this machine" in chosen.reason
    assert device.choose(ENGINE).engine == folder


def test_an_engine_that_failed_parity_runs_only_when_told_to(device: _Device) -> None:
    older = device.add(TENSORRT, "PASS", created="2026-01-01")
    device.add(TENSORRT, "FAIL", created="2026-01-02")
    assert device.choose(ENGINE).engine == older
    shutil.rmtree(older)
    with pytest.raises(EngineError, match="failed parity with the PyTorch model"):
        device.choose(ENGINE)
    failed = choose(device.bundle, AUTO, RunnerOptions(ENGINE, cache=device.cache), allow_failed=True)
    assert failed.runner == ENGINE


def test_a_newer_engine_that_nobody_judged_does_not_hide_a_proved_one(device: _Device) -> None:
    proved = device.add(TENSORRT, "PASS", created="2026-01-01")
    newer = device.add(TENSORRT, created="2026-01-02")
    assert device.choose(AUTO).engine == proved
    assert device.choose(ENGINE).engine == newer


def test_the_engine_of_a_slower_artifact_is_taken_where_the_best_ones_does_not_fit(device: _Device) -> None:
    device.add(TENSORRT, host=dataclasses.replace(HOST, compute_capability="12.0"))
    fitting = device.add(FP32)
    assert device.choose(ENGINE).engine == fitting


def test_a_damaged_engine_makes_way(device: _Device) -> None:
    folder = device.add(TENSORRT, "PASS")
    (folder / ENGINE_NAME).write_bytes(b"damaged")
    chosen = device.choose(AUTO)
    assert chosen.runner == CPU
    assert "was changed after it was built" in chosen.reason
    assert list(choose_all(device.bundle, [AUTO], RunnerOptions(cache=device.cache))) == [FP32, TENSORRT]
    with pytest.raises(EngineError, match="was changed after it was built"):
        device.choose(ENGINE)


def test_no_engine_and_an_engine_of_another_machine_are_told_apart(device: _Device) -> None:
    with pytest.raises(EngineError, match=r"has no engine of model\.int8\.tensorrt\.onnx, model\.onnx") as caught:
        device.choose(ENGINE)
    assert "edgetune build" in caught.value.hint
    device.add(TENSORRT)
    device.host = dataclasses.replace(HOST, gpu="Orin", compute_capability="8.7")
    words = "built for compute capability 8.6, and this machine has 8.7"
    with pytest.raises(EngineMismatchError, match=words):
        device.choose(ENGINE)
    chosen = device.choose(ENGINE, fallback=True)
    assert chosen.runner == CPU
    assert words in chosen.reason


def test_without_a_backend_an_engine_is_no_choice_and_no_error(
    device: _Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(_backend: str) -> EngineHost:
        raise MissingDependencyError("tensorrt is not installed for this Python.")

    device.add(TENSORRT, "PASS")
    monkeypatch.setattr(choice, "this_host", missing)
    monkeypatch.setattr(choice, "installed_backends", lambda: ("tensorrt",))
    assert device.choose(AUTO).runner == CPU
    with pytest.raises(MissingDependencyError):
        device.choose(ENGINE)
    assert device.choose(ENGINE, fallback=True).runner == CPU


def test_what_there_is_to_compare(device: _Device) -> None:
    def names(*kinds: str) -> list[str]:
        return list(choose_all(device.bundle, kinds, RunnerOptions(cache=device.cache)))

    assert names(AUTO) == [FP32, TENSORRT]
    assert names(CPU, CUDA) == [FP32, TENSORRT, f"{FP32} cuda"]
    with pytest.raises(EngineError, match="has no engine"):
        names(ENGINE)
    device.add(TENSORRT)
    assert names(AUTO) == [FP32, TENSORRT, f"{TENSORRT} engine"]
    assert names(ENGINE) == [f"{TENSORRT} engine"]
    device.host = dataclasses.replace(HOST, gpu="")
    assert names(AUTO) == [FP32, TENSORRT]
    with pytest.raises(EngineMismatchError, match="and this machine has none"):
        names(ENGINE)


@pytest.mark.parametrize(
    ("providers", "gpu", "runner", "artifact"),
    [
        (("CUDAExecutionProvider", "CPUExecutionProvider"), object(), "cuda", FP32),
        (("CUDAExecutionProvider", "CPUExecutionProvider"), None, "cpu", INT8),
        (("CPUExecutionProvider",), object(), "cpu", INT8),
    ],
    ids=["both", "no driver", "no provider"],
)
def test_cuda_is_taken_unasked_where_it_is(
    providers: tuple[str, ...], gpu: object, runner: str, artifact: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(choice, "available_providers", lambda: providers)
    monkeypatch.setattr(choice, "gpu_identity", lambda: gpu)
    monkeypatch.setattr(choice, "is_x86", lambda: True)
    monkeypatch.setattr(choice, "int8_saturates", lambda: False)
    bundle = mean_bundle(tmp_path / "b", {FP32: "PASS", INT8: "PASS"})
    found = choose(bundle, "auto", RunnerOptions(cache=tmp_path))
    assert (found.runner, found.artifact.name) == (runner, artifact)
    named = choose(bundle, INT8, RunnerOptions(cache=tmp_path))
    assert (named.runner, named.artifact.name) == ("cpu", INT8)

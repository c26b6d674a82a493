"""Which artifact of a bundle to run here, and what runs it: ONNX Runtime on a provider, or an engine of the cache."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgetune.core.bundle import FAIL, PASS, Artifact, Bundle
from edgetune.core.engine_files import check_engine, check_host, engine_cache, find_engines
from edgetune.core.engine_record import EngineRecord
from edgetune.core.errors import ArtifactError, EdgetuneError, EngineError, MissingDependencyError, UsageError
from edgetune.core.machine import is_arm64, is_x86
from edgetune.runners.cuda import gpu_identity
from edgetune.runners.ort_providers import CPU, CUDA, PROVIDERS, TENSORRT_EP, TENSORRT_RTX_EP, EpChoice
from edgetune.runners.ort_runner import available_providers, int8_saturates
from edgetune.runners.trt_library import installed_backends
from edgetune.runners.trt_runner import this_host

AUTO, ENGINE = "auto", "engine"
RUNNERS = (AUTO, *PROVIDERS, ENGINE)

_BUILD = "build one with edgetune build"
_PROVE = "edgetune parity BUNDLE --runner engine"

# Best first, for runners that are not the CPU.
_PREFERRED = {
    CUDA: ("fp32", "fp16"),
    TENSORRT_EP: ("int8", "fp16", "fp32"),
    TENSORRT_RTX_EP: ("int8", "fp16", "fp32"),
    ENGINE: ("int8", "fp16", "fp32"),
}


@dataclass(frozen=True)
class RunnerOptions:
    """`kind` is one of `RUNNERS`; `auto` takes an engine that passed parity here, else CUDA, else the CPU.

    `cache` is where engines are, None for the user's cache folder. With `fallback`, the CPU runs what `kind` cannot.
    """

    kind: str = AUTO
    threads: int | None = None
    cache: Path | None = None
    fallback: bool = False

    def __post_init__(self) -> None:
        if self.kind not in RUNNERS:
            raise UsageError(f"the runner {self.kind!r} is not known; known: {', '.join(RUNNERS)}.")


@dataclass(frozen=True)
class Choice:
    """`runner` is one of `RUNNERS` but `auto`; `engine` is the engine's folder where that is `engine`."""

    artifact: Artifact
    reason: str
    runner: str = CPU
    engine: Path | None = None


def choose(bundle: Bundle, wanted: str, options: RunnerOptions, *, allow_failed: bool = False) -> Choice:
    """The artifact named by `wanted`, or with `auto` the one expected to be fastest on the runner, of those that
    passed parity. What failed is taken only if nothing passed and `allow_failed` is set.

    Raises:
        ArtifactError: the artifact's verdict is FAIL and `allow_failed` is not set, or nothing is left.
        EngineError: no engine was built of it, for this machine, intact, and `fallback` is not set; or every such
            engine failed parity itself, and `allow_failed` is not set.
    """
    candidates = _candidates(bundle, wanted, allow_failed)
    if options.kind == AUTO:
        suited = best_first(candidates, ENGINE)
        proved, problems = find_engine(suited, options.cache, allow_failed=allow_failed, proved=True)
        if proved is not None:
            return proved
        choice = _choose_for_cuda(candidates) or _choose_for_cpu(bundle, wanted, candidates)
        return explained(choice, "an engine is there, but " + problems[0].message) if problems else choice
    if options.kind == CPU:
        return _choose_for_cpu(bundle, wanted, candidates)
    try:
        return _choose_for_gpu(bundle, wanted, candidates, options, allow_failed)
    except (EngineError, MissingDependencyError) as error:
        if not options.fallback:
            raise
        return explained(_choose_for_cpu(bundle, wanted, candidates), f"on the CPU, because {error.message}")


def explained(choice: Choice, why: str) -> Choice:
    """The choice with another half sentence of its reason."""
    return dataclasses.replace(choice, reason=f"{choice.reason}; {why}")


def _candidates(bundle: Bundle, wanted: str, allow_failed: bool) -> list[Artifact]:
    if wanted != AUTO:
        artifact = bundle.artifact(wanted)
        if artifact.verdict == FAIL and not allow_failed:
            raise ArtifactError(
                f"{artifact.name} failed parity with the PyTorch model.",
                hint="see parity.html in the bundle; --allow-failed uses it all the same",
            )
        return [artifact]
    usable = [artifact for artifact in bundle.manifest.artifacts if artifact.verdict == PASS]
    if not usable and allow_failed:
        usable = list(bundle.manifest.artifacts)
    return usable


def _choose_for_cpu(bundle: Bundle, wanted: str, candidates: Sequence[Artifact]) -> Choice:
    """INT8 for this CPU; or FP32 first, where INT8 is exact only at FP32's cost."""
    if wanted != AUTO:
        return Choice(candidates[0], "it was asked for")
    int8 = [artifact for artifact in candidates if artifact.precision == "int8" and suits_machine(artifact)]
    fp32 = [artifact for artifact in candidates if artifact.precision == "fp32"]
    if int8 and not int8_saturates():
        return Choice(int8[0], f"INT8, {int8[0].verdict}, and exact here at full speed")
    if fp32:
        return Choice(fp32[0], f"FP32, {fp32[0].verdict}; {_why_not_int8(bundle)}")
    if int8:
        return Choice(int8[0], f"INT8, {int8[0].verdict}, with exact sums; no FP32 artifact passed parity")
    raise _nothing_left(bundle, "this CPU")


def _choose_for_cuda(candidates: Sequence[Artifact]) -> Choice | None:
    """ONNX Runtime's CUDA provider, where it is installed and the driver sees a GPU. Its TensorRT providers are not
    taken unasked: they build an engine at their first start, which takes minutes.
    """
    suited = best_first(candidates, CUDA)
    if not suited or EpChoice(CUDA).ort_name not in available_providers() or gpu_identity() is None:
        return None
    return Choice(suited[0], f"{suited[0].precision.upper()}, {suited[0].verdict}, on the GPU", CUDA)


def _choose_for_gpu(
    bundle: Bundle, wanted: str, candidates: Sequence[Artifact], options: RunnerOptions, allow_failed: bool
) -> Choice:
    suited = list(candidates) if wanted != AUTO else best_first(candidates, options.kind)
    if not suited:
        raise _nothing_left(bundle, options.kind)
    if options.kind != ENGINE:
        return Choice(suited[0], f"{suited[0].precision.upper()}, {suited[0].verdict}", options.kind)
    found, problems = find_engine(suited, options.cache, allow_failed=allow_failed)
    if found is not None:
        return found
    if problems:
        raise problems[0]
    names = ", ".join(artifact.name for artifact in suited)
    raise EngineError(
        f"the engine cache {engine_cache(options.cache)} has no engine of {names}.",
        hint=f"build one with edgetune build {bundle.path}",
    )


def best_first(artifacts: Sequence[Artifact], kind: str) -> list[Artifact]:
    """The artifacts that a runner other than the CPU is good for, the one expected to be fastest first."""
    order = _PREFERRED[kind]
    suited = [artifact for artifact in artifacts if suits_runner(artifact, kind)]
    return sorted(suited, key=lambda artifact: order.index(artifact.precision))


def suits_runner(artifact: Artifact, kind: str) -> bool:
    """Whether a runner takes the artifact's operators as they are meant: Q/DQ placement differs between targets."""
    if kind == CPU:
        return suits_machine(artifact)
    if artifact.precision not in _PREFERRED[kind]:
        return False
    return artifact.precision != "int8" or artifact.target == "tensorrt"


def suits_machine(artifact: Artifact) -> bool:
    """Whether the artifact is made for this CPU, and so computes correctly on it at its speed.

    INT8 for x86 is right on every x86: where u8 x s8 sums would saturate, the runner has them added exactly.
    TensorRT's INT8 and FP16 graphs never suit a CPU, which takes most of them as slow float.
    """
    return artifact.precision == "fp32" or runs_here(artifact.target)


def runs_here(target: str) -> bool:
    """Whether this machine's CPU is one that the target's INT8 graphs are made for."""
    return (target == "cpu-x86" and is_x86()) or (target == "cpu-arm" and is_arm64())


def find_engine(
    artifacts: Sequence[Artifact], cache: Path | None, *, allow_failed: bool, proved: bool = False
) -> tuple[Choice | None, list[EdgetuneError]]:
    """The newest intact engine for this machine of the first artifact that has one, and what is wrong with the others.

    With `proved` only engines that passed parity on this very machine count: neither the verdict of another GPU, which
    comes along when the cache is copied, nor of another driver says that an engine is right here.
    """
    problems: list[EdgetuneError] = []
    for artifact in artifacts:
        for folder, record in find_engines(engine_cache(cache), artifact.sha256):
            problem = _problem(folder, record, allow_failed=allow_failed, proved=proved)
            if problem is None:
                reason = "an engine that passed parity on this machine" if proved else f"the engine {folder.name}"
                return Choice(artifact, reason, ENGINE, folder), problems
            problems.append(problem)
    return None, problems


def _problem(folder: Path, record: EngineRecord, *, allow_failed: bool, proved: bool) -> EdgetuneError | None:
    """Why an engine cannot or must not run here; None where it may."""
    backend, parity = record.key.host.backend, record.parity
    unproved = EngineError(f"the engine {folder.name} has not passed parity on this machine.", hint=_PROVE)
    if proved and (parity is None or parity.verdict != PASS):
        return unproved  # before the library is loaded, which takes a second
    try:
        host = this_host(backend if backend in installed_backends() else AUTO)
        check_host(record.key, host)
        check_engine(folder)
    except (EngineError, MissingDependencyError) as error:
        return error
    if parity is not None and parity.verdict == FAIL and not allow_failed:
        return EngineError(
            f"the engine {folder.name} failed parity with the PyTorch model.",
            hint="--allow-failed uses it all the same",
        )
    return unproved if proved and parity is not None and parity.host != host else None


def choose_all(bundle: Bundle, kinds: Sequence[str], options: RunnerOptions) -> dict[str, Choice]:
    """What there is to compare, by a name for each: on the CPU every artifact, elsewhere those made for it.

    `auto` is the CPU, and every engine of the cache that fits this machine.

    Raises:
        EngineError: engines were asked for, and none fits this machine.
    """
    found = []
    for kind in dict.fromkeys(kinds):
        if kind in (AUTO, CPU):
            found += [Choice(artifact, "", CPU) for artifact in bundle.manifest.artifacts]
        if kind in (AUTO, ENGINE):
            found += _all_engines(bundle, options.cache, must_exist=kind == ENGINE)
        if kind not in (AUTO, CPU, ENGINE):
            found += [Choice(artifact, "", kind) for artifact in best_first(bundle.manifest.artifacts, kind)]
    names = [
        choice.artifact.name if choice.runner == CPU else f"{choice.artifact.name} {choice.runner}" for choice in found
    ]
    return dict(zip(names, found, strict=True))


def _all_engines(bundle: Bundle, cache: Path | None, *, must_exist: bool) -> list[Choice]:
    """Engines that failed among them: they are here to be judged or timed, not to be used."""
    suited = best_first(bundle.manifest.artifacts, ENGINE)
    searched = [find_engine([artifact], cache, allow_failed=True) for artifact in suited]
    found = [choice for choice, _ in searched if choice is not None]
    problems = [problem for _, several in searched for problem in several]
    if must_exist and not found:
        nothing = EngineError(f"the engine cache {engine_cache(cache)} has no engine of {bundle.path}.", hint=_BUILD)
        raise problems[0] if problems else nothing
    return found


def _nothing_left(bundle: Bundle, where: str) -> ArtifactError:
    verdicts = ", ".join(f"{artifact.name}: {artifact.verdict}" for artifact in bundle.manifest.artifacts)
    return ArtifactError(
        f"{bundle.path} has no artifact for {where} that passed parity ({verdicts}).",
        hint="--allow-failed uses one all the same",
    )


def _why_not_int8(bundle: Bundle) -> str:
    int8 = [artifact for artifact in bundle.manifest.artifacts if artifact.precision == "int8"]
    if not int8:
        return "the bundle has no INT8 artifact"
    here = [artifact for artifact in int8 if suits_machine(artifact)]
    if not here:
        return f"the bundle has INT8 for {', '.join(artifact.target for artifact in int8)}, not for this CPU"
    if all(artifact.verdict != PASS for artifact in here):
        return f"INT8 is {here[0].verdict}"
    return "INT8 is right here too, but about as slow: this CPU has no VNNI"

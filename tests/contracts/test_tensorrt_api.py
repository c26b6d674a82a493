"""Every name of TensorRT that edgetune uses exists in the real bindings of each version that it supports.

TensorRT itself is not here and takes a GPU; its bindings show which names there are. What edgetune decides from
those names alone is decided here with each of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from edgetune.core.engine_record import TENSORRT_RTX
from tests.contracts.tensorrt_bindings import VERSIONS, Bindings, BindingsCache, ask
from tests.contracts.tensorrt_uses import OWN, Uses, listed, names_of_objects, uses_of_edgetune

# Used where the library is TensorRT-RTX; TensorRT has none of them.
_RTX_ONLY = ("ComputeCapability", "IBuilderConfig.set_compute_capability", "IBuilderConfig.num_compute_capabilities")

_TEN = {"10.3.0", "10.13.3.9", "10.16.1.11"}
_ALL = {bindings.version for bindings in VERSIONS}
# The versions that have what others lack: the code may ask for these names, and must not need them.
_LACKED = {
    "BuilderFlag.FP16": _TEN,
    "BuilderFlag.INT8": _TEN,
    "IInt8EntropyCalibrator2": _TEN,
    "NetworkDefinitionCreationFlag.EXPLICIT_BATCH": _TEN,
    "HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY": _ALL - {"10.3.0"},
}

_DUMP = """
def describe(member):
    return {"settable": getattr(member, "fset", None) is not None, "doc": getattr(member, "__doc__", None) or ""}

classes = {name: value for name, value in vars(trt).items() if isinstance(value, type)}
answer = {
    "names": dir(trt),
    "classes": {name: {member: describe(getattr(value, member)) for member in dir(value)}
                for name, value in classes.items()},
    "values": {f"{name}.{member}": int(item) for name, value in classes.items()
               for member, item in getattr(value, "__members__", {}).items()},
}
"""


@dataclass(frozen=True)
class Api:
    """What one version offers; `classes` describes the members of each class."""

    bindings: Bindings
    folder: Path
    names: set[str] = field(repr=False)
    classes: dict[str, dict[str, dict[str, Any]]] = field(repr=False)
    values: dict[str, int] = field(repr=False)

    def has(self, name: str) -> bool:
        first, _, member = name.partition(".")
        return first in self.names and (not member or member in self.classes.get(first, {}))

    def member(self, owner: str, name: str) -> dict[str, Any]:
        return self.classes[owner][name]

    def missing(self, names: Iterable[str]) -> list[str]:
        return sorted(name for name in names if not self.has(name) and self._expects(name))

    def _expects(self, name: str) -> bool:
        rtx_only = name in _RTX_ONLY or name.partition(".")[0] in _RTX_ONLY
        return self.bindings.backend == TENSORRT_RTX or not rtx_only

    def ask(self, program: str, hidden: tuple[str, ...] = ()) -> Any:
        return ask(self.folder, self.bindings.backend, program, hidden)


@pytest.fixture(scope="module")
def cache() -> BindingsCache:
    return BindingsCache()


@pytest.fixture(scope="module", params=VERSIONS, ids=str)
def api(request: pytest.FixtureRequest, cache: BindingsCache) -> Api:
    bindings: Bindings = request.param
    folder = cache.folder(bindings)
    answer = ask(folder, bindings.backend, _DUMP)
    return Api(bindings, folder, set(answer["names"]), answer["classes"], answer["values"])


def test_every_name_that_the_code_uses_exists(api: Api) -> None:
    uses = uses_of_edgetune()
    assert {"Builder", "OnnxParser", "IProgressMonitor", "__version__", "BuilderFlag.VERSION_COMPATIBLE"} <= uses.direct
    assert api.missing(uses.direct) == []


def test_every_name_that_is_reached_through_an_object_exists(api: Api) -> None:
    assert api.missing(names_of_objects() - _LACKED.keys()) == []


def test_what_a_version_lacks_is_only_asked_for(api: Api) -> None:
    """The table says it for each version, so that it shows why the code decides by name."""
    lacked = {name: api.bindings.version in versions for name, versions in _LACKED.items()}
    assert {name: api.has(name) for name in _LACKED} == lacked
    assert api.missing(uses_of_edgetune().asked - _LACKED.keys()) == []


def test_only_tensorrt_for_rtx_compiles_for_gpus_that_are_not_here(api: Api) -> None:
    assert [api.has(name) for name in _RTX_ONLY] == [api.bindings.backend == TENSORRT_RTX] * len(_RTX_ONLY)


def test_the_same_name_has_another_number(api: Api) -> None:
    """A number from version 10 means something else in 11: VERSION_COMPATIBLE's is then EXCLUDE_LEAN_RUNTIME's."""
    weakly_typed = api.bindings.version in _TEN
    names = ("NetworkDefinitionCreationFlag.STRONGLY_TYPED", "BuilderFlag.VERSION_COMPATIBLE")
    assert [api.values[name] for name in names] == ([1, 13] if weakly_typed else [0, 12])


def test_the_table_of_objects_leaves_no_name_out(api: Api) -> None:
    """A failure here wants the name in `OBJECTS`, or in `OWN` where it belongs to an object of the code."""
    known = {member for members in api.classes.values() for member in members if not member.startswith("__")}
    in_table = {name.rpartition(".")[2] for name in names_of_objects()}
    assert sorted(uses_of_edgetune().members & known - in_table - OWN) == []


def test_the_table_of_objects_lists_what_the_code_uses() -> None:
    """Also finds a name that is misspelt in the code, on an object that could be anything."""
    uses = uses_of_edgetune()
    in_table = {name for name in names_of_objects() if name.rpartition(".")[2].islower()}
    assert sorted(name for name in in_table if name.rpartition(".")[2] not in uses.members | uses.defined) == []


def test_what_the_code_assigns_can_be_assigned(api: Api) -> None:
    assigned = [entry for name in uses_of_edgetune().assigned for entry in listed(name)]
    assert {("Builder", "max_threads"), ("IBuilderConfig", "profiling_verbosity")} <= set(assigned)
    existing = [(owner, name) for owner, name in assigned if api.has(f"{owner}.{name}")]
    assert [entry for entry in existing if not api.member(*entry)["settable"]] == []


def test_keyword_arguments_are_known(api: Api) -> None:
    uses = [(entry, keyword) for name, keyword in uses_of_edgetune().keywords for entry in listed(name)]
    assert (("IBuilderConfig", "set_timing_cache"), "ignore_mismatch") in uses
    assert [(entry, keyword) for entry, keyword in uses if f" {keyword}: " not in api.member(*entry)["doc"]] == []


_PLANTED = """
def use(trt, library, config):
    trt.Builder(library.module.NoSuchLogger()).max_threads = 1
    self._trt.BuilderFlag.FP16
    hasattr(trt, "NoSuchClass") or getattr(library.module.BuilderFlag, "FP61", None)
    config.set_flag(flag=trt.Builder.no_such_method)
"""


def test_the_names_of_a_source_are_found_and_missed(api: Api) -> None:
    uses = Uses().read(_PLANTED)
    assert uses.direct == {"Builder", "NoSuchLogger", "BuilderFlag.FP16", "BuilderFlag", "Builder.no_such_method"}
    assert uses.asked == {"NoSuchClass", "BuilderFlag.FP61"}
    assert (uses.members - {"_trt"}, uses.defined) == ({"module", "max_threads", "set_flag"}, {"use"})
    assert (uses.assigned, uses.keywords) == ({"max_threads"}, {("set_flag", "flag")})
    lost = [] if api.bindings.version in _TEN else ["BuilderFlag.FP16"]
    assert api.missing(uses.direct | uses.asked) == sorted(
        ["Builder.no_such_method", "BuilderFlag.FP61", "NoSuchClass", "NoSuchLogger", *lost]
    )


# What follows runs edgetune's own code on the real bindings: whatever needs their names and none of their objects.

_LOAD = """
said = []
logger = library_logger(library, lambda *message: said.append(message))
logger.log(trt.ILogger.Severity.WARNING, "a message")
answer = [library.name, library.version, library.is_rtx, trt.__name__, said]
"""


def test_the_library_loads_under_either_name_and_python_ends_well(api: Api) -> None:
    bindings = api.bindings
    for module, hidden in ((bindings.module, ()), (f"{bindings.module}_bindings", (bindings.module,))):
        rtx = bindings.backend == TENSORRT_RTX
        assert api.ask(_LOAD, hidden) == [bindings.backend, bindings.version, rtx, module, [["WARNING", "a message"]]]


_DECIDE = """
from types import SimpleNamespace
from edgetune.core.engine_record import BuildOptions
from edgetune.core.errors import UsageError
from edgetune.engine.backend import EngineBuilder, check_options, known_targets

def refuses(**options):
    try:
        check_options(library, BuildOptions(**options))
    except UsageError:
        return True
    return False

answer = {
    "targets": known_targets(library),
    "flags": EngineBuilder._network_flags(SimpleNamespace(_trt=trt)),
    "refuses targets": refuses(targets=("sm86",)),
    "refuses version_compatible": refuses(version_compatible=True),
    "refuses ampere-plus": refuses(hardware_compatible="ampere-plus"),
    "refuses same-compute-capability": refuses(hardware_compatible="same-compute-capability"),
}
"""


def test_the_adapter_decides_by_what_the_version_has(api: Api) -> None:
    """Version 10 alone is told to be strongly typed, by bit 1: in later ones nothing else is left."""
    rtx = api.bindings.backend == TENSORRT_RTX
    assert api.ask(_DECIDE) == {
        "targets": ["sm75", "sm80", "sm86", "sm89", "sm120", "sm121"] if rtx else [],
        "flags": 0b10 if api.bindings.version in _TEN else 0,
        "refuses targets": not rtx,
        "refuses version_compatible": rtx,
        "refuses ampere-plus": rtx,
        "refuses same-compute-capability": rtx or api.bindings.version == "10.3.0",
    }


_WATCH = """
from edgetune.core.errors import EngineError
from edgetune.engine.backend import EngineBuilder, _make_monitor
from edgetune.runners.trt_log import LogRecorder

fractions = []
monitor = _make_monitor(trt, fractions.append)
monitor.phase_start("build", None, 2)
goes_on = monitor.step_complete("build", 0)
monitor.phase_finish("build")
try:
    EngineBuilder(library, LogRecorder(), 1)
except EngineError as error:
    answer = [isinstance(monitor, trt.IProgressMonitor), goes_on, fractions, error.message]
"""


def test_the_monitor_is_one_and_a_library_without_a_builder_is_an_error(api: Api) -> None:
    """The stand-in makes no builder, as the library does on a machine without a GPU."""
    message = f"{api.bindings} cannot build here: the library gave no reason."
    assert api.ask(_WATCH) == [True, True, [0.5], message]

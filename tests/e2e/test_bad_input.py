"""Bad input, each with one clear line, the right exit code, and nothing half written."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from edgetune.core.bundle import load_bundle
from edgetune.core.errors import BundleError
from edgetune.core.run import load_run

pytestmark = pytest.mark.e2e
torch = pytest.importorskip("torch")


def edgetune(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgetune.cli.main", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def _check_refused(done: subprocess.CompletedProcess[str], words: str, exit_code: int = 1) -> None:
    assert done.returncode == exit_code, done.stderr
    first = done.stderr.splitlines()[0]
    assert first.startswith("error: ")
    assert words in first
    assert "Traceback" not in done.stderr


def _leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def _empty(folder: Path) -> None:
    folder.mkdir()


def _one_class(folder: Path) -> None:
    (folder / "cats").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(folder / "cats" / "tom.png")


def _only_text(folder: Path) -> None:
    for name in ("cats", "dogs"):
        (folder / name).mkdir(parents=True)
        for index in range(20):
            (folder / name / f"{index}.jpg").write_text(f"not an image {name} {index}")


def _empty_class(folder: Path) -> None:
    _one_class(folder)
    (folder / "dogs").mkdir()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (_empty, "holds no class folders"),
        (_one_class, "holds one class only, 'cats'"),
        (_empty_class, "no images in the class folders dogs"),
        (_only_text, "none of 40 images could be read"),
    ],
    ids=["empty folder", "one class", "an empty class", "text named .jpg"],
)
def test_folders_that_cannot_train(make: Callable[[Path], None], words: str, tmp_path: Path) -> None:
    make(tmp_path / "data")
    _check_refused(edgetune("fit", tmp_path / "data", "--out", tmp_path / "run"), words)
    assert _leftovers(tmp_path) == ["data"]


def test_a_missing_weights_file(photos: Path, tmp_path: Path) -> None:
    done = edgetune("fit", photos, "--out", tmp_path / "run", "--weights", tmp_path / "no.pth")
    _check_refused(done, "no.pth does not exist")


def test_a_truncated_weights_file(photos: Path, tmp_path: Path) -> None:
    from edgetune.models.weights import find_published_weights

    content = find_published_weights("efficientnet_lite0").read_bytes()
    (tmp_path / "cut.pth").write_bytes(content[: len(content) // 2])
    done = edgetune("fit", photos, "--out", tmp_path / "run", "--weights", tmp_path / "cut.pth")
    _check_refused(done, "cannot be read; it is damaged, cut short")
    assert _leftovers(tmp_path) == ["cut.pth"]


def test_weights_of_another_architecture(photos: Path, tmp_path: Path) -> None:
    import torchvision

    torch.save(torchvision.models.squeezenet1_1(weights=None).state_dict(), tmp_path / "squeeze.pth")
    done = edgetune("fit", photos, "--out", tmp_path / "run", "--weights", tmp_path / "squeeze.pth")
    _check_refused(done, "does not fit efficientnet_lite0")


def test_damaged_images_are_named_skipped_and_counted(photos: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(photos, data)
    whole = min((data / "0").iterdir()).read_bytes()
    (data / "0" / "cut.png").write_bytes(whole[: len(whole) // 2])
    Image.new("RGB", (64, 64), "red").save(data / "1" / "cut.jpg")
    (data / "1" / "cut.jpg").write_bytes((data / "1" / "cut.jpg").read_bytes()[:-200])
    (data / "7" / "text.jpg").write_text("this is a letter, not a photo")
    done = edgetune("fit", data, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert "skipped 3 file(s):" in done.stderr
    for name in ("0/cut.png", "1/cut.jpg", "7/text.jpg"):
        assert name in done.stderr
    run = load_run(tmp_path / "run")
    assert len(run.split.skipped) == 3
    assert len(run.split.train) + len(run.split.val) == 60


def test_an_existing_output_is_refused_before_any_work(small_run: Path, photos: Path, small_bundle: Path) -> None:
    before = (small_run / "run.json").read_bytes()
    start = time.monotonic()
    _check_refused(edgetune("fit", photos, "--out", small_run), "exists already")
    _check_refused(edgetune("export", small_run, "--out", small_bundle), "exists already")
    assert time.monotonic() - start < 60
    assert (small_run / "run.json").read_bytes() == before


def test_a_killed_export_leaves_nothing_and_runs_again(small_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    command = [sys.executable, "-m", "edgetune.cli.main", "export", str(small_run), "--out", str(out), "--int8"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob(".bundle.*.partial/model.onnx")):  # the first artifact is there, the others are not
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not out.exists()
    assert len(_leftovers(tmp_path)) == 1
    again = edgetune("export", small_run, "--out", out)
    assert again.returncode == 0, again.stderr
    assert _leftovers(tmp_path) == ["bundle"]
    load_bundle(out)


def test_one_changed_byte_anywhere_stops_every_command(small_bundle: Path, photos: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(small_bundle, bundle)
    image = next((photos / "7").iterdir())
    for name in ("manifest.json", "model.onnx", "model.int8.cpu-x86.onnx", "golden/golden.npz", "reference.npz"):
        original = (bundle / name).read_bytes()
        changed = bytearray(original)
        changed[len(changed) // 2] ^= 1
        (bundle / name).write_bytes(changed)
        with pytest.raises(BundleError):
            load_bundle(bundle)
        if name in {"manifest.json", "model.onnx"}:
            for words in (("predict", bundle, image), ("serve", bundle), ("parity", bundle), ("bench", bundle)):
                done = edgetune(*words)
                assert done.returncode == 1, done.stderr
                assert done.stderr.startswith("error: ")
                assert len(done.stderr.strip().splitlines()) <= 2
        (bundle / name).write_bytes(original)
    load_bundle(bundle)


def test_an_artifact_that_failed_parity_is_not_used_unless_told_to(
    small_bundle: Path, photos: Path, tmp_path: Path
) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(small_bundle, bundle)
    _mark_failed(bundle, {"model.int8.cpu-x86.onnx"})
    image = next((photos / "7").iterdir())
    assert "model.onnx" in edgetune("predict", bundle, image, "--json").stdout
    for command in (("predict", bundle, image), ("serve", bundle)):
        refused = edgetune(*command, "--artifact", "model.int8.cpu-x86.onnx")
        _check_refused(refused, "model.int8.cpu-x86.onnx failed parity")
    told = edgetune("predict", bundle, image, "--artifact", "model.int8.cpu-x86.onnx", "--allow-failed")
    assert told.returncode == 0
    _mark_failed(bundle, {"model.onnx", "model.int8.cpu-x86.onnx"})
    _check_refused(edgetune("serve", bundle), "no artifact for this CPU that passed parity")


def _mark_failed(bundle: Path, names: set[str]) -> None:
    import dataclasses

    from edgetune.core.bundle import write_manifest

    manifest = load_bundle(bundle).manifest
    artifacts = tuple(
        dataclasses.replace(a, verdict="FAIL" if a.name in names else a.verdict) for a in manifest.artifacts
    )
    write_manifest(bundle, dataclasses.replace(manifest, artifacts=artifacts))


def test_a_server_refuses_a_model_that_computes_something_else(small_bundle: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(small_bundle, bundle)
    _scale_head(bundle)
    _check_refused(edgetune("serve", bundle, "--artifact", "model.onnx"), "gives other answers on this machine")


def test_a_port_that_is_taken(small_bundle: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = edgetune("serve", small_bundle, "--port", str(taken.getsockname()[1]))
    _check_refused(done, "cannot be bound")


def test_validation_images_that_changed_after_the_fit_stop_the_export(photos: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(photos, data)
    assert edgetune("fit", data, "--out", tmp_path / "run").returncode == 0
    victim = data / load_run(tmp_path / "run").split.val[0].path
    victim.write_bytes(next((data / "7").iterdir()).read_bytes() + b"x")
    _check_refused(edgetune("export", tmp_path / "run", "--out", tmp_path / "b"), "1 of the run's")
    victim.unlink()
    _check_refused(edgetune("export", tmp_path / "run", "--out", tmp_path / "b"), "missing or were changed")
    shutil.rmtree(data)
    moved = edgetune("export", tmp_path / "run", "--out", tmp_path / "b", "--int8")
    _check_refused(moved, "no longer at")
    assert "--data DIR" in moved.stderr
    assert _leftovers(tmp_path) == ["run"]


def test_an_output_inside_the_images_is_refused(photos: Path) -> None:
    _check_refused(edgetune("fit", photos, "--out", photos / "runs" / "x"), "lies inside the images' folder", 2)


def test_a_parity_report_never_lands_in_a_bundle(small_bundle: Path, photos: Path) -> None:
    _check_refused(edgetune("parity", small_bundle, "--out", small_bundle, "--force"), "a bundle never changes")
    load_bundle(small_bundle)


def test_a_gate_that_fails_exits_3_and_keeps_the_bundle(small_run: Path, tmp_path: Path) -> None:
    """A model that is off by one part in a hundred is no longer the PyTorch model, however it was labelled."""
    from edgetune.core.files import sha256_of_file
    from edgetune.steps.export import ExportOptions, export
    from edgetune.steps.parity import ParityOptions, parity

    bundle = export(small_run, tmp_path / "bundle", ExportOptions()).bundle_path
    report = parity(bundle, None, ParityOptions())
    assert report.verdict == "PASS"
    tampered = tmp_path / "tampered"
    shutil.copytree(bundle, tampered)
    _scale_head(tampered)
    done = edgetune("parity", tampered)
    assert done.returncode == 3, done.stderr
    assert "parity: FAIL" in done.stdout
    assert "SQNR" in done.stdout
    assert sha256_of_file(tampered / "model.onnx") != sha256_of_file(bundle / "model.onnx")


def _scale_head(bundle: Path) -> None:
    """Makes the bundle's model wrong by one part in a hundred, and its manifest consistent with that."""
    import dataclasses

    import onnx
    from onnx import numpy_helper

    from edgetune.core.bundle import write_manifest
    from edgetune.core.files import sha256_of_file

    manifest = load_bundle(bundle).manifest
    model = onnx.load(bundle / "model.onnx")
    for entry in model.graph.initializer:
        if entry.name == "head.weight":
            entry.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(entry) * 1.01, entry.name))
    onnx.save(model, bundle / "model.onnx")
    digest = sha256_of_file(bundle / "model.onnx")
    artifacts = tuple(
        dataclasses.replace(a, sha256=digest) if a.name == "model.onnx" else a for a in manifest.artifacts
    )
    write_manifest(bundle, dataclasses.replace(manifest, artifacts=artifacts))


def test_a_full_disk_leaves_no_bundle(small_run: Path, tmp_path: Path) -> None:
    """Files are limited to 1 MB: the first model cannot be written."""
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000));"
        "from edgetune.cli.main import main; main(sys.argv[1:])"
    )
    command = [sys.executable, "-c", code, "export", str(small_run), "--out", str(tmp_path / "bundle")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=dict(os.environ))
    _check_refused(done, "could not be written, and nothing was left half done")
    assert _leftovers(tmp_path) == []

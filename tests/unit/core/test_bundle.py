from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgetune.core.bundle import MANIFEST_NAME, Artifact, Manifest, RunOrigin, load_bundle, write_manifest
from edgetune.core.errors import ArtifactError, BundleError
from edgetune.core.preprocess import PreprocessSpec

FILES = {
    "model.onnx": b"the graph and its weights",
    "labels.txt": b"ant\nbee\n",
    "golden/0.jpg": b"one image",
}


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _manifest() -> Manifest:
    model = FILES["model.onnx"]
    return Manifest(
        schema_version=1,
        task="classification",
        classes=("ant", "bée"),
        preprocess=PreprocessSpec(256, 224, "bicubic", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        run=RunOrigin("/runs/one", "1" * 64),
        backbone="net",
        edgetune_version="0.1.0",
        created="2026-01-02T03:04:05+00:00",
        artifacts=(Artifact("model.onnx", "classifier", "fp32", "any", _sha256(model), len(model), "PASS", 0.9375),),
        files={},
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "bundle"
    for name, data in FILES.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    write_manifest(path, _manifest())
    return path


def _content(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / MANIFEST_NAME).read_bytes())
    return content


def _sign(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Rewrites the manifest with a digest that fits, as somebody would who knows the format."""
    content = _content(folder)
    del content["digest"]
    change(content)
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    content["digest"] = _sha256(canonical.encode(errors="surrogatepass"))
    pretty = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    (folder / MANIFEST_NAME).write_bytes(pretty.encode(errors="surrogatepass"))


def test_a_bundle_comes_back_as_it_was_written(folder: Path) -> None:
    bundle = load_bundle(folder)
    assert bundle.path == folder
    assert bundle.manifest.classes == ("ant", "bée")
    assert bundle.manifest.preprocess == _manifest().preprocess
    assert bundle.artifact("model.onnx") == _manifest().artifacts[0]


def test_a_threshold_comes_back_and_without_one_the_manifest_is_as_it_always_was(folder: Path) -> None:
    assert load_bundle(folder).manifest.reject_below is None
    assert "reject_below" not in _content(folder)
    write_manifest(folder, dataclasses.replace(_manifest(), reject_below=0.625))
    assert load_bundle(folder).manifest.reject_below == 0.625
    assert _content(folder)["reject_below"] == 0.625


@pytest.mark.parametrize("value", ["0.5", True, [0.5]])
def test_a_threshold_that_is_no_number_is_refused(folder: Path, value: object) -> None:
    _sign(folder, lambda content: content.update(reject_below=value))
    with pytest.raises(BundleError, match="reject_below"):
        load_bundle(folder)


def test_the_manifest_lists_every_other_file_with_size_and_sha256(folder: Path) -> None:
    expected = {name: {"sha256": _sha256(data), "size_bytes": len(data)} for name, data in FILES.items()}
    assert _content(folder)["files"] == expected


def test_the_digest_is_the_sha256_of_the_rest_in_canonical_json(folder: Path) -> None:
    before = (folder / MANIFEST_NAME).read_bytes()
    _sign(folder, lambda content: content)
    assert (folder / MANIFEST_NAME).read_bytes() == before


def test_an_unknown_artifact_is_refused_with_those_there_are(folder: Path) -> None:
    with pytest.raises(ArtifactError, match=r"has no artifact 'model\.plan'") as caught:
        load_bundle(folder).artifact("model.plan")
    assert caught.value.hint == "it has: model.onnx"


@pytest.mark.parametrize("path", ["", "gone"], ids=["empty folder", "no folder"])
def test_a_folder_without_a_manifest_is_no_bundle(tmp_path: Path, path: str) -> None:
    with pytest.raises(BundleError, match=r"is not a bundle: it has no manifest\.json") as caught:
        load_bundle(tmp_path / path)
    assert "edgetune export" in caught.value.hint


@pytest.mark.parametrize("mask", [0x01, 0x20, 0xFF], ids=["low bit", "case bit", "all bits"])
@pytest.mark.parametrize("name", [*FILES, MANIFEST_NAME])
def test_one_changed_byte_anywhere_is_noticed(folder: Path, name: str, mask: int) -> None:
    path = folder / name
    data = path.read_bytes()
    for offset in range(0, len(data), 5 if name == MANIFEST_NAME else 1):
        path.write_bytes(data[:offset] + bytes([data[offset] ^ mask]) + data[offset + 1 :])
        with pytest.raises(BundleError):
            load_bundle(folder)
    path.write_bytes(data)
    load_bundle(folder)


def test_a_changed_file_is_named(folder: Path) -> None:
    (folder / "labels.txt").write_bytes(b"ant\nwasp\n")
    with pytest.raises(
        BundleError, match=r"labels\.txt was changed after it was written: 9 bytes .*\(8 bytes\)"
    ) as caught:
        load_bundle(folder)
    assert "copy the bundle again" in caught.value.hint


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(BundleError, match=f"lacks {name}, which its manifest lists"):
        load_bundle(folder)


@pytest.mark.parametrize("name", ["extra.txt", "golden/extra.jpg", ".hidden"])
def test_an_extra_file_is_named(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"")
    with pytest.raises(BundleError, match=f"holds files that its manifest does not list: {name}"):
        load_bundle(folder)


def test_a_link_to_the_same_content_is_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "labels.txt").rename(tmp_path / "elsewhere")
    (folder / "labels.txt").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match=r"symbolic links, which a bundle never has: labels\.txt"):
        load_bundle(folder)


def test_a_linked_folder_with_the_same_content_is_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "golden").rename(tmp_path / "elsewhere")
    (folder / "golden").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match="symbolic links"):
        load_bundle(folder)


@pytest.mark.parametrize("target", ["nowhere", "folder"])
def test_an_extra_link_is_refused(folder: Path, tmp_path: Path, target: str) -> None:
    (tmp_path / "folder").mkdir()
    (folder / "link").symlink_to(tmp_path / target)
    with pytest.raises(BundleError, match="symbolic links, which a bundle never has: link"):
        load_bundle(folder)


@pytest.mark.parametrize(
    "name", ["../outside", "golden/../../outside", "ABSOLUTE"], ids=["up", "down and up", "absolute"]
)
def test_a_name_that_leaves_the_bundle_is_refused(folder: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "outside").write_bytes(b"x")
    listed = name.replace("ABSOLUTE", str(tmp_path / "outside"))
    _sign(folder, lambda content: content["files"].update({listed: {"sha256": _sha256(b"x"), "size_bytes": 1}}))
    with pytest.raises(BundleError, match=r"lacks .*outside, which its manifest lists"):
        load_bundle(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda content: content.update(schema_version=2), "has schema version 2, this edgetune reads 1"),
        (lambda content: content.pop("schema_version"), "has schema version None"),
        (lambda content: content.update(schema_version=True), "schema_version is True"),
        (lambda content: content.update(note="hello"), r"damaged.*unknown keys \['note'\]"),
        (lambda content: content["artifacts"][0].update(note="hello"), r"damaged.*unknown keys \['note'\]"),
        (lambda content: content.pop("classes"), r"damaged.*lacks \['classes'\]"),
        (lambda content: content.update(classes="ab"), "damaged.*classes is 'ab'"),
        (lambda content: content["files"]["model.onnx"].update(size_bytes="1"), "damaged.*size_bytes is '1'"),
        (lambda content: content["preprocess"].update(crop_size=0), "damaged.*crop_size is 0 px"),
        (lambda content: content["artifacts"][0].update(name="other"), "artifact 'other' is not among its files"),
        (
            lambda content: content["artifacts"][0].update(sha256="0" * 64),
            r"artifact 'model\.onnx' is not among its files",
        ),
        (lambda content: content["artifacts"][0].update(accuracy=float("nan")), "damaged"),
        (lambda content: content["files"].update({"x" * 300: {"sha256": "", "size_bytes": 0}}), "lacks x|damaged"),
    ],
    ids=[
        "newer version",
        "no version",
        "version true",
        "unknown key",
        "unknown key of an artifact",
        "missing key",
        "text for a list",
        "text for a number",
        "impossible crop",
        "unlisted artifact",
        "artifact of other bytes",
        "accuracy NaN",
        "name longer than file systems take",
    ],
)
def test_a_manifest_that_is_signed_but_wrong_is_refused(
    folder: Path, change: Callable[[dict[str, Any]], object], words: str
) -> None:
    _sign(folder, change)
    with pytest.raises(BundleError, match=words):
        load_bundle(folder)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"null",
        b"{",
        b"\xff\xfe",
        b'{"schema_version": 1}',
        b'{"schema_version": 1, "a": "\\ud800"}',
        b"[" * 100_000,
    ],
    ids=["empty", "list", "null", "cut off", "not UTF-8", "version only", "half a surrogate pair", "nested too deep"],
)
def test_a_manifest_that_is_no_manifest_is_refused(folder: Path, data: bytes) -> None:
    (folder / MANIFEST_NAME).write_bytes(data)
    with pytest.raises(BundleError, match=r"damaged|was changed|not a JSON object|schema version None"):
        load_bundle(folder)


def test_a_manifest_spelled_otherwise_is_refused(folder: Path) -> None:
    data = (folder / MANIFEST_NAME).read_bytes()
    (folder / MANIFEST_NAME).write_bytes(data.replace(b"\n", b"\r\n"))
    with pytest.raises(
        BundleError, match=r"manifest\.json was changed after it was written: its digest does not match"
    ):
        load_bundle(folder)

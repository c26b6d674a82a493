from __future__ import annotations

import os
import pwd
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from edgetune.core import anonymous as module
from edgetune.core.anonymous import Identity, anonymous, names_below, this_identity, without_names

IDENTITY = Identity(
    {"mustermann": "<user>", "cam-17": "<host>", "cam-17.lab.example": "<host>"},
    {"/home/mustermann": "~", "/home/mustermann/b": "<bundle>", "/media/Jane Doe/photos": "<data>"},
)


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("nothing of anybody", "nothing of anybody"),
        ("/home/mustermann/b/model.onnx was changed", "<bundle>/model.onnx was changed"),
        ("/home/mustermann/bees/7.png", "~/<folder>/7.png"),
        ("no /home/mustermann/a/b/7.png: gone", "no ~/<folder>/7.png: gone"),
        ("/home/mustermann", "~"),
        ("'/media/Jane Doe/photos/7' is empty", "'<data>/7' is empty"),
        ("no /srv/jane/models/a.onnx here", "no <folder>/a.onnx here"),
        ("(/opt/jane/a.so: no such file)", "(<folder>/a.so: no such file)"),
        ("/usr/lib/aarch64-linux-gnu/libnvinfer.so.10", "/usr/lib/aarch64-linux-gnu/libnvinfer.so.10"),
        ("rights on /dev/nvidia*, 12 img/s, N/A, and/or", "rights on /dev/nvidia*, 12 img/s, N/A, and/or"),
        ("mustermann's cam-17.lab.example, not cam-170", "<user>'s <host>, not cam-170"),
        ("photos_mustermann-2 on cam-17", "photos_<user>-2 on <host>"),
        ("eth0 48:b0:2d:12:ab:EF", "eth0 <hardware address>"),
        ("GPU-5d1d7c2f-0a1b-2c3d-4e5f-001122334455", "<hardware address>"),
        ("2026-11-21T15:38:31+00:00", "2026-11-21T15:38:31+00:00"),
    ],
)
def test_text_keeps_what_is_nobodys(text: str, clean: str) -> None:
    assert anonymous(text, IDENTITY) == clean


def test_every_string_of_a_json_value_is_cleaned() -> None:
    value: dict[str, Any] = {"mustermann": ["mustermann", 1, 2.5, None, True, {"a": ("cam-17",)}]}
    assert anonymous(value, IDENTITY) == {"mustermann": ["<user>", 1, 2.5, None, True, {"a": ["<host>"]}]}


def test_the_user_and_the_host_are_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "cam-17.lab.example")
    monkeypatch.setenv("USER", "mustermann")
    monkeypatch.setenv("HOME", str(tmp_path / "emu"))
    entry = pwd.struct_passwd(("x", "x", os.getuid(), 0, "Erika Mustermann,Room 7", "/", "/bin/sh"))
    monkeypatch.setattr(pwd, "getpwuid", lambda _: entry)
    identity = this_identity({tmp_path / "b": "<bundle>", Path("/"): "<here>"})
    assert identity.names["cam-17.lab.example"] == identity.names["cam-17"] == "<host>"
    assert {"mustermann", "emu", "Erika", "Mustermann"} <= {
        name for name, label in identity.names.items() if label == "<user>"
    }  # fmt: skip
    assert identity.folders[str(tmp_path / "b")] == "<bundle>"
    assert identity.folders[str(tmp_path / "emu")] == "~"
    assert "/" not in identity.folders


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("no geheim_projekt, but geheim_projekte", "no <name>, but geheim_projekte"),
        ("<data>/geheim_projekt/IMG 0001.jpg: damaged", "<data>/<name>/<name>: damaged"),
        ("['geheim_projekt', 'geheim_projekt_2']", "['<name>', '<name>']"),
        ("a cat sat on train 0000 of ubuntu", "a cat sat on train 0000 of ubuntu"),
        ("Gr\u00fc\u00dfe, Gr\u00fc\u00dfen", "<name>, Gr\u00fc\u00dfen"),
    ],
)
def test_names_of_classes_and_images_go_where_they_are_words(text: str, clean: str) -> None:
    names = {
        "geheim_projekt",
        "geheim_projekt_2",
        "IMG 0001.jpg",
        "cat",
        "0",
        "train",
        "0000",
        "ubuntu",
        "Gr\u00fc\u00dfe",
    }
    assert without_names(text, names) == clean


def test_names_below_a_folder_are_those_that_tell_something(tmp_path: Path) -> None:
    for name in ("val/geheim_projekt", "val/cat", "val/0"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("geheim_projekt/frida.jpg", "geheim_projekt/0001.jpg", "cat/7.png"):
        (tmp_path / "val" / name).write_bytes(b"")
    assert names_below(tmp_path) == {"geheim_projekt", "frida.jpg"}
    assert names_below(tmp_path / "nowhere") == set()


def test_thousands_of_names_are_taken_out_at_once() -> None:
    names = {f"image of somebody {index}" for index in range(50_000)}
    text = "; ".join(f"image of somebody {index}" for index in range(0, 50_000, 5_000)) + " nothing" * 100
    start = time.monotonic()
    assert without_names(text, names) == "; ".join(["<name>"] * 10) + " nothing" * 100
    assert time.monotonic() - start < 5.0


def test_of_a_huge_folder_only_so_many_names_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_NAMES", 3)
    for folder in range(10):
        (tmp_path / f"class {folder}").mkdir()
        (tmp_path / f"class {folder}" / f"image {folder}").write_bytes(b"")
    assert len(names_below(tmp_path)) == 10


def test_names_that_everybody_has_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "tegra-ubuntu")
    monkeypatch.setenv("USER", "nvidia")
    identity = this_identity({})
    assert anonymous("nvidia-smi on tegra-ubuntu", identity) == "nvidia-smi on <host>"


def test_a_process_without_user_and_home_has_an_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(*_: object) -> None:
        raise KeyError("getpwuid(): uid not found")

    for name in ("USER", "LOGNAME", "LNAME", "USERNAME", "SUDO_USER", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    assert "<user>" not in this_identity({}).names.values()

"""Text without the person and the machine in it: no user, host or folder of theirs, no hardware address."""

from __future__ import annotations

import getpass
import os
import platform
import re
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Names that installers give to everyone; taking them out would spoil words such as "nvidia-smi" and tell nothing less.
_COMMON = {
    "admin", "agx", "debian", "edgetune", "jetson", "linux", "localhost", "nano", "nobody", "nvidia", "orin", "root",
    "runner", "tegra", "thor", "ubuntu", "user",
}  # fmt: skip
_USER_VARIABLES = ("USER", "LOGNAME", "LNAME", "USERNAME", "SUDO_USER")
# Folders of images that are there for everyone.
_SPLITS = {"train", "test", "val", "valid", "validation"}
# Shorter ones stand in other words by chance, and so do numbers.
_SHORTEST_NAME = 4
_MOST_NAMES = 50_000
# Folders whose names are the system's own; in any other, each part of a path may be somebody's.
_SYSTEM = {"bin", "boot", "dev", "etc", "lib", "lib32", "lib64", "proc", "sbin", "sys", "usr"}

_PATH = re.compile(r"(?<![\w~>.:/-])/([^\s/'\"(),;:]+)/(?:[^\s/'\"(),;:]+/)*([^\s/'\"(),;:]*)")
# Folders within the user's own, up to the last name.
_INNER = re.compile(r"(?<![^\s'\"(=:])(~|<here>|<data>)/(?:[^\s/'\"(),;:]+/)+")
_HARDWARE = re.compile(
    r"\b(?:[0-9a-fA-F]{2}:){5}[0-9a-fA-F]{2}\b|\bGPU-[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\b"
)


@dataclass(frozen=True)
class Identity:
    """What is taken out: names by what stands for them, and folders (absolute) likewise."""

    names: Mapping[str, str]
    folders: Mapping[str, str]


def this_identity(folders: Mapping[Path, str]) -> Identity:
    """The user and host of this process, the user's home folder, and `folders` with what is to stand for each."""
    names = dict.fromkeys(_names(_hosts()), "<host>") | dict.fromkeys(_names(_users()), "<user>")
    known: dict[str, str] = {}
    for folder, label in {**_home(), **folders}.items():
        for form in (folder.absolute(), folder.resolve()):
            if form != form.parent:
                known[str(form)] = label
    return Identity(names, known)


def _names(found: Iterable[str]) -> list[str]:
    return [name for name in found if len(name) > 1 and name.lower() not in _COMMON]


def _users() -> list[str]:
    users = [os.environ.get(name, "") for name in _USER_VARIABLES]
    try:
        users.append(getpass.getuser())
        import pwd

        users += pwd.getpwuid(os.getuid()).pw_gecos.replace(",", " ").split()
    except (KeyError, OSError, ImportError):
        pass  # a container's user may have no name
    return [*users, *(home.name for home in _home())]


def _hosts() -> list[str]:
    hosts = [socket.gethostname(), platform.node(), os.environ.get("HOSTNAME", "")]
    return [*hosts, *(host.partition(".")[0] for host in hosts)]


def _home() -> dict[Path, str]:
    try:
        return {Path.home(): "~"}
    except RuntimeError:
        return {}


def anonymous(value: Any, identity: Identity) -> Any:
    """A JSON value with every string in it cleaned; keys stay, for they are ours."""
    if isinstance(value, str):
        return _clean(value, identity)
    if isinstance(value, dict):
        return {key: anonymous(item, identity) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [anonymous(item, identity) for item in value]
    return value


def _clean(text: str, identity: Identity) -> str:
    for folder, label in _longest_first(identity.folders):
        text = re.sub(rf"(?<![\w./-]){re.escape(folder)}(?![\w.-])", label, text)
    text = _INNER.sub(r"\1/<folder>/", text)
    text = _PATH.sub(_shorten, text)
    text = _HARDWARE.sub("<hardware address>", text)
    for name, label in _longest_first(identity.names):
        text = re.sub(rf"(?<![A-Za-z0-9]){re.escape(name)}(?![A-Za-z0-9])", label, text)
    return text


def names_below(folder: Path) -> set[str]:
    """The names of the files and folders below a folder, as far as they tell something; of a huge one, the first."""
    found: set[str] = set()
    for _, folders, files in os.walk(folder):
        found.update(folders, files)
        if len(found) > _MOST_NAMES:
            break
    return {name for name in found if _tells(name)}


def without_names(text: str, names: Iterable[str]) -> str:
    """Each of the names that stands in the text as a word becomes `<name>`; for messages, not for what is counted."""
    found = [name for name in set(names) if name in text and _tells(name)]
    for name in sorted(found, key=len, reverse=True):
        text = re.sub(rf"(?<![^\W_]){re.escape(name)}(?![^\W_])", "<name>", text)
    return text


def _tells(name: str) -> bool:
    is_number = name.partition(".")[0].isdigit()
    return len(name) >= _SHORTEST_NAME and not is_number and name.lower() not in _COMMON | _SPLITS


def _longest_first(labels: Mapping[str, str]) -> list[tuple[str, str]]:
    return sorted(labels.items(), key=lambda item: -len(item[0]))


def _shorten(match: re.Match[str]) -> str:
    return match[0] if match[1] in _SYSTEM else f"<folder>/{match[2]}"

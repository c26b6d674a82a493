from __future__ import annotations

import signal
import threading
import time
from pathlib import Path

import pytest

from edgetune.core.errors import UsageError
from edgetune.data import groups
from edgetune.data.groups import group_finder, with_groups
from edgetune.data.image_folder import ImageFile


@pytest.mark.parametrize(
    ("expression", "path", "group"),
    [
        (r"cam\d+", "train/ant/cam12_003.jpg", "cam12"),
        (r"(cam\d+)_(\d+)", "ant/cam12_003.jpg", "cam12"),
        (r"(\d+)_(?P<video>v\d)", "ant/7_v2.jpg", "v2"),
        (r"cam(\d)|video(\d)", "ant/video7.jpg", "7"),
        (r"(?P<one>a\d)|(?P<two>b\d)", "ant/b1.jpg", "b1"),
        (r"(x?)(cam\d)", "ant/cam1.jpg", "cam1"),
        (r"^[^/]+/", "ant/1.jpg", "ant/"),
        (r"[^/]+(?=/[^/]+$)", "train/ant/video3/0001.jpg", "video3"),
        (r"(cam\d*)?_", "ant/x_1.jpg", ""),
        (r"cam()", "ant/cam1.jpg", ""),
        (r"x*", "ant/1.jpg", ""),
        (r"cam\d", "ant/1.jpg", ""),
        (r"\n(.)", "ant/two\nlines.jpg", "l"),
    ],
)
def test_the_group_is_the_first_that_took_part_else_the_match(expression: str, path: str, group: str) -> None:
    assert group_finder(expression)(path) == group


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("cam(\\d+", "'cam\\(\\\\\\\\d\\+' is not a regular expression: missing \\), .* at position 3"),
        ("*", "nothing to repeat at position 0"),
        ("[z-a]", "bad character range z-a at position 1"),
        ("a{99999999999999999999}", "not a regular expression"),
    ],
)
def test_what_is_no_expression_is_refused_with_the_place(expression: str, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        group_finder(expression)
    assert "--group-by" in caught.value.hint


# Each further letter doubles the ways to match: this would take years.
_ENDLESS = r"(a+)+$"
_LONG = "ant/" + "a" * 60 + "_1.jpg"


def test_an_expression_without_an_end_is_stopped_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups, "_SEARCH_S", 0.2)
    before = signal.getsignal(signal.SIGVTALRM)
    files = (ImageFile(Path("/data/ant/1.jpg"), 0), ImageFile(Path("/data") / _LONG, 0))
    start = time.monotonic()
    with pytest.raises(UsageError, match=r"'\(a\+\)\+\$' finds no end in ant/a{60}_1\.jpg, after 0\.2 s") as caught:
        with_groups(Path("/data"), [files], _ENDLESS)
    assert time.monotonic() - start < 20
    assert "write" in caught.value.hint
    assert signal.getsignal(signal.SIGVTALRM) == before
    assert signal.getitimer(signal.ITIMER_VIRTUAL) == (0.0, 0.0)


def test_the_time_counts_for_each_path_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups, "_SEARCH_S", 0.2)
    files = tuple(ImageFile(Path(f"/data/ant/cam{index}.jpg"), 0) for index in range(40))

    def busy(path: str) -> str:
        end = time.process_time() + 0.02
        while time.process_time() < end:
            pass
        return path

    monkeypatch.setattr(groups, "group_finder", lambda expression: busy)
    grouped, _ = with_groups(Path("/data"), [files], "cam")
    assert [image.group for image in grouped[0]] == [f"ant/cam{index}.jpg" for index in range(40)]


def test_other_threads_group_without_a_limit() -> None:
    found: list[str] = []

    def group() -> None:
        grouped, _ = with_groups(Path("/data"), [(ImageFile(Path("/data/ant/cam1.jpg"), 0),)], r"cam\d")
        found.extend(image.group for image in grouped[0])

    thread = threading.Thread(target=group)
    thread.start()
    thread.join()
    assert found == ["cam1"]

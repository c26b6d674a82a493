from __future__ import annotations

import pytest

from edgetune.core.errors import UsageError
from edgetune.data.groups import group_finder


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

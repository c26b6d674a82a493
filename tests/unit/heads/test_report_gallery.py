from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgetune.core.preprocess import PreprocessSpec
from edgetune.heads.evaluate import Mistake
from edgetune.heads.report_gallery import THUMBNAIL_PX, gallery, thumbnail
from tests.unit.heads.report_cases import HALF, files, run

SPEC = PreprocessSpec(256, 224, "bilinear", HALF, HALF)
RED, BLUE = (220, 20, 20), (20, 20, 220)
ORIENTATION = 0x0112


def _mistake(row: int) -> Mistake:
    return Mistake(row, 0, 1, 0.875, 0, 0.125)


def _save(path: Path, width: int = 40, height: int = 30, orientation: int = 1) -> Path:
    """Red on the left half, blue on the right, as the file's rows are."""
    pixels = np.empty((height, width, 3), np.uint8)
    pixels[:, : width // 2], pixels[:, width // 2 :] = RED, BLUE
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, exif=exif)
    return path


def _opened(jpeg: bytes | None) -> Image.Image:
    assert jpeg is not None
    return Image.open(io.BytesIO(jpeg), formats=["JPEG"])


def _near(image: Image.Image, place: tuple[int, int]) -> str:
    red, _, blue = np.asarray(image.convert("RGB"))[place[1], place[0]]
    return "red" if int(red) > int(blue) else "blue"


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_the_thumbnail_is_a_small_jpeg_of_what_the_model_sees(tmp_path: Path, suffix: str) -> None:
    image = _opened(thumbnail(_save(tmp_path / f"a{suffix}", 400, 300), SPEC))
    assert image.size == (THUMBNAIL_PX, THUMBNAIL_PX)
    assert (_near(image, (10, 80)), _near(image, (150, 80))) == ("red", "blue")


def test_the_thumbnail_stands_upright(tmp_path: Path) -> None:
    """Orientation 6 turns the file's left to the top; 3 turns it by half a circle."""
    turned = _opened(thumbnail(_save(tmp_path / "6.jpg", 400, 300, 6), SPEC))
    assert (_near(turned, (80, 10)), _near(turned, (80, 150))) == ("red", "blue")
    upside_down = _opened(thumbnail(_save(tmp_path / "3.jpg", 400, 300, 3), SPEC))
    assert (_near(upside_down, (10, 80)), _near(upside_down, (150, 80))) == ("blue", "red")


def test_the_thumbnail_is_cropped_as_the_spec_says(tmp_path: Path) -> None:
    """A crop of a fifth of the short side, from the middle: of 50 px of red in 400 nothing is left."""
    pixels = np.full((400, 400, 3), BLUE, np.uint8)
    pixels[:, :50] = RED
    Image.fromarray(pixels).save(tmp_path / "a.png")
    whole = _opened(thumbnail(tmp_path / "a.png", PreprocessSpec(100, 100, "bilinear", HALF, HALF)))
    middle = _opened(thumbnail(tmp_path / "a.png", PreprocessSpec(100, 20, "bilinear", HALF, HALF)))
    assert (_near(whole, (5, 80)), _near(middle, (5, 80))) == ("red", "blue")


@pytest.mark.parametrize("crop_size", [1, 28, 4096])
def test_any_spec_gives_a_thumbnail(tmp_path: Path, crop_size: int) -> None:
    spec = PreprocessSpec(4096, crop_size, "bicubic", HALF, HALF)
    assert _opened(thumbnail(_save(tmp_path / "a.png"), spec)).size == (THUMBNAIL_PX, THUMBNAIL_PX)


def test_a_card_names_classes_probabilities_and_the_file(tmp_path: Path) -> None:
    _save(tmp_path / "val/ant/one.png")
    page = gallery(run(("<ant>", "bee"), tmp_path, val=files("val/ant/one.png")), [_mistake(0)])
    (data,) = re.findall(r"<img src='data:image/jpeg;base64,([^']*)'", page)
    assert _opened(base64.b64decode(data)).size == (THUMBNAIL_PX, THUMBNAIL_PX)
    lines = re.findall(r"<div>([^<]*)</div>", page)
    assert lines == ["is: &lt;ant&gt;", "called: bee, 87.5%", "then: &lt;ant&gt;, 12.5%", "one.png"]


def test_a_file_that_cannot_be_read_has_a_card_without_a_picture(tmp_path: Path) -> None:
    (tmp_path / "damaged.jpg").write_bytes(b"\xff\xd8\xff\xe0 no image")
    (tmp_path / "folder.jpg").mkdir()
    long = "x" * 300 + ".jpg"
    cards = gallery(
        run(root=tmp_path, val=files("damaged.jpg", "gone.jpg", "folder.jpg", long)),
        [_mistake(row) for row in range(4)],
    )
    assert "<img" not in cards
    assert cards.count("<div class='card'><div>(the file cannot be read any more)</div>") == 4
    assert "damaged.jpg" in cards
    assert "x" * 61 not in cards


def test_only_the_listed_images_are_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"{index}.png" for index in range(6)]
    for name in names:
        _save(tmp_path / name)
    read: list[str] = []
    original = Path.read_bytes

    def counting(path: Path) -> bytes:
        read.append(path.name)
        return original(path)

    monkeypatch.setattr(Path, "read_bytes", counting)
    cards = gallery(run(root=tmp_path, val=files(*names)), [_mistake(4), _mistake(1)])
    assert sorted(read) == ["1.png", "4.png"]
    assert re.findall("<div>([0-9].png)</div>", cards) == ["4.png", "1.png"]

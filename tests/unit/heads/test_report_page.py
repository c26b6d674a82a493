from __future__ import annotations

import dataclasses
import html as stdlib_html
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from edgetune.core.run import FeaturesRecord, Finding, HeadRecord, Skipped
from edgetune.heads.evaluate import Metrics, Mistake, evaluate
from edgetune.heads.report_page import CONFUSION, LEARNING, PATH, RELIABILITY, report_html
from edgetune.heads.report_record import FitReport
from tests.unit.heads.report_cases import EPOCHS, REJECT, TRAINING, files, fitted, perfect, report, run

PICTURES = {CONFUSION: b"confusion", PATH: b"path", RELIABILITY: b"reliability"}


class _Words(HTMLParser):
    """The visible text of a page, and whether its tags close in order."""

    def __init__(self) -> None:
        super().__init__()
        self.text: list[str] = []
        self._open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in {"meta", "img"}:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag == "html":
            assert self._open == ["html"]
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self._open:
            self.text.append(data)


def _page(report_: FitReport, **pictures: bytes) -> str:
    return report_html(report_, pictures).decode()


def _text(page: str) -> str:
    words = _Words()
    words.feed(page)
    words.close()
    return " ".join(" ".join(words.text).split())


def _headings(page: str) -> list[str]:
    return re.findall("<h2>(.*?)</h2>", page)


def _rows(page: str) -> list[list[str]]:
    return [
        [stdlib_html.unescape(re.sub("<.*?>", "", cell)) for cell in re.findall("<td.*?</td>", row)]
        for row in re.findall("<tr><td.*?</tr>", page)
    ]


def _wrong(*called: int, labels: tuple[int, ...] = (0, 0, 1), classes: tuple[str, ...] = ("ant", "bee")) -> Metrics:
    return evaluate(np.eye(len(classes), dtype=np.float32)[list(called)], np.array(labels), classes)


def test_the_page_begins_with_the_accuracy_and_its_interval() -> None:
    """2 of 2 right: the Wilson interval is 2 / (2 + 3.84146) = 34.2 % to 100 %."""
    made = report(run=run(train=files("train/1", "train/2", "train/3")))
    assert (
        "net<1> with a linear head, 2 classes: 100.00% of 2 validation images are named rightly (95 % interval 34.2% "
        "to 100.0%), after 3 training images."
    ) in _text(_page(made))


def test_a_head_of_another_kind_has_its_article() -> None:
    made = run()
    made = dataclasses.replace(made, head=dataclasses.replace(made.head, kind="svm"))
    assert "with an svm head, 2 classes" in _page(report(run=made))


def test_the_sections_come_in_the_readers_order() -> None:
    mistakes = (Mistake(0, 0, 1, 0.9, 0, 0.1),)
    made = report(
        run=run(skipped=(Skipped("x.gif", "no image"),), val=files("a.jpg")), metrics=_wrong(1, 0, 1),
        mistakes=mistakes, test_metrics=perfect("ant", "bee"),
    )  # fmt: skip
    assert _headings(report_html(made, PICTURES).decode()) == [
        "What to look at", "Classes", "Confusion matrix", "Mistakes", "Can the probabilities be believed?",
        "Choice of the regularisation", "Test images", "How it was made", "The backbone is as it was",
    ]  # fmt: skip


def test_where_all_is_well_there_is_nothing_to_look_at() -> None:
    page = _page(report())
    assert "What to look at" not in page
    assert "None of the validation images was given another class." in page


def test_findings_are_told_with_their_files() -> None:
    findings = (
        Finding("imbalance", "the classes differ: <b>."),
        Finding("duplicates", "2 images are copies.", ("train/a&b.jpg", "val/c.jpg")),
        Finding("many", "A great many.", tuple(f"{index}.jpg" for index in range(700))),
    )
    page = _page(report(run=run(findings=findings)))
    assert "<ul><li>the classes differ: &lt;b&gt;.</li></ul>" in page
    folded = "<details><summary>2 images are copies.</summary><ul><li>train/a&amp;b.jpg</li><li>val/c.jpg</li></ul>"
    assert folded in page
    assert "<li>499.jpg</li><li>and 200 more, see run.json</li>" in page


def test_copies_of_training_images_and_classes_never_recognised_are_told() -> None:
    metrics = evaluate(
        np.eye(2, dtype=np.float32)[[0, 0, 0]], np.array([0, 0, 1]), ("ant", "bee"),
        is_duplicate=np.array([True, False, False]),
    )  # fmt: skip
    text = _text(_page(report(metrics=metrics)))
    assert "1 validation image is an exact copy of a training image; the accuracy on the others is 50.00%." in text
    assert "1 class is never recognised: bee." in text


@pytest.mark.parametrize(("l2", "kind"), [(1000.0, "strongest"), (0.01, "weakest")])
def test_a_choice_at_the_end_of_the_path_is_told(l2: float, kind: str) -> None:
    made = run()
    made = dataclasses.replace(made, head=dataclasses.replace(made.head, l2=l2))
    assert f"chosen, {l2:g}, is the {kind} that was tried" in _page(report(run=made))
    assert "that was tried" not in _page(report())


def test_few_skipped_files_are_listed_and_many_folded() -> None:
    page = _page(report(run=run(skipped=(Skipped("x&y.gif", "no image"),))))
    assert "<p>1 file was skipped:</p><table>" in page
    assert "<td>x&amp;y.gif</td><td>no image</td>" in page
    many = tuple(Skipped(f"{index}.gif", "no image") for index in range(501))
    page = _page(report(run=run(skipped=many)))
    assert "<details><summary>501 files were skipped; the first 500</summary><table>" in page
    assert page.count(".gif</td>") == 500


def test_the_page_lists_the_classes_worst_first() -> None:
    metrics = evaluate(np.eye(3, dtype=np.float32)[[0, 0]], np.array([0, 1]), ("ant", "b<e>e", "cat"))
    assert _rows(_page(report(metrics=metrics)))[:3] == [
        ["b<e>e", "1", "-", "0.000", "0.000"],
        ["ant", "1", "0.500", "1.000", "0.667"],
        ["cat", "0", "-", "-", "-"],
    ]
    assert "Macro F1 0.333, balanced accuracy 50.00%" in _page(report(metrics=metrics))


def test_of_a_thousand_classes_the_worst_are_shown_and_all_are_folded() -> None:
    labels, called = np.arange(1000), np.where(np.arange(1000) == 617, 618, np.arange(1000))
    classes = tuple(f"class {index}" for index in range(1000))
    metrics = evaluate(np.eye(1000, dtype=np.float32)[called], labels, classes)
    page = report_html(report(metrics=metrics), PICTURES).decode()
    shown, _, folded = page.partition("<details><summary>All 1,000 classes</summary>")
    assert _rows(shown)[0] == ["class 617", "1", "-", "0.000", "0.000"]
    assert len(_rows(shown)) == 20
    assert len(_rows(folded.partition("</details>")[0])) == 1000
    assert ["class 617", "class 618", "1", "100.00%"] in _rows(page)
    assert "<details><summary>Confusion matrix</summary><figure>" in page
    assert len(page) < 300_000


def test_thirty_classes_have_a_matrix_and_no_list_of_pairs() -> None:
    classes = tuple(f"class {index}" for index in range(31))
    few, many = (report_html(report(metrics=perfect(*classes[:count])), PICTURES).decode() for count in (30, 31))
    assert "<h2>Confusion matrix</h2><figure>" in few
    assert "What is taken for what" not in few
    assert "<h2>What is taken for what</h2><p>No image was given another class.</p>" in many


def test_the_mistakes_are_counted_and_shown() -> None:
    mistakes = (Mistake(0, 0, 1, 0.875, 0, 0.125),)
    made = report(run=run(val=files("gone.jpg")), metrics=_wrong(1, 1, 0), mistakes=mistakes)
    text = _text(_page(made))
    assert "3 mistakes on validation images, the 1 most confident ones" in text
    assert "called: bee, 87.5%" in text


def test_calibration_is_told_before_and_after() -> None:
    page = _page(report())
    assert "divided by the temperature 1.250" in page
    assert _rows(page)[2:5] == [
        ["training images held out, before", "8", "0.2100", "0.5000"],
        ["training images held out, after", "8", "0.0500", "0.4375"],
        ["validation, after", "2", "0.2689", "0.3133"],  # 1 - e / (e + 1), ln(1 + 1 / e)
    ]
    assert "None of these" not in page


def test_the_threshold_is_told_with_what_it_rejects() -> None:
    """Best probabilities 0.6, 0.7 and 0.8, of which the first and the last are wrong: below 0.63 lies one mistake."""
    shares = np.array([0.6, 0.7, 0.8])
    logits = np.log(np.stack([shares, 1 - shares], axis=1)).astype(np.float32)
    metrics = evaluate(logits, np.array([1, 0, 1]), ("ant", "bee"), reject_below=0.63)
    page = _page(report(metrics=metrics, fit=fitted(reject=REJECT), test_metrics=metrics))
    assert "below 0.6300 is none of the classes; the threshold was set to reject 2.00% of the training images" in page
    assert ["training images held out", "2.50%", "1.25%", "50.00%", "-"] in _rows(page)
    assert ["validation", "33.33%", "0.00%", "50.00%", "50.00%"] in _rows(page)
    assert ["test", "33.33%", "0.00%", "50.00%", "50.00%"] in _rows(page)


def test_a_head_trained_in_epochs_has_its_curves() -> None:
    made = dataclasses.replace(run(), head=HeadRecord("mlp", 0.0, 5, "c" * 64, training=TRAINING))
    page = report_html(report(run=made, fit=fitted(path=(), epochs=EPOCHS)), {LEARNING: b"curves"}).decode()
    assert "<h2>Learning curves</h2><p>2 epochs; what was held out belongs to the training images.</p>" in page
    assert "Choice of the regularisation" not in page
    training = "adamw, 2 epochs, batches of 64, learning rate 0.001, weight decay 0.01, 256 hidden units, dropout 0.5"
    assert ["training", training] in _rows(page)


def test_the_test_split_is_judged_beside_the_validation_images() -> None:
    text = _text(_page(report(test_metrics=_wrong(0, 1, 1))))
    assert "66.67% of 3 test images are named rightly" in text
    assert "Test images" not in _text(_page(report()))


def test_the_page_tells_how_the_run_was_made() -> None:
    rows = dict(row for row in _rows(_page(report(seconds={"features": 1.5, "head": 150.0}))) if len(row) == 2)
    assert rows["backbone"] == "net<1>, its own features: 5 numbers an image"
    assert rows["image"] == "short side 8 px, bilinear, centre 4 x 4 px"
    assert rows["computed"] == "6, 4.0 a second; 2 from the cache"
    assert rows["time"] == "features 1.5 s, head 2.5 min"
    assert (rows["seed"], rows["weights"], rows["head.kind"], rows["numpy"]) == ("7", "-", "linear", "2.0")
    assert "views" not in rows


def test_layer_views_groups_and_weights_of_classes_are_told() -> None:
    made = run(group_by="cam(.)", test=files("t.jpg"))
    made = dataclasses.replace(
        made, backbone=dataclasses.replace(made.backbone, layer="blocks.3"),
        features=FeaturesRecord("torch", "fp16", 0, 0, views=4),
        head=dataclasses.replace(made.head, class_weights="balanced"),
    )  # fmt: skip
    rows = dict(row for row in _rows(_page(report(run=made, seconds={"features": 1.5}))) if len(row) == 2)
    assert rows["backbone"] == "net<1>, layer blocks.3, pooled: 5 numbers an image"
    assert rows["views"] == "4 augmented views of each training image, beside the image itself"
    assert rows["computed"] == "0; 0 from the cache"
    assert (rows["kept together"], rows["class weights"]) == ("cam(.)", "balanced")
    assert rows["images"] == "0 training, 0 validation, 1 test"


def test_the_page_tells_what_was_proved_of_the_backbone() -> None:
    page = _page(report())
    assert "all 358 tensors of the backbone, 152 of them buffers" in page
    assert "(sha256 0123456789abcdef...)" in page


HOSTILE = ("<script>alert('x')</script>", "\U0001f41c" * 300, "a" * 300, "'\"&", "\u202eb\x1b", "PASS", "-")


def test_no_name_breaks_the_page(tmp_path: Path) -> None:
    labels = np.arange(len(HOSTILE))
    metrics = evaluate(np.roll(np.eye(len(HOSTILE), dtype=np.float32), 1, axis=1), labels, HOSTILE)
    mistakes = tuple(Mistake(row, row, (row + 1) % len(HOSTILE), 0.5, row, 0.25) for row in range(len(HOSTILE)))
    made = report(
        run=run(
            HOSTILE, tmp_path / "<root>", val=files(*HOSTILE), skipped=(Skipped(HOSTILE[0], HOSTILE[3]),),
            findings=(Finding("kind", HOSTILE[0], HOSTILE),), group_by=HOSTILE[0],
        ),
        metrics=metrics, mistakes=mistakes, test_metrics=metrics,
    )  # fmt: skip
    page = report_html(made, PICTURES).decode()
    assert not re.search(r"<script|<link|https?:|@import|src='(?!data:)|onerror|[\x00-\x08\x0b-\x1f\u202e]", page)
    assert "<script>alert('x')</script>" in _text(page)


def test_the_pictures_stand_in_their_sections() -> None:
    page = report_html(report(), PICTURES).decode()
    assert re.findall("base64,([^']*)' alt='([^']*)'", page) == [
        ("Y29uZnVzaW9u", "Confusion matrix"),
        ("cmVsaWFiaWxpdHk=", "Reliability diagram"),
        ("cGF0aA==", "Log loss and accuracy against the L2 strength"),
    ]

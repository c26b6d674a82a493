"""`edgetune fit` by the commands that users type: every head, every way to give images, killed and resumed."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgetune.core.run import load_run

pytestmark = pytest.mark.e2e
pytest.importorskip("torch")

_COMMAND = [sys.executable, "-m", "edgetune.cli.main"]
_MAIN = "from edgetune.cli.main import main; main()"
# What the command line is, with every import of a framework refused.
_WITHOUT_FRAMEWORKS = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "torchvision", "timm", "onnx", "onnxscript"}:
            raise AssertionError(f"{name} was imported")

sys.meta_path.insert(0, Refuse())
from edgetune.cli.main import main
main()
"""


def edgetune(*words: str, expect: int = 0, cache: Path | None = None) -> dict[str, Any]:
    return _run([*_COMMAND, *words, "--json"], expect, {} if cache is None else {"EDGETUNE_CACHE": str(cache)})


def _run(command: list[str], expect: int = 0, environment: dict[str, str] | None = None) -> dict[str, Any]:
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=600, check=False, env={**os.environ, **(environment or {})}
    )
    assert done.returncode == expect, done.stderr + done.stdout
    envelope: dict[str, Any] = json.loads(done.stdout)
    return envelope


class TestHeads:
    @pytest.mark.parametrize(
        ("kind", "least"), [("linear", 0.954), ("svm", 0.954), ("mlp", 0.94), ("sgd", 0.94), ("adamw", 0.94)]
    )
    def test_on_real_photos(self, kind: str, least: float, hymenoptera: Path, tmp_path: Path) -> None:
        data = edgetune("fit", str(hymenoptera), "--out", str(tmp_path / "run"), "--head", kind)["data"]
        assert data["head"]["kind"] == kind
        assert data["metrics"]["images"] == 153
        assert data["metrics"]["top1_accuracy"] >= least
        assert 0 <= data["metrics"]["expected_calibration_error"] < 0.1
        for name in (
            "run.json",
            "head.safetensors",
            "metrics.json",
            "results.csv",
            "report.html",
            "confusion_matrix.png",
        ):
            assert (tmp_path / "run" / name).stat().st_size > 100

    def test_a_hidden_layer_exports_and_passes_parity(self, photos: Path, tmp_path: Path) -> None:
        """The other kinds are one layer, as every other test exports."""
        edgetune("fit", str(photos), "--out", str(tmp_path / "run"), "--head", "mlp")
        words = ("export", str(tmp_path / "run"), "--out", str(tmp_path / "bundle"), "--int8", "--target", "cpu-x86")
        data = edgetune(*words)["data"]
        assert [artifact["verdict"] for artifact in data["artifacts"]] == ["PASS", "PASS"]
        assert edgetune("parity", str(tmp_path / "bundle"), "--localize")["data"]["verdict"] == "PASS"

    def test_an_option_that_the_head_does_not_have_is_refused_before_any_work(
        self, photos: Path, tmp_path: Path
    ) -> None:
        words = ("fit", str(photos), "--out", str(tmp_path / "run"), "--epochs", "3")
        (error,) = edgetune(*words, expect=2)["errors"]
        assert "epochs" in error["message"] and "linear" in error["message"]
        assert list(tmp_path.iterdir()) == []

    def test_l2_is_chosen_of_at_least_20_values(self, photos: Path, tmp_path: Path) -> None:
        edgetune("fit", str(photos), "--out", str(tmp_path / "run"))
        with (tmp_path / "run" / "results.csv").open() as stream:
            rows = list(csv.DictReader(stream))
        assert len({float(row["l2"]) for row in rows}) >= 20
        lowest = min(float(row["cv_log_loss"]) for row in rows)
        chosen = next(
            row for row in rows if float(row["l2"]) == pytest.approx(load_run(tmp_path / "run").head.l2, rel=1e-4)
        )
        assert float(chosen["cv_log_loss"]) <= 1.001 * lowest + 1e-6


def test_a_warm_fit_imports_no_framework(photos: Path, tmp_path: Path) -> None:
    edgetune("fit", str(photos), "--out", str(tmp_path / "first"))
    command = [
        sys.executable,
        "-c",
        _WITHOUT_FRAMEWORKS,
        "fit",
        str(photos),
        "--out",
        str(tmp_path / "second"),
        "--json",
    ]
    data = _run(command)["data"]
    assert data["features"]["computed"] == 0
    assert data["backbone"] == json.loads((tmp_path / "first" / "run.json").read_text())["backbone"]
    heads = [(tmp_path / name / "head.safetensors").read_bytes() for name in ("first", "second")]
    assert heads[0] == heads[1]


def test_new_images_are_computed_without_pytorch_where_the_graph_is_known(photos: Path, tmp_path: Path) -> None:
    edgetune("fit", str(photos), "--out", str(tmp_path / "first"))
    shutil.copytree(photos, tmp_path / "photos")
    _write_noise(tmp_path / "photos" / "7" / "new.png", seed=1)
    words = ["fit", str(tmp_path / "photos"), "--out", str(tmp_path / "second"), "--json"]
    data = _run([sys.executable, "-c", _WITHOUT_FRAMEWORKS, *words])["data"]
    assert data["features"]["computed"] == 1


class TestData:
    def test_a_csv_file_with_a_split(self, photos: Path, tmp_path: Path) -> None:
        shutil.copytree(photos, tmp_path / "images")
        rows = ["file,label,split"]
        for name in ("0", "1", "7"):
            images = sorted((tmp_path / "images" / name).iterdir())
            splits = ["train"] * 12 + ["val"] * 5 + ["test"] * 3
            rows += [
                f"images/{name}/{path.name},digit {name},{split}" for path, split in zip(images, splits, strict=True)
            ]
        (tmp_path / "list.csv").write_text("\n".join(rows) + "\n")
        data = edgetune("fit", str(tmp_path / "list.csv"), "--out", str(tmp_path / "run"))["data"]
        assert (data["metrics"]["images"], data["test_metrics"]["images"]) == (15, 9)
        run = load_run(tmp_path / "run")
        assert run.classes == ("digit 0", "digit 1", "digit 7")
        assert (len(run.split.train), len(run.split.test)) == (36, 9)
        exported = edgetune("export", str(tmp_path / "run"), "--out", str(tmp_path / "bundle"))["data"]
        assert exported["artifacts"][0]["verdict"] == "PASS"

    def test_bursts_stay_together(self, photos: Path, tmp_path: Path) -> None:
        for name in ("0", "1", "7"):
            (tmp_path / "photos" / name).mkdir(parents=True)
            for index, path in enumerate(sorted((photos / name).iterdir())):
                shutil.copy(path, tmp_path / "photos" / name / f"cam{index // 4}_{index % 4}.png")
        words = ("fit", str(tmp_path / "photos"), "--out", str(tmp_path / "run"), "--group-by", r"(\d/cam\d+)_")
        edgetune(*words)
        split = load_run(tmp_path / "run").split
        sides = [{file.path.rpartition("_")[0] for file in files} for files in (split.train, split.val)]
        assert not sides[0] & sides[1]
        assert sum(map(len, sides)) == 15

    def test_a_class_that_is_one_burst_is_named(self, photos: Path, tmp_path: Path) -> None:
        shutil.copytree(photos, tmp_path / "photos")
        words = ("fit", str(tmp_path / "photos"), "--out", str(tmp_path / "run"), "--group-by", r"^7/|[^/]+$")
        (error,) = edgetune(*words, expect=1)["errors"]
        assert "the class '7'" in error["message"] or "for 7" in error["message"]

    def test_what_is_wrong_with_the_images_is_said_by_name(self, photos: Path, tmp_path: Path) -> None:
        for split, part in (("train", slice(0, 12)), ("val", slice(12, 18))):
            for name in ("0", "1", "7"):
                (tmp_path / "photos" / split / name).mkdir(parents=True)
                for path in sorted((photos / name).iterdir())[part]:
                    shutil.copy(path, tmp_path / "photos" / split / name / path.name)
        copied = min((tmp_path / "photos" / "train" / "1").iterdir())
        shutil.copy(copied, tmp_path / "photos" / "val" / "1" / "copy.png")
        shutil.copy(copied, tmp_path / "photos" / "train" / "7" / "wrong.png")
        (tmp_path / "photos" / "train" / "0" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut")
        data = edgetune("fit", str(tmp_path / "photos"), "--out", str(tmp_path / "run"))["data"]
        told = {finding["kind"]: " ".join([finding["message"], *finding["paths"]]) for finding in data["findings"]}
        assert "copy.png" in told["duplicate"] and copied.name in told["duplicate"]
        assert "wrong.png" in told["label-conflict"]
        assert [file["path"] for file in data["skipped"]] == ["train/0/broken.jpg"]
        assert data["metrics"]["duplicates"] == 1


class TestBackbone:
    def test_an_earlier_layer(self, photos: Path, tmp_path: Path) -> None:
        words = ("fit", str(photos), "--out", str(tmp_path / "run"), "--features-from", "blocks.4")
        data = edgetune(*words)["data"]
        assert data["backbone"]["layer"] == "blocks.4"
        assert data["backbone"]["feature_dim"] == 112
        exported = edgetune(
            "export", str(tmp_path / "run"), "--out", str(tmp_path / "bundle"), "--int8", "--target", "cpu-x86"
        )
        assert [artifact["verdict"] for artifact in exported["data"]["artifacts"]] == ["PASS", "PASS"]

    def test_another_image_size(self, photos: Path, tmp_path: Path) -> None:
        edgetune("fit", str(photos), "--out", str(tmp_path / "run"), "--image-size", "96")
        spec = load_run(tmp_path / "run").preprocess
        assert (spec.crop_size, spec.resize_size) == (96, 109)
        exported = edgetune("export", str(tmp_path / "run"), "--out", str(tmp_path / "bundle"))
        assert exported["data"]["artifacts"][0]["verdict"] == "PASS"

    def test_views_are_cached_too(self, photos: Path, tmp_path: Path) -> None:
        words = ("fit", str(photos), "--views", "2")
        first = edgetune(*words, "--out", str(tmp_path / "first"))["data"]
        assert first["features"]["views"] == 2
        again = edgetune(*words, "--out", str(tmp_path / "again"))["data"]
        assert again["features"]["computed"] == 0
        heads = [(tmp_path / name / "head.safetensors").read_bytes() for name in ("first", "again")]
        assert heads[0] == heads[1]
        plain = edgetune("fit", str(photos), "--out", str(tmp_path / "plain"))["data"]
        assert plain["head"]["sha256"] != first["head"]["sha256"]


def test_none_of_these(photos: Path, tmp_path: Path) -> None:
    """Noise is no digit, and nothing here was fitted on it."""
    edgetune("fit", str(photos), "--out", str(tmp_path / "run"), "--reject", "0.1")
    edgetune("export", str(tmp_path / "run"), "--out", str(tmp_path / "bundle"))
    _write_noise(tmp_path / "noise.png", seed=0)
    digit = sorted((photos / "1").iterdir())[3]
    images = edgetune("predict", str(tmp_path / "bundle"), str(tmp_path / "noise.png"), str(digit))["data"]["images"]
    assert [image["rejected"] for image in images] == [True, False]


class TestResume:
    @pytest.fixture(scope="class")
    def alone(self, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, float]:
        """The head of a fit that nobody disturbs, and the seconds that it takes with an empty cache."""
        folder = tmp_path_factory.mktemp("alone")
        start = time.perf_counter()
        edgetune(*_words_to_resume(photos, folder / "run"), cache=folder / "cache")
        return (folder / "run" / "head.safetensors").read_bytes(), time.perf_counter() - start

    @pytest.mark.parametrize("share", [0.3, 0.8])
    def test_a_killed_fit_resumes_to_the_same_head(
        self, share: float, alone: tuple[bytes, float], photos: Path, tmp_path: Path
    ) -> None:
        expected, length_s = alone
        words = _words_to_resume(photos, tmp_path / "run")
        environment = {**os.environ, "EDGETUNE_CACHE": str(tmp_path / "cache")}
        with subprocess.Popen([*_COMMAND, *words], env=environment) as process:
            time.sleep(share * length_s)
            process.send_signal(signal.SIGKILL)
        resumed = edgetune(*words, cache=tmp_path / "cache")["data"]
        assert (tmp_path / "run" / "head.safetensors").read_bytes() == expected
        assert not resumed["was_finished"] or process.returncode == 0
        assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "run"]

    def test_a_finished_fit_is_left_as_it_is(self, photos: Path, tmp_path: Path) -> None:
        words = ["fit", str(photos), "--out", str(tmp_path / "run")]
        first = edgetune(*words)["data"]
        written = (tmp_path / "run" / "run.json").stat().st_mtime_ns
        again = edgetune(*words, "--resume")["data"]
        assert (first["was_finished"], again["was_finished"]) == (False, True)
        assert again["metrics"] == first["metrics"]
        assert (tmp_path / "run" / "run.json").stat().st_mtime_ns == written
        (error,) = edgetune(*words, "--resume", "--seed", "3", expect=1)["errors"]
        assert "seed was 0, is 3" in error["message"]

    def test_paths_mean_the_same_files_from_another_folder(
        self, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        edgetune("fit", str(photos), "--out", str(tmp_path / "run"))
        monkeypatch.chdir(photos)
        again = edgetune("fit", ".", "--out", str(tmp_path / "run"), "--resume")["data"]
        assert again["was_finished"]

    @pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
    def test_an_older_run_outlives_a_fit_that_is_stopped_while_it_writes(
        self, sent: signal.Signals, photos: Path, tmp_path: Path
    ) -> None:
        words = ["fit", str(photos), "--out", str(tmp_path / "run"), "--force"]
        edgetune(*words, "--head", "svm")
        older = load_run(tmp_path / "run")
        with subprocess.Popen([*_COMMAND, *words], stderr=subprocess.DEVNULL) as process:
            while process.poll() is None and not list(tmp_path.glob(".run.*.partial")):
                time.sleep(0.001)
            process.send_signal(sent)
        assert process.returncode != 0
        assert load_run(tmp_path / "run") == older
        edgetune(*words)
        assert load_run(tmp_path / "run").head.kind == "linear"
        assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]

    def test_two_fits_into_one_place_leave_one_whole_run(self, photos: Path, tmp_path: Path) -> None:
        command = [*_COMMAND, "fit", str(photos), "--out", str(tmp_path / "run"), "--force"]
        heads = {"linear", "svm"}
        processes = [subprocess.Popen([*command, "--head", head], stderr=subprocess.PIPE, text=True) for head in heads]
        for process in processes:
            _, errors = process.communicate(timeout=600)
            assert "Traceback" not in errors
        assert load_run(tmp_path / "run").head.kind in heads
        assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def _words_to_resume(photos: Path, out: Path) -> list[str]:
    return ["fit", str(photos), "--resume", "--head", "mlp", "--views", "1", "--out", str(out)]


class TestTheSameHead:
    """However it is computed: bit for bit."""

    def test_from_damaged_cache_files(self, photos: Path, tmp_path: Path) -> None:
        words = ("fit", str(photos), "--views", "1", "--force", "--out")
        edgetune(*words, str(tmp_path / "first"), cache=tmp_path / "cache")
        for path in sorted(path for path in (tmp_path / "cache").rglob("*") if path.is_file()):
            damaged = bytearray(path.read_bytes())
            damaged[len(damaged) // 2] ^= 1
            path.write_bytes(damaged)
        edgetune(*words, str(tmp_path / "second"), cache=tmp_path / "cache")
        heads = [(tmp_path / name / "head.safetensors").read_bytes() for name in ("first", "second")]
        assert heads[0] == heads[1]

    def test_on_one_cpu(self, photos: Path, tmp_path: Path) -> None:
        script = f"import os; os.sched_setaffinity(0, {{min(os.sched_getaffinity(0))}})\n{_MAIN}"
        environment = {"EDGETUNE_CACHE": str(tmp_path / "cache")}
        for kind, epochs in (("linear", ()), ("sgd", ("--epochs", "3"))):
            words = ["fit", str(photos), "--head", kind, *epochs, "--views", "1", "--json", "--out"]
            _run([*_COMMAND, *words, str(tmp_path / f"{kind} all")], environment=environment)
            shutil.rmtree(tmp_path / "cache" / "features")
            _run([sys.executable, "-c", script, *words, str(tmp_path / f"{kind} one")], environment=environment)
            heads = [(tmp_path / f"{kind} {cpus}" / "head.safetensors").read_bytes() for cpus in ("all", "one")]
            assert heads[0] == heads[1]


class TestRefused:
    """In one sentence, before any work is done, and without a trace."""

    @pytest.mark.parametrize(
        ("words", "told"),
        [
            (("--group-by", f"({'|'.join(20 * '.')})+!"), "finds no end in"),
            (("--group-by", os.fsdecode(b"\xff")), "is not valid UTF-8"),
            (("--weights", os.fsdecode(b"\xff.pth")), "is not valid UTF-8"),
            (("--head", "mlp", "--hidden", "1000000"), "is not in the range"),
            (("--image-size", "4096"), "expected at most 4096"),
        ],
        ids=["endless expression", "expression", "weights", "hidden", "image size"],
    )
    def test_an_option(self, words: tuple[str, ...], told: str, photos: Path, tmp_path: Path) -> None:
        (error,) = edgetune("fit", str(photos), "--out", str(tmp_path / "runs" / "a"), *words, expect=2)["errors"]
        assert told in error["message"]
        assert list(tmp_path.iterdir()) == []

    def test_a_class_of_one_image_before_the_others_are_opened(self, photos: Path, tmp_path: Path) -> None:
        for split in ("train", "val"):
            shutil.copytree(photos, tmp_path / "images" / split)
        for path in sorted((tmp_path / "images" / "train" / "7").iterdir())[1:]:
            path.unlink()
        words = ("fit", str(tmp_path / "images"), "--out", str(tmp_path / "runs" / "a"))
        (error,) = edgetune(*words, expect=1, cache=tmp_path / "cache")["errors"]
        assert "the class '7' has 1 training image, expected at least 2" in error["message"]
        assert [path.name for path in tmp_path.iterdir()] == ["images"]


def _write_noise(path: Path, seed: int) -> None:
    from PIL import Image

    pixels = np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)

"""edgetune as a plugin of pytest: real `python -m pytest` processes in folders of their own."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edgetune.core.bundle import load_bundle, write_manifest
from edgetune.core.files import sha256_of_file
from tests.conftest import REPOSITORY
from tests.unit.runners.mean_bundle import mean_bundle

OK, FAILED, USAGE, NOTHING = 0, 1, 4, 5

# What a run of parity would find, put in its place: a `conftest.py` of the folder under test.
_STAND_IN = """
import dataclasses, json, pathlib
from edgetune.core.errors import DataError
from edgetune.parity.records import ParityEntry, ParityReport, StageCheck
import edgetune.steps.parity

calls = pathlib.Path(__file__).with_name("calls.txt")

def entry(artifact, verdict, *reasons, runner="cpu"):
    return ParityEntry(artifact, runner, "torch", 9, 0.1, 40.0, 1.0, 1.0, 1.0, None, verdict, reasons)

def parity(bundle, data, options, **more):
    with calls.open("a") as file:
        print(data, options, file=file)
    ENTRIES = (entry("model.onnx", "PASS"), entry("model.fp16.onnx", "PASS"))
    STAGES = ()
    CHANGE
    return ParityReport(2, "now", "here", 2, {}, ENTRIES, (), (), STAGES)

edgetune.steps.parity.parity = parity
"""


def _pytest(folder: Path, *words: str | Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Without plugins that happen to be installed, and with ours whether its entry point is installed or not."""
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": str(REPOSITORY), "COLUMNS": "200"}
    environment.pop("PYTEST_ADDOPTS", None)
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "edgetune.cli.pytest_plugin", "-c", os.devnull, "--rootdir", folder,
         "-p", "no:cacheprovider", "-W", "error", *words],
        capture_output=True, text=True, timeout=600, check=False, cwd=folder, env={**environment, **(env or {})},
    )  # fmt: skip


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle of two artifacts that nothing of these tests runs."""
    return mean_bundle(tmp_path / "cam", {"model.onnx": "PASS", "model.fp16.onnx": "PASS"}).path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where pytest starts; it holds no test."""
    made = tmp_path / "project"
    made.mkdir()
    return made


def _stand_in(folder: Path, *changes: str) -> None:
    (folder / "conftest.py").write_text(_STAND_IN.replace("CHANGE", "\n    ".join(changes)))


def _calls(folder: Path) -> list[str]:
    return (folder / "calls.txt").read_text().splitlines()


def _check(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    assert done.returncode == code, done.stdout + done.stderr
    for each in words:
        assert each in done.stdout + done.stderr, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert "INTERNALERROR" not in done.stdout + done.stderr


def test_artifacts_are_tests_also_where_there_is_no_test_file(folder: Path, bundle: Path) -> None:
    _stand_in(folder)
    done = _pytest(folder, "--edgetune-bundle", bundle, "-v")
    _check(done, OK, "collected 2 items", "edgetune/cam::model.onnx PASSED", "edgetune/cam::model.fp16.onnx PASSED")
    assert len(_calls(folder)) == 1


def test_without_the_option_nothing_is_added(folder: Path) -> None:
    _check(_pytest(folder), NOTHING, "no tests ran")


def test_collecting_compares_nothing(folder: Path, bundle: Path) -> None:
    _stand_in(folder)
    done = _pytest(folder, "--edgetune-bundle", bundle, "--collect-only", "-q")
    _check(done, OK, "edgetune/cam::model.onnx", "2 tests collected")
    assert not (folder / "calls.txt").exists()


@pytest.mark.parametrize(("words", "counted"), [(("-m", "edgetune"), "2 passed"), (("-k", "fp16"), "1 passed")])
def test_artifacts_are_chosen_as_other_tests_are(
    folder: Path, bundle: Path, words: Sequence[str], counted: str
) -> None:
    _stand_in(folder)
    (folder / "test_own.py").write_text("def test_own(): pass\n")
    done = _pytest(folder, "--edgetune-bundle", bundle, "--strict-markers", *words)
    _check(done, OK, counted, "deselected")


def test_a_failure_says_why_and_shows_no_code(folder: Path, bundle: Path) -> None:
    _stand_in(folder, 'ENTRIES = (entry("model.onnx", "FAIL", "SQNR is 3.0 dB"), entry("model.fp16.onnx", "PASS"))')
    done = _pytest(folder, "--edgetune-bundle", bundle)
    _check(done, FAILED, "1 failed, 1 passed", "parity of model.onnx", "model.onnx: FAIL\n  SQNR is 3.0 dB\n")
    assert "pytest_plugin.py" not in done.stdout
    assert len(_calls(folder)) == 1


@pytest.mark.parametrize(
    ("words", "code", "counted"),
    [((), OK, "1 passed, 1 skipped"), (("--edgetune-require",), FAILED, "1 failed, 1 passed")],
)
def test_what_could_not_be_judged_is_skipped_or_fails(
    folder: Path, bundle: Path, words: Sequence[str], code: int, counted: str
) -> None:
    _stand_in(folder, 'ENTRIES = (entry("model.onnx", "NOT-RUN", "no torch here"), entry("model.fp16.onnx", "PASS"))')
    done = _pytest(folder, "--edgetune-bundle", bundle, "-rsf", *words)
    _check(done, code, counted, "no torch here")


@pytest.mark.parametrize(
    ("second", "code", "words"),
    [
        ("FAIL", FAILED, "model.onnx on engine: FAIL\n  slow down"),
        ("NOT-RUN", OK, "2 passed"),
        ("PASS", OK, "2 passed"),
    ],
)
def test_an_artifact_that_several_things_ran_is_one_test(
    folder: Path, bundle: Path, second: str, code: int, words: str
) -> None:
    _stand_in(
        folder,
        'ENTRIES = (*ENTRIES, entry("model.onnx", "%s", "slow down", runner="engine"))' % second,  # noqa: UP031
    )
    _check(_pytest(folder, "--edgetune-bundle", bundle), code, words)


def test_a_common_stage_that_failed_fails_every_artifact(folder: Path, bundle: Path) -> None:
    _stand_in(folder, 'STAGES = (StageCheck("pixels", "FAIL", 9.0, 0.0, "another resize"),)')
    done = _pytest(folder, "--edgetune-bundle", bundle)
    _check(done, FAILED, "2 failed", "stage pixels: FAIL\n  FAIL: another resize")


def test_an_artifact_that_the_report_lacks_does_not_pass(folder: Path, bundle: Path) -> None:
    _stand_in(folder, 'ENTRIES = (entry("model.onnx", "PASS"),)')
    done = _pytest(folder, "--edgetune-bundle", bundle, "-rs")
    _check(done, OK, "1 passed, 1 skipped", "model.fp16.onnx is not in the report")


def test_a_comparison_that_cannot_be_made_is_tried_once_and_told_without_code(folder: Path, bundle: Path) -> None:
    _stand_in(folder, 'raise DataError("there are no images.", hint="give some")')
    (folder / "test_own.py").write_text("def test_own(edgetune_parity): pass\n")
    done = _pytest(folder, "--edgetune-bundle", bundle)
    _check(done, FAILED, "there are no images. (give some)", "2 failed", "1 error")
    assert len(_calls(folder)) == 1


def test_fixtures_share_the_comparison_with_the_artifacts(folder: Path, bundle: Path) -> None:
    _stand_in(folder)
    (folder / "test_own.py").write_text(
        "def test_bundle(edgetune_bundle):\n    assert (edgetune_bundle / 'manifest.json').is_file()\n"
        "def test_report(edgetune_parity):\n    assert edgetune_parity.verdict == 'PASS'\n"
    )
    _check(_pytest(folder, "--edgetune-bundle", bundle), OK, "4 passed")
    assert len(_calls(folder)) == 1
    done = _pytest(folder, "-rs")
    _check(done, OK, "2 skipped", "needs --edgetune-bundle")


def test_options_reach_the_comparison(folder: Path, bundle: Path) -> None:
    _stand_in(folder)
    (folder / "gates.toml").write_text("[int8]\nmax_drop = 0.02\n")
    (folder / "images").mkdir()
    words = ("--edgetune-data", "images", "--edgetune-run", "there", "--edgetune-gates", "gates.toml")
    kinds = ("--edgetune-runner", "cpu", "--edgetune-runner", "engine")
    done = _pytest(folder, "--edgetune-bundle", bundle, *words, *kinds, "--edgetune-require")
    _check(done, OK, "2 passed")
    (call,) = _calls(folder)
    assert call.startswith("images ParityOptions(")
    for part in ("'there'", "'gates.toml'", "kinds=('cpu', 'engine')", "require=True", "out=None"):
        assert part in call


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--edgetune-bundle", "nowhere"), "nowhere is not a bundle: it has no manifest.json. (write one with"),
        (("--edgetune-data", "images"), "--edgetune-data needs --edgetune-bundle"),
        (("--edgetune-require",), "--edgetune-require needs --edgetune-bundle"),
        (("--edgetune-bundle", "BUNDLE", "--edgetune-data", "nowhere"), "--edgetune-data: nowhere is not a folder"),
        (
            ("--edgetune-bundle", "BUNDLE", "--edgetune-runner", "abacus"),
            "the runner 'abacus' is not known; known: auto",
        ),
        (("--edgetune-bundle", "BUNDLE", "--edgetune-gates", "no.toml"), "no.toml is no TOML file that can be read"),
    ],
    ids=["no bundle", "data alone", "require alone", "no data", "no runner", "no gates"],
)
def test_words_that_do_not_fit_are_usage_errors(folder: Path, bundle: Path, words: Sequence[str], message: str) -> None:
    done = _pytest(folder, *(str(bundle) if word == "BUNDLE" else word for word in words))
    _check(done, USAGE, f"ERROR: {message}")


def test_the_plugin_costs_nothing_where_it_is_not_used(folder: Path) -> None:
    (folder / "test_own.py").write_text(
        "import sys\n"
        "def test_own():\n"
        "    ours = sorted(name for name in sys.modules if name.split('.')[0] == 'edgetune')\n"
        "    assert ours == ['edgetune', 'edgetune.cli', 'edgetune.cli.pytest_plugin']\n"
        "    assert not {'numpy', 'PIL', 'click', 'onnxruntime', 'torch'} & set(sys.modules)\n"
    )
    _check(_pytest(folder), OK, "1 passed")


def _flip_head(bundle: Path) -> None:
    """Turns the sign of the FP32 artifact's last weights, so that the least likely class wins; signed anew."""
    manifest = load_bundle(bundle).manifest
    path = bundle / "model.onnx"
    model = onnx.load(path)
    weights = {each.name: each for each in model.graph.initializer}
    head = [node for node in model.graph.node if node.op_type in ("Gemm", "MatMul")][-1]
    for name in head.input[1:]:
        weights[name].CopyFrom(numpy_helper.from_array(np.negative(numpy_helper.to_array(weights[name])), name))
    onnx.save(model, path)
    artifacts = tuple(
        dataclasses.replace(each, sha256=sha256_of_file(path), size_bytes=path.stat().st_size)
        if each.name == path.name
        else each
        for each in manifest.artifacts
    )
    write_manifest(bundle, dataclasses.replace(manifest, artifacts=artifacts))


@pytest.mark.e2e
def test_a_real_artifact_that_was_spoilt_fails_and_the_others_keep_their_verdicts(
    small_bundle: Path, small_run: Path, folder: Path, tmp_path: Path
) -> None:
    spoilt = tmp_path / "spoilt"
    shutil.copytree(small_bundle, spoilt)
    _flip_head(spoilt)
    done = _pytest(folder, "--edgetune-bundle", spoilt, "--edgetune-run", small_run, "-v")
    _check(done, FAILED, "edgetune/spoilt::model.onnx FAILED", "labels differ from the reference")
    said = dict(re.findall(r"edgetune/spoilt::(\S+) (PASSED|FAILED|SKIPPED)", done.stdout))
    before = {each.name: each.verdict for each in load_bundle(small_bundle).manifest.artifacts}
    assert before["model.onnx"] == "PASS"
    words = {"PASS": "PASSED", "FAIL": "FAILED", "NOT-RUN": "SKIPPED"}
    assert said == {name: words[verdict] for name, verdict in before.items()} | {"model.onnx": "FAILED"}

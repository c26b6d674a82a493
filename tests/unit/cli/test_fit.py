"""What `edgetune fit` takes, and what it prints."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from edgetune.cli.cmd_fit import _head_words, _messages, command
from edgetune.core.errors import Interrupted
from edgetune.core.head_recipe import TrainingRecipe
from edgetune.core.preprocess import PreprocessSpec
from edgetune.core.run import BackboneRecord, FeaturesRecord, Finding, HeadRecord, Run, Skipped, Split


def _run(skipped: tuple[Skipped, ...] = (), findings: tuple[Finding, ...] = (), epochs: int = 1) -> Run:
    training = TrainingRecipe("adamw", epochs, 128, 0.001, 0.1)
    return Run(
        1, "classification", "now", {}, {}, ("a", "b"),
        PreprocessSpec(8, 8, "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        BackboneRecord("net", "w", "x", "y", 4, 2, 1), FeaturesRecord("r", "fp32", 0, 4),
        HeadRecord("adamw", 0.0, 5, "x", training=training), Split("/data", (), (), skipped, (), findings),
    )  # fmt: skip


@pytest.mark.parametrize(
    "words",
    [
        ("--hidden", "16385"), ("--hidden", "0"), ("--epochs", "1000001"), ("--batch-size", "1000001"),
        ("--views", "65"), ("--image-size", "15"), ("--seed", "4294967296"), ("--reject", "nan"),
    ],
)  # fmt: skip
def test_a_value_out_of_range_is_refused_with_the_range(words: tuple[str, str], tmp_path: Path) -> None:
    done = CliRunner().invoke(command, [str(tmp_path), "--out", str(tmp_path / "run"), "--head", "mlp", *words])
    assert done.exit_code == 2
    assert f"Invalid value for '{words[0]}'" in done.output


def test_what_was_stopped_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("edgetune.steps.fit.fit", stop)
    done = CliRunner().invoke(command, [str(tmp_path), "--out", str(tmp_path / "run")])
    assert isinstance(done.exception, Interrupted)
    assert (done.exception.exit_code, "same command" in done.exception.hint) == (130, True)


def test_a_name_sends_no_commands_to_the_terminal() -> None:
    skipped = (Skipped("a/\x1b[31m.png", "\x1b[31m.png is damaged"), Skipped("b/é.png", "cut off"))
    assert _messages(_run(skipped, (Finding("kind", "odd."),)), Path("run")) == [
        "note: odd.",
        "skipped 2 file(s):",
        r"  'a/\x1b[31m.png: \x1b[31m.png is damaged'",
        "  b/é.png: cut off",
    ]


@pytest.mark.parametrize(("epochs", "words"), [(1, "1 epoch,"), (30, "30 epochs,")])
def test_one_is_not_many(epochs: int, words: str) -> None:
    assert words in _head_words(_run(epochs=epochs))

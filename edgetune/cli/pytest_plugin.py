"""pytest's side of edgetune: one test an artifact of a bundle, and the parity report as a fixture.

Every pytest of an environment with edgetune loads this file, so it imports nothing of edgetune until
`--edgetune-bundle` is given.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from edgetune.parity.records import ParityReport
    from edgetune.steps.parity import ParityOptions

_BUNDLE = "--edgetune-bundle"
_WITHOUT_BUNDLE = f"needs {_BUNDLE}"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("edgetune", "parity of an edgetune bundle with its PyTorch model")
    group.addoption(
        _BUNDLE, type=Path, metavar="DIR", help="Add a test for each artifact of this bundle: does it pass parity?"
    )
    group.addoption(
        "--edgetune-data", type=Path, metavar="DIR",
        help="Labelled images, CLASS/*.jpg; the run's validation images by default.",
    )  # fmt: skip
    group.addoption("--edgetune-run", type=Path, metavar="DIR", help="The run the bundle came from, if it moved.")
    group.addoption("--edgetune-gates", type=Path, metavar="FILE", help="A TOML file with other limits.")
    group.addoption(
        "--edgetune-runner", action="append", default=[], metavar="KIND",
        help="What runs the artifacts, as in edgetune parity --runner; may be given several times.",
    )  # fmt: skip
    group.addoption("--edgetune-require", action="store_true", help="What could not be judged here fails.")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "edgetune: parity of an artifact; added by --edgetune-bundle")
    if _bundle(config) is None:
        _check_no_orphans(config)
        return
    config.stash[_PARITY] = _Parity(config)


@pytest.hookimpl(tryfirst=True)  # before -k and -m choose
def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    if _PARITY not in config.stash:
        return
    made = config.stash[_PARITY].make_items(session)
    items += made
    report = pytest.CollectReport("edgetune", "passed", None, [*made])  # pytest counts what was reported as collected
    config.hook.pytest_collectreport(report=report)


@pytest.fixture(scope="session")
def edgetune_bundle(pytestconfig: pytest.Config) -> Path:
    """The folder that --edgetune-bundle names; skips without it."""
    bundle = _bundle(pytestconfig)
    if bundle is None:
        pytest.skip(_WITHOUT_BUNDLE)
    return bundle


@pytest.fixture(scope="session")
def edgetune_parity(pytestconfig: pytest.Config) -> ParityReport:
    """The bundle's `ParityReport`, made once a session; skips without --edgetune-bundle."""
    if _PARITY not in pytestconfig.stash:
        pytest.skip(_WITHOUT_BUNDLE)
    try:
        return pytestconfig.stash[_PARITY].report()
    except _NotCompared as error:
        pytest.fail(str(error), pytrace=False)


def _bundle(config: pytest.Config) -> Path | None:
    bundle: Path | None = config.getoption(_BUNDLE)
    return bundle


def _check_no_orphans(config: pytest.Config) -> None:
    for name in ("data", "run", "gates", "runner", "require"):
        if config.getoption(f"--edgetune-{name}"):
            raise pytest.UsageError(f"--edgetune-{name} {_WITHOUT_BUNDLE}")


class _NotCompared(Exception):
    """The comparison itself could not be made; the text is for the user, who can mend it."""


class _Failed(Exception):
    """An artifact did not pass; the text is all that is to be shown."""


class _Parity:
    """The one comparison of a session, made when a test first asks for it.

    Raises:
        UsageError of pytest: the bundle or an option cannot be used.
    """

    def __init__(self, config: pytest.Config) -> None:
        from edgetune.core.bundle import load_bundle
        from edgetune.core.errors import EdgetuneError

        self._path: Path = config.getoption(_BUNDLE)
        self._data: Path | None = config.getoption("--edgetune-data")
        self._is_required: bool = config.getoption("--edgetune-require")
        try:
            self._names = [artifact.name for artifact in load_bundle(self._path).manifest.artifacts]
            self._options = _parity_options(config)
            if self._data is not None and not self._data.is_dir():
                raise pytest.UsageError(f"--edgetune-data: {self._data} is not a folder")
        except EdgetuneError as error:
            raise pytest.UsageError(_text(error)) from error
        self._report: ParityReport | None = None
        self._problem: _NotCompared | None = None

    def report(self) -> ParityReport:
        """Raises `_NotCompared` each time, once the comparison has failed: it would again."""
        if self._problem is not None:
            raise self._problem
        if self._report is None:
            self._report = self._compare()
        return self._report

    def _compare(self) -> ParityReport:
        from edgetune.core.errors import EdgetuneError
        from edgetune.steps.parity import parity

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the libraries that run models; a test suite may turn them into errors
            try:
                return parity(self._path, self._data, self._options)
            except EdgetuneError as error:
                self._problem = _NotCompared(_text(error))
                raise self._problem from error

    def make_items(self, session: pytest.Session) -> list[ArtifactItem]:
        folder = self._path.resolve().name.replace("::", "_")
        items = [
            ArtifactItem.from_parent(session, name=name, nodeid=f"edgetune/{folder}::{name}") for name in self._names
        ]
        for item in items:
            item.add_marker("edgetune")
        return items

    def check(self, artifact: str) -> None:
        """Raises `_Failed` or pytest's `Skipped` where the artifact did not pass, by what all that ran it says. Where
        nothing at all could be judged, nothing is skipped: no proof must not look like one.
        """
        verdict, lines = _judged(self.report(), artifact)
        if verdict == "PASS":
            return
        if verdict == "FAIL" or self._is_required or self.report().verdict == "NOT-RUN":
            raise _Failed("\n".join(lines))
        pytest.skip("; ".join(line.strip() for line in lines))


class ArtifactItem(pytest.Item):
    """The test of one artifact."""

    def runtest(self) -> None:
        self.config.stash[_PARITY].check(self.name)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """The reasons alone; a bug keeps its traceback."""
        if isinstance(excinfo.value, (_Failed, _NotCompared)):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, None, str]:
        """A headline that differs from the name: of a name alone pytest would write the dots as `::`."""
        return self.config.rootpath / self.nodeid.split("::")[0], None, f"parity of {self.name}"


_PARITY = pytest.StashKey[_Parity]()


def _parity_options(config: pytest.Config) -> ParityOptions:
    """The command's options of the same names."""
    from edgetune.parity.gate_set import load_gates
    from edgetune.runners.choice import RunnerOptions
    from edgetune.steps.parity import ParityOptions

    kinds: Sequence[str] = config.getoption("--edgetune-runner")
    gates: Path | None = config.getoption("--edgetune-gates")
    for kind in kinds:
        RunnerOptions(kind)  # refuses one that is not known
    if gates is not None:
        load_gates(gates)  # refuses it now, not at the first test
    return ParityOptions(
        run=config.getoption("--edgetune-run"),
        kinds=tuple(kinds),
        gates=gates,
        require=config.getoption("--edgetune-require"),
    )


def _judged(report: ParityReport, artifact: str) -> tuple[str, list[str]]:
    """The verdict of all that ran the artifact, by the report's own rule, and why it is not PASS.

    A stage that failed before any artifact ran fails every artifact.
    """
    from edgetune.parity.report import remarks, titles

    entries = zip(titles(report), report.artifacts, strict=True)
    verdicts = {title: entry.verdict for title, entry in entries if entry.artifact == artifact}
    broken = {f"stage {stage.stage}": stage.verdict for stage in report.stages if stage.verdict == "FAIL"}
    faults = {title: verdict for title, verdict in {**broken, **verdicts}.items() if verdict != "PASS"}
    lines = []
    for title, verdict in faults.items():
        lines.append(f"{title}: {verdict}")
        lines += [f"  {text}" for told, text in remarks(report) if told == title]
    if "FAIL" in faults.values():
        return "FAIL", lines
    return "PASS" if "PASS" in verdicts.values() else "NOT-RUN", lines or [f"{artifact} is not in the report"]


def _text(error: object) -> str:
    message, hint = getattr(error, "message", str(error)), getattr(error, "hint", "")
    return f"{message} ({hint})" if hint else str(message)

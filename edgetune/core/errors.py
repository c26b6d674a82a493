"""The one family of errors that edgetune raises for things a user can mend."""

from __future__ import annotations


def first_line(error: BaseException) -> str:
    """An exception's message without the pages that libraries add to it; its class where it has none."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__


class EdgetuneError(Exception):
    """A problem that the user can solve; anything else that escapes is a bug.

    `code` is stable, for programs that read the JSON envelope. `exit_code` is the process's exit status.
    The message names the thing, what came and what was expected; `hint` is the next step to take.
    """

    code = "error"
    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(EdgetuneError):
    """The command's words or options do not fit together."""

    code = "usage"
    exit_code = 2


class Interrupted(EdgetuneError):
    """Ctrl-C; the exit code is the shell's for SIGINT."""

    code = "interrupted"
    exit_code = 130


class DataError(EdgetuneError):
    """A folder of images, a split or its labels cannot be used."""

    code = "data"


class ImageError(DataError):
    """One image cannot be decoded or is over a limit."""

    code = "image"


class WeightsError(EdgetuneError):
    """A weights file is missing, damaged, or belongs to another architecture."""

    code = "weights"


class BackboneChangedError(EdgetuneError):
    """A tensor of the frozen backbone differs from the weights file."""

    code = "backbone_changed"


class RunError(EdgetuneError):
    """A run folder is missing, damaged, or of another schema version."""

    code = "run"


class BundleError(EdgetuneError):
    """A bundle is missing, damaged, or of another schema version."""

    code = "bundle"


class ArtifactError(EdgetuneError):
    """An artifact of a bundle cannot be used as asked."""

    code = "artifact"


class ModelError(EdgetuneError):
    """An ONNX model cannot be exported, loaded or run."""

    code = "model"


class EngineError(EdgetuneError):
    """A TensorRT engine cannot be built, read or run."""

    code = "engine"


class EngineMismatchError(EngineError):
    """An engine was built for another backend, version or GPU than this machine's."""

    code = "engine_mismatch"


class TensorError(EdgetuneError):
    """A tensor that was fed has another name, dtype or shape than the model expects."""

    code = "tensor"


class SelfTestError(EdgetuneError):
    """The golden images of a bundle give other answers on this machine."""

    code = "self_test"


class AddressError(EdgetuneError):
    """A server's address cannot be bound, or nothing answers there."""

    code = "address"


class OutputExistsError(EdgetuneError):
    """The output is already there and was not to be replaced."""

    code = "output_exists"


class ConfigError(EdgetuneError):
    """A JSON file or option record has unknown, missing or ill-typed keys."""

    code = "config"


class MissingDependencyError(EdgetuneError):
    """A library that an extra installs is not there."""

    code = "missing_dependency"

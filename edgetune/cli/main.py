"""The command line: one lazily loaded file a command, and the one place where errors become exit codes."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

import click

from edgetune.cli.render import show_bug, show_error
from edgetune.core.errors import EdgetuneError, Interrupted, UsageError

_COMMANDS = {
    "sample-data": "write a small real dataset as an image folder, offline",
    "fit": "fit the head of a frozen backbone on a folder of images",
    "export": "write a bundle: ONNX, INT8, and the proof of both",
    "quantize": "quantize an ONNX classifier made by any tool to INT8",
    "build": "build the TensorRT engine of a bundle, with proof of what is inside",
    "parity": "compare every artifact of a bundle with the PyTorch model",
    "bench": "time every artifact here and say which to ship",
    "predict": "label images with a bundle, offline",
    "serve": "serve a bundle over HTTP",
    "doctor": "show what this machine has and lacks",
    "info": "show what a run, a bundle, an ONNX file or an engine is",
}


class LazyGroup(click.Group):
    """Imports a command's module when the command runs, so that `serve` never imports what `fit` needs."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"edgetune.cli.cmd_{cmd_name.replace('-', '_')}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="edgetune")
def cli() -> None:
    """Fit a head, export to ONNX and INT8, prove it against PyTorch, serve it on devices.

    \b
    Example:
      edgetune sample-data digits data
      edgetune fit data --out runs/digits
      edgetune export runs/digits --out bundles/digits --int8
      edgetune serve bundles/digits
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command; user errors end in one line and their exit code, bugs in their traceback."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    as_json = "--json" in words
    name = next((word for word in words if not word.startswith("-")), "edgetune")
    try:
        cli.main(args=words, prog_name="edgetune", standalone_mode=False)
    except EdgetuneError as error:
        show_error(name, error, as_json=as_json)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        raise SystemExit(2) from None
    except click.UsageError as error:
        _show_usage_error(name, error, as_json=as_json)
    except (click.Abort, KeyboardInterrupt):
        show_error(name, Interrupted("stopped; nothing was left half written."), as_json=as_json)
    except click.ClickException as error:
        show_error(name, UsageError(error.format_message()), as_json=as_json)
    except ModuleNotFoundError as error:
        show_error(name, _missing_module(error), as_json=as_json)
    except OSError as error:
        show_error(name, EdgetuneError(f"the system refused: {error}."), as_json=as_json)
    except Exception as error:
        if as_json:
            show_bug(name, error)
        raise


def _show_usage_error(name: str, error: click.UsageError, *, as_json: bool) -> None:
    hint = f"{error.ctx.command_path} --help" if error.ctx else "edgetune --help"
    show_error(name, UsageError(error.format_message(), hint=hint), as_json=as_json)


_MODULES = {
    "train": ("torch", "torchvision", "timm", "safetensors", "sklearn", "scipy", "threadpoolctl", "matplotlib",
              "huggingface_hub"),
    "onnx": ("onnx", "onnxscript", "google"),
    "serve": ("uvicorn", "httptools", "orjson"),
    "cpu": ("onnxruntime",),
}  # fmt: skip
_EXTRAS = {module: extra for extra, modules in _MODULES.items() for module in modules}


def _missing_module(error: ModuleNotFoundError) -> EdgetuneError:
    """A missing library is the user's to install; a missing module of our own is a bug and keeps its traceback."""
    from edgetune.core.errors import MissingDependencyError

    package = (error.name or "").partition(".")[0]
    if package not in _EXTRAS:
        raise error
    return MissingDependencyError(f"{package} is not installed.", hint=f"pip install 'edgetune[{_EXTRAS[package]}]'")


if __name__ == "__main__":
    main()

"""edgetune serve."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgetune.cli.options import FOLDER, artifact_options, json_option, runner_options
from edgetune.cli.render import Outcome, announce

if TYPE_CHECKING:
    from edgetune.serve.app import ServerReady


@click.command("serve")
@click.argument("bundle", type=FOLDER)
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Address to listen on; this machine only by default."
)
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 takes a free port.")
@click.option("--model-name", default="", help="Name of the model in URLs; the bundle folder's name by default.")
@click.option("--threads", type=click.IntRange(1), help="Threads per inference; all usable CPUs by default.")
@artifact_options
@runner_options
@json_option
def command(
    bundle: Path,
    host: str,
    port: int,
    model_name: str,
    threads: int | None,
    artifact: str,
    allow_failed: bool,
    runner: str,
    engine_cache: Path | None,
    fallback: bool,
    as_json: bool,
) -> None:
    """Serve BUNDLE over HTTP: the Open Inference Protocol V2, and images to labels at POST /v1/classify.

    The bundle is checked byte by byte and must give its golden answers on this machine before the port opens.

    \b
    Example:
      edgetune serve bundles/first
      curl --data-binary @photo.jpg http://127.0.0.1:8000/v1/classify
    """
    from edgetune.runners.choice import RunnerOptions
    from edgetune.serve.app import run_server
    from edgetune.serve.settings import ServeSettings

    settings = ServeSettings(
        host=host, port=port, model_name=model_name, artifact=artifact, allow_failed=allow_failed,
        runner=RunnerOptions(runner, threads, engine_cache, fallback),
    )  # fmt: skip

    def say(ready: ServerReady) -> None:
        announce(Outcome("serve", ready, _lines(ready)), as_json=as_json)

    run_server(bundle, settings, say)


def _lines(ready: ServerReady) -> list[str]:
    tested = ready.self_test
    lines = [
        f"artifact: {ready.artifact} ({ready.reason}) on {ready.runner}",
        f"self-test: {tested.images} golden images, pixels within {tested.max_pixel_diff}, "
        f"logits within {tested.max_logit_diff:.2g}",
    ]
    if ready.is_public:
        lines.append(f"warning: {ready.address} is reachable from the network, and this server asks for no password")
    return [*lines, f"ready: {ready.model} on {ready.address}"]

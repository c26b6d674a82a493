"""edgetune serve."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgetune.cli.options import FOLDER, PATH, artifact_options, json_option, runner_options
from edgetune.cli.render import Outcome, announce

if TYPE_CHECKING:
    from edgetune.serve.server import ServerReady
    from edgetune.serve.settings import ServeSettings

FILE = click.Path(path_type=Path, dir_okay=False)


@click.command("serve")
@click.argument("bundle", type=FOLDER)
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Address to listen on; this machine only by default."
)
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 takes a free port.")
@click.option("--model-name", default="", help="Name of the model in URLs; the bundle folder's name by default.")
@click.option(
    "--mode", type=click.Choice(["throughput", "latency"]), default="throughput", show_default=True,
    help="throughput: as many inferences side by side as CPUs, one thread each; latency: one at a time on all CPUs.",
)  # fmt: skip
@click.option("--runs", type=click.IntRange(1, 256), help="Inferences side by side, in place of --mode's number.")
@click.option("--threads", type=click.IntRange(1, 1024), help="Threads per inference, in place of --mode's number.")
@click.option("--config", type=FILE, metavar="FILE.toml", help="Tables [limits] and [batching]; see deploy/serve.toml.")
@click.option("--token-file", type=FILE, help="Clients must send this file's token: Authorization: Bearer TOKEN.")
@click.option("--tls-certificate", type=FILE, help="PEM file: answer over HTTPS.")
@click.option("--tls-key", type=FILE, help="PEM file with the certificate's key.")
@click.option("--tls-ca", type=FILE, help="PEM file: clients must show a certificate that this CA signed.")
@click.option("--allow-host", multiple=True, metavar="NAME", help="Answer for this Host name too; may be repeated.")
@click.option("--insecure", is_flag=True, help="Allow a public --host without a token or client certificates.")
@click.option("--previous", type=FOLDER, metavar="BUNDLE", help="Serve this bundle where BUNDLE fails its self-test.")
@click.option("--admin", "admin_socket", type=PATH, metavar="SOCKET", help="Unix socket for /status, /swap and /drain.")
@click.option(
    "--drain", "drain_s", type=click.FloatRange(0, 3600), default=0.0, metavar="SECONDS",
    help="On SIGTERM, say \"not ready\" for so long before closing, for load balancers.",
)  # fmt: skip
@click.option("--access-log", is_flag=True, help="One line a request on stderr.")
@click.option("--log-format", type=click.Choice(["text", "json"]), default="text", show_default=True)
@click.option("--triton-metrics", is_flag=True, help="Add Triton's nv_* series to /metrics.")
@artifact_options
@runner_options
@json_option
def command(bundle: Path, as_json: bool, **options: Any) -> None:
    """Serve BUNDLE over HTTP: the Open Inference Protocol V2, and images to labels at POST /v1/classify.

    The bundle is checked byte by byte and must give its golden answers on this machine before the port opens. SIGHUP
    takes up what BUNDLE, perhaps a link, leads to by then, without losing a request.

    \b
    Example:
      edgetune serve bundles/first
      curl --data-binary @photo.jpg http://127.0.0.1:8000/v1/classify
      edgetune serve bundles/first --mode latency                      # one camera
      edgetune serve bundles/first --host 0.0.0.0 --token-file token
    """
    # A pool of threads a library makes for its own products would sit beside the runs' threads and do nothing.
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    from edgetune.serve.server import run_server

    def say(ready: ServerReady) -> None:
        announce(Outcome("serve", ready, _lines(ready)), as_json=as_json)

    run_server(bundle, _settings(options), say)


def _settings(options: dict[str, Any]) -> ServeSettings:
    from edgetune.runners.choice import RunnerOptions
    from edgetune.serve.settings import Access, ServeSettings, read_config

    config = read_config(options.pop("config"))
    runner = RunnerOptions(
        options.pop("runner"), options.pop("threads"), options.pop("engine_cache"), options.pop("fallback")
    )  # fmt: skip
    tls = {name: options.pop(name) for name in ("tls_certificate", "tls_key", "tls_ca")}
    hosts = options.pop("allow_host")
    access = Access(options.pop("token_file"), **tls, hosts=hosts, insecure=options.pop("insecure"))
    return ServeSettings(
        **options, runner=runner, access=access, limits=config.limits, batching=config.batching
    )  # fmt: skip


def _lines(ready: ServerReady) -> list[str]:
    tested = ready.self_test
    lines = [
        f"artifact: {ready.artifact} ({ready.reason}) on {ready.runner}",
        f"threads: {ready.threads}",
        f"self-test: {tested.images} golden images, pixels within {tested.max_pixel_diff}, "
        f"logits within {tested.max_logit_diff:.2g}",
    ]
    if ready.instead_of:
        lines.insert(0, f"warning: this is the previous bundle, because {ready.instead_of}")
    return [*lines, f"ready: {ready.model} on {ready.address}"]

"""LitServe in its fastest form for this: raw bodies, its ZeroMQ queue, one worker process a CPU for both kinds of body.

`python -m benchmarks.serve_peers.litserve_app PORT`, in an environment with litserve and pyzmq.
"""

import importlib
import sys
from typing import TYPE_CHECKING, Annotated, Any

from benchmarks.serve_peers.work import Work, work_from_environment
from edgetune.core.machine import usable_cpus

litserve: Any = importlib.import_module("litserve")
fastapi: Any = importlib.import_module("fastapi")
if TYPE_CHECKING:
    Raw = bytes
    LitApi = object
    Response = Any
else:
    Raw = Annotated[bytes, fastapi.Body(media_type="application/octet-stream")]
    LitApi, Response = litserve.LitAPI, fastapi.Response


class Api(LitApi):
    def setup(self, device: str) -> None:  # noqa: ARG002 - LitServe's signature
        self.work: Work = work_from_environment()

    def decode_request(self, request: Raw) -> bytes:
        return request

    def predict(self, x: bytes) -> bytes:
        """By how the body begins, so that one set of workers does for both."""
        return self.work.jpeg(x) if x.startswith(b"\xff\xd8\xff") else self.work.tensor(x)

    def encode_response(self, output: bytes) -> Response:
        return fastapi.Response(output, media_type="application/octet-stream")


def main() -> None:
    api: Any = Api
    server = litserve.LitServer(api(), accelerator="cpu", workers_per_device=usable_cpus(), fast_queue=True)
    server.run(host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False, log_level="warning")


if __name__ == "__main__":
    main()

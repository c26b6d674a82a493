"""MLServer in its fastest form for this: custom handlers with raw bodies, no worker processes, a thread a CPU.

Its V2 endpoint takes tensors as JSON only over REST, which would cost it several times as much.
`mlserver start FOLDER`, where FOLDER names `Runtime` in a model-settings.json.
"""

import asyncio
import importlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from benchmarks.serve_peers.work import work_from_environment
from edgetune.core.machine import usable_cpus

mlserver: Any = importlib.import_module("mlserver")
custom_handler: Any = importlib.import_module("mlserver.handlers").custom_handler
fastapi: Any = importlib.import_module("fastapi")
if TYPE_CHECKING:
    Request = Any
    Response = Any
    MLModel = object
else:
    Request, Response, MLModel = fastapi.Request, fastapi.Response, mlserver.MLModel


class Runtime(MLModel):
    async def load(self) -> bool:
        self.work = work_from_environment()
        self.pool = ThreadPoolExecutor(usable_cpus())
        return True

    @custom_handler(rest_path="/tensor")  # type: ignore[untyped-decorator]
    async def tensor(self, request: Request) -> Response:
        return await self._answer(request, self.work.tensor)

    @custom_handler(rest_path="/jpeg")  # type: ignore[untyped-decorator]
    async def jpeg(self, request: Request) -> Response:
        return await self._answer(request, self.work.jpeg)

    async def _answer(self, request: Request, compute: Callable[[bytes], bytes]) -> Response:
        body = await request.body()
        logits = await asyncio.get_running_loop().run_in_executor(self.pool, compute, body)
        return fastapi.Response(logits, media_type="application/octet-stream")

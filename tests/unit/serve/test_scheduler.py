"""Who gets in, and who is told to come back."""

from __future__ import annotations

import asyncio
import threading

import pytest

from edgetune.serve.scheduler import Scheduler
from edgetune.serve.schemas import RequestError


def test_one_too_many_is_told_503_and_a_place_comes_free_again() -> None:
    scheduler = Scheduler(max_requests=2)
    with scheduler.admit():
        with scheduler.admit(), pytest.raises(RequestError, match="busy with 2 requests") as caught, scheduler.admit():
            pass
        assert caught.value.status == 503
        with scheduler.admit():
            pass
    scheduler.close()


def test_an_error_inside_gives_the_place_back() -> None:
    scheduler = Scheduler(max_requests=1)
    for _ in range(3):
        with pytest.raises(ValueError, match="broken"), scheduler.admit():
            raise ValueError("broken")
    scheduler.close()


def test_inferences_run_one_at_a_time() -> None:
    scheduler = Scheduler(max_requests=8)
    running, most = [0], [0]
    lock = threading.Lock()

    def work() -> None:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        threading.Event().wait(0.01)
        with lock:
            running[0] -= 1

    async def flood() -> None:
        await asyncio.gather(*(scheduler.infer(work) for _ in range(8)))

    asyncio.run(flood())
    scheduler.close()
    assert most == [1]

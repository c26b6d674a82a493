"""Jobs for threads: the thread that slept last is woken first, for its core still has the model in its cache."""

from __future__ import annotations

import threading
from collections import deque
from typing import Generic, TypeVar

J = TypeVar("J")


class WorkQueue(Generic[J]):
    """First in, first out for jobs; last in, first out for the threads that wait. Any thread may use it.

    The standard library's queues wake waiting threads in turn, which at a low load sends each run to another core.
    """

    def __init__(self) -> None:
        self._jobs: deque[J] = deque()
        self._sleepers: list[threading.Lock] = []
        self._lock = threading.Lock()
        self._is_closed = False

    def __len__(self) -> int:
        return len(self._jobs)

    def put(self, job: J) -> None:
        with self._lock:
            self._jobs.append(job)
            sleeper = self._sleepers.pop() if self._sleepers else None
        if sleeper is not None:
            sleeper.release()

    def get(self) -> J | None:
        """Waits for a job; None when the queue is closed and empty."""
        sleeper = threading.Lock()
        sleeper.acquire()
        while True:
            with self._lock:
                if self._jobs:
                    return self._jobs.popleft()
                if self._is_closed:
                    return None
                self._sleepers.append(sleeper)
            sleeper.acquire()

    def close(self) -> None:
        """What is there is still given out; then every thread is told to end."""
        with self._lock:
            self._is_closed = True
            sleepers, self._sleepers = self._sleepers, []
        for sleeper in sleepers:
            sleeper.release()

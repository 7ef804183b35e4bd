"""Limits on slow work: a few threads at a time, some requests that wait, and a refusal for the rest."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import TypeVar

import anyio
from anyio.to_thread import run_sync
from starlette.exceptions import HTTPException

Result = TypeVar("Result")


class ConcurrencyLimiter:
    """Runs one kind of work in threads of its own, so that it holds up nothing else.

    Args:
        at_once: number of threads.   most: requests that may run or wait.
        refusal: the message for requests beyond these, answered with status 503.
    """

    def __init__(self, at_once: int, most: int, refusal: str) -> None:
        self._at_once, self._most, self._refusal = at_once, most, refusal
        self._taken = 0

    @cached_property
    def _threads(self) -> anyio.CapacityLimiter:
        return anyio.CapacityLimiter(self._at_once)  # not before an event loop runs, older anyios have none without

    @contextlib.contextmanager
    def slot(self) -> Iterator[None]:
        """Count as one of the requests that run or wait. Called from the thread of the event loop only."""
        if self._taken >= self._most:
            raise HTTPException(503, self._refusal, {"Retry-After": "2"})
        self._taken += 1
        try:
            yield
        finally:
            self._taken -= 1

    async def run(self, work: Callable[..., Result], *arguments: object) -> Result:
        """Call a function in a thread as soon as one is free, and return its result."""
        return await run_sync(work, *arguments, limiter=self._threads)

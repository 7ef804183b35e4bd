"""Limits for slow requests: a few run in threads, some wait, and the others are rejected."""

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
    """Runs one kind of work in separate threads, so that it does not block other requests.

    Args:
        at_once: number of threads.
        most: maximum number of requests that run or wait.
        refusal: message for further requests, sent with status 503.
    """

    def __init__(self, at_once: int, most: int, refusal: str) -> None:
        self._at_once, self._most, self._refusal = at_once, most, refusal
        self._taken = 0

    @cached_property
    def _threads(self) -> anyio.CapacityLimiter:
        return anyio.CapacityLimiter(self._at_once)  # older versions of anyio need a running event loop

    @contextlib.contextmanager
    def slot(self) -> Iterator[None]:
        """Count a request that runs or waits. Must be called in the thread of the event loop.

        Raises:
            HTTPException: with status 503 if there are too many.
        """
        if self._taken >= self._most:
            raise HTTPException(503, self._refusal, {"Retry-After": "2"})
        self._taken += 1
        try:
            yield
        finally:
            self._taken -= 1

    async def run(self, work: Callable[..., Result], *arguments: object) -> Result:
        """Call a function in a thread as soon as one is free, and return its result.

        Args:
            work: function to call.
            arguments: of the function.
        """
        return await run_sync(work, *arguments, limiter=self._threads)

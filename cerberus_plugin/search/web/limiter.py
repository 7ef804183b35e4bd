"""Work that takes a while, by turns: some at a time, some more that waits, and a word for whoever comes after those."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import TypeVar

import anyio
from anyio.to_thread import run_sync
from starlette.exceptions import HTTPException

Result = TypeVar("Result")


class Turns:
    """One kind of work. Its threads are its own, so that however much of it waits, all else goes on.

    Args:
        at_once: how many threads.   most: how many may be at work or wait.
        refusal: what those beyond are told.
    """

    def __init__(self, at_once: int, most: int, refusal: str) -> None:
        self._at_once, self._most, self._refusal = at_once, most, refusal
        self._taken = 0

    @cached_property
    def _threads(self) -> anyio.CapacityLimiter:
        return anyio.CapacityLimiter(self._at_once)  # not before an event loop runs, older anyios have none without

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """One among those that work or wait. Called from the thread of the event loop alone."""
        if self._taken >= self._most:
            raise HTTPException(503, self._refusal, {"Retry-After": "2"})
        self._taken += 1
        try:
            yield
        finally:
            self._taken -= 1

    async def run(self, work: Callable[..., Result], *arguments: object) -> Result:
        """What a function gives, in a thread as soon as one is free."""
        return await run_sync(work, *arguments, limiter=self._threads)

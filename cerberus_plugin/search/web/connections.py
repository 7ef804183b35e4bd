"""Connections of the page: closed where the client lets the server wait, and limited in number for each client."""

from __future__ import annotations

import asyncio
import socket

from uvicorn.protocols.http.h11_impl import H11Protocol

from .login import client_of

SECONDS = 10.0  # for a client to send the head of a request, or to take `LEAST` of an answer
LEAST = 4096  # bytes
MOST_OF_ONE = 128  # connections of one client; a browser keeps six, a proxy in front counts as one client


class Listener(socket.socket):
    """A listening socket that closes connections of a client which has `MOST_OF_ONE` of them already.

    They are counted as they are accepted, before TLS begins.
    """

    def __init__(self, listening: socket.socket) -> None:
        super().__init__(listening.family, listening.type, listening.proto, fileno=listening.detach())
        self._open: list[tuple[str, socket.socket]] = []

    def accept(self) -> tuple[socket.socket, tuple]:
        connection, address = super().accept()
        client = client_of(str(address[0]))
        self._open = [each for each in self._open if each[1].fileno() >= 0]
        if sum(client == other for other, _ in self._open) >= MOST_OF_ONE:
            connection.close()
            raise ConnectionAbortedError("too many connections of one client")  # asyncio goes on to the next one
        self._open.append((client, connection))
        return connection, address


class ImpatientProtocol(H11Protocol):
    """An HTTP/1.1 connection that ends where the client lets the server wait for longer than `SECONDS`.

    uvicorn limits the time between two requests alone, and no longer once a byte has come. Here the time counts until
    the head of a request is complete, after an answer even if the rest of an unread body still comes, and while no
    more than a trickle of an answer is taken. Whoever reads the body of a request limits the time for that.
    """

    _look_again: asyncio.TimerHandle
    _since = 0.0  # when the server last did not wait for the client, in the time of the event loop
    _unsent = 0  # bytes of answers at that time

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._since = self.loop.time()
        self._look()

    def connection_lost(self, exc: Exception | None) -> None:
        self._look_again.cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        self._since = self.loop.time()
        super().on_response_complete()

    def _look(self) -> None:
        """Close the connection, or look again later."""
        now, unsent = self.loop.time(), self.transport.get_write_buffer_size()
        serving = self.cycle is not None and not self.cycle.response_complete
        taken = self._unsent - unsent
        if taken < 0 or 0 < min(LEAST, self._unsent) <= taken or (serving and not unsent):
            self._since, self._unsent = now, unsent
        if now - self._since > SECONDS:
            self.transport.abort()
        self._look_again = self.loop.call_later(SECONDS / 4, self._look)

"""Connections of the page: slow connections are closed, and their number is limited per client."""

from __future__ import annotations

import asyncio
import socket

from uvicorn.protocols.http.h11_impl import H11Protocol

from .login import client_of

SECONDS = 10.0  # for a client to send the head of a request, or to receive `LEAST` bytes of a response
LEAST = 4096  # bytes
MOST_OF_ONE = 128  # connections per client; a browser uses six, and a proxy counts as one client


class Listener(socket.socket):
    """A listening socket that closes new connections of a client that already has `MOST_OF_ONE` connections.

    Connections are counted when they are accepted, before the TLS handshake.

    Args:
        listening: socket whose file descriptor is taken over.
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
            raise ConnectionAbortedError("too many connections of one client")  # asyncio accepts the next one
        self._open.append((client, connection))
        return connection, address


class ImpatientProtocol(H11Protocol):
    """An HTTP/1.1 connection that is closed if the server waits for the client for longer than `SECONDS`.

    uvicorn only limits the time between two requests, until the first byte arrives. This class also limits the time
    until the head of a request is complete, the time after a response even if the rest of an unread body still
    arrives, and the time in which the client receives less than `LEAST` bytes of a response. The time for the body of a
    request is limited where it is read.
    """

    _look_again: asyncio.TimerHandle
    _since = 0.0  # time of the event loop at which the server last did not wait for the client
    _unsent = 0  # unsent bytes of responses at that time

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
        """Close the connection if it is too slow, else check again later."""
        now, unsent = self.loop.time(), self.transport.get_write_buffer_size()
        serving = self.cycle is not None and not self.cycle.response_complete
        taken = self._unsent - unsent
        if taken < 0 or 0 < min(LEAST, self._unsent) <= taken or (serving and not unsent):
            self._since, self._unsent = now, unsent
        if now - self._since > SECONDS:
            self.transport.abort()
        self._look_again = self.loop.call_later(SECONDS / 4, self._look)

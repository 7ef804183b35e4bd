"""Connections of slow clients are closed, and other clients are served."""

import contextlib
import queue
import socket
import threading
import types
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

from cerberus_plugin.search.gallery import GalleryIndex
from cerberus_plugin.search.web import connections, serving
from cerberus_plugin.search.web.connections import ImpatientProtocol
from cerberus_plugin.search.web.serving import ServerConfig

import pytest
import uvicorn
from support.galleries import PlainEncoder, draw_many
from support.pages import gallery
from support.processes import fetch, until
from uvicorn.server import ServerState

HEAD = b"GET /page.css HTTP/1.1\r\nHost: 127.0.0.1\r\n"


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    folder = tmp_path_factory.mktemp("connections")
    draw_many(folder / "crops", 3)
    gallery(folder, PlainEncoder()).close()
    return folder / "index"


@pytest.fixture
def port(index, monkeypatch):
    """The port of a served page; it is stopped after the test."""
    servers, opened, run = [], queue.SimpleQueue(), uvicorn.Server.run
    monkeypatch.setattr("uvicorn.Server.run", lambda self, sockets: servers.append(self) or run(self, sockets))
    monkeypatch.setattr("webbrowser.open", opened.put)
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(serving.serve, GalleryIndex.open(index), None, ServerConfig(port=0), open_browser=True)
        yield urlsplit(opened.get(timeout=20)).port
        servers[0].should_exit = True
        done.result(20)


def connect(port: int, data: bytes = b"") -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=20)
    connection.sendall(data)
    return connection


def is_closed(connection: socket.socket) -> bool:
    """Return whether the server closes a connection within 20 seconds, the timeout; data sent before is read."""
    with connection, contextlib.suppress(ConnectionError):
        while connection.recv(65536):
            pass
    return True


def is_answered(port: int) -> bool:
    with contextlib.suppress(OSError):
        return fetch(f"http://127.0.0.1:{port}/page.css").status == 200


@pytest.mark.parametrize("sent", [b"", b"GET / HT", HEAD, b"\r\n\r\n", HEAD + b"Connection: keep-alive\r\n\r\n" + HEAD])
def test_a_connection_without_a_complete_request_head_is_closed(port, monkeypatch, sent):
    monkeypatch.setattr(connections, "SECONDS", 0.3)
    waiting = [connect(port, sent) for _ in range(4)]
    assert all(map(is_closed, waiting))
    until(lambda: is_answered(port))


@pytest.mark.parametrize("begun", [HEAD + b"X: ", (b"POST /picture HTTP/1.1\r\nHost: 127.0.0.1\r\nSec-Fetch-Site: "
                                                  b"same-origin\r\nContent-Length: 1000000\r\n\r\n")])
def test_a_connection_that_sends_single_bytes_is_closed(port, monkeypatch, begun):
    """Both in a request head, and in a body that is not read, since the response was already sent."""
    monkeypatch.setattr(connections, "SECONDS", 0.3)
    slow, stop = connect(port, begun), threading.Event()

    def trickle():
        with contextlib.suppress(OSError):
            while not stop.wait(0.02):
                slow.send(b"x")

    sending = threading.Thread(target=trickle)
    sending.start()
    assert is_closed(slow)
    stop.set()
    sending.join(20)


def test_the_number_of_connections_of_one_client_is_limited(port, monkeypatch):
    monkeypatch.setattr(connections, "MOST_OF_ONE", 3)
    waiting = [connect(port) for _ in range(3)]
    assert is_closed(connect(port)) and not is_answered(port)
    waiting.pop().close()
    until(lambda: is_answered(port))
    for each in waiting:
        each.close()


@pytest.mark.parametrize(("unsent", "closed"), [
    ([100_000] * 8, True), ([100_000, 99_990, 99_980, 99_970, 99_960, 99_950], True),  # nothing, or very little
    ([50_000, 40_000, 30_000, 20_000, 10_000, 0, 0, 0], False), ([900, 900, 0, 0, 0, 0, 0, 0], False),
    ([10_000, 9_000, 8_000, 7_000, 5_000, 4_000, 3_000, 0], False), ([10, 9, 8, 7, 6, 5, 4, 3], True)])
def test_a_response_is_aborted_if_the_client_receives_too_little_of_it(unsent, closed):
    """`unsent` are the bytes in the write buffer, checked every quarter of `SECONDS` while a request is served."""
    clock, calls, aborted = [0.0], [], []
    loop = types.SimpleNamespace(time=lambda: clock[0], call_later=lambda delay, call: calls.append((delay, call)))
    transport = types.SimpleNamespace(get_write_buffer_size=lambda: left.pop(0), abort=lambda: aborted.append(clock[0]),
                                      get_extra_info=lambda name: None)
    left = [0, *unsent]
    protocol = ImpatientProtocol(uvicorn.Config(lambda scope: None, log_config=None), ServerState(), {}, _loop=loop)
    protocol.connection_made(transport)
    protocol.cycle = types.SimpleNamespace(response_complete=False)
    while left and not aborted:
        delay, call = calls.pop()
        clock[0] += delay
        call()
    assert bool(aborted) is closed

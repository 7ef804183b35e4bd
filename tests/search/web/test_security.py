"""Rejected requests: invalid and too large uploads, and requests from other pages."""

import asyncio
import os
import re
import struct
import sys
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor

from cerberus_plugin.search.web import app as web_app
from cerberus_plugin.search.web import uploads as web_uploads
from cerberus_plugin.search.web.app import create_app
from cerberus_plugin.search.web.login import Login
from cerberus_plugin.search.web.security import HEADERS
from cerberus_plugin.utils.images import Limits, read_image

import pytest
from support.galleries import BandEncoder
from support.pages import ADDRESS, OWN, PASSWORD, client_of, drawn_gallery, picture, send


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return drawn_gallery(tmp_path_factory.mktemp("guard"), 4)


@pytest.fixture
def client(index):
    return client_of(index, BandEncoder(), limits=Limits(max_bytes=100_000, max_pixels=100_000))


def bomb() -> bytes:
    """A PNG file whose header claims 100,000 x 100,000 pixels."""
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(99)))))


# Uploads.


@pytest.mark.parametrize(("data", "reason"), [
    (b"", "is empty"), (b"no picture at all", "is not an image of a supported format"),
    (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is not an image of a supported format"),
    (picture(form="GIF"), "is not an image of a supported format"),
    (picture((60, 60), "JPEG")[:400], "is broken or truncated"), (bomb(), "has more than 100000 pixels"),
    (picture((400, 300)), "has more than 100000 pixels"), (picture((3, 90)), "is smaller than 4 x 4 pixels")],
    ids=["empty", "text", "svg", "gif", "cut", "bomb", "large", "small"])
def test_invalid_uploads_are_rejected_with_the_reason(client, data, reason):
    answer = client.post("/picture", content=data, headers=OWN)
    assert answer.status_code == 422 and reason in answer.text


def test_the_size_of_uploads_is_limited(index):
    client = client_of(index, BandEncoder())
    answer = client.post("/picture", content=picture((4001, 4000)), headers=OWN)
    assert answer.status_code == 422 and "has more than 16000000 pixels (4001 x 4000)" in answer.text
    answer = client.post("/picture", content=bytes(8 * 2**20 + 1), headers=OWN)
    assert answer.status_code == 413 and "more than 8 MiB" in answer.text


def test_an_upload_that_is_slow_to_decode_does_not_block_others(index, monkeypatch):
    begun, go_on = threading.Event(), threading.Event()

    def slow(data, *arguments):
        if len(data) > 1000:
            begun.set()
            assert go_on.wait(120)
        return read_image(data, *arguments)

    monkeypatch.setattr(web_uploads, "read_image", slow)
    with client_of(index, BandEncoder()) as client, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(send, client, picture((999, 999)))
        assert begun.wait(120)
        send(client, picture())
        assert not answer.done()
        go_on.set()
        assert answer.result(120)


def test_an_upload_with_a_too_large_content_length_is_not_read(client):
    def none():
        yield b"x"
        raise AssertionError("read on")

    answer = client.post("/picture", content=none(), headers={**OWN, "Content-Length": "100001"})
    assert answer.status_code == 413 and "the upload has more than 0.095 MiB" in answer.text


async def poured(app, pieces, path="/picture") -> tuple[int, bytes]:
    """Return status and body of the response to a body sent in pieces.

    `None` stands for a piece that never arrives, `...` for a disconnect.
    """
    scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "client": ("127.0.0.1", 1),
             "headers": [(b"host", b"127.0.0.1"), (b"sec-fetch-site", b"same-origin"), (b"content-length", b"5")],
             "scheme": "http", "server": ("127.0.0.1", 8000), "root_path": "", "http_version": "1.1"}
    pieces, sent = iter(pieces), []

    async def receive():
        piece = next(pieces)
        if piece is None:
            await asyncio.sleep(60)
        return {"type": "http.disconnect"} if piece is ... else \
            {"type": "http.request", "body": piece, "more_body": True}

    async def send(message):
        sent.append(message)

    await app(scope, receive, send)
    return sent[0]["status"], sent[1]["body"]


def finished(coroutine):
    """Run a coroutine in another thread, since the main thread may have the event loop of the browser tests."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, coroutine).result()


def pour(*arguments) -> tuple[int, bytes]:
    return finished(poured(*arguments))


def test_the_size_of_an_upload_is_checked_while_it_arrives(client):
    pieces = iter([bytes(10_000)] * 50)
    status, body = pour(client.app, pieces)
    assert status == 413 and b"choose a smaller file" in body
    assert len(list(pieces)) == 50 - 11  # 100,000 bytes are allowed


@pytest.mark.parametrize("path", ["/picture", "/login"])
def test_slow_uploads_time_out_and_a_disconnect_is_not_an_error(index, monkeypatch, path):
    app = create_app(index, BandEncoder(), login=(login := Login("anna", PASSWORD)))
    monkeypatch.setattr(login, "knows", lambda token: True)
    assert pour(app, [b"x", ...], path) == (400, b"")
    monkeypatch.setattr(web_app, "PATIENCE", 0.05)
    status, body = pour(app, [b"x", None], path)
    assert status == 408 and b"the upload took more than 0.05 seconds" in body


def test_uploads_beyond_the_limit_are_rejected_and_failed_uploads_do_not_count(index, monkeypatch):
    monkeypatch.setattr(web_app, "SENDING", 1)
    monkeypatch.setattr(web_app, "PATIENCE", 0.05)
    client = client_of(index, BandEncoder())

    async def both():
        return await asyncio.gather(*(poured(client.app, [b"x", None]) for _ in range(2)))

    slow, refused = finished(both())
    assert slow[0] == 408 and refused == (503, b"too many uploads at the moment (1); try again in a few seconds")
    monkeypatch.setattr(web_app, "PATIENCE", 120)
    send(client, picture())


def test_the_least_recently_used_uploads_are_removed(index, monkeypatch):
    monkeypatch.setattr(web_uploads.Uploads.__init__, "__defaults__", (2,))
    client = client_of(index, BandEncoder())
    first, second = (send(client, picture()) for _ in range(2))
    assert client.get(f"/?picture={first}").status_code == 200
    send(client, picture())
    assert client.get(f"/?picture={first}").status_code == 200
    answer = client.get(f"/?picture={second}")
    assert answer.status_code == 400 and "only the last 2 uploaded images are stored" in answer.text


def test_a_token_cannot_be_guessed(client):
    tokens = {send(client, picture()) for _ in range(8)}
    assert len(tokens) == 8 and all(re.fullmatch(r"[\w-]{22}", token) for token in tokens)  # 128 bits


def test_the_model_of_another_gallery_is_rejected_at_the_start(index):
    other = BandEncoder()
    other.fingerprint = "f" * 64
    with pytest.raises(ValueError, match="was made with the model aaaaaaaaaaaa, but this is the model ffffffffffff"):
        create_app(index, other)


OPENED: list[tuple] = []
WATCHING = [False]


def _watch(event: str, arguments: tuple) -> None:
    if WATCHING[0] and event == "open" and isinstance(arguments[2], int) and \
            arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        OPENED.append(arguments)


def test_uploads_are_not_written_to_disk(client, tmp_path):
    sys.addaudithook(_watch)  # cannot be removed again
    WATCHING[0] = True
    try:
        (tmp_path / "control").write_text("seen")
        large = os.urandom(60_000)
        client.post("/picture", content=large, headers={**OWN, "Content-Type": "image/png"})
        client.get(f"/sheet.html?picture={send(client, picture((250, 350)))}")
    finally:
        WATCHING[0] = False
    assert [str(path) for path, *_ in OPENED] == [str(tmp_path / "control")]


# Origin of requests.


@pytest.mark.parametrize(("headers", "status"), [
    ({"Sec-Fetch-Site": "same-origin"}, 200), ({"Origin": ADDRESS}, 200),
    ({"Sec-Fetch-Site": "same-origin", "Origin": "null"}, 200),
    ({"Sec-Fetch-Site": "cross-site"}, 403), ({"Sec-Fetch-Site": "same-site"}, 403), ({"Sec-Fetch-Site": "none"}, 403),
    ({"Sec-Fetch-Site": "cross-site", "Origin": ADDRESS}, 403), ({}, 403), ({"Origin": "null"}, 403),
    ({"Origin": "http://evil.example"}, 403), ({"Origin": "http://127.0.0.1:8001"}, 403),
    ({"Origin": "http://127.0.0.1"}, 403), ({"Origin": ""}, 403)])
def test_uploads_are_only_accepted_from_the_page_itself(client, headers, status):
    assert client.post("/picture", content=picture(), headers=headers).status_code == status


@pytest.mark.parametrize(("headers", "status"), [
    ({}, 200), ({"Sec-Fetch-Site": "none"}, 200), ({"Sec-Fetch-Site": "same-origin"}, 200),
    ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}, 200),
    ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"}, 403),
    ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}, 403),
    ({"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "cors"}, 403)])
def test_other_pages_can_link_to_the_page_but_not_load_it(client, headers, status):
    assert client.get("/", headers=headers).status_code == status


@pytest.mark.parametrize(("host", "status"), [
    ("127.0.0.1:8000", 200), ("localhost:8000", 200), ("LOCALHOST", 200), ("[::1]:8000", 200), ("10.0.0.7:8000", 200),
    ("gallery.lab:8000", 200), ("evil.example:8000", 400), ("evil.example", 400), ("127.0.0.1.evil.example", 400),
    ("", 400), ("[evil]", 400)])
def test_requests_with_a_foreign_host_name_are_rejected(index, host, status):
    client = client_of(index, hosts={"gallery.lab"})
    answer = client.get("/", headers={"Host": host})
    assert answer.status_code == status
    assert status == 200 or "not a host name of this page; use its IP address, or gallery.lab, localhost" in \
        answer.text


@pytest.mark.parametrize(("path", "status"), [
    ("/", 200), ("/?top=0", 400), ("/results.csv?a.head+colour=red", 200), ("/sheet.html?a.head+colour=red", 200),
    ("/crop/ROW", 200), ("/page.css", 200), ("/page.js", 200), ("/icon.svg", 200), ("/nowhere", 404),
    ("/picture", 405)])
def test_every_response_has_the_security_headers(client, row, path, status):
    path = path.replace("ROW", str(row))
    answer = client.get(path)
    assert answer.status_code == status
    kept = path in ("/page.css", "/page.js", "/icon.svg")
    for name, value in HEADERS.items():
        assert answer.headers[name] == ("max-age=600" if kept and name == "Cache-Control" else value)
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none';") and "unsafe" not in policy and "*" not in policy
    assert HEADERS["Cache-Control"] == "no-store"
    refused = client.get(path, headers={"Host": "evil.example"})
    assert refused.status_code == 400 and refused.headers["content-security-policy"] == policy


def test_the_page_has_no_inline_styles_or_scripts(client, row):
    for path in ("/", "/?a.head+colour=red&w.head=2&out=upper&changed=1&reliable=0.5", f"/?like={row}"):
        text = client.get(path).text
        assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:|data:|<script(?! src=\"/page.js\" defer></script>)",
                             text)

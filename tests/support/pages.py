"""Clients of the web page of a gallery, and functions that parse its pages."""

import html
import io
import re

from cerberus_plugin.search.gallery import GalleryIndex, Pace
from cerberus_plugin.search.web.app import create_app

from PIL import Image
from starlette.testclient import TestClient

from support.galleries import RED, BandEncoder, draw_many

ADDRESS = "http://127.0.0.1:8000"
OWN = {"Sec-Fetch-Site": "same-origin"}
PASSWORD = "correct horse"


def gallery(folder, encoder=None, **options) -> GalleryIndex:
    encoder = encoder or BandEncoder()
    return GalleryIndex.build(folder / "index", folder / "crops", encoder, pace=Pace(progress=False), **options)


def drawn_gallery(folder, count: int) -> GalleryIndex:
    """Build an index of `count` random images."""
    draw_many(folder / "crops", count)
    return gallery(folder)


def client_of(index, encoder=None, **options) -> TestClient:
    return TestClient(create_app(index, encoder, **options), ADDRESS)


def send(client, data: bytes) -> str:
    answer = client.post("/picture", content=data, headers=OWN)
    assert answer.status_code == 200, answer.text
    return answer.json()["picture"]


def found(answer) -> list[tuple[int, str]]:
    """Return the rows and scores of the hits of a page in their order."""
    assert answer.status_code == 200, answer.text
    articles = re.findall(r"<article>.*?</article>", answer.text, flags=re.S)
    return [(int(re.search(r'src="/crop/(\d+)"', each)[1]), re.search(r"<h2>\d+ <span[^>]*>([-\d.]+)", each)[1])
            for each in articles]


def links(answer, text: str) -> list[str]:
    return [html.unescape(href) for href, inner in re.findall(r'<a[^>]*href="([^"]*)"[^>]*>(.*?)</a>', answer.text,
                                                              flags=re.S) if text in inner]


def picture(size=(10, 20), form="PNG") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, RED).save(out, form)
    return out.getvalue()

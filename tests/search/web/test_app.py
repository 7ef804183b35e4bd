"""The web page: all kinds of queries through the address, the displayed results, and the downloads."""

import html
import io
import itertools
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from cerberus_plugin.search.gallery import Prefilter, Query, contact_sheet
from cerberus_plugin.search.portable import Answer, Verification
from cerberus_plugin.search.web import app as web_app
from cerberus_plugin.search.web.app import create_app

import pytest
from PIL import Image
from starlette.testclient import TestClient
from support.galleries import BLUE, GREEN, RED, BandEncoder, PlainEncoder, draw, draw_many, market_words
from support.pages import ADDRESS, OWN, client_of, drawn_gallery, found, gallery, links, send
from support.processes import WITHOUT_TORCH

PERSON = (RED, GREEN, BLUE, RED, GREEN)


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """An index of 40 images; tests only search it."""
    return drawn_gallery(tmp_path_factory.mktemp("web"), 40)


@pytest.fixture(scope="module")
def client(many):
    return client_of(many, BandEncoder())


def bytes_of(*bands, folder) -> bytes:
    return draw(folder / "query.png", *bands).read_bytes()


def expected(hits) -> list[tuple[int, str]]:
    assert hits
    return [(hit.row, f"{hit.score:.3f}") for hit in hits]


# Queries.


def test_attributes_have_display_names_on_the_page_and_both_names_in_its_address(tmp_path):
    draw_many(tmp_path / "crops", 4)
    encoder = BandEncoder()
    encoder.vocabulary = market_words()
    client = client_of(gallery(tmp_path, encoder))
    pages = [client.get(f"/?a.{name}=short+sleeve") for name in ("up", "sleeve+length")]
    assert pages[0].text == pages[1].text and len(found(pages[1])) == 4
    assert re.search(r'<span>sleeve length</span>\s*<select name="a.up" class="set">', pages[1].text)
    assert "sleeve length: short sleeve" in pages[1].text
    assert links(pages[1], "sleeve length: short sleeve")[0] == "/"  # a click removes it
    assert "sleeve length: short sleeve" in client.get("/sheet.html?a.up=short+sleeve").text
    assert '"up"' in client.get("/results.csv?a.up=short+sleeve").text.splitlines()[0]
    for address, reason in (("a.sleeves=long", "unknown attribute &#39;sleeves&#39;"),
                            ("a.up=short+sleeve&a.sleeve+length=long+sleeve", "are one attribute")):
        answer = client.get(f"/?{address}")
        assert answer.status_code == 400 and reason in answer.text


@pytest.mark.parametrize(("address", "query", "top"), [
    ("a.head+colour=red&a.upper+colour=green", Query(words={"head colour": "red", "upper colour": "green"}), 24),
    ("a.lower+colour=blue&top=5", Query(words={"lower colour": "blue"}), 5),
    ("a.head+colour=red&a.upper+colour=green&out=head", Query(words={"upper colour": "green"}), 24),
    ("a.head+colour=red&a.upper+colour=green&w.upper=3",
     Query(words={"head colour": "red", "upper colour": "green"}, weights={"upper": 3}), 24)])
def test_attributes_in_the_address_give_the_results_of_the_index(many, client, address, query, top):
    assert found(client.get(f"/?{address}")) == expected(many.search(query, top))


@pytest.mark.parametrize(("address", "query"), [
    ("", {}), ("&a.upper+colour=blue", {"words": {"upper colour": "blue"}}), ("&out=head&out=lower", {
        "leave_out": ["head", "lower"]}),
    ("&changed=1", {"leave_out": ["upper", "lower", "carrying"]}),
    ("&changed=1&out=head&w.identity=2", {"leave_out": ["head", "upper", "lower", "carrying"]})])
@pytest.mark.parametrize("kind", ["picture", "like"])
def test_uploaded_and_gallery_images_give_the_results_of_the_index(many, client, tmp_path, kind, address, query):
    if kind == "like":
        row = many.sample(3)[1]
        start, embedding = f"like={row}", many.embedding(row)
    else:
        data = bytes_of(*PERSON, folder=tmp_path)
        start, embedding = f"picture={send(client, data)}", many.embed(BandEncoder(), Image.open(io.BytesIO(data)))
    assert found(client.get(f"/?{start}{address}")) == expected(many.search(Query(embedding, **query), 24))


def test_the_prefilter_of_the_address_gives_the_results_of_the_index(many, client):
    query = Query(words={"head colour": "red"})
    kept = expected(many.search(query, 40, Prefilter(0.4)))
    assert found(client.get("/?a.head+colour=red&reliable=0.4&top=40")) == kept
    assert len(kept) < len(found(client.get("/?a.head+colour=red&top=40")))


def test_a_calibrated_index_shows_the_probability_of_the_same_person_and_offers_false_match_rates(tmp_path):
    class Calibrated(BandEncoder):
        lasting_groups = ("head",)
        verification = Verification(20.0, -16.0, 0.5, "cosine", (), {0.1: 0.9, 0.001: 0.99})

    draw_many(tmp_path / "crops", 20)
    index = gallery(tmp_path, Calibrated())
    client = client_of(index)
    row = index.sample(1)[0]
    hits = index.search(Query(index.embedding(row), false_match_rate=0.1), 24)
    page = client.get(f"/?like={row}&rate=0.1")
    assert found(page) == expected(hits) and 1 <= len(hits) < 20
    likely = [contact_sheet.likely(hit.same_person) for hit in hits]
    assert re.findall(r'class="same">same person: (.*?)<', page.text) == likely
    for page_or_sheet in (page, client.get(f"/sheet.html?like={row}")):
        assert page_or_sheet.text.count("with a prior probability of 1 in 21<") == 1
    assert re.findall(r'<option value="([\d.]+)"( selected)?>(1 in .*?)</option>', page.text) == [
        ("0.1", " selected", "1 in 10"), ("0.001", "", "1 in 1,000")]
    assert "same person" not in client.get(f"/results.csv?like={row}&a.head+colour=red").text
    assert '","same person","person","camera","time","' in client.get(f"/results.csv?like={row}").text
    assert found(client.get(f"/?like={row}&changed=1")) == expected(index.search(
        Query(index.embedding(row), leave_out=("upper", "lower", "identity", "carrying")), 24))


def test_empty_fields_of_the_form_are_removed_from_the_address(client):
    answer = client.get("/?a.head+colour=red&a.upper+colour=&w.head=&top=24", follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, "/?a.head+colour=red")


@pytest.mark.parametrize(("address", "message"), [
    ("top=many", "address: 'top=many', expected a whole number from 1 to 200"),
    ("top=0", "expected a whole number from 1 to 200"), ("top=201", "expected a whole number from 1 to 200"),
    ("top=٣", "expected a whole number from 1 to 200"),
    ("reliable=2", "address: 'reliable=2', expected a number from 0 to 1"),
    ("reliable=nan", "expected a number from 0 to 1"),
    ("w.head=-1", "address: 'w.head=-1', expected a number from 0 to 16"),
    ("w.head=inf", "expected a number from 0 to 16"),
    ("a.head+colour=red&rate=0.1", "the model of this index is not calibrated, so the false-match rate is unknown"),
    ("changed=yes", "address: 'changed=yes', expected changed=1 or no changed"),
    ("top=3&top=4", "address: has 'top' twice"), ("a.hat=no&a.hat=yes", "address: has 'a.hat' twice"),
    ("like=1&picture=abc", "address: has both like= and picture="),
    ("shoes=red", "address: unknown parameter 'shoes', expected a.ATTRIBUTE, w.GROUP, out or one of changed, like"),
    ("a.=red", "address: unknown parameter 'a.'"),
    ("like=99999", "address: 'like=99999' is not an image of this gallery, or was deleted"),
    ("like=99999999999999999999", "expected a whole number"),
    ("picture=abc", "image: no longer available; only the last 64 uploaded images are stored, in memory"),
    ("a.shoes=red", "search: unknown 'shoes' or 'red'"),
    ("a.head+colour=red&out=shoes", "search: unknown group 'shoes', expected one of head, upper"),
    ("a.head+colour=red&out=head", "the query only describes head, which is ignored")])
@pytest.mark.parametrize("page", ["/", "/results.csv", "/sheet.html"])
def test_errors_in_the_address_are_shown_on_the_page(client, page, address, message):
    answer = client.get(f"{page}?{address}")
    assert answer.status_code == 400 and message in html.unescape(answer.text)
    assert "Traceback" not in answer.text


# Display.


def test_the_form_has_the_attributes_of_the_model_with_the_selected_values(client):
    text = client.get("/?a.head+colour=green").text
    assert re.findall(r'<select name="a\.([^"]+)"', text) == [f"{group} colour" for group in (
        "head", "upper", "lower", "identity", "carrying")]
    assert re.findall(r"<option selected>(.*?)</option>", text) == ["green", "24"]
    assert "<legend>carrying</legend>" in text


def test_uncertain_attributes_are_shown_as_uncertain_without_a_link(tmp_path):
    draw(tmp_path / "crops/a.png", (90, 90, 90))  # all colours are equally probable
    page = client_of(gallery(tmp_path, dtype="float32")).get("/?a.head+colour=red")
    assert page.text.count("<i>uncertain</i>") == 5 and not links(page, "green")


def test_attributes_that_are_not_searched_for_are_set_to_any(client):
    assert client.get("/?a.head+colour=red").text.count('<option value="">any</option>') == 5


@pytest.mark.parametrize(("count", "text"), [(1, "<span>1 image</span>"), (2, "<span>2 images</span>")])
def test_the_number_of_images_has_the_right_noun(tmp_path, count, text):
    draw_many(tmp_path / "crops", count)
    assert text in client_of(gallery(tmp_path)).get("/").text


def test_the_start_page_shows_images_of_the_gallery(many, client):
    page = client.get("/?top=12")
    assert [int(row) for row in re.findall(r'src="/crop/(\d+)"', page.text)] == many.sample(12)
    assert f"/?like={many.sample(12)[3]}&amp;top=12" in page.text


def test_without_the_model_only_uploads_do_not_work_and_the_page_explains_how_to_enable_them(many):
    client = client_of(many)
    page = client.get(f"/?like={many.sample(1)[0]}")
    assert len(found(page)) == 24 and 'type="file"' not in page.text
    assert "cerberus serve INDEX --run RUN" in page.text
    assert client.post("/picture", content=b"x", headers=OWN).status_code == 409
    assert "start `cerberus serve` with --run or --model" in client.get("/?picture=abc").text


def test_a_model_without_groups_and_attributes_only_searches_by_image(tmp_path):
    draw_many(tmp_path / "crops", 4)
    index = gallery(tmp_path, PlainEncoder())
    client = client_of(index, PlainEncoder())
    row = index.sample(1)[0]
    assert found(client.get(f"/?like={row}")) == expected(index.search(Query(index.embedding(row)), 24))
    text = client.get("/").text
    assert "changed clothes" not in text and 'name="reliable"' not in text
    answer = client.get(f"/?like={row}&reliable=0.5")
    assert answer.status_code == 400 and "does not predict attributes; search without the filter" in answer.text


# Images and files.


def test_crops_are_reencoded_thumbnails_and_cannot_be_requested_by_path(many, client):
    answer = client.get(f"/crop/{many.sample(1)[0]}")
    image = Image.open(io.BytesIO(answer.content))
    assert (image.format, image.size, answer.headers["content-type"]) == ("JPEG", (8, 20), "image/jpeg")
    for path in ("/crop/99999", f"/crop/{10**30}", "/crop/../index.json", "/crop/%2e%2e%2findex.json", "/crop/a.png",
                 "/page.html.j2", "/app.py", "/../setup.py"):
        assert client.get(path).status_code == 404, path


def test_a_deleted_or_broken_image_has_no_crop_and_the_search_still_works(tmp_path):
    paths = draw_many(tmp_path / "crops", 3)
    index = gallery(tmp_path)
    client = client_of(index)
    paths[0].unlink()
    paths[1].write_bytes(b"broken")
    rows = {index.path(row).name: row for row in index.sample(3)}
    assert [client.get(f"/crop/{rows[path.name]}").status_code for path in paths] == [404, 404, 200]
    page = client.get(f"/?like={rows[paths[0].name]}")
    assert len(found(page)) == 3 and f'alt="{paths[0].name}"' in page.text


def test_names_and_values_are_escaped(tmp_path):
    name = "<script>alert(1)<&'\".png"
    draw(tmp_path / "crops" / name, RED)
    index = gallery(tmp_path)
    client, like = client_of(index), f"/?like={index.sample(1)[0]}"
    for address in ("/", "/?a.head+colour=red", "/?a.%3Cscript%3Ealert(1)=%3Cscript%3E", like, "/?%3Cscript%3E=1",
                    "/?a.head+colour=%22%3E%3Cscript%3E"):
        text = client.get(address).text
        assert text.count("<script") == 1 and '<script src="/page.js" defer>' in text, address
    assert html.escape(name, quote=False).replace("'", "&#39;").replace('"', "&#34;") in client.get(like).text


def test_results_are_downloaded_as_csv_and_html(many, client):
    hits = many.search(Query(words={"head colour": "red"}), 5)
    answer = client.get("/results.csv?a.head+colour=red&top=5")
    assert answer.text == contact_sheet.csv_text(contact_sheet.rows_of(hits, many.images))
    assert str(many.images) not in answer.text
    assert answer.headers["content-disposition"] == 'attachment; filename="cerberus.csv"'
    answer = client.get("/sheet.html?a.head+colour=red&top=5")
    assert answer.text == contact_sheet.html_text(hits, ["head colour: red"], many.images)
    filtered = client.get("/sheet.html?a.head+colour=red&a.identity+colour=red&reliable=0.4&changed=1&w.head=2").text
    assert "<h1>head colour: red, identity colour: red, may have changed clothes, weight of head: 2, no " \
        "contradictions above probability 0.4</h1>" in filtered
    assert answer.headers["content-disposition"] == 'attachment; filename="cerberus.html"'
    like = client.get(f"/sheet.html?like={hits[0].row}&top=5").text
    assert like.count("data:image/jpeg") == 6 and f"<h1>like {Path(hits[0].path).name}</h1>" in like
    for page in ("/results.csv", "/sheet.html"):
        assert "the query is empty" in client.get(page).text


def test_an_uploaded_image_is_shown_as_a_thumbnail_and_included_in_the_html_download(client, tmp_path):
    large = io.BytesIO()
    Image.new("RGB", (600, 1200), RED).save(large, "PNG")
    token = send(client, large.getvalue())
    shown = client.get(f"/picture/{token}")
    assert Image.open(io.BytesIO(shown.content)).size == (128, 256)
    assert client.get(f"/sheet.html?picture={token}&top=2").text.count("data:image/jpeg") == 3
    assert client.get("/picture/other").status_code == 404


def test_a_slow_search_does_not_block_other_requests(many, monkeypatch):
    engine, begun, go_on = many.faiss(), threading.Event(), threading.Event()
    search = engine.search

    def slow(*arguments):
        begun.set()
        assert go_on.wait(120)
        return search(*arguments)

    monkeypatch.setattr(engine, "search", slow)
    with client_of(many) as client, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(client.get, "/?a.head+colour=red")
        assert begun.wait(120)
        for path in ("/", "/page.css", f"/crop/{many.sample(1)[0]}"):
            assert client.get(path).status_code == 200 and not answer.done(), path
        go_on.set()
        assert len(found(answer.result(120))) == 24


def test_searches_beyond_the_limit_are_rejected_and_other_requests_are_not_blocked(many, monkeypatch):
    engine, go_on = many.faiss(), threading.Event()
    search = engine.search

    def slow(*arguments):
        assert go_on.wait(120)
        return search(*arguments)

    monkeypatch.setattr(engine, "search", slow)
    with client_of(many) as client, ThreadPoolExecutor(44) as pool:  # anyio has 40 threads in total
        answers = [pool.submit(client.get, f"/{page}?a.head+colour=red") for page in ("", "results.csv") * 22]
        refused = list(itertools.islice(as_completed(answers, 120), 44 - web_app.ASKING))
        for path in ("/", "/page.css", f"/crop/{many.sample(1)[0]}"):
            assert client.get(path).status_code == 200, path
        assert sum(answer.done() for answer in answers) == len(refused)
        go_on.set()
        assert sorted(answer.result(120).status_code for answer in answers) == [200] * web_app.ASKING + [503] * 12
    assert refused[0].result().text == "too many searches at the moment (32); try again in a few seconds"


def test_changes_during_a_search_are_reported_and_internal_errors_show_no_traceback(many, monkeypatch):
    client = TestClient(create_app(many), ADDRESS, raise_server_exceptions=False)

    def fails(error):
        def search(*_):
            raise error
        monkeypatch.setattr(many, "search", search)
        return client.get("/?a.head+colour=red")

    for error in (KeyError("row 3 is gone"), FileNotFoundError("parts/000001.embeddings.npy")):
        answer = fails(error)
        assert answer.status_code == 400 and "has changed during the search; search again" in answer.text
    answer = fails(OSError("/secret/place"))
    assert answer.status_code == 500 and answer.text.startswith("internal error; see the terminal of")


def test_a_note_says_that_probabilities_are_not_calibrated(many, client, monkeypatch):
    assert "not calibrated" not in client.get("/?a.head+colour=red").text
    monkeypatch.setattr(many.vocabulary, "answer", lambda name, value, p: Answer(value, p, calibrated=False))
    assert client.get("/?a.head+colour=red").text.count("attributes are not calibrated") == 1


def test_the_page_works_without_torch(many):
    code = WITHOUT_TORCH + f"""
sys.path.insert(0, "tests")
from support.galleries import Words
from starlette.testclient import TestClient
from cerberus_plugin.search.gallery import GalleryIndex
from cerberus_plugin.search.web.app import create_app
index = GalleryIndex.open({str(many.folder)!r}, Words())
print(TestClient(create_app(index), {ADDRESS!r}).get("/?a.head+colour=red&top=3").text.count("<article>"))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[3])
    assert done.stdout == "3\n", done.stderr

"""The web page in a browser: queries by mouse and keyboard, uploads, downloads, and no requests to other hosts."""

import base64
import csv
import threading
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from cerberus_plugin.search.gallery import GalleryIndex, Pace, Query
from cerberus_plugin.search.web.app import create_app
from cerberus_plugin.search.web.login import Login
from cerberus_plugin.search.web.serving import ServerConfig

import numpy as np
import pytest
from PIL import Image
from support.galleries import BLUE, GREEN, GROUPS, RED, BandEncoder, read
from support.processes import BROWSER

pytestmark = [pytest.mark.slow,
              pytest.mark.skipif(BROWSER is None, reason="no browser found; install one, such as Debian's chromium")]
COLOURS = {"red": RED, "green": GREEN, "blue": BLUE}
WANTED = ("red", "green", "blue", "red", "green")


def paint(path: Path, colours) -> Path:
    """Draw five coloured bands with the size of a crop of Market-1501."""
    bands = np.array([COLOURS[name] for name in colours], np.uint8)
    Image.fromarray(bands[:, None]).resize((64, 128), Image.Resampling.NEAREST).save(path)
    return path


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    """An index of 30 images of random bands; the last one is searched for."""
    folder = tmp_path_factory.mktemp("browser")
    (folder / "crops").mkdir()
    rng = np.random.default_rng(0)
    for i in range(30):
        colours = WANTED if i == 29 else [list(COLOURS)[k] for k in rng.integers(0, 3, 5)]
        paint(folder / "crops" / f"{i:04d}_c1s1_{i:06d}_00.png", colours)
    return GalleryIndex.build(folder / "index", folder / "crops", BandEncoder(), pace=Pace(progress=False))


def run(app):
    """Serve an application in a thread; returns its address and a function that stops it."""
    import uvicorn

    listening = ServerConfig(port=0).listen()
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", ws="none"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()

    def stop():
        server.should_exit = True
        thread.join(20)
        listening.close()

    return f"http://127.0.0.1:{listening.getsockname()[1]}", stop


@pytest.fixture(scope="module")
def served(index):
    address, stop = run(create_app(index, BandEncoder()))
    yield address
    stop()


@pytest.fixture
def look(browser):
    """Open an address; after the test, checks that there were no requests to other hosts and no console messages."""
    contexts, seen, complaints = [], [], []

    def open_page(address, **options):
        context = browser.new_context(viewport={"width": 1280, "height": 900}, **options)
        contexts.append(context)
        view = context.new_page()
        view.set_default_timeout(60_000)
        context.on("request", lambda request: seen.append(request.url))
        view.on("console", lambda message: complaints.append(message.text))
        view.on("pageerror", lambda error: complaints.append(str(error)))
        view.goto(address)
        return view

    open_page.complaints = complaints
    yield open_page
    hosts = {urlsplit(url).netloc for url in seen}
    for context in contexts:
        context.close()
    assert len(hosts) == 1 and not complaints


def shown(view) -> list[str]:
    """Return the names of the displayed results, best first."""
    view.wait_for_load_state()
    return view.locator("article .crop img").evaluate_all("images => images.map(image => image.alt)")


def asked(view) -> list[tuple[str, str]]:
    view.wait_for_load_state()
    return sorted(parse_qsl(urlsplit(view.url).query))


def names(hits) -> list[str]:
    return [Path(hit.path).name for hit in hits]


def choose(view, **values):
    for group, value in values.items():
        view.get_by_role("combobox", name=f"{group} colour", exact=True).select_option(value)
    view.get_by_role("button", name="Search").click()


def picture_query(index, tmp_path, **options):
    path = paint(tmp_path / "query.png", WANTED)
    return Query(BandEncoder().encode([read(path)])[0], **options)


def test_selected_attributes_are_searched_and_only_they_are_in_the_address(look, served, index):
    view = look(served)
    choose(view, head="red", upper="green")
    assert asked(view) == [("a.head colour", "red"), ("a.upper colour", "green"), ("top", "24")]
    words = {"head colour": "red", "upper colour": "green"}
    assert shown(view) == names(index.search(Query(words=words), 24))
    chips = ["".join(text.split("\n")) for text in view.locator(".present .chip").all_inner_texts()]
    assert chips == ["head colour: red×, remove", "upper colour: green×, remove"]
    for image in view.locator("article .crop img").all()[:3]:
        image.scroll_into_view_if_needed()
        assert image.evaluate("image => image.decode().then(() => image.naturalHeight)") == 128
    view.locator(".chip", has_text="head colour").click()
    assert shown(view) == names(index.search(Query(words={"upper colour": "green"}), 24))
    view.go_back()
    assert view.locator(".chip").count() == 2


def test_an_uploaded_image_is_searched_for_without_its_file_name(look, served, index, tmp_path):
    view = look(served)
    posted = []
    view.on("request", lambda request: posted.append(request) if request.method == "POST" else None)
    secret = paint(tmp_path / "my secret name.png", WANTED)
    view.locator("#file").set_input_files(secret)
    view.wait_for_url("**/?picture=*")
    assert shown(view) == names(index.search(picture_query(index, tmp_path), 24))
    assert shown(view)[0].startswith("0029") and len(posted) == 1
    headers = posted[0].all_headers()
    assert headers["content-length"] == str(secret.stat().st_size) and "secret" not in f"{headers} {posted[0].url}"
    for image in view.locator(".drop img, .chip img").all():
        assert image.evaluate("image => image.naturalHeight") == 128


DROP = """([data, type]) => {
  const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
  const carried = new DataTransfer();
  carried.items.add(new File([bytes], "named.png", {type: "image/png"}));
  document.body.dispatchEvent(type === "paste"
    ? new ClipboardEvent("paste", {clipboardData: carried, bubbles: true})
    : new DragEvent("drop", {dataTransfer: carried, bubbles: true, cancelable: true}));
}"""


@pytest.mark.parametrize("kind", ["drop", "paste"])
def test_an_image_is_dropped_or_pasted_anywhere_and_the_rest_of_the_query_stays(look, served, index, tmp_path, kind):
    view = look(f"{served}/?a.head+colour=blue&out=lower&like={index.sample(1)[0]}")
    view.get_by_role("combobox", name="upper colour", exact=True).select_option("red")  # selected, not yet searched for
    data = base64.b64encode(paint(tmp_path / "query.png", WANTED).read_bytes()).decode()
    view.evaluate(DROP, [data, kind])
    view.wait_for_url("**picture=*")
    assert [pair for pair in asked(view) if pair[0] != "picture"] == [
        ("a.head colour", "blue"), ("a.upper colour", "red"), ("out", "lower"), ("top", "24")]
    query = picture_query(index, tmp_path, words={"head colour": "blue", "upper colour": "red"}, leave_out=["lower"])
    assert shown(view) == names(index.search(query, 24))


def test_a_failed_upload_shows_the_reason_and_the_page_stays(look, served, tmp_path):
    view = look(f"{served}/?a.head+colour=blue")
    (tmp_path / "text.png").write_text("no picture")
    view.locator("#file").set_input_files(tmp_path / "text.png")
    view.locator("#status.bad", has_text="JPEG").wait_for()  # the supported formats
    assert view.locator("article").count() == 24
    look.complaints.clear()  # the browser's own line about the status 422
    (tmp_path / "large.png").write_bytes(bytes(9 * 2**20))
    view.locator("#file").set_input_files(tmp_path / "large.png")
    view.get_by_text("The file has more than 8 MiB. Choose a smaller one.").wait_for()


def test_an_image_with_attributes_and_groups_ignored_and_weighted_by_clicks(look, served, index, tmp_path):
    view = look(served)
    view.locator("#file").set_input_files(paint(tmp_path / "query.png", WANTED))
    view.wait_for_url("**/?picture=*")
    choose(view, carrying="red")
    words = {"carrying colour": "red"}
    assert shown(view) == names(index.search(picture_query(index, tmp_path, words=words), 24))
    view.get_by_role("link", name="ignore lower").click()
    view.get_by_role("link", name="double the weight of head").click()
    options = {"words": words, "leave_out": ["lower"], "weights": {"head": 2}}
    assert shown(view) == names(index.search(picture_query(index, tmp_path, **options), 24))
    assert "head ×2" in view.locator(".weights").inner_text()
    # A search with the form keeps these settings.
    choose(view, upper="blue")
    options["words"] = {**words, "upper colour": "blue"}
    assert shown(view) == names(index.search(picture_query(index, tmp_path, **options), 24))
    view.get_by_role("link", name="include lower").click()
    del options["leave_out"]
    assert shown(view) == names(index.search(picture_query(index, tmp_path, **options), 24))


def test_the_option_may_have_changed_clothes(look, served, index, tmp_path):
    view = look(served)
    view.locator("#file").set_input_files(paint(tmp_path / "query.png", WANTED))
    view.wait_for_url("**/?picture=*")
    view.get_by_label("may have changed clothes").check()
    view.get_by_role("button", name="Search").click()
    leave_out = [group for group in GROUPS if group not in ("head", "identity")]
    assert ("changed", "1") in asked(view)
    assert shown(view) == names(index.search(picture_query(index, tmp_path, leave_out=leave_out), 24))
    view.locator(".chip", has_text="changed clothes").click()
    assert shown(view) == names(index.search(picture_query(index, tmp_path), 24))


def test_similar_images_and_attributes_are_searched_by_click(look, served, index):
    view = look(served)
    first = view.locator(".sample img").first.get_attribute("alt")
    view.locator(".sample a").first.click()
    rows = {index.path(row).name: row for row in index.sample(30)}
    assert shown(view)[0] == first
    assert shown(view) == names(index.search(Query(index.embedding(rows[first])), 24))
    other = shown(view)[1]
    view.locator("article").nth(1).get_by_role("link", name="more like this " + other).click()
    assert asked(view) == [("like", str(rows[other]))] and shown(view)[0] == other
    link = view.locator("article").nth(3).locator(".read a").first
    value = link.inner_text()
    link.click()
    assert ("a.head colour", value) in asked(view)
    query = Query(index.embedding(rows[other]), {"head colour": value})
    assert shown(view) == names(index.search(query, 24))
    # The same click removes the attribute.
    view.locator("article .read a.agrees").first.click()
    assert asked(view) == [("like", str(rows[other]))]


def test_results_are_downloaded_as_csv_and_as_a_self_contained_page(look, browser, served, index, tmp_path):
    view = look(f"{served}/?a.head+colour=red&top=12")
    hits = index.search(Query(words={"head colour": "red"}), 12)
    with view.expect_download() as begun:
        view.get_by_role("link", name="CSV").click()
    begun.value.save_as(tmp_path / begun.value.suggested_filename)
    with open(tmp_path / "cerberus.csv", newline="") as file:
        assert [row["picture"] for row in csv.DictReader(file)] == names(hits)
    with view.expect_download() as begun:
        view.get_by_role("link", name="HTML page").click()
    begun.value.save_as(tmp_path / "cerberus.html")
    alone = browser.new_page()
    loaded, complaints = [], []
    alone.on("request", lambda request: loaded.append(request.url))
    alone.on("console", lambda message: complaints.append(message.text))
    alone.goto((tmp_path / "cerberus.html").as_uri())
    assert [url for url in loaded if not url.startswith("data:")] == [(tmp_path / "cerberus.html").as_uri()]
    assert alone.locator("article img").evaluate_all("images => images.map(image => image.naturalHeight)") == [128] * 12
    assert alone.locator("article .name").first.inner_text().startswith(names(hits)[0]) and not complaints
    alone.close()


def test_everything_but_uploads_works_without_scripts_and_with_the_keyboard(look, served, index):
    view = look(served, java_script_enabled=False)
    assert not view.locator(".choose").is_visible()
    choose(view, head="red")
    assert asked(view)[0] == ("a.head colour", "red") and all(value for _, value in asked(view))
    assert shown(view) == names(index.search(Query(words={"head colour": "red"}), 24))
    view = look(f"{served}/?a.head+colour=red")
    assert view.locator(".choose").is_visible()
    view.keyboard.press("Tab")
    view.keyboard.press("Enter")  # the link that skips the form
    view.keyboard.press("Tab")
    assert view.evaluate("document.activeElement.matches('main .chip')")
    view.get_by_role("combobox", name="upper colour", exact=True).focus()
    view.keyboard.type("bl")
    view.keyboard.press("Enter")
    if "upper" not in view.url:  # browsers in which a select field handles the key
        view.get_by_role("button", name="Search").press("Enter")
    view.wait_for_url("**upper**")
    assert ("a.upper colour", "blue") in asked(view)
    view.locator(".chip").first.focus()
    view.keyboard.press("Enter")
    view.wait_for_url(lambda url: "head" not in url)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_fits_a_phone_and_a_screen_in_light_and_dark(look, served, width, scheme):
    for query in ("/", "/?a.head+colour=red&w.head=2&out=upper&changed=1"):
        view = look(f"{served}{query}", color_scheme=scheme)
        view.set_viewport_size({"width": width, "height": 850})
        assert view.evaluate("document.documentElement.scrollWidth") <= width
        bright = view.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert bright == (scheme == "light")
        unnamed = view.evaluate("""() => [...document.querySelectorAll("a, button, select, input:not([type=hidden])")]
          .filter((each) => !each.textContent.trim() && !each.labels?.length && !each.ariaLabel
                            && !each.querySelector("img[alt]:not([alt=''])")).map((each) => each.outerHTML)""")
        assert unnamed == []
        first = "document.querySelector('main').getBoundingClientRect().top < ask.getBoundingClientRect().top"
        assert view.evaluate(first) == (width == 390)  # a phone shows images first, and a link to the form
        assert view.get_by_role("link", name="Go to the search form" if query == "/" else "Edit the query",
                                exact=True).is_visible() == (width == 390)


CONTRAST = """() => {
  const numbers = (colour) => colour.match(/[\\d.]+/g).slice(0, 3).map(Number);
  const light = (colour) => colour.map((value) => value / 255)
    .map((value) => value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4)
    .reduce((sum, value, i) => sum + value * [0.2126, 0.7152, 0.0722][i], 0);
  const page = numbers(getComputedStyle(document.body).backgroundColor);
  return [...document.querySelectorAll("article span, article a, article small")].map((each) => {
    let opacity = 1;
    for (let node = each; node; node = node.parentElement) opacity *= getComputedStyle(node).opacity;
    const shown = numbers(getComputedStyle(each).color).map((value, i) => value * opacity + page[i] * (1 - opacity));
    const pair = [light(shown), light(page)].sort((one, other) => other - one);
    return (pair[0] + 0.05) / (pair[1] + 0.05);
  });
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_of_results_has_enough_contrast_and_links_are_large_enough(look, served, scheme):
    view = look(f"{served}/?a.head+colour=red&a.upper+colour=red&out=upper", color_scheme=scheme)
    contrasts = view.evaluate(CONTRAST)
    assert len(contrasts) > 100 and min(contrasts) >= 4.5  # WCAG 2, AA
    heights = "links => links.map((link) => link.getBoundingClientRect().height)"
    assert min(view.locator("article div a").evaluate_all(heights)) >= 24  # CSS pixels, WCAG 2.2, AA


def test_agreement_is_shown_by_colour_and_sign_and_links_are_announced_once(look, served):
    view = look(f"{served}/?a.head+colour=red")
    signs = "links => links.map((link) => [link.className, getComputedStyle(link, '::before').content])"
    assert {tuple(pair) for pair in view.locator("article .read a").evaluate_all(signs)} == {
        ("", "none"), ("agrees", '"✓"'), ("differs", '"≠"')}
    told = view.locator("article").first.aria_snapshot()
    assert told.count("more like this") == 1 and "img" not in told and "%" in told


def test_after_the_login_the_requested_search_is_shown(look, index):
    address, stop = run(create_app(index, BandEncoder(), login=Login("anna", "correct horse")))
    try:
        view = look(f"{address}/?a.head+colour=red")
        assert urlsplit(view.url).path == "/login" and not shown(view)
        view.get_by_label("User name").fill("anna")
        view.get_by_label("Password").fill("correct horse")
        view.get_by_role("button", name="Log in").click()
        view.wait_for_url(f"{address}/?a.head+colour=red")
        assert shown(view) == names(index.search(Query(words={"head colour": "red"}), 24))
        view.goto("about:blank")
        view.set_content(f'<a href="{address}/?a.head+colour=blue">a link in a letter</a>')
        view.get_by_role("link").click()
        view.wait_for_url(f"{address}/?a.head+colour=blue")
        assert shown(view) == names(index.search(Query(words={"head colour": "blue"}), 24))
        view.get_by_role("button", name="Log out").click()
        view.wait_for_url(f"{address}/login")
        view.goto(f"{address}/?a.head+colour=red")
        assert urlsplit(view.url).path == "/login"
        view.close()  # before the server
    finally:
        stop()

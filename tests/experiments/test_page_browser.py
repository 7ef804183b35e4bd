"""Tests of the report in a browser: sorting, theme, links, no network requests."""

from cerberus_plugin.experiments import page

import pytest
from support.experiment_records import parts, write
from support.processes import BROWSER

pytestmark = [pytest.mark.slow,
              pytest.mark.skipif(BROWSER is None, reason="no browser found; install one, such as Debian's chromium")]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The report of a small study with a run folder."""
    folder = write(tmp_path_factory.mktemp("report"), parts(), config={})
    return page.write(folder)[0]


@pytest.fixture
def shown(browser, report):
    """The opened page; `shown.seen` has its requests and errors."""
    context = browser.new_context(color_scheme="light")
    view = context.new_page()
    view.set_default_timeout(60_000)
    view.seen = []
    view.on("request", lambda request: view.seen.append(request.url))
    view.on("pageerror", lambda error: view.seen.append(f"error: {error}"))
    view.goto(report.as_uri())
    yield view
    context.close()


def test_the_page_is_complete_without_a_network(shown, report):
    assert [url for url in shown.seen if not url.startswith("data:")] == [report.as_uri()]
    for picture in shown.locator("img").all():
        assert picture.evaluate("image => image.naturalWidth") > 0


def test_a_column_is_sorted_in_decreasing_then_increasing_order_with_empty_cells_last(shown):
    table = shown.locator("#parts table").first

    def sort_by(column: str) -> tuple[str, list[str]]:
        """Click on a column; return its sort direction and the names of the rows."""
        button = table.locator("thead button", has_text=column)
        button.click()
        first = table.locator("tbody").first.locator("tr > :first-child").all_inner_texts()
        return button.locator("xpath=ancestor::th").get_attribute("aria-sort"), [name.split()[0] for name in first]

    assert sort_by("reID mAP") == ("descending", ["all", "identity"])  # 89.75 and 89.00
    assert sort_by("reID mAP") == ("ascending", ["identity", "all"])
    assert [sort_by("PAR mA (official)")[1] for _ in range(2)] == [["all", "identity"]] * 2  # identity has none


def test_the_chosen_theme_changes_the_page_and_is_stored(shown):
    def colour() -> str:
        return shown.evaluate("getComputedStyle(document.body).backgroundColor")

    light, button = colour(), shown.locator("#theme")
    assert button.inner_text() == "Dark page"
    button.click()
    dark = colour()
    assert dark != light and button.inner_text() == "Light page"
    shown.reload()
    assert colour() == dark


def test_a_link_to_a_run_opens_its_details(shown):
    link = shown.locator("#parts table a").first
    target = shown.locator(link.get_attribute("href"))
    assert not target.is_visible()
    link.click()
    assert target.is_visible()

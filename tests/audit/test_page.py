"""The page of an audit in a browser: accepted findings are exported as an overlay that `read_people` reads."""

import csv
import json

from cerberus_plugin.audit.auditing import audit, text
from cerberus_plugin.audit.findings import Finding, in_order, of_pictures, of_unit, write_findings
from cerberus_plugin.audit.page import write_page
from cerberus_plugin.own_data.overlay import COLUMNS, OVERLAY, read_overlay
from cerberus_plugin.own_data.people import read_people

import pytest
from support.own_data import write_people, write_picture
from support.processes import BROWSER

BAD = '<script>alert("1")</script>, "two"'


def contradicting(folder):
    """Six people, two of them with different genders; one has a name that must be escaped in HTML."""
    names = ["a", "b", BAD, "d", "e", "f"]
    with (folder / "metadata.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "person", "camera", "gender", "hat", "vest"])
        for number, name in enumerate(names):
            for picture in range(3):
                write_picture(folder / f"{number}_{picture}.png", number, picture)
                odd = picture == 2 and number in (0, 2)
                writer.writerow([f"{number}_{picture}.png", name, picture, ("male", "female")[(number + odd) % 2],
                                 ("no", "yes")[number % 2], ("red", "blue")[number // 3]])
    return folder


def test_without_images_labels_are_compared_and_files_are_written(tmp_path):
    found = audit(str(contradicting(tmp_path)), tmp_path / "audit", pictures=False)
    assert {(one.kind, one.person) for one in found.findings} == {("differs", "a"), ("differs", BAD)}
    rows = list(csv.DictReader((tmp_path / "audit/audit.csv").open()))
    assert [(row["kind"], row["attribute"], row["label"], row["proposed"]) for row in rows] == [
        ("differs", "gender", "male 2, female 1", "male")] * 2
    page = (tmp_path / "audit/audit.html").read_text()
    assert BAD not in page and "&lt;script&gt;alert" in page and "data:image/jpeg;base64," in page
    assert "differs" in text(found) and "2" in text(found)
    record = json.loads((tmp_path / "audit/audit.json").read_text())
    assert found.trust is None and "models" not in record and 'id="models"' not in page


def test_findings_are_sorted_by_confidence_and_the_page_is_bounded(tmp_path, monkeypatch):
    own = read_people(write_people(tmp_path))
    findings = in_order([Finding("label", confidence, f"p{n}", "hat", "no", "yes", "", (("p", (own.files[n],)),),
                                 of_unit(own, [n], "", "hat", "no", ["yes"]))
                         for n, confidence in enumerate((0.2, 0.9, 0.5))])
    assert [one.confidence for one in findings] == [0.9, 0.5, 0.2]
    monkeypatch.setattr("cerberus_plugin.audit.page.MOST_OF_KIND", 2)
    write_page(tmp_path / "audit.html", own, findings, [], None, None)
    page = (tmp_path / "audit.html").read_text()
    assert page.count("<article") == 2 and "shows 2 of 3 findings" in page
    write_findings(tmp_path, findings, {})
    assert len((tmp_path / "audit.csv").read_text().splitlines()) == 4


def test_a_choice_for_images_contains_the_present_label_of_each():
    choices = of_pictures(["a", "b"], "hat", ["no", "yes"], ["yes", ""])
    assert choices[0].rows == (("a", "", "", "hat", "yes", "no"),)
    assert choices[1].rows == (("a", "", "", "hat", "", "no"), ("b", "", "", "hat", "", "yes"))


@pytest.fixture
def shown(browser, tmp_path):
    """The page of `contradicting`, opened in a browser."""
    audit(str(contradicting(tmp_path)), tmp_path / "audit", pictures=False)
    context = browser.new_context(color_scheme="dark", viewport={"width": 390, "height": 800}, accept_downloads=True)
    view = context.new_page()
    view.set_default_timeout(60_000)
    view.seen = []
    view.on("request", lambda request: view.seen.append(request.url))
    view.on("pageerror", lambda error: view.seen.append(f"error: {error}"))
    view.goto((tmp_path / "audit/audit.html").as_uri())
    yield view
    context.close()


def exported(view, folder):
    with view.expect_download() as download:
        view.click("#export")
    download.value.save_as(folder / OVERLAY)
    return read_overlay(folder / OVERLAY)



@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no browser found; install one, such as Debian's chromium")
class TestInABrowser:
    def test_an_accepted_finding_is_exported_read_and_changes_the_labels(self, shown, tmp_path):
        before = read_people(tmp_path).attributes["gender"].to_list()
        assert shown.locator("#export").is_disabled()
        shown.locator("article", has_text="alert").locator(".accept").click()
        assert shown.locator("#count").inner_text() == "1 of 2 decided, 1 accepted"
        overlay = exported(shown, tmp_path)
        assert list(overlay.table.columns) == list(COLUMNS)
        own = read_people(tmp_path)
        after = own.attributes["gender"].to_list()
        assert [n for n in range(18) if before[n] != after[n]] == [8] and after[6:9] == ["male"] * 3
        assert "1 row applied" in " ".join(own.notes)

    def test_keys_decide_and_select_the_next_finding_and_choices_survive_a_reload(self, shown):
        shown.keyboard.press("j")
        shown.keyboard.press("r")
        shown.keyboard.press("a")
        assert shown.locator("#count").inner_text() == "2 of 2 decided, 1 accepted"
        shown.reload()
        assert shown.locator("#count").inner_text() == "2 of 2 decided, 1 accepted"
        assert [each.get_attribute("class").split()[0] for each in shown.locator("article").all()] == [
            "rejected", "accepted"]
        shown.select_option("#show", "accepted")
        assert [each.is_visible() for each in shown.locator("article").all()] == [False, True]

    def test_another_choice_is_exported(self, shown, tmp_path):
        first = shown.locator("article", has_text="a: ").first
        first.locator("select").select_option(index=1)
        first.locator(".accept").click()
        assert {row.value for row in exported(shown, tmp_path).rows} == {"female"}

    def test_the_page_loads_nothing_and_fits_a_phone(self, shown):
        assert [url for url in shown.seen if not url.startswith(("data:", "blob:", "file:"))] == []
        assert shown.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        assert shown.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 27)"
        for picture in shown.locator("img").all():
            assert picture.evaluate("image => image.naturalWidth") > 0

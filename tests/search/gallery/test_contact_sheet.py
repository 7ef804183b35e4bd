"""Search results as CSV and as a self-contained HTML page: complete, escaped, and independent of the gallery."""

import base64
import csv
import io
import re
from html.parser import HTMLParser

from cerberus_plugin.search.gallery import Answer, GalleryIndex, Hit, Pace, Prefilter, Query, contact_sheet
from cerberus_plugin.search.gallery.thumbnails import thumbnail

import numpy as np
import pytest
from PIL import Image
from support.galleries import BLUE, RED, BandEncoder, draw, draw_many


def hit(path, **fields) -> Hit:
    return Hit(**{"path": str(path), "score": 0.5, "similarities": {"head": 0.25}, "row": 1, "identity": "0002",
                  "camera": "1", "time": None, "attributes": {"hat": Answer("no", 0.914)}, **fields})


def cells(text: str) -> list[dict]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


def test_a_csv_row_has_all_fields_of_a_hit_with_one_column_per_attribute():
    assert cells(contact_sheet.csv_text(contact_sheet.rows_of([hit("a.jpg")]))) == [
        {"place": "1", "picture": "a.jpg", "score": "0.500", "head": "0.25", "person": "0002", "camera": "1",
         "time": "", "hat": "no (91%)"}]
    rows = contact_sheet.rows_of([hit("a.jpg", same_person=0.98765)])
    assert cells(contact_sheet.csv_text(rows))[0]["same person"] == "0.98765"
    assert contact_sheet.csv_text(contact_sheet.rows_of([])) == ""
    assert contact_sheet.csv_text([{"a": "1", "b": ""}]) == '"a","b"\r\n"1",""\r\n'


def test_an_attribute_with_the_name_of_a_group_has_its_own_column():
    row = contact_sheet.rows_of([hit("a.jpg", attributes={"head": Answer("bald", 1.0)})])[0]
    assert (row["head"], row["head (recognised)"]) == ("0.25", "bald (100%)")


@pytest.mark.parametrize("name", ['=HYPERLINK("x").jpg', "+1.jpg", "-1_c1s1_000109_03.jpg", "@a.jpg", "\ta.jpg",
                                  "\n=1.jpg", "＝1.jpg", "＋1.jpg", "－1.jpg", "＠a.jpg"])
def test_cells_are_not_formulas_in_spreadsheets_and_paths_stay_valid(tmp_path, name):
    draw(tmp_path / "crop.png", RED).rename(tmp_path / name)
    row = cells(contact_sheet.csv_text(contact_sheet.rows_of([hit(tmp_path / name, identity=name)], below=tmp_path)))[0]
    assert row["picture"][0] == "." and row["person"] == f"'{name}"
    assert (tmp_path / row["picture"]).is_file()


def test_a_numeric_identity_is_not_escaped():
    assert cells(contact_sheet.csv_text(contact_sheet.rows_of([hit("a.jpg", identity="-1")])))[0]["person"] == "-1"


def test_paths_are_relative_to_the_image_folder_if_they_are_inside(tmp_path):
    inside, outside = hit(tmp_path / "crops/lobby/a.jpg"), hit("/elsewhere/a.jpg")
    assert [contact_sheet.shown_path(each, tmp_path / "crops") for each in (inside, outside)] == ["lobby/a.jpg",
                                                                                          "/elsewhere/a.jpg"]


def test_a_query_is_described_by_its_conditions():
    query = Query(np.ones(20), {"hat": "no"}, {"upper": 2, "lower": 3, "head": 1}, ["lower"], 1e-3)
    assert contact_sheet.conditions_of(query, "0001.jpg") == [
        "like 0001.jpg", "hat: no", "weight of upper: 2", "without lower", "false-match rate 0.001"]


def test_the_prefilter_and_changed_clothes_are_conditions():
    query = Query(np.ones(20), weights={"upper": 2}, leave_out=["lower", "head"], may_have_changed_clothes=True)
    assert contact_sheet.conditions_of(query, "uploaded image", Prefilter(0.9), ["lower", "upper"]) == [
        "like uploaded image", "may have changed clothes", "without head",
        "no contradictions above probability 0.9"]
    query = Query(np.ones(20), leave_out=["upper", "lower"])
    assert contact_sheet.conditions_of(query, "x", None, ["lower", "upper"]) == [
        "like x", "without upper", "without lower"]


@pytest.mark.parametrize(("probability", "words"), [
    (1.0, "over 99%"), (0.9901, "over 99%"), (0.99, "99%"), (0.5, "50%"), (0.01, "1%"), (0.0099, "under 1%"),
    (0.0, "under 1%")])
def test_the_probability_of_the_same_person_is_never_shown_as_certain(probability, words):
    assert contact_sheet.likely(probability) == words
    assert f"same person: {words}" in contact_sheet.html_text([hit("a.jpg", same_person=probability)], ["x"])


def test_a_note_gives_the_prior_of_the_probability_of_the_same_person():
    assert contact_sheet.notes_of([hit("a.jpg")], 0.0) == []
    for prior, one_in in ((0.8, "1.2"), (0.5, "2.0"), (1 / 21, "21"), (0.001, "1,000")):
        notes = contact_sheet.notes_of([hit("a.jpg", same_person=0.5)], prior)
        assert len(notes) == 1 and notes[0].endswith(f"with a prior probability of 1 in {one_in}")
    assert notes[0] in contact_sheet.html_text([hit("a.jpg")], ["x"], notes=notes)


class Page(HTMLParser):
    """The tags of a page, and the addresses in their attributes."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.references = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.references += [value for name, value in attributes if name in ("src", "href", "srcset")]


def test_the_html_page_contains_its_images_and_has_no_external_references(tmp_path):
    paths = draw_many(tmp_path / "crops", 3)
    index = GalleryIndex.build(tmp_path / "index", tmp_path / "crops", BandEncoder(), pace=Pace(progress=False))
    hits = index.search(Query(words={"head colour": "red"}), top=3)
    paths[0].unlink()  # deleted after the search
    picture = thumbnail(Image.new("RGB", (9, 9)))
    page = Page(text := contact_sheet.html_text(hits, ["head colour: red"], index.images, picture))
    assert page.tags.count("article") == 3 and page.tags.count("img") == 2 + 1
    assert not set(page.tags) & {"script", "link", "iframe"} and "url(" not in text and "@import" not in text
    for reference in page.references:
        image = Image.open(io.BytesIO(base64.b64decode(reference.removeprefix("data:image/jpeg;base64,"))))
        assert image.format == "JPEG"
    assert f"{paths[0].name} can no longer be read" in text and "<p>3 images, " in text and str(tmp_path) not in text
    for each in hits:
        assert f"{each.score:.3f}" in text and contact_sheet.answer_text(each.attributes["head colour"]) in text


def test_names_and_values_are_escaped_in_the_html_page(tmp_path):
    evil = "<script>alert(1)<\\script>"
    text = contact_sheet.html_text([hit(tmp_path / f"{evil}.jpg", identity=evil, similarities={evil: 0.5},
                                attributes={evil: Answer(evil, 0.5)})], [f"like {evil}", evil])
    assert "script" not in Page(text).tags and "alert(1)" in text


def test_uncertain_attributes_have_no_value_and_one_note_says_that_attributes_are_not_calibrated():
    answers = {"hat": Answer("no", 0.55, abstained=True), "hair": Answer("long", 0.9)}
    row = contact_sheet.rows_of([hit("a.jpg", attributes=answers)])[0]
    assert (row["hat"], row["hair"]) == ("uncertain", "long (90%)")
    assert contact_sheet.notes_of([hit("a.jpg", attributes=answers)], 0.5) == []
    bare = {"hat": Answer("no", 0.55, calibrated=False), "hair": Answer("long", 0.9, calibrated=False)}
    assert contact_sheet.notes_of([hit("a.jpg", attributes=bare)] * 2, 0.5) == [contact_sheet.UNCALIBRATED]
    assert "no (55%)" in contact_sheet.html_text([hit("a.jpg", attributes=bare)], ["x"])


def test_a_thumbnail_has_the_given_height_and_no_metadata():
    large = Image.new("RGB", (300, 600), RED)
    exif = large.getexif()
    exif[0x010E] = "where I live"
    kept = io.BytesIO()
    large.save(kept, "JPEG", exif=exif, comment=b"a secret")
    small = Image.open(io.BytesIO(thumbnail(Image.open(io.BytesIO(kept.getvalue())), 100)))
    assert small.size == (50, 100) and not small.getexif() and "comment" not in small.info
    assert Image.open(io.BytesIO(thumbnail(Image.new("RGB", (4, 8), BLUE)))).size == (4, 8)  # never enlarged
    assert Image.open(io.BytesIO(thumbnail(Image.new("RGB", (4000, 4))))).size == (512, 1)


def test_the_length_of_a_bar_is_the_similarity_limited_to_0_and_1():
    text = contact_sheet.html_text([hit("a.jpg", similarities={"head": 0.25, "upper": -0.5, "lower": 1.01})], ["x"])
    assert re.findall(r'class="value" width="([\d.]+)"', text) == ["25.0", "0.0", "100.0"]

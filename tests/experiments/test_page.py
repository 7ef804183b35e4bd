"""Tests of the report of studies and figures."""

import json
import re
from html.parser import HTMLParser

from cerberus_plugin.experiments import page
from cerberus_plugin.experiments.page.differences import differences
from cerberus_plugin.experiments.page.records import read_folder
from cerberus_plugin.experiments.page.tables import elsewhere, heading, summary, table

import pytest
from support.experiment_records import MANIFEST, parts, run, study, variant, write, write_exhibit

BOLD = "<b>plain</b> & <script>alert(1)</script>"


class Outline(HTMLParser):
    """Elements of a page with their attributes, and its text."""

    def __init__(self, text: str):
        super().__init__()
        self.elements, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def attributes(self, tag: str) -> list[dict]:
        return [attrs for name, attrs in self.elements if name == tag]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a study, two figures, damaged files, other files, and the report."""
    path = tmp_path_factory.mktemp("report")
    record = parts(title=BOLD, missing=[{"variant": "all terms", "seed": 3}])
    record["variants"][0]["note"] = "see https://example.org/a.css"
    write(path, record, config={})
    write_exhibit(path)
    write_exhibit(path, "lost", title="Lost", pictures=[{"file": "figures/none.png"}, {"file": "../secret.png"}])
    (path / "broken.json").write_text('{"study": "x", "variants": [')
    (path / "halves.json").write_text(json.dumps({"study": "halves", "variants": 3}))
    (path / "comparison.json").write_text("[1, 2]")
    (path / "results.json").write_text('{"results": {}}')
    page.write(path)
    return path


@pytest.fixture(scope="module")
def html(folder) -> str:
    return (folder / "report.html").read_text()


@pytest.fixture(scope="module")
def outline(html) -> Outline:
    return Outline(html)


def read(path, *records, config=None):
    """Write records to a folder and read the first study."""
    return read_folder(write(path, *records, config=config)).studies[0]


def told(path, record, config=None):
    return differences(read(path, record, config=config))


def test_the_page_loads_nothing_from_the_network(html, outline):
    for tag, attrs in outline.elements:
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            assert attrs.get(name, "#").startswith(("#", "data:image/")), (tag, attrs)
    style = html.split("<style>")[1].split("</style>")[0]
    assert "@import" not in style and "url(" not in style and "http" not in style
    assert "http" not in html.rsplit("<script>", 1)[1]
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in outline.attributes("meta")


def test_names_are_escaped(html, outline, folder):
    assert BOLD in outline.text
    assert not outline.attributes("b") and len(outline.attributes("script")) == 1
    assert "<b>" not in (folder / "report.md").read_text()


def test_every_internal_link_has_a_target_and_ids_are_unique(outline):
    ids = [attrs["id"] for _, attrs in outline.elements if "id" in attrs]
    links = {attrs["href"][1:] for attrs in outline.attributes("a")}
    assert len(ids) == len(set(ids)) and links <= set(ids)
    assert {"summary", "parts", "figure-attention", "figure-lost"} <= links


def test_images_are_embedded_in_html_and_linked_in_markdown(folder, outline):
    sources = [attrs["src"] for attrs in outline.attributes("img")]
    assert sorted(source.split(";")[0] for source in sources) == ["data:image/png", "data:image/svg+xml"]
    text = (folder / "report.md").read_text()
    linked = re.findall(r"!\[[^]]*\]\(<?([^)>]+)>?\)", text)
    assert linked == ["report_files/parts-market1501.svg", "figures/attention.png"]
    assert all((folder / link).is_file() for link in linked)


def test_missing_images_and_images_outside_the_folder_are_listed(outline):
    assert "figures/none.png: not found" in outline.text
    assert "../secret.png: not an image" in outline.text


def test_damaged_files_are_listed_and_other_files_ignored(outline, folder):
    unreadable = read_folder(folder).unreadable
    assert [line.split(":")[0] for line in unreadable] == ["broken.json", "halves.json"]
    assert "'variants' of the study is 3, expected a list" in unreadable[1]
    assert all(line in outline.text for line in unreadable)


def test_the_report_shows_how_results_were_made(outline):
    for words in ("reproduce parts --seeds 0 1 2", "runs/full/seed_2", "NVIDIA H100", "2.13.0", "77ab", "ab12",
                  "DEPTH: 50x", "training minutes90.0"):
        assert words in outline.text.replace("\n", ""), words


def test_both_reports_have_the_same_tables(outline, folder):
    text = (folder / "report.md").read_text()
    for cell in ("89.75 ± 0.25", "95.00 ± 0.00", "31.00 (1 of 3)", "6 of 7", "91.13"):
        assert cell in outline.text and cell in text, cell
    assert "| all terms (published, PAR binary) |" in text
    assert "- variant all terms, seed 3" in text and "Not shown" not in text


def test_a_study_is_printed_with_published_rows_and_without_single_attributes(tmp_path):
    record = parts(missing=[{"variant": "all terms", "seed": 3}])
    record["figures"].append("PAR/official/age")
    record["variants"][1]["runs"][0]["results"]["Market1501Attributes"]["PAR/official/age"] = 90.0
    record["variants"][1]["costs"] = {"parameters": 1234.5}
    lines = page.text(write(tmp_path, record) / "parts.json").splitlines()
    assert [re.split("  +", line)[:3] for line in lines if line.startswith("all terms")] == [
        ["all terms", "89.75 ± 0.25", "96.00 ± 0.00"], ["all terms (published, PAR binary)", "89.83", "96.14"],
        ["all terms", "1,234.5"]]
    assert lines[:2] == ["Study parts", "Does it help?"] and lines[-1] == "missing: 1 run"
    assert any(line.startswith("- mAP: all terms above") for line in lines) and "age" not in "".join(lines)
    refused = page.text(write(tmp_path, parts(refused="other rules")) / "parts.json")
    assert refused.endswith("No table: other rules") and "89.75" not in refused


def test_the_summary_lists_conclusions_and_limits(folder):
    can, cannot = page.claims([page.section(study) for study in read_folder(folder).studies])
    assert [line.removeprefix(f"{BOLD}, Market1501: ")[:35] for line in can] == ["mAP: all terms above identity term "]
    assert [line.removeprefix(f"{BOLD}: ") for line in cannot] == [
        "1 difference between variants is not significant", "1 run not finished"]


def without_some(queries: int, gallery: int, **fields) -> dict:
    """A study with one run that excludes two semantic IDs, with these numbers of test images."""
    tested = {"query": {"images": queries}, "gallery": {"images": gallery}}
    entry = run("a", 0, manifest={"training": {"identities": 727}, "Market1501Attributes": tested}, mAP=1.0)
    return study("unseen", [variant("a", [entry | fields])])


def test_excluded_people_do_not_make_other_data_but_other_test_images_do(tmp_path):
    real, synthetic = (told(tmp_path / name, without_some(*counts), config={"left_out": 2})
                   for name, counts in (("real", (3368, 15913)), ("synthetic", (253, 400))))
    assert any(line.startswith("Training data: Market1501") for line in real.same)
    assert any("in the format of Market-1501, with other people" in line for line in synthetic.differs)


def test_the_training_of_a_run_that_evaluates_other_weights_is_not_compared(tmp_path):
    found = told(tmp_path, without_some(253, 400, **{"weights of": "runs/b/seed_0"}), config={"pretrain": False})
    assert found.differs == found.same == []


def test_means_deviations_and_undefined_figures(tmp_path):
    runs = [run("a", seed, mAP=value, APS__mAP=None) for seed, value in enumerate((10.0, 12.0, None))]
    record = study("one", [variant("a", runs), variant("b", [run("b", 0, mAP=50.0)])])
    first, second = table(read(tmp_path, record), "Market1501").rows
    assert [cell.text for cell in first.cells] == ["11.00 ± 1.41 (2 of 3)", "undefined", "3", "90.0"]
    assert [cell.text for cell in second.cells] == ["50.00", "", "1 of 3", "90.0"]
    assert first.cells[1].value is None


def test_published_results_are_in_separate_rows_with_their_rule_and_dataset(tmp_path):
    record = parts()
    record["variants"].append(variant("ASMR", published={"DukeMTMC": {"APS/mAP": 20.0}}))
    found = read(tmp_path, record)
    shown = table(found, "Market1501")
    assert shown.headers == ["variant", "reID mAP", "reID Rank-1", "PAR mA (official)", "APS mAP (rectangle)",
                             "PAR mA (binary)",
                             "runs", "training minutes"]
    assert [(row.name, row.mark) for row in shown.published] == [
        ("identity term", "published"), ("all terms", "published, PAR binary")]
    assert [row.name for row in shown.rows] == ["identity term", "all terms"]
    assert elsewhere(found) == ["DukeMTMC"]
    assert [row.name for row in table(found, "DukeMTMC").all_rows] == ["ASMR"]


def test_the_mark_of_a_published_row_has_the_rule_of_the_study(tmp_path):
    published = {"Market1501": {"PAR/mA_binary": 91.1}, "DukeMTMC": {"mAP": 80.7}}
    found = read(tmp_path, study("one", [variant("a", published=published, rule="binary, by the paper")]))
    assert [table(found, data).published[0].mark for data in published] == [
        "published, PAR binary, by the paper", "published"]


def test_unknown_minutes_are_not_shown(tmp_path):
    entry = run("a", 0, mAP=1.0) | {"training": None}
    found = read(tmp_path, study("one", [variant("a", [entry])]))
    assert table(found, "Market1501").rows[0].cells[-1].text == summary([found]).rows[0].cells[-1].text == ""


@pytest.mark.parametrize(("key", "expected"), [
    ("PAR/mA_binary", "PAR mA (binary)"), ("PAR/official/upper colour", "PAR upper colour (official)"),
    ("APS/unseen/mAP", "APS unseen mAP (rectangle)"), ("APS/mAP_trapezoid", "APS mAP (trapezoid)"),
    ("APS/upper/mAP_given", "APS upper mAP given (rectangle)"),
    ("APS/upper/mAP_trapezoid_full", "APS upper mAP full (trapezoid)"),
    ("APS/upper/Rank-1_given", "APS upper Rank-1_given"), ("mINP", "reID mINP"),
    ("PAR/instance/F1", "PAR F1 (instance)"), ("PAR/person/label/mA", "PAR person mA (label)"),
    ("APS/Rank-20", "APS Rank-20"),
    ("PAR/person/mA_binary", "PAR person mA (binary)"), ("PAR/person/official/hat", "PAR person hat (official)"),
    ("APS/person/mAP", "APS person mAP (rectangle)"), ("cloth-changing/mAP", "cloth-changing mAP")])
def test_headings_name_task_and_rule(key, expected):
    assert heading(key) == expected


def test_one_seed_is_too_few_for_an_order(tmp_path):
    record = study("one", [variant(name, [run(name, 0, mAP=value)]) for name, value in (("a", 1.0), ("b", 2.0))])
    _, cannot = page.claims([page.section(read(tmp_path, record))])
    assert any("no order of all variants, since some have only 1 run" in line for line in cannot)


def test_runs_of_different_rules_have_the_reason_instead_of_a_table(tmp_path):
    reason = "all terms, seed 0 (runs/full/seed_0): cannot be compared with the other runs"
    found = read(tmp_path, parts(refused=reason))
    for path in page.write(tmp_path):
        text = path.read_text()
        assert "Not shown." in text and "cannot be compared" in text and "89.75" not in text
        assert "by 0.75" not in text
    assert page.claims([page.section(found)])[0] == []


def test_an_unchecked_record_of_an_older_version_is_not_shown(tmp_path):
    record = parts()
    del record["refused"]
    assert "did not check whether the runs were tested by the same rules; run the study's command again" in read(
        tmp_path, record).refused


def test_the_users_interpretation_of_a_study_is_shown_above_its_table(tmp_path):
    (tmp_path / "findings").mkdir()
    (tmp_path / "findings" / "parts.txt").write_text("Crops *nothing* &\nso have no effect.\n\nSecond.\n")
    assert read(tmp_path, parts()).findings == ["Crops *nothing* & so have no effect.", "Second."]
    html, text = (path.read_text() for path in page.write(tmp_path))
    assert "<p>Crops *nothing* &amp; so have no effect.</p>" in html and r"Crops \*nothing\* &amp; so" in text
    for shown in (html, text):
        assert shown.index("Interpretation") < shown.index("so have no effect") < shown.index("Differences from")
    assert read(tmp_path, study("one", [])).findings == []


def test_a_damaged_configuration_is_listed_and_the_study_shown(tmp_path):
    record = parts()
    write(tmp_path, record)
    path = tmp_path / record["variants"][0]["runs"][0]["folder"] / "config.yaml"
    path.parent.mkdir(parents=True)
    path.write_text("a: [")
    found = read_folder(tmp_path)
    assert [line.split(":")[0] for line in found.unreadable] == ["runs/plain/seed_0/config.yaml"]
    assert found.studies[0].refused == "" and len(found.studies[0].runs) == 6


def test_two_variants_with_the_same_name_are_rejected(tmp_path):
    record = study("one", [variant("a", [run("a", 0, mAP=1.0)]), variant("a", [run("b", 0, mAP=2.0)])])
    (damage,) = read_folder(write(tmp_path, record)).unreadable
    assert re.match("one.json: duplicate variants a.*give each variant of the study its own", damage)


def test_a_folder_without_records_is_rejected(tmp_path):
    with pytest.raises(ValueError, match=r"no record of a study \(\*.json with \"study\"\)"):
        page.write(tmp_path)


def test_the_command_prints_the_paths_of_the_report(folder, capsys):
    page.main([str(folder)])
    assert f"{folder / 'report.html'} and {folder / 'report.md'}" in capsys.readouterr().out


def test_a_run_as_in_the_paper_has_no_differences(tmp_path):
    found = told(tmp_path, parts(), config={})
    assert found.differs == [] and found.unknown == []
    assert "Schedule: 119 epochs, about 24,038 steps; the paper: 24,000 steps" in found.same
    assert "Device: NVIDIA H100" in found.notes


def test_differences_from_the_paper_are_computed_from_the_runs(tmp_path):
    small = {"training": {"images": 256, "identities": 32}, "test": {"Market1501Attributes": {
        "query": {"images": 36}, "gallery": {"images": 80}}}}
    machine = {"processor": "Xeon", "cores": 2}
    record = study("one", [variant("a", [run("a", 0, manifest=small, epochs=12, hardware=machine, mAP=1.0)])])
    found = told(tmp_path, record, {"depth": "18x", "pretrain": False, "size": [128, 64], "classes": 32})
    assert found.differs == [
        "Training data: in the format of Market-1501, with other people; the paper: Market-1501 and DukeMTMC-reID, "
        "separately",
        "Training identities: 32; the paper: 751 (Market-1501)",
        "Test data: Market1501 (36 queries, 80 gallery images); the paper: Market-1501 (3,368 and 15,913)",
        "Schedule: 12 epochs, about 48 steps; the paper: 24,000 steps",
        "Image size: 128x64; the paper: 384x128",
        "Backbone: ResNet-18; the paper: ResNet-50",
        "Initial weights: random, trained from scratch; the paper: trained on ImageNet"]
    assert "Device: Xeon, 2 core(s)" in found.notes


def test_variants_that_differ_are_named(tmp_path):
    runs = {"a": run("a", 0, mAP=1.0), "b": run("b", 0, mAP=2.0, epochs=60)}
    found = told(tmp_path, study("one", [variant(name, [entry]) for name, entry in runs.items()]), config={})
    assert found.differs == [
        "Schedule: 119 epochs, about 24,038 steps (a), 60 epochs, about 12,120 steps (b); the paper: 24,000 steps"]


def test_aspects_without_manifest_and_configuration_are_not_recorded(tmp_path):
    record = study("one", [variant("a", [run("a", 0, manifest=None, mAP=1.0)])])
    found = told(tmp_path, record)
    assert found.unknown == ["Training data", "Training identities", "Batch size", "Image size", "Backbone",
                             "Initial weights"]
    assert "Schedule: 119 epochs; the paper: 24,000 steps" in found.notes
    assert "unknown whether the results of the Cerberus paper are reproduced" in page.claims(
        [page.section(read_folder(tmp_path).studies[0])])[1][-1]


def test_held_out_identities_are_subtracted_from_the_papers_number(tmp_path):
    manifest = MANIFEST | {"training": {"images": 11200, "identities": 651}}
    record = study("one", [variant("a", [run("a", 0, data="held-out", manifest=manifest, epochs=137, mAP=1.0)])])
    found = told(tmp_path, record, {"hold_out": 100, "classes": 651})
    assert "Training identities: 651, 100 held out; the paper: 651 (Market-1501 less 100 held out)" in found.same

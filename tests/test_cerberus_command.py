"""The `cerberus` command: index, search, recognise and export, options, help and error messages."""

import csv
import io
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cerberus_plugin import CerberusPredictor, cli
from cerberus_plugin.search.calibration import Calibration
from cerberus_plugin.search.gallery import GalleryIndex
from cerberus_plugin.utils.commands import run_command

import pytest
from support.galleries import QUIET, BandEncoder, draw_many, market_words
from support.processes import WITHOUT_TORCH

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def gallery(run, market_root, tmp_path_factory):
    """A folder with images in crops and their index, computed by the small run."""
    folder = tmp_path_factory.mktemp("command")
    shutil.copytree(next(market_root.rglob("query")), folder / "crops")
    (folder / "crops" / "broken.jpg").write_bytes(b"no image")
    cli.main(["index", "--run", run.cfg.OUTPUT_DIR, "--images", str(folder / "crops"), "--out", str(folder / "index")])
    return folder


def found(path) -> list[dict]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def first(gallery) -> Path:
    return sorted((gallery / "crops").glob("0*.jpg"))[0]


def test_an_update_reads_new_images_and_lists_unreadable_ones(gallery, run, capsys):
    extra = gallery / "crops" / "extra.jpg"
    shutil.copy(first(gallery), extra)
    arguments = ["index", "--run", run.cfg.OUTPUT_DIR, "--images", str(gallery / "crops"), "--out",
                 str(gallery / "index")]
    cli.main(arguments)
    assert "1 new, 0 changed, 0 deleted" in capsys.readouterr().out
    extra.unlink()
    cli.main(arguments)
    assert "0 new, 0 changed, 1 deleted; 1 unreadable, listed in unreadable.tsv" in capsys.readouterr().out
    assert (gallery / "index" / "unreadable.tsv").read_text().startswith("broken.jpg\t")


def test_an_index_without_images_fails_and_lists_the_skipped_files(gallery, run, tmp_path, capsys):
    (tmp_path / "crops").mkdir()
    (tmp_path / "crops/linked").symlink_to(gallery / "crops")
    shutil.copy(first(gallery), tmp_path / "crops/0001.tif")
    arguments = ["index", "--run", run.cfg.OUTPUT_DIR, "--images", str(tmp_path / "crops"), "--out",
                 str(tmp_path / "index")]
    with pytest.raises(SystemExit) as ended:  # a message is exit code 1
        cli.main(arguments)
    for text in ("crops: contains no readable image", "linked folders (1)", "files ending in .tif (1)",
                  "--follow-links"):
        assert text in ended.value.code
    cli.main([*arguments, "--follow-links"])
    assert f"{len(list((gallery / 'crops').glob('*_c*.jpg')))} images" in capsys.readouterr().out


def test_an_index_of_one_image_is_reported_in_the_singular(gallery, run, tmp_path, capsys):
    (tmp_path / "crops").mkdir()
    shutil.copy(first(gallery), tmp_path / "crops/0001.jpg")
    cli.main(["index", "--run", run.cfg.OUTPUT_DIR, "--images", str(tmp_path / "crops"), "--out",
              str(tmp_path / "index")])
    assert ": 1 image; 1 new" in capsys.readouterr().out


def test_a_damaged_index_is_reported_and_repaired_by_the_next_update(gallery, run, tmp_path, capsys):
    shutil.copytree(gallery / "index", tmp_path / "index")
    part = next((tmp_path / "index/parts").glob("*.embeddings.npy"))
    part.write_bytes(part.read_bytes()[:-1])
    with pytest.raises(SystemExit, match=rf"{part.name}: has \d+ bytes, expected \d+; run `cerberus index` again"):
        cli.main(["search", str(tmp_path / "index"), "gender=female"])
    cli.main(["index", "--run", run.cfg.OUTPUT_DIR, "--images", str(gallery / "crops"), "--out",
              str(tmp_path / "index")])
    assert f"{part.name}: has" in capsys.readouterr().err
    cli.main(["search", str(tmp_path / "index"), "gender=female"])


def test_a_console_with_another_encoding_shows_question_marks(gallery, run, tmp_path, monkeypatch):
    for name in ("\u732b", "b\N{SNOWMAN}"):
        (tmp_path / "crops").mkdir(exist_ok=True)
        shutil.copy(first(gallery), tmp_path / f"crops/{name}.jpg")
    index = str(tmp_path / "index")
    cli.main(["index", "--run", run.cfg.OUTPUT_DIR, "--images", str(tmp_path / "crops"), "--out", index])
    for encoding, errors in (("cp1252", "strict"), ("ascii", "strict"), ("ascii", "surrogateescape")):
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", io.TextIOWrapper(shown := io.BytesIO(), encoding, errors))
            cli.main(["search", index, "gender=female"])
            sys.stdout.flush()
            assert b"crops/?.jpg" in shown.getvalue() and b"crops/b?.jpg" in shown.getvalue()


def test_every_command_replaces_characters_that_the_console_cannot_show():
    commands = [path for path in (ROOT / "cerberus_plugin").rglob("*.py")
                if path.name == "__main__.py" or '\nif __name__ == "__main__":' in path.read_text()]
    assert len(commands) > 8
    for path in commands:
        assert "run_command(main)\n" in path.read_text() or path.name == "cli.py", path


def test_user_errors_end_with_a_message_and_internal_errors_with_a_traceback():
    def raising(error):
        raise error

    for error in (ValueError("--top is 0"), FileNotFoundError("runs/demo: not found")):
        with pytest.raises(SystemExit, match=f"^error: {error}$"):
            run_command(lambda error=error: raising(error))
    with pytest.raises(SystemExit, match="^error: \N{REPLACEMENT CHARACTER}\\[2J\nsecond line$"):  # clears a terminal
        run_command(lambda: raising(ValueError("\x1b[2J\nsecond line")))
    with pytest.raises(ZeroDivisionError):
        run_command(lambda: 1 / 0)
    with pytest.raises(SystemExit, match="^stopped; run the same command again"):
        run_command(lambda: raising(KeyboardInterrupt()))


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_closed_pipe_ends_a_command_without_a_message(gallery, unbuffered):
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-m", "cerberus_plugin.cli", "search", str(gallery / "index"),
                           "gender=female"], stdout=write, stderr=subprocess.PIPE, text=True, cwd=ROOT,
                          env={**os.environ, "PYTHONUNBUFFERED": unbuffered})
    os.close(write)
    assert done.returncode == 1 and "roken" not in done.stderr and "Traceback" not in done.stderr


def test_development_mode_shows_the_traceback_of_user_errors(tmp_path):
    search = [sys.executable, "-W", "ignore", "-m", "cerberus_plugin.cli", "search", str(tmp_path), "gender=female"]
    for mode in ("", "1"):
        done = subprocess.run(search, capture_output=True, text=True, cwd=ROOT,
                              env={**os.environ, "PYTHONDEVMODE": mode})
        assert done.returncode == 1 and ("Traceback" in done.stderr) == bool(mode)


def test_a_search_by_attributes_needs_no_model(gallery, tmp_path, capsys):
    cli.main(["search", str(gallery / "index"), "gender=female", "upper colour=red", "--top", "3", "--csv",
              str(tmp_path / "found.csv")])
    rows = found(tmp_path / "found.csv")
    told = capsys.readouterr()
    assert len(rows) == 3 and rows[0]["picture"] in told.out
    assert told.err.count("attributes are not calibrated") == 1
    assert rows[0]["gender"].split(" ")[0] in ("male", "female")  # each attribute has a column
    assert [float(row["score"]) for row in rows] == sorted((float(row["score"]) for row in rows), reverse=True)
    # gender belongs to the group identity; head, lower and carrying are not described
    assert {"upper", "identity"} <= set(rows[0]) and not {"head", "lower", "carrying"} & set(rows[0])


def test_attributes_have_display_names_in_the_terminal_and_annotation_names_in_csv(tmp_path, capsys):
    draw_many(tmp_path / "crops", 4)
    encoder = BandEncoder()
    encoder.vocabulary = market_words()
    GalleryIndex.build(tmp_path / "index", tmp_path / "crops", encoder, pace=QUIET).close()
    cli.main(["search", str(tmp_path / "index"), "sleeve length=short sleeve", "--csv", str(tmp_path / "found.csv"),
              "--html", str(tmp_path / "found.html")])
    assert "sleeve length" in " ".join(capsys.readouterr().out.split())
    assert {"up", "clothes"} <= set(found(tmp_path / "found.csv")[0])
    assert "<dt>trousers or dress</dt>" in (tmp_path / "found.html").read_text()
    with pytest.raises(SystemExit, match="Attributes: gender: male, female.*sleeve length: long sleeve, short sleeve"):
        cli.main(["search", str(tmp_path / "index")])


def test_an_image_finds_itself_with_the_similarities_of_its_groups(gallery, run, tmp_path):
    search = ["search", str(gallery / "index"), "--image", str(first(gallery)), "--run", run.cfg.OUTPUT_DIR, "--csv",
              str(tmp_path / "found.csv")]
    cli.main(search)
    best = found(tmp_path / "found.csv")[0]
    assert Path(best["picture"]).name == first(gallery).name and float(best["score"]) == pytest.approx(1, abs=2e-3)
    assert best["camera"] == "1" or best["camera"]
    cli.main([*search, "--may-have-changed-clothes"])
    best = found(tmp_path / "found.csv")[0]
    assert float(best["score"]) == pytest.approx((float(best["head"]) + float(best["identity"])) / 2, abs=0.01)
    cli.main([*search, "backpack=no", "--weight", "carrying=3"])
    rows = found(tmp_path / "found.csv")
    picture = ("head", "upper", "lower", "identity")  # weight 1 each; the attribute has 3 times their sum
    weighted = [(3 * 4 * float(r["carrying"]) + sum(float(r[g]) for g in picture)) / 16 for r in rows]
    assert [float(row["score"]) for row in rows] == pytest.approx(weighted, abs=0.01)


def test_picture_is_a_hidden_alias_of_the_option_image(capsys):
    for option in ("--image", "--picture"):
        assert cli.parse(["search", "gallery", option, "a.jpg", "--run", "runs/shop"]).image == "a.jpg"
    assert cli.parse(["search", "gallery", "hat=no"]).image is None
    with pytest.raises(SystemExit):
        cli.parse(["search", "--help"])
    told = capsys.readouterr().out
    assert "--image FILE" in told and "--picture" not in told


@pytest.mark.parametrize(("arguments", "name", "value"), [
    (["check", "crops", "--no-pictures"], "images", False), (["check", "crops"], "images", True),
    (["audit", "crops", "--out", "audit", "--no-pictures"], "images", False),
    (["export", "--run", "run", "--pictures", "4"], "max_images", 4), (["export", "--run", "run"], "max_images", 256)])
def test_former_names_of_options_are_accepted(arguments, name, value):
    assert getattr(cli.parse(arguments), name) == value


def test_results_are_written_as_a_page_with_the_images(gallery, run, tmp_path):
    cli.main(["search", str(gallery / "index"), "--image", str(first(gallery)), "--run", run.cfg.OUTPUT_DIR,
              "backpack=no", "--may-have-changed-clothes", "--reliable", "0.9", "--top", "2", "--html",
              str(tmp_path / "new" / "found.html")])
    text = (tmp_path / "new" / "found.html").read_text()
    assert text.count("data:image/jpeg;base64,") == 3
    assert (f"<h1>like {first(gallery).name}, backpack: no, may have changed clothes, no contradictions above "
            "probability 0.9</h1>") in text


def test_results_are_written_to_a_pipe_without_replacing_it(gallery, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with ThreadPoolExecutor(1) as pool:
        text = pool.submit((tmp_path / "pipe").read_text)
        cli.main(["search", str(gallery / "index"), "gender=female", "--top", "1", "--csv", str(tmp_path / "pipe")])
        assert text.result(timeout=120).startswith('"place","picture","score"') and (tmp_path / "pipe").is_fifo()


def test_attributes_are_predicted_with_probabilities_and_unreadable_files_are_skipped(gallery, run, tmp_path, capsys):
    cli.main(["recognise", "--run", run.cfg.OUTPUT_DIR, str(gallery / "crops"), "--csv", str(tmp_path / "told.csv")])
    rows = found(tmp_path / "told.csv")
    assert len(rows) == len(list((gallery / "crops").glob("*_c*.jpg")))
    assert rows[0]["gender"].split(" ")[0] in ("male", "female") and rows[0]["gender"].endswith("%)")
    said = capsys.readouterr().err
    assert "skipped" in said and "attributes are not calibrated" in said


def test_a_calibrated_run_reports_uncertain_attributes(gallery, run, tmp_path, monkeypatch, capsys):
    calibration = Calibration({"gender": 1.0}, {"gender": 1.1}, verification=None, record={})
    monkeypatch.setattr(CerberusPredictor, "calibration", calibration)
    cli.main(["recognise", "--run", run.cfg.OUTPUT_DIR, str(first(gallery)), "--csv", str(tmp_path / "told.csv")])
    row = found(tmp_path / "told.csv")[0]
    assert row["gender"] == "uncertain" and row["age"].endswith("%)")
    said = capsys.readouterr()
    assert "not calibrated" not in said.err and "uncertain: gender" in " ".join(said.out.split())


@pytest.mark.slow
def test_an_exported_model_indexes_searches_and_recognises_without_torch(gallery, run, tmp_path):
    crops, model = str(gallery / "crops"), str(tmp_path / "model.onnx")
    cli.main(["export", "--run", run.cfg.OUTPUT_DIR, "--images", crops, "--output", model])

    def told(*arguments) -> str:
        code = f"{WITHOUT_TORCH}\nfrom cerberus_plugin import cli\ncli.main(sys.argv[1:])"
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0, done.stderr
        return done.stdout

    count = len(list((gallery / "crops").glob("*_c*.jpg")))
    index = str(tmp_path / "index")
    assert f"{count} images; {count + 1} new" in told("index", "--model", model, "--images", crops, "--out", index)
    picture = str(first(gallery))
    assert picture in told("search", index, "--image", picture, "--model", model).splitlines()[2]
    assert picture in told("recognise", "--model", model, picture)
    cli.main(["search", index, "--image", picture, "--run", run.cfg.OUTPUT_DIR])  # the run has the same fingerprint


def test_an_unreadable_file_argument_fails_and_the_others_are_printed(gallery, run, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["recognise", "--run", run.cfg.OUTPUT_DIR, str(first(gallery)), str(gallery / "nowhere.jpg")])
    said = capsys.readouterr()
    assert ended.value.code == 1 and first(gallery).name in said.out and "nowhere.jpg: not found" in said.err


def test_control_characters_in_file_names_are_not_printed(gallery, run, tmp_path, capsys):
    shutil.copy(first(gallery), tmp_path / "a\x1b[2Jb.jpg")
    (tmp_path / "c\x1b[2Jd.jpg").write_bytes(b"no image")
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    cli.main(["recognise", "--run", run.cfg.OUTPUT_DIR, str(tmp_path)])
    said = capsys.readouterr()
    assert "a\ufffd[2Jb.jpg" in said.out and "c\ufffd[2Jd.jpg: " in said.err
    assert "\x1b[2J" not in said.out + said.err and "skipped loop.jpg: " in said.err


@pytest.mark.parametrize("engine", ["float16", "int8", "MILVUS"])
def test_another_engine_has_the_same_results(gallery, tmp_path, capsys, engine):
    search = ["search", str(gallery / "index"), "gender=female", "--top", "3"]
    cli.main(search)
    expected = capsys.readouterr().out
    cli.main([*search, "--engine", str(tmp_path / "gallery.db") if engine == "MILVUS" else engine])
    assert capsys.readouterr().out == expected


def test_an_interrupt_ends_without_a_traceback(gallery, monkeypatch):
    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(GalleryIndex, "open", interrupted)
    with pytest.raises(SystemExit, match="interrupted. To continue indexing, run the same command again"):
        cli.main(["search", str(gallery / "index"), "gender=female"])


@pytest.mark.parametrize(("arguments", "message"), [
    (["search", "INDEX", "upper colour=red", "upper colour=blue"],
     r"'upper colour' is given twice, red and blue; give it once, two colours as \"upper colour=red and blue\""),
    (["search", "INDEX", "gender=female", "--engine", "flat"], r"--engine flat: expected one of exact, float16"),
    (["recognise", "--run", "RUN", "EMPTY"], r"no images found in .*empty"),
    (["export", "--run", "RUN", "--images", "EMPTY"], r"export: found 0 readable images to check the model on"),
    (["search", "INDEX"], r"the query is empty; give ATTRIBUTE=VALUE.*Attributes: gender: "),
    (["search", "INDEX", "gender"], r"'gender': expected NAME=VALUE, such as gender=female"),
    (["search", "INDEX", "gender=tall"], r"'gender' cannot be 'tall'\. Allowed: male, female"),
    (["search", "INDEX", "gender=female", "--weight", "upper=much"], r"--weight upper=much: expected a number"),
    (["search", "INDEX", "gender=female", "--csv", "EMPTY"], r"^cerberus: .*empty: Is a directory; give the path of a"),
    (["search", "INDEX", "--image", "x.jpg"], r"needs the model of the index; give --run or --model"),
    (["search", "nowhere", "gender=female"], r"nowhere/index.json: not found; give the folder of an index"),
    (["recognise", "--run", "nowhere", "x.jpg"], r"config.yaml: not found; give the OUTPUT_DIR of a training run")])
def test_errors_are_reported_in_one_line(gallery, run, arguments, message):
    (gallery / "empty").mkdir(exist_ok=True)
    names = {"INDEX": str(gallery / "index"), "RUN": run.cfg.OUTPUT_DIR, "EMPTY": str(gallery / "empty")}
    with pytest.raises(SystemExit, match=message):
        cli.main([names.get(word, word) for word in arguments])


def test_missing_rows_end_a_search_with_a_remedy(gallery, monkeypatch):
    def gone(*_):
        raise KeyError("index: row 7 is gone")

    monkeypatch.setattr(GalleryIndex, "search", gone)
    with pytest.raises(SystemExit, match="^cerberus: index: row 7 is gone; if this happens again, run `cerb"):
        cli.main(["search", str(gallery / "index"), "gender=female"])


def test_an_image_with_an_undecodable_name_is_recognised_and_written(gallery, run, tmp_path, capsys):
    path = tmp_path / os.fsdecode(b"a\x9b.jpg")
    try:
        shutil.copy(first(gallery), path)
    except OSError:
        pytest.skip("this file system only supports names in UTF-8")
    cli.main(["recognise", "--run", run.cfg.OUTPUT_DIR, str(path), "--csv", str(tmp_path / "said.csv")])
    assert found(tmp_path / "said.csv")[0]["picture"].endswith("a\\udc9b.jpg")
    assert "\N{REPLACEMENT CHARACTER}.jpg" in capsys.readouterr().out


def test_attributes_are_given_before_and_after_options_and_unknown_options_are_rejected(capsys):
    args = cli.parse(["search", "gallery", "hat=no", "--top", "3", "backpack=no", "--csv", "found.csv", "hair=long"])
    assert (args.index, args.words, args.top) == ("gallery", ["hat=no", "backpack=no", "hair=long"], 3)
    for wrong in (["search", "gallery", "--nope"], ["nope"], []):
        with pytest.raises(SystemExit) as ended:
            cli.parse(wrong)
        assert ended.value.code == 2
    assert "unrecognized arguments: --nope" in capsys.readouterr().err


def test_every_command_has_a_help_text(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    told = capsys.readouterr().out
    commands = re.findall(r"^    cerberus (\w+) ", told, flags=re.M)
    assert 'Run "cerberus COMMAND --help" for details' in told and len(commands) == len(set(commands)) + 1  # search
    for command in commands:
        with pytest.raises(SystemExit) as ended:
            cli.main([command, "--help"])
        assert ended.value.code == 0 and len(capsys.readouterr().out) > 200

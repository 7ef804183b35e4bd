"""Tests of comparing people by some groups, and of the choice of groups for changed clothes."""

import json
from dataclasses import replace

from cerberus_plugin import CerberusPredictor, CerberusTrainer, ReIDTask
from cerberus_plugin.attributes import GROUPS
from cerberus_plugin.data.clothes import PRCC
from cerberus_plugin.engine.trainer import evaluate
from cerberus_plugin.evaluation.embeddings import Gathered
from cerberus_plugin.experiments import compare, groups
from cerberus_plugin.experiments.figures import rank_list
from cerberus_plugin.inference import blocks, image_scores, of_groups

import pytest
import torch
from support.clothes_folders import cloth_config, label, write_prcc
from support.training import trained

CERBERUS = "configs/Market1501/cerberus_demo.yml"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A small dataset in PRCC's format with labels of outfits."""
    root = tmp_path_factory.mktemp("prcc")
    label(write_prcc(root), PRCC)
    return root


@pytest.fixture(scope="module")
def clothes_run(root, tmp_path_factory):
    """Configuration of a small run of Cerberus with two held-out identities."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastreid.data.build._root", str(root))
        return trained(cloth_config(tmp_path_factory.mktemp("groups"), "PRCCAttributes", "SOLVER.MAX_EPOCH", 1,
                                    "TEST.EVAL_PERIOD", 1, "DATASETS.HOLD_OUT", 2, file=CERBERUS)).cfg


@pytest.fixture
def folder(clothes_run, root, use_root):
    use_root(root)
    return clothes_run.OUTPUT_DIR


def world(seed: int = 0) -> Gathered:
    """Embeddings of 60 images of 6 people in 2 outfits; head and identity depend on the person, upper on the outfit."""
    generator = torch.Generator().manual_seed(seed)
    pids, outfits = torch.arange(60) % 6, torch.arange(60) // 6 % 2
    person, clothes = (torch.randn(12, 8, generator=generator) for _ in range(2))
    noise = torch.randn(60, 5, 8, generator=generator)
    seen = torch.stack([person[pids], clothes[pids * 2 + outfits], noise[:, 2] * 2, person[pids] + noise[:, 3],
                        noise[:, 4] * 2], dim=1) + 0.3 * noise
    return Gathered(seen.flatten(1), pids, torch.arange(60), None, 20, outfits=pids * 2 + outfits)


def test_the_cosine_of_some_groups_is_the_mean_over_their_blocks():
    embeddings = torch.randn(7, 40)
    chosen = of_groups(embeddings, ("identity", "head"))
    unit = blocks(embeddings)[:, [3, 0]]
    expected = torch.einsum("qgd,ngd->qn", unit, unit) / 2
    assert torch.allclose(image_scores(chosen, chosen), expected, atol=1e-6)
    assert torch.allclose(image_scores(of_groups(embeddings, GROUPS), of_groups(embeddings, GROUPS)),
                          image_scores(blocks(embeddings).flatten(1), blocks(embeddings).flatten(1)), atol=1e-6)


@pytest.mark.parametrize(("names", "message"), [(("head", "legs"), "groups are head, legs, expected one or more of"),
                                                ((), "groups are none")])
def test_unknown_groups_are_rejected(names, message):
    with pytest.raises(ValueError, match=message):
        of_groups(torch.randn(2, 40), names)
    with pytest.raises(ValueError, match="embeddings of 512 values cannot be split into 5 blocks"):
        of_groups(torch.randn(2, 512), ("head",))


def test_reid_by_groups_does_not_depend_on_the_others(small_config):
    cfg, gathered = small_config("TEST.GROUPS", ["head", "identity"]), world()
    changed = gathered.embeddings.unflatten(1, (5, 8)).clone()
    changed[:, [1, 2, 4]] = torch.randn(60, 3, 8)
    assert ReIDTask(cfg)(gathered) == ReIDTask(cfg)(replace(gathered, embeddings=changed.flatten(1)))
    assert ReIDTask(cfg, GROUPS)(gathered) != ReIDTask(cfg)(gathered)


def test_every_choice_is_measured_and_the_best_for_changed_clothes_is_chosen(small_config):
    measured = groups.measure(world(), small_config())
    assert len(measured) == 31 and next(iter(measured)) == GROUPS
    assert groups.best_of(measured) == ("head",)
    assert measured["head",]["cloth-changing/mAP"] > measured[GROUPS]["cloth-changing/mAP"]
    assert measured["upper",]["same-clothes/mAP"] > measured["upper",]["cloth-changing/mAP"]
    cfg = small_config("TEST.GROUPS", ["head"])
    assert measured["head",]["cloth-changing/mAP"] == pytest.approx(
        ReIDTask(cfg).ranker(world())("cloth-changing").percentages()["mAP"])


def test_the_choice_with_most_groups_is_the_best_of_equal_ones():
    equal = {f"cloth-changing/{name}": 50.0 for name in ("mAP", "Rank-1")}
    assert groups.best_of(dict.fromkeys(groups.choices(), equal)) == GROUPS


def test_halves_have_one_gallery_and_queries_of_different_people():
    first, second = groups.split_queries(world())
    assert len(first.gallery.pids) == len(second.gallery.pids) == 40
    asked = set(first.query.pids.tolist()), set(second.query.pids.tolist())
    assert len(asked[0]) == len(asked[1]) == 3 and asked[0].isdisjoint(asked[1])


def test_the_experiment_writes_table_plot_and_results_to_compare(folder, capsys):
    groups.main([folder, "--device", "cpu"])
    record = json.loads(open(f"{folder}/groups/groups.json").read())
    assert record["chosen on"] == "2 held-out training identities" and record["measured on"] == "3 test identities"
    shown = capsys.readouterr().out
    assert open(f"{folder}/groups/groups.txt").read() in shown
    predictor = CerberusPredictor(folder, device="cpu")
    assert predictor.groups_for_changed_clothes == tuple(record["chosen"])
    compare.main([folder, f"{folder}/groups"])
    trained_on, chosen = (json.loads(open(f"{path}/results.json").read())["manifest"]
                          for path in (folder, f"{folder}/groups"))
    assert "under cloth-changing the same outfit" in chosen["junk"]
    assert trained_on["tests"] == chosen["tests"] and chosen["training"] is None
    assert trained_on["checkpoint sha256"] == chosen["checkpoint sha256"] is not None
    row = next(row for row in record["choices"] if row["groups"] == record["chosen"])
    assert f"{row['cloth-changing/mAP']:.2f}" in capsys.readouterr().out


def test_the_results_of_an_evaluation_by_groups_name_the_groups(clothes_run, folder, tmp_path):
    cfg = clothes_run.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS, cfg.OUTPUT_DIR = f"{folder}/model_final.pth", str(tmp_path)
    cfg.TEST.GROUPS = ["head", "identity"]
    evaluate(cfg)
    record = json.loads((tmp_path / "results.json").read_text())
    assert record["model"] == "Cerberus by head and identity"
    assert record["protocol"]["reid"]["groups"] == ["head", "identity"]


def test_without_held_out_identities_half_of_the_test_identities_are_used_to_choose(folder, tmp_path, monkeypatch):
    predictor = CerberusPredictor(folder, device="cpu")
    monkeypatch.setattr(predictor, "cfg", predictor.cfg.clone())
    predictor.cfg.DATASETS.HOLD_OUT = 0
    record = groups.run(predictor, "PRCCAttributes", tmp_path)
    assert record["chosen on"] == "1 of the test identities" and record["measured on"] == "2 test identities"
    assert not (tmp_path / "results.json").exists()


def test_a_search_by_image_can_exclude_clothes(folder, root):
    predictor, gallery = CerberusPredictor(folder, device="cpu"), str(root / "prcc/rgb/test/A/003")
    picture = predictor.images(root / "prcc/rgb/test/C/003")[0]
    by_groups = predictor.search(picture, gallery, groups=("head", "identity"))
    expected = image_scores(*(of_groups(predictor.embed(paths), ("head", "identity"))
                              for paths in (picture, predictor.images(gallery))))[0]
    assert [match.score for match in by_groups] == pytest.approx(expected.sort(descending=True).values.tolist())
    chosen = predictor.groups_for_changed_clothes
    assert predictor.search(picture, gallery, may_have_changed_clothes=True) == predictor.search(picture, gallery,
                                                                                                 groups=chosen)
    with pytest.raises(ValueError, match="give either groups or may_have_changed_clothes"):
        predictor.search(picture, gallery, groups=("head",), may_have_changed_clothes=True)
    with pytest.raises(ValueError, match="groups can only be chosen for an image query"):
        predictor.search({"hair": "long"}, gallery, may_have_changed_clothes=True)


def test_the_rank_list_searches_for_people_in_other_clothes(folder, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(rank_list, "draw", lambda rows, path, top: drawn.extend(rows))
    options = [folder, "--queries", "3", "--searches", "0", "--top", "4", "--output", str(tmp_path / "ranks.png")]
    rank_list.main(options)
    rank_list.main([*options, "--may-have-changed-clothes"])
    assert [row.picture.split("/")[-3] for row in drawn] == ["B", "B", "B", "C", "C", "C"]
    predictor = CerberusPredictor(folder, device="cpu")
    scores = predictor.picture_scores(*(predictor.embed([path]) for path in (drawn[3].picture, drawn[3].found[0][0])),
                                      predictor.groups_for_changed_clothes)
    assert drawn[3].found[0][2] == f"{scores.item():.2f}"


def test_people_who_do_not_change_their_clothes_are_rejected(folder, tmp_path, monkeypatch):
    gathered = world()
    alone = replace(gathered, outfits=gathered.pids)
    monkeypatch.setattr(groups, "gather", lambda predictor, name: alone if name == "held-out" else gathered)
    with pytest.raises(ValueError, match="the people chosen on have no query in other clothes.*larger DATASETS"):
        groups.run(CerberusPredictor(folder, device="cpu"), "PRCCAttributes", tmp_path)


def test_models_without_groups_or_outfits_are_rejected(folder, market_root, use_root, monkeypatch, tmp_path):
    with pytest.raises(ValueError, match="TEST.GROUPS is .'head'., but Baseline has no groups"):
        CerberusTrainer(cloth_config(tmp_path, "PRCC", "TEST.GROUPS", ["head"]))
    with pytest.raises(ValueError, match="TEST.GROUPS is .'legs'., expected some of head, upper"):
        CerberusTrainer(cloth_config(tmp_path, "PRCCAttributes", "TEST.GROUPS", ["legs"], file=CERBERUS))
    use_root(market_root)
    with pytest.raises(ValueError, match="Market1501Attributes has no outfits.*--dataset, such as PRCC"):
        groups.main([folder, "--dataset", "Market1501Attributes", "--device", "cpu", "--output", str(tmp_path)])
    predictor = CerberusPredictor(folder, device="cpu")
    monkeypatch.setattr(predictor, "cfg", predictor.cfg.clone())
    predictor.cfg.MODEL.META_ARCHITECTURE = "Baseline"
    monkeypatch.setattr(predictor, "model", torch.nn.Identity())
    with pytest.raises(ValueError, match="Baseline has no groups to exclude"):
        groups.run(predictor, "PRCCAttributes", tmp_path)
    with pytest.raises(ValueError, match="Baseline has no groups; only Cerberus"):
        predictor.picture_scores(torch.randn(1, 10), torch.randn(1, 10), ("head",))

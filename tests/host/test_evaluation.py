"""Evaluation: no compilation, the installed ranking, flip testing and re-ranking."""

import subprocess
import sys
import types

from cerberus_plugin import host

import fastreid.data.build
import fastreid.engine.defaults
import fastreid.evaluation.rank
import fastreid.solver
import numpy as np
import pytest
import torch
from fastreid.config import get_cfg
from fastreid.evaluation import ReidEvaluator, rank_cylib
from fastreid.modeling.meta_arch.baseline import Baseline
from fastreid.modeling.meta_arch.mgn import MGN
from fastreid.utils.compute_dist import build_dist


@pytest.mark.parametrize("model", [Baseline, MGN])
@pytest.mark.parametrize("as_dict", [True, False])
def test_normalising_does_not_change_the_batch(model, as_dict):
    owner = types.SimpleNamespace(pixel_mean=torch.tensor(10.0), pixel_std=torch.tensor(5.0), device="cpu")
    images = torch.full((1, 3, 2, 2), 20.0)
    batch = {"images": images, "targets": 0} if as_dict else images
    for _ in range(2):  # the second pass of flip testing uses the same batch
        assert torch.equal(model.preprocess_image(owner, batch), torch.full((1, 3, 2, 2), 2.0))
    assert torch.equal(images, torch.full((1, 3, 2, 2), 20.0))


def test_an_evaluator_never_runs_make(monkeypatch):
    def run(*args, **kwargs):
        raise AssertionError("a compiler was started")

    monkeypatch.setattr(subprocess, "run", run)
    ReidEvaluator(get_cfg(), num_query=1)
    rank_cylib.compile_helper()


@pytest.fixture
def ranking():
    """Restore the installed ranking after the test."""
    installed = fastreid.evaluation.rank.evaluate_rank
    yield
    fastreid.evaluation.rank.evaluate_rank = installed


DISTANCES = np.array([[0.1, 0.2, 0.3], [0.3, 0.2, 0.1]])
IDS = (np.array([1, 2]), np.array([1, 2, 2]), np.array([0, 0]), np.array([1, 1, 1]))


def test_a_ranking_replaces_fastreids_in_every_namespace(monkeypatch, ranking):
    user = types.ModuleType("user_code")
    user.evaluate_rank = fastreid.evaluation.rank.evaluate_rank
    monkeypatch.setitem(sys.modules, "user_code", user)
    host.use_ranking(lambda distmat, *ids, max_rank: ("ours", distmat.shape, len(ids), max_rank))
    assert user.evaluate_rank(DISTANCES, *IDS) == ("ours", (2, 3), 4, 50)
    assert fastreid.evaluation.rank.evaluate_rank(DISTANCES, *IDS, 7, use_cython=False) == ("ours", (2, 3), 4, 7)


def test_the_evaluator_uses_the_installed_ranking(ranking):
    def perfect(distmat, q_pids, g_pids, q_camids, g_camids, max_rank=50):
        return np.ones(max_rank), [0.5] * len(q_pids), [0.25] * len(q_pids)

    host.use_ranking(perfect)
    evaluator = ReidEvaluator(get_cfg(), num_query=1)
    ids = {"targets": torch.tensor([1, 1, 2]), "camids": torch.tensor([0, 1, 1])}
    evaluator.process(ids, torch.eye(3))
    assert evaluator.evaluate()["mAP"] == 50.0


def test_the_cuhk03_metric_is_computed_by_fastreid(monkeypatch, ranking):
    monkeypatch.setattr(fastreid.evaluation.rank, "eval_cuhk03", lambda *args: ("host", args[-1]))
    host.use_ranking(lambda *args, **kwargs: "ours")
    rank = fastreid.evaluation.rank.evaluate_rank
    assert rank(DISTANCES, *IDS, use_metric_cuhk03=True, use_cython=False) == ("host", 50)


def test_reranking_runs_with_faiss_on_the_cpu():
    query, gallery = torch.eye(8)[:2], torch.eye(8)
    distances = build_dist(query, gallery, metric="jaccard", k1=4, k2=1)
    assert distances.shape == (2, 8)
    assert distances.argmin(axis=1).tolist() == [0, 1]

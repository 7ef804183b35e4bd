"""Evaluators of the three tasks: one forward pass over query and gallery, then reID, PAR and APS from what it gave.

`TaskEvaluator` gathers; a task is any callable from `Gathered` to figures by name, so PAR and APS attach to a
model of a user's own as soon as it offers an `AttributeReader`. Figures are percent.
"""

from __future__ import annotations

import itertools
import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from fastreid.evaluation.evaluator import DatasetEvaluator
from fastreid.evaluation.query_expansion import aqe
from fastreid.evaluation.roc import evaluate_roc
from fastreid.utils import comm
from fastreid.utils.compute_dist import build_dist
from sklearn.metrics import roc_curve
from torch import Tensor

from .attributes import MISSING, Annotations
from .inference import AttributeReader
from .metrics import aps, par, ranking

logger = logging.getLogger("fastreid.cerberus")

LEFT_OUT_PID = -1  # unreadable images


@dataclass(frozen=True)
class Gathered:
    """What one pass gave: rows [0, num_query) are the query images, the rest the gallery.

    embeddings float (n, E), pids and camids int64 (n,), attributes int64 (n, A) or None without labels.
    """

    embeddings: Tensor
    pids: Tensor
    camids: Tensor
    attributes: Tensor | None
    num_query: int

    def rows(self, index) -> Gathered:
        """A subset; its `num_query` counts the query rows among them."""
        index = torch.arange(len(self.pids))[index]
        attributes = None if self.attributes is None else self.attributes[index]
        return Gathered(self.embeddings[index], self.pids[index], self.camids[index], attributes,
                        int((index < self.num_query).sum()))

    @property
    def query(self) -> Gathered:
        return self.rows(slice(None, self.num_query))

    @property
    def gallery(self) -> Gathered:
        return self.rows(slice(self.num_query, None))


Task = Callable[[Gathered], dict[str, float]]


class TaskEvaluator(DatasetEvaluator):
    """Gather embeddings and labels over all processes, then run each task on the main one.

    Args:
        num_query: images of the loader that are queries, first in order.
        tasks: what to compute.
        device: where the tasks find the embeddings, and so where they rank; batches wait on the CPU.
    """

    def __init__(self, num_query: int, tasks: Sequence[Task], device: torch.device | str = "cpu") -> None:
        self._num_query = num_query
        self._tasks = tasks
        self._device = device
        self.reset()

    def reset(self) -> None:
        self._batches: list[dict] = []

    def process(self, inputs: dict, outputs: Tensor) -> None:
        batch = {"embeddings": outputs.float(), "pids": inputs["targets"], "camids": inputs["camids"]}
        if "attributes" in inputs:
            batch["attributes"] = inputs["attributes"]
        self._batches.append({key: value.cpu() for key, value in batch.items()})

    def evaluate(self) -> OrderedDict[str, float]:
        batches = self._batches
        if comm.get_world_size() > 1:
            comm.synchronize()
            batches = list(itertools.chain(*comm.gather(batches, dst=0)))
            if not comm.is_main_process():
                return OrderedDict()
        results: OrderedDict[str, float] = OrderedDict()
        gathered = self._join(batches)
        for task in self._tasks:
            results.update(task(gathered))
        return results

    def _join(self, batches: list[dict]) -> Gathered:
        if not batches:
            raise ValueError("evaluation: the test loader gave no images; check DATASETS.TESTS")
        columns = {key: torch.cat([batch[key] for batch in batches]) for key in batches[0]}
        embeddings = columns["embeddings"].to(self._device)
        gathered = Gathered(embeddings, columns["pids"], columns["camids"], columns.get("attributes"), self._num_query)
        bad = (~gathered.embeddings.isfinite().all(dim=1)).sum().item()
        if bad:
            raise ValueError(f"evaluation: {bad} of {len(gathered.pids)} embeddings are not finite; the weights are "
                             "damaged or training diverged")
        left_out = gathered.pids == LEFT_OUT_PID
        if left_out.any():
            logger.warning(f"{int(left_out.sum())} of {len(left_out)} test images could not be read and are left out")
            gathered = gathered.rows(~left_out)
        if not 0 < gathered.num_query < len(gathered.pids):
            raise ValueError(f"evaluation: {gathered.num_query} query and {len(gathered.pids) - gathered.num_query} "
                             "gallery images; both must have at least one")
        return gathered


@dataclass(frozen=True)
class ReIDTask:
    """Rank-1/5/10, mAP, mINP by the Market-1501 protocol, as the host's ReidEvaluator gives them.

    Without re-ranking and query expansion distances are made block by block and never held at once.
    """

    cfg: object

    def __call__(self, gathered: Gathered) -> dict[str, float]:
        test, query, gallery = self.cfg.TEST, gathered.query, gathered.gallery
        ids = query.pids, query.camids, gallery.pids, gallery.camids
        roc = {}
        if test.AQE.ENABLED or test.RERANK.ENABLED or test.ROC.ENABLED:
            distances = self._distances(query, gallery)
            result = ranking.reid_metrics(torch.as_tensor(distances), *ids)
            if test.ROC.ENABLED:
                roc = self._verification(distances, query, gallery)
        else:
            result = ranking.reid_metrics_from_features(query.embeddings, gallery.embeddings, *ids, metric=test.METRIC)
        if result.num_skipped:
            logger.info(f"{result.num_skipped} of {len(query.pids)} queries have no match in another camera: skipped")
        rank = {f"Rank-{k}": 100 * result.cmc[k - 1].item() for k in (1, 5, 10)}
        return {**rank, "mAP": 100 * result.mAP, "mINP": 100 * result.mINP,
                "mAP_trapezoid": 100 * result.mAP_trapezoid, **roc,
                "metric": (100 * result.mAP + rank["Rank-1"]) / 2}

    def _distances(self, query: Gathered, gallery: Gathered):
        """The host's query expansion and re-ranking, which need the whole matrix."""
        test, q, g = self.cfg.TEST, query.embeddings, gallery.embeddings
        if test.AQE.ENABLED:
            q, g = aqe(q, g, test.AQE.QE_TIME, test.AQE.QE_K, test.AQE.ALPHA)
        distances = build_dist(q, g, test.METRIC)
        if test.RERANK.ENABLED:
            if test.METRIC == "cosine":
                q, g = F.normalize(q, dim=1), F.normalize(g, dim=1)
            jaccard = build_dist(q, g, metric="jaccard", k1=test.RERANK.K1, k2=test.RERANK.K2)
            distances = jaccard * (1 - test.RERANK.LAMBDA) + distances * test.RERANK.LAMBDA
        return distances

    @staticmethod
    def _verification(distances, query: Gathered, gallery: Gathered) -> dict[str, float]:
        """True positive rates at fixed false positive rates, from the host's pairs; shares of 1, as the host's."""
        scores, labels = evaluate_roc(np.asarray(distances), query.pids.numpy(), gallery.pids.numpy(),
                                      query.camids.numpy(), gallery.camids.numpy())
        false_positive, true_positive, _ = roc_curve(labels, scores)
        return {f"TPR@FPR={rate:.0e}": float(true_positive[np.abs(false_positive - rate).argmin()])
                for rate in (1e-4, 1e-3, 1e-2)}


@dataclass(frozen=True)
class PARTask:
    """Attribute recognition on the labelled gallery images, in three conventions, with the majority answer beside.

    Args:
        train_labels: int64 (identities, A), from which the majority answer is taken; None leaves it out.
        query_identities_only: score gallery images of query identities alone.
    """

    reader: AttributeReader
    train_labels: Tensor | None = None
    query_identities_only: bool = False

    def __call__(self, gathered: Gathered) -> dict[str, float]:
        gallery = _labelled(gathered.gallery)
        if self.query_identities_only:
            gallery = gallery.rows(torch.isin(gallery.pids, gathered.query.pids))
        schema = self.reader.schema
        truth, known = schema.column_truth(gallery.attributes)
        is_colour = [column.is_colour for column in schema.columns]
        result = par.par_metrics(self.reader.recognise(gallery.embeddings).cpu(), truth, known, is_colour)
        figures = self._figures("PAR", result)
        for column, share in zip(schema.columns, result.ceiling.tolist()):
            if column.is_colour:
                figures[f"PAR/ceiling/{column.name}"] = 100 * share
        if self.train_labels is not None:
            answers = par.majority_answers(*schema.column_truth(self.train_labels))
            majority = par.par_metrics(answers.expand(len(gallery.pids), -1), truth, known, is_colour)
            figures |= self._figures("PAR-majority", majority)
        figures["PAR/images"] = len(gallery.pids)
        return figures

    def _figures(self, name: str, result: par.PARResult) -> dict[str, float]:
        figures = {f"{name}/mA_official": 100 * result.mA_official, f"{name}/mA_binary": 100 * result.mA_binary,
                   f"{name}/mA_balanced": 100 * result.mA_balanced}
        for rule in ("official", "binary", "balanced"):
            for column, share in zip(self.reader.schema.columns, getattr(result, rule).tolist()):
                figures[f"{name}/{rule}/{column.name}"] = 100 * share
        return figures


@dataclass(frozen=True)
class APSTask:
    """Search by attributes: each category of the test images queries the pool of gallery and query images.

    Args:
        train_labels: int64 (identities, A), to tell categories seen in training from unseen ones; None leaves it out.
        protocol: "asmr" or "sal".
        groups: partial searches to report beside the full one: names of groups joined by "+".
    """

    reader: AttributeReader
    train_labels: Tensor | None = None
    protocol: str = "asmr"
    groups: Sequence[str] = ()

    def __call__(self, gathered: Gathered) -> dict[str, float]:
        # Gallery first: among equal scores the lower index ranks first.
        order = torch.cat([torch.arange(gathered.num_query, len(gathered.pids)), torch.arange(gathered.num_query)])
        pool = _labelled(gathered.rows(order))
        pool_categories, labels = aps.categories(pool.attributes)
        result = self._run(pool, labels, pool_categories)
        figures = {"APS/mAP": 100 * result.mAP, "APS/Rank-1": 100 * result.rank1,
                   "APS/mAP_trapezoid": 100 * result.mAP_trapezoid, "APS/queries": len(labels),
                   "APS/images": len(pool.pids)}
        if self.train_labels is not None:
            seen = (labels[:, None] == self.train_labels[None]).all(dim=2).any(dim=1)
            for name, chosen in (("seen", seen), ("unseen", ~seen)):
                figures |= {f"APS/{name}/{key}": value for key, value in _subset(result, chosen).items()}
        for name in self.groups:
            figures |= self._partial(name, pool, labels, pool_categories)
        return figures

    def _partial(self, name: str, pool: Gathered, labels: Tensor, pool_categories: Tensor) -> dict[str, float]:
        """Queries that describe some groups: relevance on the full category, and on the described groups."""
        schema = self.reader.schema
        fields = [i for group in name.split("+") for i in schema.group_fields(group)]
        if not fields:
            raise ValueError(f"TEST.APS.GROUPS holds '{name}', expected names of groups joined by '+': "
                             f"{', '.join(dict.fromkeys(field.group for field in schema.fields))}")
        described = torch.full_like(labels, MISSING)
        described[:, fields] = labels[:, fields]
        full = self._run(pool, described, pool_categories)
        own_categories, own = aps.categories(pool.attributes[:, fields])
        queries = torch.full((len(own), labels.shape[1]), MISSING, dtype=torch.int64)
        queries[:, fields] = own
        given = self._run(pool, queries, own_categories)
        return {f"APS/{name}/mAP_full": 100 * full.mAP, f"APS/{name}/Rank-1_full": 100 * full.rank1,
                f"APS/{name}/mAP_given": 100 * given.mAP, f"APS/{name}/Rank-1_given": 100 * given.rank1}

    def _run(self, pool: Gathered, queries: Tensor, pool_categories: Tensor) -> aps.APSResult:
        """Query k, labels int64 (K, A), is to find the images of category k."""
        representative = {}
        if self.protocol == "sal":  # the first image of a category stands for it
            first = [int((pool_categories == k).nonzero()[0]) for k in range(len(queries))]
            representative = {"representative_pids": pool.pids[first], "representative_camids": pool.camids[first],
                              "gallery_pids": pool.pids, "gallery_camids": pool.camids}
        return aps.aps_metrics(lambda rows: self.reader.search(queries[rows], pool.embeddings),
                               torch.arange(len(queries)), pool_categories, protocol=self.protocol, **representative)


def attribute_tasks(reader: AttributeReader, annotations: Annotations, cfg) -> list[Task]:
    """PAR and APS as a configuration asks for them."""
    train_labels = torch.stack(list(annotations.train.values()))
    return [PARTask(reader, train_labels, cfg.TEST.PAR.QUERY_IDENTITIES_ONLY),
            APSTask(reader, train_labels, cfg.TEST.APS.PROTOCOL, tuple(cfg.TEST.APS.GROUPS))]


def _labelled(gathered: Gathered) -> Gathered:
    """Without distractors, which have no labels."""
    if gathered.attributes is None:
        raise ValueError("PAR and APS need labelled test images; use a data set with annotations, such as "
                         "Market1501Attributes")
    labelled = (gathered.attributes != MISSING).any(dim=1)
    if not labelled.any():
        raise ValueError("PAR and APS: none of the test images is labelled")
    return gathered.rows(labelled)


def _subset(result: aps.APSResult, chosen: Tensor) -> dict[str, float]:
    """Figures over some of the queries; NaN where there are none."""
    ap, first = result.queries.ap[chosen].nan_to_num(0), result.queries.first_match[chosen]
    return {"mAP": 100 * ap.mean().item(), "Rank-1": 100 * (first == 1).double().mean().item(), "queries": len(ap)}

"""The tasks of an evaluation, reID, PAR and APS: they compute metrics in percent from gathered embeddings and labels.

PAR and APS work with every model that provides an `AttributeReader`, custom models included.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from fastreid.evaluation.query_expansion import aqe
from fastreid.evaluation.roc import evaluate_roc
from sklearn.metrics import roc_curve
from torch import Tensor

from ..attributes import GROUPS, MISSING
from ..attributes.schema import agreeing
from ..data.build import check_expansion
from ..inference import PARTIAL, READINGS, AttributeReader, blocks, of_groups
from ..metrics import aps, par, ranking
from ..metrics.distances import pairwise
from ..metrics.outfits import Outfits
from ..metrics.reranking import check_reranking, reranked
from .by_value import ByValue
from .embeddings import Gathered

logger = logging.getLogger("fastreid.cerberus")

COLLAPSED = 0.7  # warn if a mean direction is longer; 0.1 to 0.15 in the demo


@dataclass(frozen=True)
class ReIDTask:
    """Rank-1/5/10, mAP and mINP by the Market-1501 protocol, equal to those of FastReID's ReidEvaluator.

    Distances are computed in blocks and never stored as a whole, except for TEST.ROC. Query expansion and re-ranking
    need the embeddings of all query and gallery images on one device: they do not support chunks.

    Args:
        cfg: configuration, of which the keys under TEST are used.
        groups: compare the embeddings of Cerberus by these groups only; None for those of TEST.GROUPS, or all.
        all_groups: groups of the model, in the order of the blocks of its embeddings.
        by_value: record to fill with the metrics by attribute value, if queries have labels.
    """

    cfg: object
    groups: Sequence[str] | None = None
    all_groups: Sequence[str] = GROUPS
    by_value: ByValue | None = None

    def __call__(self, gathered: Gathered) -> dict[str, float]:
        gathered = self._by_groups(gathered)
        query, gallery = gathered.query, gathered.gallery
        distances = self._distances(query, gallery)
        roc = {}
        if self.cfg.TEST.ROC.ENABLED:
            matrix = _whole(distances or pairwise(query.embeddings, gallery.embeddings, self.cfg.TEST.METRIC),
                            len(query.pids), len(gallery.pids))
            roc = self._verification(matrix, query, gallery)
            distances = matrix.__getitem__
        result = self._ranked(query, gallery, distances)
        if result.num_skipped:
            logger.info(f"{result.num_skipped} of {len(query.pids)} queries have no match in another camera and are "
                        "skipped")
        if self.by_value is not None and query.attributes is not None:
            self.by_value.add_reid(result.queries, query.attributes, query.pids)
        figures = result.percentages()
        if not torch.isin(query.camids, gallery.camids).any():
            roc["shared cameras"] = 0.0
        return {**figures, **roc, "metric": (figures["mAP"] + figures["Rank-1"]) / 2}

    def ranker(self, gathered: Gathered) -> Callable[..., ranking.ReIDResult]:
        """Prepare rankings of the same test set under other rules.

        Re-ranked distances are computed once, on the whole gallery, and are used for its subsets too.

        Args:
            gathered: embeddings and labels of the test set.

        Returns:
            a function `ranked(setting, chosen)` of a setting of `metrics.outfits.SETTINGS` and row numbers of the
            gallery, int64 (n,), all by default.
        """
        gathered = self._by_groups(gathered)
        query, gallery = gathered.query, gathered.gallery
        distances = self._distances(query, gallery)
        matrix = None if distances is None else _whole(distances, len(query.pids), len(gallery.pids))

        def ranked(setting: str, chosen: Tensor | slice = slice(None)) -> ranking.ReIDResult:
            some = gallery.rows(chosen)
            return self._ranked(query, some, None if matrix is None else lambda rows: matrix[rows][:, chosen],
                                Outfits(query.outfits, some.outfits, setting))

        return ranked

    def _by_groups(self, gathered: Gathered) -> Gathered:
        groups = self.cfg.TEST.GROUPS if self.groups is None else self.groups
        if not groups:
            return gathered
        return replace(gathered, embeddings=of_groups(gathered.embeddings, groups, self.all_groups))

    def _ranked(self, query: Gathered, gallery: Gathered, distances: Callable[[slice], Tensor] | None,
                outfits: Outfits | None = None) -> ranking.ReIDResult:
        ids = query.pids, query.camids, gallery.pids, gallery.camids
        if distances is not None:
            return ranking.reid_metrics(distances, *ids, outfits=outfits)
        return ranking.reid_metrics_from_features(query.embeddings, gallery.embeddings, *ids, outfits=outfits,
                                                  metric=self.cfg.TEST.METRIC, device=query.device)

    def _distances(self, query: Gathered, gallery: Gathered) -> Callable[[slice], Tensor] | None:
        """Return a function from rows of the queries to their distances; None without expansion and re-ranking."""
        test, q, g = self.cfg.TEST, query.embeddings, gallery.embeddings
        if test.AQE.ENABLED:
            check_expansion(self.cfg, len(q), len(g))
            expanded = aqe(q.cpu(), g.cpu(), test.AQE.QE_TIME, test.AQE.QE_K, test.AQE.ALPHA)  # supports the CPU only
            q, g = (side.to(q.device) for side in expanded)
        if test.RERANK.ENABLED:
            return reranked(q, g, **_reranking_options(self.cfg))
        return pairwise(q, g, test.METRIC) if test.AQE.ENABLED else None

    @staticmethod
    def _verification(distances: Tensor, query: Gathered, gallery: Gathered) -> dict[str, float]:
        """Compute true positive rates at fixed false positive rates on FastReID's pairs; from 0 to 1, as FastReID."""
        scores, labels = evaluate_roc(distances.cpu().numpy(), query.pids.numpy(), gallery.pids.numpy(),
                                      query.camids.numpy(), gallery.camids.numpy())
        false_positive, true_positive, _ = roc_curve(labels, scores)
        return {f"TPR@FPR={rate:.0e}": float(true_positive[abs(false_positive - rate).argmin()])
                for rate in (1e-4, 1e-3, 1e-2)}


@dataclass(frozen=True)
class DirectionTask:
    """Length of the mean direction of each group of Cerberus: the norm of the mean of its unit vectors over all images.

    It is near 0 if the vectors point in all directions and 1 if all are equal. A component that all images share
    changes the rankings of images less than the cosines with prototypes, so reID may look normal while recognition is
    at chance. Above `COLLAPSED`, a warning is logged.

    Args:
        groups: groups of the model, in the order of the blocks of its embeddings.
    """

    groups: Sequence[str] = GROUPS

    def __call__(self, gathered: Gathered) -> dict[str, float]:
        parts = [blocks(chunk, len(self.groups)).double().sum(dim=0)
                 for chunk in gathered.chunks(torch.arange(len(gathered.pids)))]
        lengths = (sum(parts) / len(gathered.pids)).norm(dim=1).tolist()
        bad = [f"{group} {length:.2f}" for group, length in zip(self.groups, lengths) if length > COLLAPSED]
        if bad:
            logger.warning(f"Embeddings have collapsed: the mean direction of {', '.join(bad)} is longer than "
                           f"{COLLAPSED}, so these blocks hardly differ between images and attributes are "
                           "recognised at chance. This is normal before training. Otherwise, likely causes are a short "
                           "training, or running statistics of batch normalisation that do not fit the weights (few "
                           "steps, a small batch, frozen or loaded layers; see TEST.PRECISE_BN), or a "
                           "MODEL.HEADS.NORM other than in training")
        return {f"mean direction/{group}": length for group, length in zip(self.groups, lengths)}


@dataclass(frozen=True)
class PARTask:
    """Attribute recognition on the labelled gallery images in three conventions, with the majority-class baseline.

    "label" and "instance" metrics are those of multi-label recognition (PETA, RAP, PA-100K), see
    `metrics.par.LabelResult`. A label is predicted as yes if it belongs to the predicted value of its attribute; for a
    yes/no attribute recognised by probability, this is a threshold of 0.5.

    Balanced metrics use the predictions of `recognise_balanced` if the reader has this method. "person" metrics score
    one prediction per person, from the mean scores of the person's images, if the reader is a `PersonReader`.

    Args:
        reader: reader of the model's attributes.
        train_labels: int64 (identities, A), from which the majority classes are taken; None to omit the baseline.
        query_identities_only: score only gallery images of identities that occur among the queries.
        name: prefix of the metrics' names.
        identified: whether the images have identities; if not, there are no "person" metrics, and the "metric" that
            selects the best checkpoint is the mA of labels.
        by_value: record to fill with the metrics by attribute value.
    """

    reader: AttributeReader
    train_labels: Tensor | None = None
    query_identities_only: bool = False
    name: str = "PAR"
    identified: bool = True
    by_value: ByValue | None = None

    def __call__(self, gathered: Gathered) -> dict[str, float]:
        gallery = gathered.gallery
        chosen = _labelled(gallery)
        if self.query_identities_only and self.identified:
            chosen = chosen[torch.isin(gallery.pids[chosen], gathered.query.pids)]
        schema, labels = self.reader.schema, gallery.attributes[chosen]
        if self.identified and hasattr(self.reader, "answer_scores"):
            person, of_persons = _persons(gallery, chosen)
            answers, of_each = self._answers_and_persons(gallery, chosen, person)
            result = self._scored(labels, *answers)
            figures = self._figures(self.name, result)
            figures |= self._figures(f"{self.name}/person", self._scored(of_persons, *of_each))
            figures[f"{self.name}/person/persons"] = len(of_persons)
        else:
            kinds = [getattr(self.reader, kind) for kind in ("recognise", "recognise_balanced")
                     if hasattr(self.reader, kind)]
            answers = [torch.cat([kind(chunk).cpu() for chunk in gallery.chunks(chosen)]) for kind in kinds]
            result = self._scored(labels, *answers)
            figures = self._figures(self.name, result)
        if self.by_value is not None:
            self.by_value.add_par(answers[0], labels, gallery.pids[chosen] if self.identified else None)
        for column, share in zip(schema.columns, result.ceiling.tolist()):
            if column.is_colour:
                figures[f"{self.name}/ceiling/{column.name}"] = 100 * share
        if self.train_labels is not None:
            trained = schema.column_truth(self.train_labels)
            majority, own = (self._scored(labels, par.majority_answers(*trained, flags).expand(len(chosen), -1))
                             for flags in ((), [column.is_colour for column in schema.columns]))
            figures |= self._figures("PAR-majority", replace(majority, with_none=own.with_none,
                                                             mA_with_none=own.mA_with_none))
        figures |= {f"{self.name}/images": len(chosen), f"{self.name}/questions": result.num_bits,
                    f"{self.name}/undefined_questions": result.num_undefined_bits}
        if not self.identified and self.name == "PAR":
            figures["metric"] = figures["PAR/label/mA"]
        return figures

    def _answers_and_persons(self, gallery: Gathered, chosen: Tensor,
                             person: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Predict the values of some rows and of the persons in them.

        The scores of an image are computed once, for its own prediction and for its person's mean.

        Args:
            gallery: the gallery images.
            chosen: int64 (K,), row numbers.
            person: int64 (K,), number of each row's person.

        Returns:
            predictions for the rows, plain and balanced, int64 (K, M) each; the same for the persons, (P, M).
        """
        answers, totals = ([], []), (_Means(person), _Means(person))
        for chunk in gallery.chunks(chosen):
            for balanced, own, total in zip((False, True), answers, totals):
                scores = self.reader.answer_scores(chunk, balanced)
                own.append(self.reader.decide(scores, balanced).cpu())
                total.add(scores)
        return ([torch.cat(own) for own in answers],
                [self.reader.decide(total.means(), balanced).cpu() for balanced, total in zip((False, True), totals)])

    def _scored(self, labels: Tensor, answers: Tensor, balanced: Tensor | None = None) -> par.PARResult:
        """Score predictions int64 (K, M) against labels int64 (K, A); `balanced` are those of the balanced metric."""
        truth, known = self.reader.schema.column_truth(labels)
        is_colour = [column.is_colour for column in self.reader.schema.columns]
        result = par.par_metrics(answers, truth, known, is_colour)
        if balanced is None:
            return result
        own = par.par_metrics(balanced, truth, known, is_colour)
        return replace(result, balanced=own.balanced, mA_balanced=own.mA_balanced)

    def _figures(self, name: str, result: par.PARResult) -> dict[str, float]:
        rules = ("official", "with_none", "binary", "balanced")
        figures = {f"{name}/mA_{rule}": 100 * getattr(result, f"mA_{rule}") for rule in rules}
        for rule in rules:
            for column, share in zip(self.reader.schema.columns, getattr(result, rule).tolist()):
                figures[f"{name}/{rule}/{column.name}"] = 100 * share
        labels = result.labels
        for key, of_labels in (("accuracy", labels.accuracy), ("mA", labels.balanced), ("F1", labels.f1)):
            figures[f"{name}/label/{key}"] = 100 * of_labels.nanmean().item()
        for key in ("accuracy", "precision", "recall", "F1"):
            figures[f"{name}/instance/{key}"] = 100 * getattr(labels, f"instance_{key.lower()}")
        figures[f"{name}/label/undefined_F1"] = int(labels.f1.isnan().sum())
        for key in ("without_yes", "without_answer", "without_either"):
            figures[f"{name}/instance/{key}"] = getattr(labels, f"num_{key}")
        return figures


@dataclass(frozen=True)
class APSTask:
    """Search by attributes: each category of the test images is a query, and gallery and query images are searched.

    "person" metrics rank persons instead of images, each by the mean score of its images; all persons, whatever the
    protocol. "categories" is the number of categories among the images, of which the protocol may use only some as
    queries, see `metrics.aps.QUERIES`.

    Args:
        reader: reader of the model's attributes.
        train_labels: int64 (identities, A), to distinguish categories seen in training from unseen ones, and those
            with an unseen semantic ID, which are the fewest; None to omit these metrics.
        protocol: one of `metrics.aps.PROTOCOLS`.
        groups: partial searches to report in addition to the full one: names of groups joined by "+".
        name: prefix of the metrics' names.
    """

    reader: AttributeReader
    train_labels: Tensor | None = None
    protocol: str = "asmr"
    groups: Sequence[str] = ()
    name: str = "APS"

    def __call__(self, gathered: Gathered) -> dict[str, float]:
        # Gallery first: among equal scores the lower index ranks first.
        pool = _labelled(gathered)
        pool = torch.cat([pool[pool >= gathered.num_query], pool[pool < gathered.num_query]])
        pool_categories, labels = aps.categories(gathered.attributes[pool])
        person, of_persons = _persons(gathered, pool)
        person_scores: list[Tensor] = []
        asked = self._asked(pool_categories, pool < gathered.num_query)
        related = aps.relations(labels, labels)
        result = self._run(gathered, pool, labels, pool_categories, asked, related, person, person_scores)
        figures = {**result.percentages(), "queries": len(asked), "categories": len(labels),
                   "unmatched": result.num_unmatched, "images": len(pool)}
        if self.train_labels is not None:
            described = labels[asked]
            seen = agreeing(self.train_labels.unique(dim=0), described).any(dim=1)
            unseen_sid = self._with_unseen_sid(described)
            for name, chosen in (("seen", seen), ("unseen", ~seen), ("unseen semantic ID", unseen_sid)):
                subset = _subset(result, chosen, self.protocol)
                figures |= {f"{name}/{key}": value for key, value in subset.items()}
        # A query is to find the persons of its category; categories of persons have the numbers of those of the images.
        by_person = aps.aps_metrics(torch.cat(person_scores), asked, aps.categories(of_persons)[0], related=related)
        figures |= {f"person/{key}": value for key, value in by_person.percentages().items()}
        figures |= {"person/queries": len(asked), "person/persons": len(of_persons)}
        for name in self.groups:
            figures |= self._partial(name, gathered, pool, labels, pool_categories)
        return {f"{self.name}/{key}": value for key, value in figures.items()}

    def _asked(self, categories: Tensor, is_query: Tensor) -> Tensor:
        """Select the categories that are queries, int64 (Q,), from those of the images: int64 (N,), bool (N,)."""
        asked = (categories if self.protocol != "sal" else categories[is_query]).unique()
        if not len(asked):
            raise ValueError("TEST.APS.PROTOCOL sal takes the categories of query images as queries, but none of them "
                             "has labels; asmr and sal-all take those of all test images")
        return asked

    def _with_unseen_sid(self, labels: Tensor) -> Tensor:
        """Select queries with a group whose labels occur in no training identity: int64 (Q, A) -> bool (Q,)."""
        unseen = torch.zeros(len(labels), dtype=torch.bool)
        schema = self.reader.schema
        for fields in (list(schema.group_fields(group)) for group in schema.group_names):
            own, known = labels[:, fields], self.train_labels[:, fields].unique(dim=0)
            carried = (own[:, None] == known[None]).all(dim=2).any(dim=1)
            unseen |= ~carried & (own != MISSING).all(dim=1)
        return unseen

    def _partial(self, name: str, gathered: Gathered, pool: Tensor, labels: Tensor,
                 pool_categories: Tensor) -> dict[str, float]:
        """Search by some groups only; images are relevant by their full category, or by the described groups.

        Categories without a label in these groups are no queries.
        """
        schema = self.reader.schema
        fields = [i for group in _groups_of(name, schema.group_names) for i in schema.group_fields(group)]
        own_categories, own = aps.categories(gathered.attributes[pool][:, fields])
        figures = {}
        for reading, values, categories, known in (("full", labels[:, fields], pool_categories, labels),
                                                   ("given", own, own_categories, own)):
            queries = torch.full((len(values), labels.shape[1]), MISSING, dtype=torch.int64)
            queries[:, fields] = values
            asked = self._asked(categories, pool < gathered.num_query)
            described = asked[(values[asked] != MISSING).any(dim=1)]
            if not len(described):
                image = "query image" if self.protocol == "sal" else "test image"
                raise ValueError(f"TEST.APS.GROUPS contains '{name}', but no {image} has a label in these groups")
            result = self._run(gathered, pool, queries, categories, described, aps.relations(known, known))
            figures |= {f"{name}/{key}_{reading}": value for key, value in result.percentages().items()}
        return figures

    def _run(self, gathered: Gathered, pool: Tensor, queries: Tensor, pool_categories: Tensor, chosen: Tensor,
             related: tuple[Tensor, Tensor] | None, person: Tensor | None = None,
             person_scores: list[Tensor] | None = None) -> aps.APSResult:
        """Run queries and compute their metrics; query k is to find the images that match category k.

        Args:
            gathered: embeddings and labels of the test set.
            pool: int64 (N,), rows of the images to search.
            queries: int64 (K, A), labels of the queries.
            pool_categories: int64 (N,), category of each image.
            chosen: int64 (Q,), numbers of the queries to run.
            related: `aps.relations` of the categories.
            person: int64 (N,), number of each row's person; None if `person_scores` are not needed.
            person_scores: a list to which the mean scores of the P persons are appended, float64 (k, P) for k queries
                at a time. They are computed from the scores of the images, so that each image is scored once.
        """
        pids, camids = gathered.pids[pool], gathered.camids[pool]
        representative = {}
        if self.protocol != "asmr":  # a category is represented by its first query image, or else its first image
            from_query = pool < gathered.num_query
            first = [_first(pool_categories == k, from_query) for k in chosen]
            representative = {"representative_pids": pids[first], "representative_camids": camids[first],
                              "gallery_pids": pids, "gallery_camids": camids}

        def scores(rows: slice) -> Tensor:
            parts = [self.reader.search(queries[chosen[rows]], chunk) for chunk in gathered.chunks(pool)]
            if person_scores is not None:
                total = _Means(person)
                for part in parts:
                    total.add(part.T)
                person_scores.append(total.means().T)
            return torch.cat(parts, dim=1)

        return aps.aps_metrics(scores, chosen, pool_categories, protocol=self.protocol, related=related,
                               **representative)


def attribute_tasks(reader: AttributeReader, cfg, identified: bool = True,
                    by_value: ByValue | None = None) -> list[PARTask | APSTask]:
    """Create the PAR and APS tasks of a configuration.

    If the reader has two prediction methods, there are also tasks for the other one, with the method in their names.

    Args:
        reader: reader of the model's attributes.
        cfg: configuration, of which the keys under TEST are used.
        identified: whether the images have identities; if not, PAR only.
        by_value: record of the metrics by attribute value, for the PAR task with the configured method.
    """
    train_labels = getattr(reader, "train_labels", None)
    tasks = [PARTask(reader, train_labels, cfg.TEST.PAR.QUERY_IDENTITIES_ONLY, by_value=by_value),
             APSTask(reader, train_labels, cfg.TEST.APS.PROTOCOL, tuple(cfg.TEST.APS.GROUPS))]
    if hasattr(reader, "read_by"):
        other = next(reading for reading in READINGS if reading != reader.reading)
        reader = reader.read_by(other)
        tasks += [PARTask(reader, None, cfg.TEST.PAR.QUERY_IDENTITIES_ONLY, f"PAR ({other})"),
                  APSTask(reader, train_labels, cfg.TEST.APS.PROTOCOL, name=f"APS ({other})")]
    return tasks if identified else [replace(task, identified=False) for task in tasks if isinstance(task, PARTask)]


def check_task_options(cfg, groups: Sequence[str] = GROUPS) -> None:
    """Check the options of the tasks before training, so that the first evaluation does not fail.

    Args:
        cfg: configuration, of which the keys under TEST and the meta-architecture are used.
        groups: groups of the model, or of its schema.

    Raises:
        ValueError: if an option has an invalid value.
    """
    if cfg.TEST.RERANK.ENABLED:
        check_reranking(**_reranking_options(cfg))
    if cfg.TEST.AQE.ENABLED and cfg.TEST.AQE.QE_K < 1:
        raise ValueError(f"TEST.AQE.QE_K is {cfg.TEST.AQE.QE_K}, expected 1 or more")
    if cfg.TEST.GROUPS and cfg.MODEL.META_ARCHITECTURE != "Cerberus":
        raise ValueError(f"TEST.GROUPS is {list(cfg.TEST.GROUPS)}, but {cfg.MODEL.META_ARCHITECTURE} has no groups; "
                         "only Cerberus has groups")
    if not set(cfg.TEST.GROUPS) <= set(groups):
        raise ValueError(f"TEST.GROUPS is {list(cfg.TEST.GROUPS)}, expected some of {', '.join(groups)}")
    if cfg.TEST.READING not in READINGS:
        raise ValueError(f"TEST.READING is '{cfg.TEST.READING}', expected one of {', '.join(READINGS)}")
    if not cfg.TEST.PAR.UNSEEN_PRIOR > 0 or cfg.TEST.PAR.TAU < 0:
        raise ValueError(f"TEST.PAR.TAU is {cfg.TEST.PAR.TAU} and UNSEEN_PRIOR {cfg.TEST.PAR.UNSEEN_PRIOR}, expected a "
                         "power of at least 0, and a number of identities above 0, such as 0.5")
    if cfg.TEST.APS.PROTOCOL not in aps.PROTOCOLS:
        raise ValueError(f"TEST.APS.PROTOCOL is '{cfg.TEST.APS.PROTOCOL}', expected one of {', '.join(aps.PROTOCOLS)}")
    if cfg.TEST.APS.PARTIAL not in PARTIAL:
        raise ValueError(f"TEST.APS.PARTIAL is '{cfg.TEST.APS.PARTIAL}', expected one of {', '.join(PARTIAL)}")
    for name in cfg.TEST.APS.GROUPS:
        _groups_of(name, groups)


def _reranking_options(cfg) -> dict:
    """Return the keyword arguments of `reranked` and `check_reranking`."""
    node = cfg.TEST.RERANK
    return {"metric": cfg.TEST.METRIC, "k1": node.K1, "k2": node.K2, "lambda_value": node.LAMBDA,
            "variant": node.VARIANT}


def _whole(distances: Callable[[slice], Tensor], num_query: int, num_gallery: int) -> Tensor:
    """Compute all distances, float (Q, N), with a function of a slice of the queries."""
    size = ranking.block_rows(num_gallery)
    return torch.cat([distances(slice(start, min(start + size, num_query))) for start in range(0, num_query, size)])


def _groups_of(name: str, groups: Sequence[str]) -> list[str]:
    """Split 'upper+lower' into ['upper', 'lower'] and check that these are among `groups`."""
    chosen = name.split("+")
    if not set(chosen) <= set(groups):
        raise ValueError(f"TEST.APS.GROUPS contains '{name}', expected names joined by '+' of: {', '.join(groups)}")
    return chosen


def _labelled(gathered: Gathered) -> Tensor:
    """Return the rows with labels, int64 (K,); distractors have none."""
    if gathered.attributes is None:
        raise ValueError("PAR and APS need batches with 'attributes': build the loader with "
                         "CerberusTrainer.build_test_loader, for a dataset with annotations such as "
                         "Market1501Attributes")
    labelled = (gathered.attributes != MISSING).any(dim=1).nonzero().flatten()
    if not len(labelled):
        raise ValueError("PAR and APS: none of the test images has labels")
    return labelled


def _persons(gathered: Gathered, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Number the persons in some rows.

    A person is an identity, or an identity in one outfit if the dataset has outfits. Images of one identity with
    different labels, possible in own data, count as different persons.

    Args:
        gathered: embeddings and labels of the test set.
        rows: int64 (K,).

    Returns:
        the number of each row's person, int64 (K,), and the labels of the P persons, int64 (P, A).
    """
    ids = [gathered.pids] if gathered.outfits is None else [gathered.pids, gathered.outfits]
    who = torch.cat([torch.stack(ids, dim=1), gathered.attributes], dim=1)[rows]
    distinct, person = torch.unique(who, dim=0, return_inverse=True)
    return person, distinct[:, len(ids):]


class _Means:
    """Mean over the rows of each person, for rows that are added in parts.

    Args:
        numbers: int64 (N,), number of each row's person, within range(P).
    """

    def __init__(self, numbers: Tensor) -> None:
        self.numbers, self.counts = numbers, numbers.bincount()
        self.start, self.total = 0, None

    def add(self, part: Tensor) -> None:
        """Add the next rows, float (n, V)."""
        if self.total is None:
            self.total = part.new_zeros(len(self.counts), part.shape[1], dtype=torch.float64)
        rows = self.numbers[self.start:self.start + len(part)].to(part.device)
        self.total.index_add_(0, rows, part.double())
        self.start += len(part)

    def means(self) -> Tensor:
        """Return the means, float64 (P, V), after all rows have been added."""
        return self.total / self.counts[:, None].to(self.total.device)


def _first(members: Tensor, preferred: Tensor) -> int:
    """Return the first member, or the first preferred member if there is one: bool (N,), bool (N,)."""
    both = members & preferred
    return int((both if both.any() else members).nonzero()[0])


def _subset(result: aps.APSResult, chosen: Tensor, protocol: str) -> dict[str, float]:
    """Compute the metrics of a subset of the queries, as the protocol counts them; NaN for an empty subset."""
    part = aps.APSResult.of(ranking.Ranking(*(figure[chosen] for figure in result.queries)), protocol)
    counted = len(part.queries.num_matches) - (part.num_unmatched if protocol != "asmr" else 0)
    return {**part.percentages(), "queries": counted}

"""A query, its compiled form, and the hits it finds.

`compile_query` turns a `Query` (a picture's embedding, attributes in words, weights) into a `CompiledQuery` once: a
vector for the search engine, constraints for the filter, and a threshold for the scores. Everything after that
(candidates, scores, ranking, the probability of the same person) is computed by the compiled query alone.

The score of a row is its inner product with the query's vector, so one index answers every kind of query. For a
picture the vector has the blocks of the groups, each times its weight over the sum of weights: the score is the
weighted mean of the groups' similarities. Words are blocks as well where the model reads attributes off the nearest
prototypes. Where it reads them by probability, a row has the log-probabilities of all values of all attributes behind
its embedding, and words are weights of these: the score is the sum of the log-probabilities of the described values.
Shapes: N rows, G groups, D values of a group's block, E = G * D values of an embedding, V log-probabilities of a row.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ...attributes.attribute_model import Answer, unit
from ...attributes.marginals import check_threshold, is_reliable
from ..portable.encoder import clothing_groups
from .store import Store

if TYPE_CHECKING:
    from ...attributes.attribute_model import AttributeModel
    from ..portable.verification import Verification


# Log-odds that a difference of 1 in the mean cosine of two pictures stands for, where no calibration has measured it.
PICTURE_SLOPE = 16.0
VALUES_STEP = 8  # V is a multiple of it, as compressed engines cut rows into such pieces


@dataclass(frozen=True, eq=False)
class Query:
    """Who is searched for.

    In this order: a description, an image, an image with one attribute changed, an image regardless of the clothes.

    >>> Query(words={"gender": "female", "upper colour": "red"})  # doctest: +SKIP
    >>> Query(embedding)  # doctest: +SKIP
    >>> Query(embedding, {"backpack": "no"})  # doctest: +SKIP
    >>> Query(embedding, may_have_changed_clothes=True)  # doctest: +SKIP

    Attributes:
        embedding: of a picture, float (E,), as the encoder of the index gives it.
        words: attributes in words; a group that they describe is compared with them and not with the picture. Beside a
            picture, read by probability, words count by their log-likelihood ratio, and so does the picture: its cosine
            times the slope of the calibration, or 16. Otherwise groups of words count together as much as those of the
            picture.
        weights: how much groups count beside the others, by name, times 1 where not named.
        leave_out: groups that do not count, as if their weight were 0.
        false_match_rate: leave out pictures that score below the threshold which calibration has set for this rate.
        prior: the probability, before looking, that a picture of the gallery shows this person; one in as many as there
            are, and one more, if None.
        may_have_changed_clothes: leave out the groups of clothes and bags as well: all but the lasting groups of the
            model.
    """

    embedding: np.ndarray | None = None
    words: Mapping[str, str] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)
    leave_out: Sequence[str] = ()
    false_match_rate: float | None = None
    prior: float | None = None
    may_have_changed_clothes: bool = False


@dataclass(frozen=True)
class Hit:
    """A picture that was found.

    Attributes:
        path: where it lies.
        score: higher is nearer: the weighted mean of the groups' similarities, or minus the distance of a euclidean
            model. Of words by probability the sum of their log-probabilities, and with a picture of all log-likelihood
            ratios.
        similarities: of each group that the query says something about, those that do not count included. Of words by
            probability the product of the probabilities of what they say of the group.
        attributes: as recognised when the picture was indexed.
        row: its id, which no other picture of this index ever gets.
        identity, camera, time: as its name tells; None where it does not.
        same_person: the probability that it shows the person of the picture that was searched for, at the prior of the
            query; None for what no calibration speaks of: words, weights, other groups than it was fitted on.
    """

    path: str
    score: float
    similarities: dict[str, float]
    attributes: dict[str, Answer]
    row: int
    identity: str | None = None
    camera: str | None = None
    time: str | None = None
    same_person: float | None = None


@dataclass(frozen=True)
class Prefilter:
    """Leave out rows that reliably contradict the query before anything is compared, as APR's acceleration does.

    Attributes of a row, and of a picture that is searched for, are reliable above the threshold, see `is_reliable`.
    Words of a description are always reliable.
    """

    threshold: float = 0.9

    def __post_init__(self) -> None:
        check_threshold(self.threshold)


class Shape(NamedTuple):
    """What a row is made of: the groups of its embedding, () for one block, its size, how it is compared, and V."""

    groups: tuple[str, ...]
    dim: int
    metric: str
    values: int = 0

    @classmethod
    def of(cls, groups: Sequence[str], dim: int, metric: str, vocabulary: AttributeModel | None) -> Shape:
        """That of a model, see `Encoder`. Blocks of unit length rank by distance as by cosine, so cosine is used."""
        count = vocabulary.num_values if vocabulary is not None and vocabulary.reading == "probability" else 0
        return cls(tuple(groups), dim, "cosine" if groups else metric, -(-count // VALUES_STEP) * VALUES_STEP)

    @property
    def width(self) -> int:
        """E + V."""
        return self.dim + self.values


def stored_rows(embeddings: np.ndarray, shape: Shape, vocabulary: AttributeModel | None) -> np.ndarray:
    """Embeddings, and log-probabilities where there are any, side by side: (N, E) -> float32 (N, E + V)."""
    rows = unit_blocks(embeddings, shape)
    if not shape.values:
        return rows
    log_p = vocabulary.log_probabilities(embeddings)
    return np.concatenate([rows, log_p, np.zeros((len(rows), shape.values - log_p.shape[1]), np.float32)], axis=1)


def unit_blocks(embeddings: np.ndarray, shape: Shape) -> np.ndarray:
    """Rows as they are stored: float32 (N, E), each block of unit length; those of a euclidean model as they are."""
    rows = np.asarray(embeddings, dtype=np.float32)
    if shape.metric == "euclidean":
        return rows
    return unit(rows.reshape(len(rows), max(1, len(shape.groups)), -1)).reshape(rows.shape)


class SearchedModel(NamedTuple):
    """What a query is compiled for: the model of an index, see `Encoder`."""

    shape: Shape
    vocabulary: AttributeModel | None = None
    verification: Verification | None = None
    lasting_groups: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class CompiledQuery:
    """A query as rows are compared with it; made by `compile_query`.

    Attributes:
        blocks: float32 (G, D), unit length.   weights: float32 (G,), sum 1.
        known: bool (G,), groups that the query describes.   of_picture: bool (G,), those described by a picture.
        wanted: float32 (G, V), the described values of each group where words are read by probability, else None.
        word_weights: float32 (G,), how much each group of words counts then.   offset: added to scores then.
        constraints: by column, the values that a row must not reliably contradict; None without a filter.
        reliable: probability above which a recognised attribute is reliable.
        least_score: rows that score lower are not found.
        verification: the calibration of these scores; None where none applies.
        prior: `Query.prior`.
    """

    blocks: np.ndarray
    weights: np.ndarray
    known: np.ndarray
    of_picture: np.ndarray
    shape: Shape
    wanted: np.ndarray | None = None
    word_weights: np.ndarray | None = None
    offset: float = 0.0
    constraints: Mapping[str, tuple[str, ...]] | None = None
    reliable: float = 1.0
    least_score: float = -math.inf
    verification: Verification | None = None
    prior: float | None = None

    def is_judged_by(self, fitted: Verification) -> bool:
        """Whether scores are those of two pictures by the groups of a calibration, each counting the same.

        Models with groups are compared by cosine here whatever their run was tested by, so a calibration of distances
        does not apply to them.
        """
        counted = np.array([not fitted.groups or group in fitted.groups for group in self.shape.groups or ("",)])
        return (self.wanted is None and fitted.metric == self.shape.metric and bool(self.of_picture[counted].all())
                and np.allclose(self.weights, counted / counted.sum()))

    @property
    def vector(self) -> np.ndarray:
        """float32 (E + V,)."""
        of_words = np.zeros(self.shape.values, np.float32) if self.wanted is None else self.word_weights @ self.wanted
        return np.concatenate([(self.weights[:, None] * self.blocks).reshape(-1), of_words])

    def candidates(self, store: Store) -> np.ndarray | None:
        """Ids of the rows that satisfy the constraints, int64 (n,); None where there are no constraints."""
        if self.constraints is None:
            return None
        kept = np.ones(len(store), dtype=bool)
        for column, allowed in self.constraints.items():
            codes, probabilities = store.answers(column)
            kept &= np.isin(codes, store.codes(allowed)) | ~is_reliable(probabilities, self.reliable)
        return store.ids[kept]

    def score(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Scores (N,) and similarities (N, G) of rows, float32 (N, E + V); no similarities without groups."""
        if self.shape.metric == "euclidean":
            return -np.linalg.norm(rows - self.vector, axis=1), np.empty((len(rows), 0), np.float32)
        embeddings, log_p = rows[:, :self.shape.dim], rows[:, self.shape.dim:]
        similarities = np.einsum("ngd,gd->ng", embeddings.reshape(len(rows), *self.blocks.shape), self.blocks)
        scores = similarities @ self.weights
        if self.wanted is not None:
            of_words = log_p @ self.wanted.T  # (N, G)
            scores = scores + of_words @ self.word_weights + self.offset
            similarities = np.where(self.of_picture, similarities, np.exp(of_words))
        return scores, similarities[:, :len(self.shape.groups)]

    def best(self, rows: np.ndarray, ids: np.ndarray, top: int) -> list[tuple[int, float, dict[str, float]]]:
        """The best of some rows, best first: place in `rows`, score, and similarity of each described group.

        Args:
            rows: float32 (N, E + V).   ids: int64 (N,), the lower one first where scores are equal.
        """
        scores, similarities = self.score(rows)
        order = np.lexsort((ids, -scores))[:top]
        order = order[scores[order] >= self.least_score]
        # Clipped after ranking: blocks stored in half precision may be slightly longer than 1, but no cosine exceeds 1.
        scores = np.minimum(scores, 1) if self.wanted is None else scores
        similarities = np.minimum(similarities, 1)
        known = [(g, group) for g, group in enumerate(self.shape.groups) if self.known[g]]
        return [(int(i), float(scores[i]), {group: float(similarities[i, g]) for g, group in known}) for i in order]

    def same_person(self, score: float, prior: float) -> float | None:
        """The probability that a row of this score shows the person; None where no calibration applies.

        Args:
            prior: the probability before looking, where the query gives none.
        """
        if self.verification is None:
            return None
        return self.verification.probability(score, prior if self.prior is None else self.prior)


def compile_query(query: Query, model: SearchedModel, prefilter: Prefilter | None = None) -> CompiledQuery:
    """A query ready to be compared.

    Raises:
        ValueError: where the query says nothing, or asks for what the model cannot answer.
    """
    shape, vocabulary = model.shape, model.vocabulary
    if query.may_have_changed_clothes:
        if not shape.groups:
            raise ValueError("search: this model compares whole pictures, so clothes cannot be left out; search "
                             "without may_have_changed_clothes")
        clothes = clothing_groups(shape.groups, model.lasting_groups)
        query = replace(query, leave_out=(*query.leave_out, *clothes))
    compiled = replace(_compared(query, model), prior=query.prior)
    if prefilter is not None:
        if vocabulary is None:
            raise ValueError("filter: the model of this index knows no attributes; search without the filter")
        compiled = replace(compiled, reliable=prefilter.threshold,
                           constraints=_constraints(query, compiled, vocabulary, prefilter.threshold))
    fitted = model.verification
    if fitted is not None and compiled.is_judged_by(fitted):
        compiled = replace(compiled, verification=fitted)
    return replace(compiled, least_score=_least_score(query, compiled, fitted))


def _compared(query: Query, model: SearchedModel) -> CompiledQuery:
    """Blocks and weights of a query."""
    shape, vocabulary = model.shape, model.vocabulary
    blocks = np.zeros((max(1, len(shape.groups)), shape.dim // max(1, len(shape.groups))), dtype=np.float32)
    known, of_picture = np.zeros(len(blocks), dtype=bool), np.zeros(len(blocks), dtype=bool)
    if query.embedding is not None:
        blocks[:] = unit_blocks(_checked(query.embedding, shape)[None], shape).reshape(blocks.shape)
        known[:] = of_picture[:] = True
    if query.words:
        if vocabulary is None:
            raise ValueError("search: the model of this index knows no attributes; search by a picture")
        if shape.values:
            return _with_log_probabilities(query, shape, vocabulary, blocks, known, model.verification)
        described = np.asarray(vocabulary.describe(query.words), dtype=np.float32)  # (G, D)
        given = described.any(axis=1)
        blocks[given], known[given], of_picture[given] = described[given], True, False
    if not known.any():
        raise ValueError("search: the query is empty; give a picture, or at least one attribute")
    weights = _balanced(_counting(query, shape, known), of_picture)
    return CompiledQuery(blocks, (weights / weights.sum()).astype(np.float32), known, of_picture, shape)


def _with_log_probabilities(query: Query, shape: Shape, vocabulary: AttributeModel, blocks: np.ndarray,
                            of_picture: np.ndarray, fitted: Verification | None) -> CompiledQuery:
    """A query with words that are read by probability; blocks (G, D) of a picture, bool (G,) where there is one."""
    own = vocabulary.wanted_classes(query.words)  # (V',)
    groups_of = np.asarray(vocabulary.groups_of_values)
    wanted = np.zeros((len(shape.groups), shape.values), np.float32)
    for g in range(len(wanted)):
        wanted[g, :len(own)] = np.where(groups_of == g, own, 0)
    given = wanted.any(axis=1)
    of_picture, known = of_picture & ~given, of_picture | given
    weights = _counting(query, shape, known)
    of_words, picture = (np.where(some, weights, 0).astype(np.float32) for some in (given, of_picture))
    blocks[given], offset = 0, 0.0
    if picture.any():
        slope = fitted.slope if fitted is not None and fitted.metric == shape.metric else PICTURE_SLOPE
        picture = (slope / picture.sum() * picture).astype(np.float32)
        offset = -float(of_words @ wanted[:, :len(own)] @ vocabulary.log_value_priors)
    return CompiledQuery(blocks, picture, known, of_picture, shape, wanted, of_words, offset)


def _counting(query: Query, shape: Shape, known: np.ndarray) -> np.ndarray:
    """Weights of the groups that a query says something about, float64 (G,), 0 for others; some must count."""
    weights = known * _weights(query, shape)
    if not weights.any():
        raise ValueError(f"search: nothing is left to compare: the query says something about "
                         f"{', '.join(np.array(shape.groups or ('the picture',))[known])} alone, which does not count; "
                         "give these groups a weight")
    return weights


def _balanced(weights: np.ndarray, of_picture: np.ndarray) -> np.ndarray:
    """Groups of words count together as much as those of a picture beside them, (G,) -> (G,).

    Pictures lie much nearer to pictures than to words, so that group by group the picture would outvote them.
    """
    of_words, rest = weights[~of_picture], weights[of_picture].sum()
    if not of_words.any() or not rest:
        return weights
    return np.where(of_picture, weights, weights * rest / np.count_nonzero(of_words))


def _least_score(query: Query, compiled: CompiledQuery, fitted: Verification | None) -> float:
    """The threshold of a query's false-match rate."""
    if query.false_match_rate is None:
        return -math.inf
    if fitted is None:
        raise ValueError("search: the model of this index is not calibrated, so no score has a false-match rate; "
                         "calibrate its run by python -m cerberus_plugin.experiments.calibrate RUN, and index again; "
                         "`cerberus train` does so by itself where there are enough people, and its report.html says "
                         "how many")
    if fitted.metric != compiled.shape.metric:
        own = compiled.shape.metric
        raise ValueError(f"search: the run of this index was calibrated on {fitted.metric} scores, but the index "
                         f"compares by {own}, so none of its scores has a false-match rate; set TEST.METRIC {own} in "
                         "the run's config.yaml, calibrate it again and index again")
    if compiled.verification is None:
        raise ValueError("search: a false-match rate is known of pictures that are compared by "
                         f"{', '.join(fitted.groups) or 'all groups'}, each counting the same; leave out words and "
                         "weights, or the rate")
    return fitted.threshold(query.false_match_rate)


def _checked(embedding: np.ndarray, shape: Shape) -> np.ndarray:
    embedding = np.asarray(embedding, dtype=np.float32)
    if embedding.shape != (shape.dim,) or not np.isfinite(embedding).all():
        raise ValueError(f"search: the picture's embedding has shape {embedding.shape}, expected ({shape.dim},) finite "
                         "values of the model that made the index")
    return embedding


def _weights(query: Query, shape: Shape) -> np.ndarray:
    """The weight of each group, float64 (G,)."""
    named = {**query.weights, **dict.fromkeys(query.leave_out, 0.0)}
    unknown = [group for group in named if group not in shape.groups]
    if unknown:
        raise ValueError(f"search: unknown group '{unknown[0]}', expected one of "
                         f"{', '.join(shape.groups) or 'none: this model compares whole pictures'}")
    bad = {group: weight for group, weight in named.items() if not (math.isfinite(weight) and weight >= 0)}
    if bad:
        raise ValueError(f"search: the weights of groups are {bad}, expected numbers from 0 on")
    return np.array([named.get(group, 1.0) for group in shape.groups] or [1.0])


def _constraints(query: Query, compiled: CompiledQuery, vocabulary: AttributeModel,
                 threshold: float) -> dict[str, tuple[str, ...]]:
    """By column, the values that a row must not reliably contradict.

    Those of the words, and of a picture what is reliably recognised in the groups that are compared with it.
    """
    values = {column: tuple(str(value).split(" and ")) for column, value in vocabulary.canonical(query.words).items()}
    if query.embedding is None:
        return values
    compared = {group for group, weight, own in zip(compiled.shape.groups, compiled.weights, compiled.of_picture)
                if weight > 0 and own}
    group_of = {column.name: column.group for column in vocabulary.columns}
    for column, own in vocabulary.recognise(query.embedding[None])[0].items():
        if group_of[column] in compared and is_reliable(own.probability, threshold):
            values[column] = (own.value,)
    return values

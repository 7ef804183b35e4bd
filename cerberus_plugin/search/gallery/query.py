"""Queries, compiled queries, and search results.

`compile_query` turns a `Query` (embedding of an image, attributes, weights) into a `CompiledQuery`: a vector for the
search engine, constraints for the prefilter, and a score threshold. The compiled query computes candidates, scores,
ranking and the probability of the same person.

The score of a row is its inner product with the vector of the query, so that one index supports all kinds of queries.
For an image, the vector consists of the blocks of the groups, each multiplied by its weight and divided by the sum of
weights; the score is the weighted mean of the similarities of the groups. If TEST.READING of the model is nearest,
attributes are described by blocks as well. If it is probability, a row contains the embedding and then the
log-probability of each value of each attribute. The vector of the query then has weights that select the described
values, and the score is the sum of their log-probabilities.
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


# Log-odds per unit of the mean cosine of two images, used without a calibration.
PICTURE_SLOPE = 16.0
VALUES_STEP = 8  # V is a multiple of this, since product quantisation divides rows into pieces of this size


@dataclass(frozen=True, eq=False)
class Query:
    """A query by image, by attributes, or by both.

    Attributes:
        embedding: of an image, float (E,), computed by the encoder of the index; None for a query by attributes.
        words: values of attributes, by name. A group that they describe is compared with them, not with the image. If
            TEST.READING of the model is probability, attributes and image are combined by their log-likelihood ratios;
            that of the image is its cosine times the slope of the calibration, or times 16 without a calibration.
            Otherwise the described groups together have the same weight as the groups of the image.
        weights: factors of the weights of groups, by name; 1 for groups that are not named.
        leave_out: groups to ignore, as with weight 0.
        false_match_rate: exclude images below the calibrated threshold for this rate; None for no threshold.
        prior: prior probability that an image of the gallery shows this person; 1 / (N + 1) for N images if None.
        may_have_changed_clothes: also ignore the groups of clothes and bags, that is, all but the lasting groups.

    Examples:
        >>> Query(words={"gender": "female", "upper colour": "red"})       # doctest: +SKIP
        >>> Query(embedding)                                               # doctest: +SKIP
        >>> Query(embedding, {"backpack": "no"})  # this person without a backpack  # doctest: +SKIP
        >>> Query(embedding, may_have_changed_clothes=True)                # doctest: +SKIP
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
    """A search result.

    Attributes:
        path: of the image.
        score: higher is more similar. The weighted mean of the similarities of the groups, or minus the distance for a
            model with Euclidean distance. If TEST.READING is probability: for attributes the sum of their
            log-probabilities, for attributes and an image the sum of all log-likelihood ratios.
        similarities: by group, for all groups that the query describes, also ignored ones. If TEST.READING is
            probability: for attributes of a group the product of their probabilities.
        attributes: predicted when the image was indexed.
        row: id of the image, never reused for another image of this index.
        identity, camera, time: from the file name; None if it does not contain them.
        same_person: probability that the image shows the person of the query image, with the prior of the query; None
            if no calibration applies: for a query with attributes, with weights, or with other groups than those of the
            calibration.
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
    """Excludes images with attributes that reliably contradict the query, before the search (APR's acceleration).

    Predicted attributes of gallery images and of the query image are reliable if their probability exceeds the
    threshold, see `is_reliable`. Attributes given in the query are always reliable.

    Attributes:
        threshold: probability, 0 to 1.

    Raises:
        ValueError: if the threshold is not a probability.
    """

    threshold: float = 0.9

    def __post_init__(self) -> None:
        check_threshold(self.threshold)


class Shape(NamedTuple):
    """Layout of the rows of an index.

    Attributes:
        groups: names of the blocks; () for a single block.
        dim: E.
        metric: "cosine" or "euclidean".
        values: V.
    """

    groups: tuple[str, ...]
    dim: int
    metric: str
    values: int = 0

    @classmethod
    def of(cls, groups: Sequence[str], dim: int, metric: str, vocabulary: AttributeModel | None) -> Shape:
        """Return the layout for a model.

        A model with groups uses the cosine, since blocks of unit length have the same ranking by distance.

        Args:
            groups, dim, metric, vocabulary: see `Encoder`.

        Examples:
            >>> Shape.of(("head", "upper"), 512, "euclidean", None)
            Shape(groups=('head', 'upper'), dim=512, metric='cosine', values=0)
        """
        count = vocabulary.num_values if vocabulary is not None and vocabulary.reading == "probability" else 0
        return cls(tuple(groups), dim, "cosine" if groups else metric, -(-count // VALUES_STEP) * VALUES_STEP)

    @property
    def width(self) -> int:
        """E + V, the number of values of a row."""
        return self.dim + self.values


def stored_rows(embeddings: np.ndarray, shape: Shape, vocabulary: AttributeModel | None) -> np.ndarray:
    """Compute the rows to store: normalised embeddings, followed by log-probabilities if TEST.READING is probability.

    Args:
        embeddings: float (N, E).
        shape: layout of the rows.
        vocabulary: attribute tables; not used if V is 0.

    Returns:
        float32 (N, E + V).
    """
    rows = unit_blocks(embeddings, shape)
    if not shape.values:
        return rows
    log_p = vocabulary.log_probabilities(embeddings)
    return np.concatenate([rows, log_p, np.zeros((len(rows), shape.values - log_p.shape[1]), np.float32)], axis=1)


def unit_blocks(embeddings: np.ndarray, shape: Shape) -> np.ndarray:
    """Normalise each block of embeddings to unit length, unless they are compared by Euclidean distance.

    Args:
        embeddings: float (N, E).
        shape: layout of the rows.

    Returns:
        float32 (N, E).

    Examples:
        >>> unit_blocks(np.array([[3.0, 4.0, 0.0, 2.0]]), Shape(("head", "upper"), 4, "cosine")).round(1).tolist()
        [[0.6000000238418579, 0.800000011920929, 0.0, 1.0]]
    """
    rows = np.asarray(embeddings, dtype=np.float32)
    if shape.metric == "euclidean":
        return rows
    return unit(rows.reshape(len(rows), max(1, len(shape.groups)), -1)).reshape(rows.shape)


class SearchedModel(NamedTuple):
    """The model of an index, for which queries are compiled; see `Encoder`."""

    shape: Shape
    vocabulary: AttributeModel | None = None
    verification: Verification | None = None
    lasting_groups: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class CompiledQuery:
    """A query in the form that is compared with rows; created by `compile_query`.

    Attributes:
        blocks: float32 (G, D), unit length.
        weights: float32 (G,), weights of the blocks; their sum is 1 without `wanted`.
        known: bool (G,), groups that the query describes.
        of_picture: bool (G,), groups that are described by an image.
        shape: layout of the rows.
        wanted: float32 (G, V), described values of each group if attributes are searched by probability, else None.
        word_weights: float32 (G,), weights of the groups of `wanted`.
        offset: added to the scores with `wanted`.
        constraints: by attribute, the values that a row must not reliably contradict; None without a prefilter.
        reliable: probability above which a predicted attribute is reliable.
        least_score: rows with a lower score are excluded.
        verification: the calibration of these scores; None if none applies.
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
        """Return whether a calibration applies: image queries with the same metric and groups, equally weighted.

        A model with groups is compared by cosine even if TEST.METRIC of its run is euclidean; then a calibration of
        distances does not apply.
        """
        counted = np.array([not fitted.groups or group in fitted.groups for group in self.shape.groups or ("",)])
        return (self.wanted is None and fitted.metric == self.shape.metric and bool(self.of_picture[counted].all())
                and np.allclose(self.weights, counted / counted.sum()))

    @property
    def vector(self) -> np.ndarray:
        """The vector for the search engine, float32 (E + V,)."""
        of_words = np.zeros(self.shape.values, np.float32) if self.wanted is None else self.word_weights @ self.wanted
        return np.concatenate([(self.weights[:, None] * self.blocks).reshape(-1), of_words])

    def candidates(self, store: Store) -> np.ndarray | None:
        """Return the ids of the rows that satisfy the constraints, int64 (n,); None without constraints."""
        if self.constraints is None:
            return None
        kept = np.ones(len(store), dtype=bool)
        for column, allowed in self.constraints.items():
            codes, probabilities = store.answers(column)
            kept &= np.isin(codes, store.codes(allowed)) | ~is_reliable(probabilities, self.reliable)
        return store.ids[kept]

    def score(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Compute scores.

        Args:
            rows: float32 (N, E + V).

        Returns:
            scores (N,), and similarities (N, G), (N, 0) for a model without groups.
        """
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
        """Rank rows.

        Args:
            rows: float32 (N, E + V).
            ids: int64 (N,); rows with equal scores are ordered by id.
            top: maximum number of results.

        Returns:
            for each result, best first: index in `rows`, score, and similarity of each described group.
        """
        scores, similarities = self.score(rows)
        order = np.lexsort((ids, -scores))[:top]
        order = order[scores[order] >= self.least_score]
        # Clipped after ranking: blocks stored in half precision may be slightly longer than 1.
        scores = np.minimum(scores, 1) if self.wanted is None else scores
        similarities = np.minimum(similarities, 1)
        known = [(g, group) for g, group in enumerate(self.shape.groups) if self.known[g]]
        return [(int(i), float(scores[i]), {group: float(similarities[i, g]) for g, group in known}) for i in order]

    def same_person(self, score: float, prior: float) -> float | None:
        """Return the probability that a row with this score shows the person; None if no calibration applies.

        Args:
            score: of the row.
            prior: prior probability if the query has none.
        """
        if self.verification is None:
            return None
        return self.verification.probability(score, prior if self.prior is None else self.prior)


def compile_query(query: Query, model: SearchedModel, prefilter: Prefilter | None = None) -> CompiledQuery:
    """Compile a query for a model.

    Args:
        query: to compile.
        model: of the index.
        prefilter: excludes rows with contradicting attributes.

    Raises:
        ValueError: if the query is empty, or the model does not support it.
    """
    shape, vocabulary = model.shape, model.vocabulary
    if query.may_have_changed_clothes:
        if not shape.groups:
            raise ValueError("search: this model has no groups, so clothes cannot be ignored; search without "
                             "may_have_changed_clothes")
        clothes = clothing_groups(shape.groups, model.lasting_groups)
        query = replace(query, leave_out=(*query.leave_out, *clothes))
    compiled = replace(_compared(query, model), prior=query.prior)
    if prefilter is not None:
        if vocabulary is None:
            raise ValueError("filter: the model of this index does not predict attributes; search without the filter")
        compiled = replace(compiled, reliable=prefilter.threshold,
                           constraints=_constraints(query, compiled, vocabulary, prefilter.threshold))
    fitted = model.verification
    if fitted is not None and compiled.is_judged_by(fitted):
        compiled = replace(compiled, verification=fitted)
    return replace(compiled, least_score=_least_score(query, compiled, fitted))


def _compared(query: Query, model: SearchedModel) -> CompiledQuery:
    """Return the query with its blocks and weights."""
    shape, vocabulary = model.shape, model.vocabulary
    blocks = np.zeros((max(1, len(shape.groups)), shape.dim // max(1, len(shape.groups))), dtype=np.float32)
    known, of_picture = np.zeros(len(blocks), dtype=bool), np.zeros(len(blocks), dtype=bool)
    if query.embedding is not None:
        blocks[:] = unit_blocks(_checked(query.embedding, shape)[None], shape).reshape(blocks.shape)
        known[:] = of_picture[:] = True
    if query.words:
        if vocabulary is None:
            raise ValueError("search: the model of this index does not predict attributes; search by image")
        if shape.values:
            return _with_log_probabilities(query, shape, vocabulary, blocks, known, model.verification)
        described = np.asarray(vocabulary.describe(query.words), dtype=np.float32)  # (G, D)
        given = described.any(axis=1)
        blocks[given], known[given], of_picture[given] = described[given], True, False
    if not known.any():
        raise ValueError("search: the query is empty; give an image, or at least one attribute")
    weights = _balanced(_counting(query, shape, known), of_picture)
    return CompiledQuery(blocks, (weights / weights.sum()).astype(np.float32), known, of_picture, shape)


def _with_log_probabilities(query: Query, shape: Shape, vocabulary: AttributeModel, blocks: np.ndarray,
                            of_picture: np.ndarray, fitted: Verification | None) -> CompiledQuery:
    """Return a query with attributes searched by log-probability; blocks (G, D) and groups (G,) of an image if any."""
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
    """Return the weights of the described groups, float64 (G,), 0 for the others; at least one must be positive."""
    weights = known * _weights(query, shape)
    if not weights.any():
        raise ValueError(f"search: nothing is left to compare: the query only describes "
                         f"{', '.join(np.array(shape.groups or ('the image',))[known])}, which is ignored; include it "
                         "or describe another group")
    return weights


def _balanced(weights: np.ndarray, of_picture: np.ndarray) -> np.ndarray:
    """Scale the weights of groups described by attributes to the total weight of the groups of an image: (G,) -> (G,).

    Images are much more similar to images than to prototypes, so with equal weights per group the image would dominate.
    """
    of_words, rest = weights[~of_picture], weights[of_picture].sum()
    if not of_words.any() or not rest:
        return weights
    return np.where(of_picture, weights, weights * rest / np.count_nonzero(of_words))


def _least_score(query: Query, compiled: CompiledQuery, fitted: Verification | None) -> float:
    """Return the score threshold of the false-match rate of a query."""
    if query.false_match_rate is None:
        return -math.inf
    if fitted is None:
        raise ValueError("search: the model of this index is not calibrated, so the false-match rate is unknown. "
                         "Calibrate its run with python -m cerberus_plugin.experiments.calibrate RUN, and run "
                         "`cerberus index` again. `cerberus train` calibrates automatically if there are enough "
                         "identities; its report.html shows how many are needed")
    if fitted.metric != compiled.shape.metric:
        own = compiled.shape.metric
        raise ValueError(f"search: the run of this index was calibrated on {fitted.metric} scores, but the index "
                         f"compares by {own}, so the false-match rate is unknown. Set TEST.METRIC {own} in config.yaml "
                         "of the run, calibrate it again, and run `cerberus index` again")
    if compiled.verification is None:
        raise ValueError("search: the false-match rate is only calibrated for images compared by "
                         f"{', '.join(fitted.groups) or 'all groups'} with equal weights; remove attributes and "
                         "weights from the query, or remove the false-match rate")
    return fitted.threshold(query.false_match_rate)


def _checked(embedding: np.ndarray, shape: Shape) -> np.ndarray:
    embedding = np.asarray(embedding, dtype=np.float32)
    if embedding.shape != (shape.dim,) or not np.isfinite(embedding).all():
        raise ValueError(f"search: the embedding of the image has shape {embedding.shape}, expected ({shape.dim},) "
                         "finite values, computed by the model of the index")
    return embedding


def _weights(query: Query, shape: Shape) -> np.ndarray:
    """Return the weight of each group, float64 (G,)."""
    named = {**query.weights, **dict.fromkeys(query.leave_out, 0.0)}
    unknown = [group for group in named if group not in shape.groups]
    if unknown:
        raise ValueError(f"search: unknown group '{unknown[0]}', expected one of "
                         f"{', '.join(shape.groups) or 'none, since this model has no groups'}")
    bad = {group: weight for group, weight in named.items() if not (math.isfinite(weight) and weight >= 0)}
    if bad:
        raise ValueError(f"search: the weights of groups are {bad}, expected finite numbers of 0 or more")
    return np.array([named.get(group, 1.0) for group in shape.groups] or [1.0])


def _constraints(query: Query, compiled: CompiledQuery, vocabulary: AttributeModel,
                 threshold: float) -> dict[str, tuple[str, ...]]:
    """Return the values that a row must not reliably contradict, by attribute.

    These are the attributes of the query, and those reliably predicted for its image in the groups compared with it.
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

"""reID and PAR metrics by attribute value, against loops over images."""

import math

from cerberus_plugin.attributes import MARKET1501
from cerberus_plugin.metrics.by_value import par_by_value, reid_by_value
from cerberus_plugin.metrics.par import par_metrics
from cerberus_plugin.metrics.ranking import reid_metrics

import pytest
import torch
from support.data import random_labels

COLOURS = [column.is_colour for column in MARKET1501.columns]


def mean(values: list[float]) -> float:
    values = [value for value in values if not math.isnan(value)]
    return sum(values) / len(values) if values else math.nan


def draw(num: int, people: int, seed: int):
    """Labels of images, some of them missing, and who is on them."""
    generator = torch.Generator().manual_seed(seed)
    pids = torch.randint(people, (num,), generator=generator)
    labels = random_labels(MARKET1501, people, seed)[pids]
    labels[torch.rand(labels.shape, generator=generator) < 0.1] = -1
    return pids, labels, generator


def is_of(labels, column, value: int) -> bool:
    """Whether labels, int64 (A,), have a value, read field by field."""
    own = [int(labels[field]) for field in column.fields]
    if -1 in own:
        return False
    return own[value] == 1 if column.is_colour else own[0] == value


@pytest.mark.parametrize("seed", range(3))
def test_reid_by_value_is_the_mean_over_the_queries_with_that_value(seed):
    pids, labels, generator = draw(60, 12, seed)
    camids = torch.randint(3, (60,), generator=generator)
    distances = torch.rand(20, 40, generator=generator)
    queries = reid_metrics(distances, pids[:20], camids[:20], pids[20:], camids[20:]).queries
    found = reid_by_value(queries, *MARKET1501.column_truth(labels[:20]), pids[:20])
    for column, own in zip(MARKET1501.columns, found, strict=True):
        for value, metrics in enumerate(own):
            rows = [q for q in range(20) if queries.num_matches[q] > 0 and is_of(labels[q], column, value)]
            assert metrics["queries"] == len(rows) and metrics["people"] == len({int(pids[q]) for q in rows})
            expected = mean([float(queries.ap[q]) for q in rows]), mean(
                [float(queries.first_match[q] == 1) for q in rows])
            assert (metrics["mAP"], metrics["Rank-1"]) == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("seed", range(3))
def test_par_by_value_is_the_accuracy_on_the_images_with_that_value(seed):
    pids, labels, generator = draw(40, 15, seed)
    truth, known = MARKET1501.column_truth(labels)
    predictions = torch.stack([torch.randint(-1, len(column.classes), (40,), generator=generator)
                               for column in MARKET1501.columns], dim=1)

    def right(n: int, m: int) -> bool:
        column, answer = MARKET1501.columns[m], int(predictions[n, m])
        if answer < 0:
            return column.is_colour and not any(is_of(labels[n], column, c) for c in range(len(column.classes)))
        return is_of(labels[n], column, answer)

    found = par_by_value(predictions, truth, known, COLOURS, pids)
    for m, (column, own) in enumerate(zip(MARKET1501.columns, found, strict=True)):
        for value, metrics in enumerate(own):
            rows = [n for n in range(40) if is_of(labels[n], column, value)]
            of_columns = [mean([float(right(n, k)) for n in rows if known[n, k]]) for k in range(len(COLOURS))]
            assert metrics["images"] == len(rows) and metrics["people"] == len({int(pids[n]) for n in rows})
            assert metrics["accuracy"] == pytest.approx(mean(of_columns), nan_ok=True)
            assert metrics["recall"] == pytest.approx(
                mean([float(predictions[n, m] == value) for n in rows]), nan_ok=True)


def test_a_value_that_all_images_have_has_the_metrics_of_all_images():
    pids, labels, generator = draw(30, 10, 5)
    labels = labels.clamp(min=0)
    labels[:, MARKET1501.index("gender")] = 1
    truth, known = MARKET1501.column_truth(labels)
    predictions = torch.stack([torch.randint(-1, len(column.classes), (30,), generator=generator)
                               for column in MARKET1501.columns], dim=1)
    male, female = par_by_value(predictions, truth, known, COLOURS)[0]
    assert female["accuracy"] == pytest.approx(par_metrics(predictions, truth, known, COLOURS).mA_with_none)
    assert female["images"] == 30 and "people" not in female
    assert male["images"] == 0 and math.isnan(male["accuracy"]) and math.isnan(male["recall"])

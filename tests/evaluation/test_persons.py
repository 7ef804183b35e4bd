"""Metrics by person: recognition and search by the mean scores of a person's images, compared with loops."""

from cerberus_plugin import APSTask, PARTask
from cerberus_plugin.attributes import GROUPS, MARKET1501, SIDTable
from cerberus_plugin.evaluation import embeddings as gathered
from cerberus_plugin.evaluation.embeddings import Gathered
from cerberus_plugin.inference import ProbabilityReader, PrototypeReader, blocks
from cerberus_plugin.metrics import par

import pytest
import torch
import torch.nn.functional as F
from support.data import random_labels
from support.readers import OwnReader

D, PEOPLE = 6, 7  # person 0 is the distractor
LABELS = random_labels(MARKET1501, PEOPLE, seed=9).index_fill(0, torch.tensor([0]), -1)
LABELS[4] = LABELS[3]  # two persons with the same labels
TRAIN = random_labels(MARKET1501, 40)
TRAIN[0, list(MARKET1501.columns[8].fields)[:2]] = 1  # a training person with two upper colours
COLOURS = [column.is_colour for column in MARKET1501.columns]


def prototype_reader(**options) -> PrototypeReader:
    table = SIDTable.build(MARKET1501, TRAIN, LABELS[1:], "product")
    draw = torch.Generator().manual_seed(2)
    return PrototypeReader(table, [torch.randn(k, D, generator=draw) for k in table.sizes], train_labels=TRAIN,
                           **options)


def classifiers() -> ProbabilityReader:
    draw = torch.Generator().manual_seed(3)
    size = sum(MARKET1501.column_sizes)
    return ProbabilityReader(MARKET1501, torch.randn(size, 5 * D, generator=draw), torch.randn(size, generator=draw),
                             train_labels=TRAIN)


READERS = {"nearest": prototype_reader, "probability": lambda: prototype_reader(reading="probability"),
           "classifiers": classifiers}


@pytest.fixture
def seen(monkeypatch) -> Gathered:
    """Several different images of each person, processed in chunks of 5."""
    monkeypatch.setattr(gathered, "CHUNK_ENTRIES", 5 * 5 * D)
    draw = torch.Generator().manual_seed(4)
    people = torch.cat([torch.randint(PEOPLE, (26,), generator=draw), torch.arange(PEOPLE).repeat(2)])
    centres = torch.randn(PEOPLE, 5 * D, generator=draw)
    embeddings = blocks(centres[people] + torch.randn(40, 5 * D, generator=draw)).flatten(1)
    return Gathered(embeddings, people, torch.randint(4, (40,), generator=draw), LABELS[people], 12)


def images_of(given: Gathered, pid: int, gallery_alone: bool) -> torch.Tensor:
    return torch.stack([row for n, row in enumerate(given.embeddings)
                        if given.pids[n] == pid and (n >= given.num_query or not gallery_alone)])


def nearest_answers(reader: PrototypeReader, images: torch.Tensor) -> list[int]:
    labels = torch.full((len(MARKET1501.fields),), -1)
    for g, group in enumerate(GROUPS):
        cosines = [sum(F.cosine_similarity(image.view(5, D)[g], p, dim=0).item() for image in images) / len(images)
                   for p in reader.prototypes[g]]
        fields = list(MARKET1501.group_fields(group))
        labels[fields] = reader.table.labels[g][cosines.index(max(cosines))][fields]
    return MARKET1501.column_answers(labels[None])[0].tolist()


def mean_log_probabilities(reader, images: torch.Tensor) -> list[list[float]]:
    found = [reader.log_probabilities(image[None]) for image in images]
    return [[sum(one[m][0, c].item() for one in found) / len(found) for c in range(found[0][m].shape[1])]
            for m in range(len(COLOURS))]


def probable_answers(reader, images: torch.Tensor, balanced: bool) -> list[int]:
    truth, _ = MARKET1501.column_truth(TRAIN)
    answers = []
    for m, (own, colour) in enumerate(zip(mean_log_probabilities(reader, images), COLOURS)):
        none = colour and isinstance(reader, PrototypeReader)
        if balanced:
            p = torch.tensor(own, dtype=torch.float64).exp()
            p = (p / min(p.sum().item(), 1)).tolist()
            shares = [0.0] * none + truth[m].double().mean(dim=0).tolist()
            own = [(x - share) / (share * (1 - share)) if 0 < share < 1 else float("-inf")
                   for x, share in zip(p, shares)]
            own = [0.0, *own[1:]] if none else own
        answers.append(own.index(max(own)) - none)
    return answers


@pytest.mark.parametrize("name", READERS)
def test_a_person_is_recognised_by_the_mean_scores_of_its_gallery_images(seen, name):
    reader = READERS[name]()
    figures = PARTask(reader)(seen)
    people = range(1, PEOPLE)
    answers = []
    for balanced in (False, True):
        answers.append(torch.tensor([
            nearest_answers(reader, images_of(seen, pid, True)) if name == "nearest" else
            probable_answers(reader, images_of(seen, pid, True), balanced) for pid in people]))
    truth, known = MARKET1501.column_truth(LABELS[1:])
    expected, balanced = (par.par_metrics(some, truth, known, COLOURS) for some in answers)
    assert figures["PAR/person/persons"] == len(people)
    assert figures["PAR/person/mA_official"] == pytest.approx(100 * expected.mA_official)
    assert figures["PAR/person/mA_binary"] == pytest.approx(100 * expected.mA_binary)
    assert figures["PAR/person/mA_balanced"] == pytest.approx(100 * balanced.mA_balanced)
    for column, share in zip(MARKET1501.columns, expected.official.tolist()):
        assert figures[f"PAR/person/official/{column.name}"] == pytest.approx(100 * share)
    assert figures["PAR/person/mA_official"] != figures["PAR/mA_official"]


@pytest.mark.parametrize("protocol", ["asmr", "sal"])
@pytest.mark.parametrize("name", READERS)
def test_a_description_ranks_persons_by_the_mean_score_of_all_their_images(seen, name, protocol):
    reader = READERS[name]()
    figures = APSTask(reader, protocol=protocol)(seen)
    kinds = sorted({tuple(row.tolist()) for row in LABELS[1:]})
    aps, firsts = [], []
    for kind in kinds:
        scores = []
        for pid in range(1, PEOPLE):
            own = [reader.search(torch.tensor([kind]), image[None]).item() for image in images_of(seen, pid, False)]
            scores.append((-sum(own) / len(own), tuple(LABELS[pid].tolist()) == kind))
        found = [right for _, right in sorted(scores)]
        places = [place for place, right in enumerate(found, 1) if right]
        aps.append(sum(n / place for n, place in enumerate(places, 1)) / len(places))
        firsts.append(found[0])
    assert figures["APS/person/persons"] == PEOPLE - 1 and figures["APS/person/queries"] == len(kinds) == PEOPLE - 2
    assert figures["APS/person/mAP"] == pytest.approx(100 * sum(aps) / len(aps))
    assert figures["APS/person/Rank-1"] == pytest.approx(100 * sum(firsts) / len(firsts))


@pytest.mark.parametrize("reader", [
    prototype_reader(), prototype_reader(reading="probability"), prototype_reader(force_colour=True), classifiers(),
    prototype_reader(reading="probability", force_colour=True, temperatures={"up": 3.0, "upper colour": 0.5})],
    ids=["nearest", "probability", "nearest, forced", "classifiers", "probability, forced, calibrated"])
def test_a_person_with_one_image_has_the_metrics_of_the_image(seen, reader):
    draw = torch.Generator().manual_seed(5)
    labels = random_labels(MARKET1501, 30, seed=6)
    one = Gathered(blocks(torch.randn(30, 5 * D, generator=draw)).flatten(1), torch.arange(30), torch.zeros(30).long(),
                   labels, 0)
    figures = PARTask(reader)(one) | APSTask(reader)(one)
    found = {key.replace("/person/", "/"): value for key, value in figures.items()
             if "/person/" in key and "persons" not in key}
    assert len(found) == 4 + 4 * len(COLOURS) + 11 + 7
    assert found == pytest.approx({key: figures[key] for key in found}, nan_ok=True)


def test_outfits_and_different_labels_of_an_identity_count_as_persons(seen):
    outfits = (seen.pids == 2).long() * torch.arange(40).remainder(2)
    dressed = Gathered(seen.embeddings, seen.pids, seen.camids, seen.attributes, 12, outfits=outfits)
    assert PARTask(classifiers())(dressed)["PAR/person/persons"] == PEOPLE
    assert APSTask(classifiers())(dressed)["APS/person/persons"] == PEOPLE
    labels = seen.attributes.clone()
    labels[outfits == 1] = LABELS[5]
    of_images = Gathered(seen.embeddings, seen.pids, seen.camids, labels, 12)
    assert APSTask(classifiers())(of_images)["APS/person/persons"] == PEOPLE


def test_a_reader_without_answer_scores_has_metrics_by_person_in_APS_only(seen):
    assert not [key for key in PARTask(OwnReader())(seen) if "person" in key]
    assert APSTask(OwnReader())(seen)["APS/person/persons"] == PEOPLE - 1


@pytest.mark.parametrize("name", READERS)
def test_an_image_is_scored_once_for_itself_and_its_person(seen, name, monkeypatch):
    reader, scored = READERS[name](), {}

    def counted(method):
        original = getattr(reader, method)

        def count(*args):
            key = method, *(arg for arg in args if isinstance(arg, bool))
            scored[key] = scored.get(key, 0) + len(args[method == "search"])
            return original(*args)

        monkeypatch.setattr(reader, method, count)

    for method in ("answer_scores", "search"):
        counted(method)
    PARTask(reader)(seen), APSTask(reader)(seen)
    in_gallery, in_pool = ((seen.pids[start:] != 0).sum().item() for start in (seen.num_query, 0))
    assert scored == {("answer_scores", False): in_gallery, ("answer_scores", True): in_gallery, ("search",): in_pool}


@pytest.mark.parametrize("name", READERS)
def test_a_partial_search_excludes_people_without_labels_in_its_groups(seen, name):
    upper = list(MARKET1501.group_fields("upper"))
    labels = seen.attributes.clone()
    labels[seen.pids == 2] = labels[seen.pids == 2].index_fill(1, torch.tensor(upper), -1)
    images = Gathered(seen.embeddings, seen.pids, seen.camids, labels, 12)
    figures = APSTask(READERS[name](), groups=("upper",))(images)
    # Expected value: queries are the categories with labels; images without labels may match and are skipped.
    kept = labels[seen.pids != 0]
    order = torch.cat([torch.arange(len(seen.pids))[12:], torch.arange(12)])
    order = order[(seen.pids[order] != 0) & (seen.pids[order] != 2)]
    of_upper = labels[order][:, upper]
    aps_of, queries = [], kept[:, upper][(kept[:, upper] >= 0).any(dim=1)].unique(dim=0)
    for query in queries:
        asked = torch.full((1, labels.shape[1]), -1)
        asked[:, upper] = query
        scores = READERS[name]().search(asked, seen.embeddings[order])[0]
        right = (of_upper == query).all(dim=1)[scores.argsort(descending=True, stable=True)].nonzero()[:, 0]
        aps_of.append(sum((n + 1) / (place + 1) for n, place in enumerate(right.tolist())) / len(right))
    assert figures["APS/upper/mAP_given"] == pytest.approx(100 * sum(aps_of) / len(queries))
    assert 0 < figures["APS/upper/mAP_full"] < 100
    labels[:, upper] = -1
    with pytest.raises(ValueError, match="TEST.APS.GROUPS contains 'upper', but no test image has a label"):
        APSTask(READERS[name](), groups=("upper",))(images)

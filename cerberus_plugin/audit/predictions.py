"""Predictions of models for images of people that the models were not trained on.

Shapes: N images, C classes of a column, E size of an embedding, K models.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from fastreid.config import CfgNode, get_cfg
from fastreid.engine.hooks import HookBase
from tqdm import tqdm

from ..attributes.schema import AttributeSchema, Column
from ..config import add_cerberus_config, configuration, merge_file, read_run_config
from ..experiments.running import check_same_images, check_same_run, is_finished, train_once
from ..own_data.check import limits_of
from ..own_data.overlay import replaced
from ..own_data.people import OwnData
from ..own_data.recipe import Facts, Wish, choose
from ..own_data.schema_file import Wording
from ..own_data.split import TEST, divide_test, write_split
from ..own_data.tables import Words
from ..predictor import CerberusPredictor
from ..utils.files import json_sha256, read_json, write_json, write_whole
from ..utils.images import Unreadable, read_image
from ..utils.processor import usable_cores
from ..utils.text import counted
from ..workflow.log import short_log
from ..workflow.training import LastCheckpoint, has_gpu

BATCH = 64  # images that are read at a time


@dataclass(frozen=True)
class Predictions:
    """Predictions of K models.

    Attributes:
        columns: columns that both the models and the data have.
        probabilities: for each column float32 (N, C), with "none" first for colours; NaN for an image without a
            prediction of a model that was not trained on its person.
        model: int64 (N,), the model that was not trained on the person of an image; -1 if there is none, or if the
            image cannot be read.
        embeddings: for each model (N, E), of unit length; NaN for unreadable images.
        notes: messages for the user.
    """

    columns: tuple[Column, ...]
    probabilities: list[np.ndarray] = field(repr=False)
    model: np.ndarray = field(repr=False)
    embeddings: list[np.ndarray] = field(repr=False)
    notes: tuple[str, ...] = ()


def folds_of_people(person: Words, folds: int, seed: int = 0) -> np.ndarray:
    """Divide people into folds with about the same number of images.

    Args:
        person: N people.
        folds: number of folds.
        seed: seed of the random generator.

    Returns:
        int64 (N,), the fold of each image, from 0.

    Raises:
        ValueError: if there are fewer than two people per fold.
    """
    people = len(person.words)
    if not 2 <= folds <= people // 2:
        raise ValueError(f"--folds is {folds}, expected 2 to {max(2, people // 2)}: each fold needs at least two "
                         f"people, and there are {people}.")
    counts = person.counts()
    order = np.random.default_rng(seed).permutation(sorted(range(people), key=person.words.__getitem__))
    order = order[np.argsort(-counts[order], kind="stable")]  # people with most images first
    fold_of, sizes = np.empty(people, np.int64), np.zeros(folds)
    for code in order.tolist():
        fold_of[code] = sizes.argmin()
        sizes[fold_of[code]] += counts[code]
    return fold_of[person.codes]


def fold_config(data: str, own: OwnData, schema: AttributeSchema, trained: np.ndarray, *, name_pattern: str = "",
                epochs: int = 0, given: Mapping[str, str] | None = None) -> CfgNode:
    """Return the configuration of the training of a fold, as `cerberus train` chooses it without pretrained weights.

    Args:
        data: table or folder, see `read_people`.
        own: its N images.
        schema: the schema.
        trained: bool (N,), the training images.
        name_pattern: regular expression for file names, see `read_people`.
        epochs: number of epochs, 0 to choose it.
        given: configuration keys and values that take precedence.

    Raises:
        ValueError: if there are too few images, or a key or value is not valid.
    """
    # More weight on attributes: a short training from scratch learns them well before identities.
    given = {"MODEL.CERBERUS.SOFTMAX": "16.0"} | dict(given or {})
    gpu = has_gpu(given)
    people = len(np.unique(own.person.codes[trained])) if own.identified else None
    facts = Facts(int(trained.sum()), people, 0, len(schema.columns),
                  *limits_of(schema), own.camera is not None)
    recipe = choose(facts, gpu, usable_cores(), Wish(epochs=epochs, given=given))
    cfg = get_cfg()
    add_cerberus_config(cfg)
    merge_file(cfg, configuration(recipe.file))
    try:
        cfg.merge_from_list(recipe.options)
    except (AssertionError, KeyError, ValueError) as error:  # raised by yacs
        raise ValueError(f"{error}. The plugin's keys are documented in cerberus_plugin/config.py.") from error
    path = os.path.abspath(data)
    cfg.merge_from_list(["DATASETS.NAMES", (path,), "DATASETS.TESTS", (path,), "DATASETS.NAME_PATTERN", name_pattern,
                         "DATASETS.HOLD_OUT", 0, "DATALOADER.ON_UNREADABLE", "skip", "TEST.UNTRAINED_FLOOR", False])
    return cfg


def predict_by_folds(data: str, own: OwnData, wording: Wording, out: Path, *, folds: int = 4, seed: int = 0,
                     **recipe) -> Predictions:
    """Train one model per fold, on the people of all other folds, and predict the images of the fold with it.

    Finished folds in `out` are not trained again.

    Args:
        data: table or folder, see `read_people`.
        own: its N images.
        wording: the schema.
        out: folder of the runs `fold1`, `fold2`, ...
        folds: number of folds.
        seed: seed of the folds.
        recipe: keyword arguments of `fold_config`.

    Raises:
        ValueError: if there are too few people, or `out` contains folds of other data or settings.
    """
    fold = folds_of_people(own.person, folds, seed)
    nobody = np.isin(own.person.to_list(), wording.nobody)
    fold[nobody] = -1
    columns = wording.schema.columns
    probabilities: list[np.ndarray] = []
    embeddings = []
    readable = np.ones(len(own), bool)
    for number in range(folds):
        folder = out.resolve() / f"fold{number + 1}"
        trained, asked = (fold != number) & ~nobody, np.flatnonzero(fold == number)
        split = Words((fold == number).astype(np.int32), ("train", TEST))
        split = divide_test(split, own.files, own.person, own.camera) if own.identified else split.renamed(
            {TEST: "gallery"})
        split = replaced(split, dict.fromkeys(np.flatnonzero(nobody).tolist(), "gallery"))
        cfg = fold_config(data, own, wording.schema, trained, **recipe)
        cfg.merge_from_list(["DATASETS.SPLIT_FILE", str(folder / "split.csv"), "OUTPUT_DIR", str(folder)])
        check_same_run(cfg)
        write_split(folder / "split.csv", own.files, split)
        check_same_images([cfg])
        steps = cfg.SOLVER.MAX_EPOCH * (int(trained.sum()) // cfg.SOLVER.IMS_PER_BATCH)
        if not is_finished(cfg):
            with short_log(folder, logging.WARNING):
                train_once(cfg, [Bar(f"fold {number + 1} of {folds}", steps), LastCheckpoint(folder)])
        names, said, vectors = _predicted(folder, own, f"predicting, fold {number + 1} of {folds}")
        columns, probabilities = _joined(columns, names, probabilities, said, asked, len(own))
        readable &= np.isfinite(np.asarray(vectors[:, 0], np.float32))
        embeddings.append(vectors)
    return Predictions(columns, probabilities, np.where(readable, fold, -1), embeddings)


def predict_by_run(data: str, own: OwnData, wording: Wording | None, out: Path, run: str | Path) -> Predictions:
    """Predict images with a trained model. People that it was trained on are excluded.

    Args:
        data: table or folder, see `read_people`.
        own: its N images, with their split.
        wording: the schema, None without attributes.
        out: folder in which predictions are stored.
        run: folder of the trained model.

    Raises:
        ValueError: if the model was trained on all people of the data.
    """
    cfg = read_run_config(Path(run) / "config.yaml")
    folders = [Path(name).resolve() for name in cfg.DATASETS.NAMES]
    notes = []
    known = np.zeros(len(own), bool)
    if own.folder.resolve() in folders or Path(data).resolve() in folders:
        known = own.is_in("train")
        people = len(np.unique(own.person.codes[known]))
        notes.append(f"{run} was trained on {counted(people, 'person', 'people')} of the data "
                     f"({counted(int(known.sum()), 'image')}). They are excluded, since a model repeats the labels "
                     "that it has learned. Without --run, all people are checked")
    else:
        notes.append(f"{run} was trained on {', '.join(cfg.DATASETS.NAMES)}; all people of {data} count as unknown to "
                     "it")
    if known.all():
        raise ValueError(f"{run}: was trained on all people of {data}. Omit --run to train on folds of people.")
    names, said, vectors = _predicted(Path(run), own, "predicting", out)
    asked = wording.schema.columns if wording else ()
    columns, probabilities = _joined(asked, names, [], said, np.flatnonzero(~known), len(own))
    left = [column.name for column in asked if column not in columns]
    if left:
        notes.append(f"{run} does not predict these attributes, or has other values for them: {', '.join(left)}")
    readable = np.isfinite(np.asarray(vectors[:, 0], np.float32))
    nobody = np.isin(own.person.to_list(), wording.nobody if wording else ())
    return Predictions(columns, probabilities, np.where(known | nobody | ~readable, -1, 0), [vectors], tuple(notes))


def _joined(columns: tuple[Column, ...], names: list[list[str]], so_far: list[np.ndarray], said: list[np.ndarray],
            rows: np.ndarray, size: int) -> tuple[tuple[Column, ...], list[np.ndarray]]:
    """Columns that a model has with the same classes, and probabilities in which the given rows are filled in."""
    of = {tuple(own): array for own, array in zip(names, said)}

    def read(column: Column) -> np.ndarray | None:
        return of.get((column.name, *column.answers), of.get((column.name, *column.classes)))

    kept = tuple(column for column in columns if read(column) is not None)
    found = []
    for place, column in enumerate(kept):
        array = read(column)
        assert array is not None
        whole = so_far[place] if so_far else np.full((size, array.shape[1]), np.nan, np.float32)
        whole[rows] = array[rows]
        found.append(whole)
    return kept, found


class Bar(HookBase):
    """Hook that shows a progress bar of the training steps.

    Args:
        title: text before the bar.
        steps: number of steps.
    """

    def __init__(self, title: str, steps: int) -> None:
        self.bar = tqdm(total=steps, desc=title, unit=" steps")

    def before_train(self) -> None:
        self.bar.update(min(self.trainer.iter, self.bar.total) - self.bar.n)

    def after_step(self) -> None:
        self.bar.update()

    def after_train(self) -> None:
        self.bar.close()


@torch.no_grad()
def _predicted(run: Path, own: OwnData, title: str,
               keep: Path | None = None) -> tuple[list[list[str]], list[np.ndarray], np.ndarray]:
    """Predict all images, or read stored predictions of the same model for the same images.

    Returns:
        name and values of each column, probabilities float32 (N, C) of each, and embeddings float16 (N, E); NaN for
        unreadable images.
    """
    keep = keep or run
    predictor = CerberusPredictor(run)
    weights = Path(predictor.cfg.MODEL.WEIGHTS)
    made_of = json_sha256([str(weights.resolve()), weights.stat().st_mtime_ns, own.files,
                           [Path(own.path(row)).stat().st_mtime_ns for row in range(len(own))]])
    record, arrays, vectors_file = (keep / f"predictions{suffix}" for suffix in (".json", ".npz", ".npy"))
    if record.is_file():
        found = read_json(record, "delete it")
        if found["of"] == made_of:
            with np.load(arrays) as file:
                said = [file[f"column{place}"] for place in range(len(found["columns"]))]
            return found["columns"], said, np.load(vectors_file, mmap_mode="r")
    reader = predictor.reader if hasattr(predictor.reader, "log_probabilities") else None  # else no attributes
    names = [] if reader is None else [
        [column.name, *(column.answers if count == len(column.answers) else column.classes)]
        for column, count in zip(reader.schema.columns, _widths(reader))]
    said = [np.full((len(own), len(own_names) - 1), np.nan, np.float32) for own_names in names]
    vectors: np.ndarray | None = None

    def read(row: int):
        try:
            return predictor.transform(read_image(own.path(row)))
        except Unreadable:
            return None

    predictor.model.eval()
    with ThreadPoolExecutor(usable_cores()) as threads, tqdm(total=len(own), desc=title, unit=" images") as bar:
        for start in range(0, len(own), BATCH):
            rows = range(start, min(start + BATCH, len(own)))
            images = list(threads.map(read, rows))
            there = [row for row, image in zip(rows, images) if image is not None]
            if there:
                batch = torch.stack([image for image in images if image is not None])
                found = predictor.model({"images": batch.to(predictor.cfg.MODEL.DEVICE)}).float()
                predictor.check_finite(found, [own.files[row] for row in there])
                for array, log_p in zip(said, reader.log_probabilities(found) if reader else ()):
                    p = log_p.exp().cpu().numpy()
                    array[there] = p / p.sum(axis=1, keepdims=True)  # a semantic ID may contain two colours
                unit = torch.nn.functional.normalize(found, dim=1).cpu().numpy().astype(np.float16)
                if vectors is None:
                    vectors = np.full((len(own), unit.shape[1]), np.nan, np.float16)
                vectors[there] = unit
            bar.update(len(rows))
    if vectors is None:
        raise ValueError(f"{own.source}: no image can be read. `cerberus check` shows the reasons.")
    write_whole(arrays, lambda file: np.savez(file, **{f"column{place}": own for place, own in enumerate(said)}))
    write_whole(vectors_file, lambda file: np.save(file, vectors))
    write_json(str(record), {"of": made_of, "columns": names})
    return names, said, vectors


def _widths(reader) -> list[int]:
    """Number of classes of each column of a reader."""
    size = sum(own.shape[1] for own in reader.prototypes) if hasattr(reader, "prototypes") else reader.weight.shape[1]
    return [own.shape[1] for own in reader.log_probabilities(torch.zeros(1, size))]

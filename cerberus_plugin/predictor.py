"""Use a trained model on pictures: embeddings, attributes in words, and a search by attributes or by a picture."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from fastreid.data.transforms import build_transforms
from torch import Tensor
from tqdm import tqdm

from .config import read_run_config
from .inference import PrototypeReader, image_scores, of_groups
from .modeling.build import groups_of, load_model, reader_of
from .search.calibration import Calibration
from .search.calibration.run_calibration import CALIBRATION_FILE, COMMAND, answers_of, read_calibration
from .search.gallery.query import Query, SearchedModel, Shape, compile_query, stored_rows
from .search.portable import Answer, AttributeModel
from .search.portable.verification import METRICS
from .utils.files import read_json
from .utils.images import SUFFIXES, read_image

GROUPS_FILE = "groups.json"  # in RUN/groups, written by `experiments.groups`
WEIGHTS = ("model_final.pth", "model_best.pth")  # the host picks its best one by the test figures

logger = logging.getLogger("fastreid.cerberus")


@dataclass(frozen=True)
class Match:
    """One result of a search: the picture's path and its score, higher is nearer.

    The score of `GalleryIndex.search`: for pictures the mean cosine of the groups of Cerberus, and for models without
    groups the cosine, or minus the distance under TEST.METRIC euclidean. For words the mean cosine of the described
    groups, or the sum of log-probabilities for a Cerberus that reads by probability. An index has no words for APR and
    ARN; their score is the mean logarithm of the probabilities.
    """

    path: str
    score: float


class CerberusPredictor:
    """A run folder, ready to use.

    >>> predictor = CerberusPredictor("logs/demo")                      # doctest: +SKIP
    >>> embeddings = predictor.embed(predictor.pictures("crops/"))      # doctest: +SKIP
    >>> predictor.recognise("crops/0001.jpg")                           # doctest: +SKIP
    >>> predictor.search({"upper colour": "red"}, "crops/", top=5)      # doctest: +SKIP

    Args:
        run_folder: holds config.yaml and a checkpoint.
        weights: another checkpoint of the same model; the last one of the folder, or else the best, if None.
        device: "cuda" or "cpu"; what there is, if None.
        precise: compute in float32 whatever TEST.AUTOCAST says, as an exported model does.
    """

    def __init__(self, run_folder: str | Path, weights: str | Path | None = None, device: str | None = None,
                 precise: bool = False) -> None:
        self.run_folder = Path(run_folder)
        config = Path(run_folder) / "config.yaml"
        if not config.is_file():
            raise FileNotFoundError(f"{config}: not found; give the OUTPUT_DIR of a training run")
        self.cfg = read_run_config(config)
        self.cfg.MODEL.WEIGHTS = str(weights or self._find_weights(Path(run_folder)))
        self.cfg.MODEL.DEVICE = device or ("cuda" if torch.cuda.is_available() else "cpu")
        if precise:
            self.cfg.TEST.AUTOCAST = ""
        used = [f"TEST.{key}" for key in ("RERANK", "AQE") if self.cfg.TEST[key].ENABLED]
        if used:
            logger.warning(f"{self.run_folder}: {' and '.join(used)} are of the evaluation alone; searches, galleries "
                           "and pictures of ranks compare by the plain distances")
        if self.cfg.TEST.METRIC not in METRICS:
            raise ValueError(f"{config}: TEST.METRIC is '{self.cfg.TEST.METRIC}', expected one of {', '.join(METRICS)}")
        try:
            self.model = load_model(self.cfg)
            self.transform = build_transforms(self.cfg, is_train=False)
            self.reader = reader_of(self.model)
        except Exception as error:  # the host's for values that it does not know are KeyError, AssertionError and more
            if isinstance(error, OSError | torch.cuda.OutOfMemoryError) or self.cfg.MODEL.WEIGHTS in str(error):
                raise
            raise ValueError(f"{config}: the model that it describes cannot be made with {self.cfg.MODEL.WEIGHTS} "
                             f"({type(error).__name__}: {error}). Correct the value or use the config.yaml that "
                             "training wrote, or use another checkpoint") from error
        if isinstance(self.reader, PrototypeReader) and self.reader.partial != "mean":
            logger.warning(f"{self.run_folder}: TEST.APS.PARTIAL {self.reader.partial} is of the evaluation alone; "
                           "searches take the mean over the semantic IDs that agree with a description")

    @staticmethod
    def _find_weights(folder: Path) -> Path:
        for name in WEIGHTS:
            if (folder / name).is_file():
                return folder / name
        raise FileNotFoundError(f"{folder}: holds none of {', '.join(WEIGHTS)}; give the folder of a "
                                "finished training run, or name a checkpoint by `weights`")

    @staticmethod
    def pictures(folder: str | Path) -> list[str]:
        """Pictures of a folder, sorted by name."""
        if not Path(folder).is_dir():
            raise FileNotFoundError(f"{folder}: no such folder of pictures")
        found = sorted(str(p) for p in Path(folder).iterdir() if p.suffix.lower() in SUFFIXES)
        if not found:
            raise ValueError(f"{folder}: no pictures found ({', '.join(SUFFIXES)})")
        return found

    @torch.no_grad()
    def embed(self, pictures: str | Path | Sequence[str | Path], batch_size: int = 64) -> Tensor:
        """Embeddings of pictures, a path or many: float (N, E) on the CPU; Cerberus: a block of unit length a group.

        A bar shows the time left where there are more than a few batches.
        """
        paths = [pictures] if isinstance(pictures, str | Path) else list(pictures)
        if not paths:
            raise ValueError("embed: no pictures given")
        outputs = []
        starts = range(0, len(paths), batch_size)
        for start in tqdm(starts, desc="embedding", unit=" batches", disable=len(starts) < 8):
            images = self.images(paths[start:start + batch_size])
            with self.computing():
                outputs.append(self.model({"images": images}).float().cpu())
            self.check_finite(outputs[-1], paths[start:start + batch_size])
        return torch.cat(outputs)

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        """Turn an error of the model inside into a ValueError that names the run; a full GPU stays what it is."""
        try:
            yield
        except (RuntimeError, IndexError, TypeError) as error:
            if isinstance(error, torch.cuda.OutOfMemoryError):
                raise
            raise ValueError(f"{self.run_folder / 'config.yaml'}: the model that it describes fails with "
                             f"{self.cfg.MODEL.WEIGHTS} ({type(error).__name__}: {error}). Correct the value or use "
                             "the config.yaml that training wrote, or use another checkpoint") from error

    def check_finite(self, embeddings: Tensor, pictures: Sequence) -> None:
        """Raise ValueError where embeddings (N, E) are NaN or infinite: no answer could be read off them."""
        broken = ~embeddings.isfinite().all(dim=1)
        if broken.any():
            raise ValueError(f"{self.cfg.MODEL.WEIGHTS}: {int(broken.sum())} of {len(broken)} embeddings are not finite"
                             f", such as that of {pictures[int(broken.nonzero()[0])]}; the weights are damaged, or too "
                             "large for TEST.AUTOCAST. Use another checkpoint, or set TEST.AUTOCAST to \"\"")

    def images(self, paths: Sequence[str | Path]) -> Tensor:
        """Pictures as the model takes them: float (N, 3, H, W) in 0..255, on its device."""
        return torch.stack([self.transform(read_image(path)) for path in paths]).to(self.model.device)

    def recognise(self, pictures: str | Path | Sequence[str | Path]) -> list[dict[str, str]]:
        """Attributes of each picture in words, such as {"gender": "female", "upper colour": "red", ...}."""
        answers = self._reader().recognise(self.embed(pictures)).cpu()
        columns = self._reader().schema.columns
        return [{column.name: column.classes[k] if k >= 0 else "none" for column, k in zip(columns, row)}
                for row in answers.tolist()]

    def answers(self, pictures: str | Path | Sequence[str | Path]) -> list[dict[str, Answer]]:
        """Attributes of each picture with their probabilities, and "cannot tell" where these are too low.

        Calibrated where RUN/calibration is there; a warning says where it is not, and so does every answer. An answer
        is the most probable class of its column, which `recognise`, the nearest semantic ID, need not name.
        """
        reader = self._reader()
        if not hasattr(reader, "confidences"):
            raise ValueError(f"{self.cfg.MODEL.WEIGHTS}: this model reads attributes without a probability; ask it by "
                             "`recognise`")
        if not (self.calibration and self.calibration.temperatures):
            logger.warning(f"{self.run_folder}: attributes are not calibrated, so their probabilities are those of the "
                           f"bare softmax and the model never abstains; calibrate by {COMMAND} {self.run_folder}")
        return answers_of(reader, self.embed(pictures), self.calibration)

    def same_person(self, first: str | Path, second: str | Path, prior: float | None = None) -> float:
        """The probability that two pictures show the same person; needs RUN/calibration.

        Args:
            prior: the probability before looking; that of the calibration, 0.5 unless said otherwise, if None.
        """
        if self.calibration is None:
            raise FileNotFoundError(f"{self.run_folder / CALIBRATION_FILE}: not found, so a score is no probability; "
                                    f"calibrate by {COMMAND} {self.run_folder}")
        fitted, test = self.calibration.verification, self.cfg.TEST
        if (fitted.metric, fitted.groups) != (test.METRIC, tuple(test.GROUPS)):
            raise ValueError(f"{self.run_folder / CALIBRATION_FILE}: was fitted on {fitted.metric} scores by "
                             f"{', '.join(fitted.groups) or 'all groups'}, but TEST.METRIC is {test.METRIC} and "
                             f"TEST.GROUPS {list(test.GROUPS)}; calibrate again by {COMMAND} {self.run_folder}")
        embeddings = self.embed([first, second])
        return fitted.probability(self.picture_scores(embeddings[:1], embeddings[1:]).item(), prior)

    @cached_property
    def calibration(self) -> Calibration | None:
        """What `experiments.calibrate` has written for this run, checkpoint and settings; None where it has not."""
        if not (self.run_folder / CALIBRATION_FILE).is_file():
            return None
        calibration = read_calibration(self.run_folder, self.cfg.MODEL.WEIGHTS, self.settings)
        columns = [column.name for column in self.reader.schema.columns] if self.reader else []
        unknown = [name for name in calibration.temperatures if name not in columns]
        if unknown:
            raise ValueError(f"{self.run_folder / CALIBRATION_FILE}: has a temperature of {unknown[0]!r:.60}, expected "
                             f"some of {', '.join(columns) or 'none'}; calibrate again by {COMMAND} {self.run_folder}")
        return calibration

    @cached_property
    def attribute_model(self) -> AttributeModel | None:
        """What the prototypes know of attributes, not calibrated; None for a model that reads attributes otherwise."""
        if not isinstance(self.reader, PrototypeReader):
            return None
        try:
            return self.reader.attribute_model(self.model.prototypes.synthesis)
        except ValueError as error:
            raise ValueError(f"{self.cfg.MODEL.WEIGHTS}: {error}") from error

    @property
    def settings(self) -> dict:
        """What probabilities depend on beside the checkpoint and may be set in config.yaml: by name, plain values."""
        par = self.cfg.TEST.PAR
        return {"reader": type(self.reader).__name__ if self.reader else None,
                "TEST.PAR.COSINE_SCALE": float(par.COSINE_SCALE), "TEST.PAR.FORCE_COLOUR": bool(par.FORCE_COLOUR),
                "TEST.PAR.TAU": float(par.TAU), "TEST.PAR.UNSEEN_PRIOR": float(par.UNSEEN_PRIOR),
                "INPUT.SIZE_TEST": list(self.cfg.INPUT.SIZE_TEST)}

    def search(self, query: dict[str, str] | str | Path, gallery: str | Path | Sequence[str | Path],
               top: int = 10, groups: Sequence[str] = (), may_have_changed_clothes: bool = False) -> list[Match]:
        """The pictures of a folder, or of a list, that fit best, scored as by a `GalleryIndex` but in memory.

        Args:
            query: attributes in words, all or some of them, or the path of a picture of the wanted person.
            groups: compare pictures by these groups of Cerberus only; by TEST.GROUPS where empty, or else by all.
            may_have_changed_clothes: compare pictures by `groups_for_changed_clothes`.
        """
        if isinstance(query, dict) and (groups or may_have_changed_clothes):
            raise ValueError("search: groups are chosen for a query by picture; leave attributes of clothes out of a "
                             "description instead")
        if groups and may_have_changed_clothes:
            raise ValueError("search: give groups, or may_have_changed_clothes for those of the run, not both")
        labels = self._reader().schema.parse(query) if isinstance(query, dict) else None  # refused before the work
        paths = self.pictures(gallery) if isinstance(gallery, str | Path) else list(gallery)
        embeddings = self.embed(paths)
        known = None if labels is None else self.attribute_model
        if labels is not None and known is None:  # no index of such a model has words, so the reader itself compares
            scores = self._reader().search(torch.from_numpy(labels)[None], embeddings)[0]
            order = scores.sort(descending=True, stable=True).indices[:top]
            return [Match(str(paths[i]), scores[i].item()) for i in order.tolist()]
        compared = Query(words=query) if isinstance(query, dict) else self._picture_query(
            query, groups, may_have_changed_clothes)
        shape = Shape.of(self.groups, embeddings.shape[1], self.cfg.TEST.METRIC, known)
        compiled = compile_query(compared, SearchedModel(shape, known))
        rows = stored_rows(embeddings.numpy(), shape, known)
        return [Match(str(paths[i]), score) for i, score, _ in compiled.best(rows, np.arange(len(paths)), top)]

    def _picture_query(self, picture: str | Path, groups: Sequence[str], may_have_changed_clothes: bool) -> Query:
        """A search by a picture, compared by these groups, or by those that `search` chooses."""
        chosen = self.groups_for_changed_clothes if may_have_changed_clothes else self._compared_groups(groups)
        if may_have_changed_clothes and not chosen:
            raise ValueError(f"{self.run_folder}: no group of {', '.join(self.groups)} stays when clothes change; "
                             "name groups to compare by `groups`")
        weights = dict.fromkeys(self.groups if chosen else (), 0.0) | dict.fromkeys(chosen, 1.0)
        return Query(self.embed(picture)[0].numpy(), weights=weights)

    def picture_scores(self, queries: Tensor, gallery: Tensor, groups: Sequence[str] = ()) -> Tensor:
        """How near embeddings are, higher is nearer, by some groups or all: (Q, E), (N, E) -> (Q, N)."""
        if groups := self._compared_groups(groups):
            queries, gallery = (of_groups(side, groups, self.groups) for side in (queries, gallery))
        return image_scores(queries, gallery, self.cfg.TEST.METRIC)

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the groups of Cerberus, in the order of an embedding's blocks; () for other models."""
        return groups_of(self.model)

    @property
    def groups_for_changed_clothes(self) -> tuple[str, ...]:
        """What `experiments.groups` has chosen for this run; the lasting groups of the schema where it has not."""
        self._check_groups()
        path = self.run_folder / "groups" / GROUPS_FILE
        if not path.is_file():
            return tuple(group.name for group in self.model.groups if group.lasting)
        remedy = f"choose groups again by python -m cerberus_plugin.experiments.groups {self.run_folder}, or delete it"
        record = read_json(path, remedy)
        chosen = record.get("chosen") if isinstance(record, dict) else None
        if not (isinstance(chosen, list) and chosen and all(group in self.groups for group in chosen)):
            raise ValueError(f"{path}: 'chosen' is {chosen!r:.60}, expected some of {', '.join(self.groups)}; {remedy}")
        return tuple(chosen)

    def _compared_groups(self, groups: Sequence[str]) -> Sequence[str]:
        """These groups, or those of TEST.GROUPS if none are given; () for whole embeddings."""
        chosen = groups or self.cfg.TEST.GROUPS
        if chosen:
            self._check_groups()
        return chosen

    def _check_groups(self) -> None:
        if not self.groups:
            raise ValueError(f"{self.run_folder}: {self.cfg.MODEL.META_ARCHITECTURE} compares whole pictures; only "
                             "Cerberus has groups to choose from")

    def _reader(self):
        if self.reader is None:
            raise ValueError(f"{self.cfg.MODEL.WEIGHTS}: this model reads no attributes (it has neither prototypes "
                             "nor attribute classifiers); it can embed and search by picture only")
        return self.reader

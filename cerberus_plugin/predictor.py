"""Inference with a trained model: embeddings, predicted attributes, and search by attributes or by an image.

Shapes: N images, Q queries, E values of an embedding.
"""

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
WEIGHTS = ("model_final.pth", "model_best.pth")  # FastReID selects the best one by the test metrics

logger = logging.getLogger("fastreid.cerberus")


@dataclass(frozen=True)
class Match:
    """One result of a search.

    The score is that of `GalleryIndex.search`. For an image query it is the mean cosine of the groups; for models
    without groups it is the cosine, or minus the distance if TEST.METRIC is euclidean. For a query by attributes it is
    the mean cosine of the described groups, or the sum of log-probabilities if TEST.READING is probability. For APR
    and ARN, which an index cannot search by attributes, it is the mean log-probability.

    Attributes:
        path: of the gallery image.
        score: higher is more similar.
    """

    path: str
    score: float


class CerberusPredictor:
    """A trained model, loaded from its run folder.

    Args:
        run_folder: folder with config.yaml and a checkpoint.
        weights: checkpoint to load; if None, model_final.pth, or else model_best.pth of the folder.
        device: "cuda" or "cpu"; if None, "cuda" if it is available.
        precise: compute in float32 even if TEST.AUTOCAST is set, as an exported model does.

    Attributes:
        cfg: the configuration of the run, a FastReID `CfgNode`.
        model: the `nn.Module` in evaluation mode.
        transform: the test transforms of the run.
        reader: predicts attributes from embeddings; None for a model without attributes.

    Raises:
        FileNotFoundError: if config.yaml or the checkpoint is missing.
        ValueError: if the configuration is invalid or does not fit the checkpoint.

    Examples:
        >>> predictor = CerberusPredictor("logs/demo")                      # doctest: +SKIP
        >>> embeddings = predictor.embed(predictor.images("crops/"))        # doctest: +SKIP
        >>> predictor.recognise("crops/0001.jpg")                           # doctest: +SKIP
        >>> predictor.search({"upper colour": "red"}, "crops/", top=5)      # doctest: +SKIP
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
            logger.warning(f"{self.run_folder}: {' and '.join(used)} only applies to the evaluation; searches, "
                           "galleries and plots of rank lists use plain distances")
        if self.cfg.TEST.METRIC not in METRICS:
            raise ValueError(f"{config}: TEST.METRIC is '{self.cfg.TEST.METRIC}', expected one of {', '.join(METRICS)}")
        try:
            self.model = load_model(self.cfg)
            self.transform = build_transforms(self.cfg, is_train=False)
            self.reader = reader_of(self.model)
        except Exception as error:  # FastReID raises KeyError, AssertionError and others for unknown values
            if isinstance(error, OSError | torch.cuda.OutOfMemoryError) or self.cfg.MODEL.WEIGHTS in str(error):
                raise
            raise ValueError(f"{config}: the model cannot be built with the checkpoint {self.cfg.MODEL.WEIGHTS} "
                             f"({type(error).__name__}: {error}). Correct the value, use the config.yaml written by "
                             "the training or another checkpoint, or first import the module that registers your own "
                             "model or backbone (docs/extend/index.md)") from error
        if isinstance(self.reader, PrototypeReader) and self.reader.partial != "mean":
            logger.warning(f"{self.run_folder}: TEST.APS.PARTIAL {self.reader.partial} only applies to the evaluation; "
                           "searches use the mean over the semantic IDs that match a description")

    @staticmethod
    def _find_weights(folder: Path) -> Path:
        for name in WEIGHTS:
            if (folder / name).is_file():
                return folder / name
        raise FileNotFoundError(f"{folder}: contains none of {', '.join(WEIGHTS)}; give the folder of a finished "
                                "training run; in Python, a checkpoint can be given as `weights`")

    @staticmethod
    def images(folder: str | Path) -> list[str]:
        """List the image files of a folder, without its subfolders.

        Args:
            folder: containing images.

        Returns:
            the paths, sorted by name.

        Raises:
            FileNotFoundError: if the folder does not exist.
            ValueError: if it contains no images.
        """
        if not Path(folder).is_dir():
            raise FileNotFoundError(f"{folder}: no such folder of images")
        found = sorted(str(p) for p in Path(folder).iterdir() if p.suffix.lower() in SUFFIXES)
        if not found:
            raise ValueError(f"{folder}: no images found ({', '.join(SUFFIXES)})")
        return found

    pictures = images  # the former name

    @torch.no_grad()
    def embed(self, images: str | Path | Sequence[str | Path], batch_size: int = 64) -> Tensor:
        """Compute the embeddings of images; shows a progress bar for 8 batches or more.

        Args:
            images: one path, or a sequence of N paths.
            batch_size: images per forward pass.

        Returns:
            float (N, E) on the CPU. For Cerberus, an embedding is the concatenation of one block of unit length per
            group.

        Raises:
            ValueError: if there are no images, an image cannot be read, or the model fails.
        """
        paths = [images] if isinstance(images, str | Path) else list(images)
        if not paths:
            raise ValueError("embed: no images given")
        outputs = []
        starts = range(0, len(paths), batch_size)
        for start in tqdm(starts, desc="embedding", unit=" batches", disable=len(starts) < 8):
            batch = self.load_images(paths[start:start + batch_size])
            with self.computing():
                outputs.append(self.model({"images": batch}).float().cpu())
            self.check_finite(outputs[-1], paths[start:start + batch_size])
        return torch.cat(outputs)

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        """Raise errors of the model inside the context as ValueError with the name of the run.

        Raises:
            ValueError: for a RuntimeError, IndexError or TypeError. `torch.cuda.OutOfMemoryError` is not changed.
        """
        try:
            yield
        except (RuntimeError, IndexError, TypeError) as error:
            if isinstance(error, torch.cuda.OutOfMemoryError):
                raise
            raise ValueError(f"{self.run_folder / 'config.yaml'}: the model fails with the checkpoint "
                             f"{self.cfg.MODEL.WEIGHTS} ({type(error).__name__}: {error}). Correct the value, or use "
                             "the config.yaml written by the training, or another checkpoint") from error

    def check_finite(self, embeddings: Tensor, images: Sequence) -> None:
        """Check that embeddings are finite.

        Args:
            embeddings: float (N, E).
            images: N names for the error message.

        Raises:
            ValueError: if an embedding contains NaN or infinity.
        """
        broken = ~embeddings.isfinite().all(dim=1)
        if broken.any():
            raise ValueError(f"{self.cfg.MODEL.WEIGHTS}: {int(broken.sum())} of {len(broken)} embeddings are not finite"
                             f", such as that of {images[int(broken.nonzero()[0])]}; the weights are damaged, or too "
                             "large for TEST.AUTOCAST. Use another checkpoint, or set TEST.AUTOCAST to \"\"")

    def load_images(self, paths: Sequence[str | Path]) -> Tensor:
        """Read images and apply the test transforms.

        Args:
            paths: N image files.

        Returns:
            float (N, 3, H, W), RGB, in 0..255, on the device of the model.

        Raises:
            ValueError: if an image cannot be read.
        """
        return torch.stack([self.transform(read_image(path)) for path in paths]).to(self.model.device)

    def recognise(self, images: str | Path | Sequence[str | Path]) -> list[dict[str, str]]:
        """Predict the attributes of images, without probabilities.

        Args:
            images: one path, or a sequence of N paths.

        Returns:
            N dictionaries, such as {"gender": "female", "upper colour": "red", ...}.

        Raises:
            ValueError: if the model does not predict attributes, or as `embed`.
        """
        answers = self._reader().recognise(self.embed(images)).cpu()
        columns = self._reader().schema.columns
        return [{column.name: column.classes[k] if k >= 0 else "none" for column, k in zip(columns, row)}
                for row in answers.tolist()]

    def answers(self, images: str | Path | Sequence[str | Path]) -> list[dict[str, Answer]]:
        """Predict the attributes of images, with probabilities.

        The probabilities are calibrated if RUN/calibration exists; otherwise a warning is logged and
        `Answer.calibrated` is False. An answer is the most probable class. It can differ from the prediction of
        `recognise`, which takes the class of the nearest semantic ID.

        Args:
            images: one path, or a sequence of N paths.

        Returns:
            N dictionaries from attribute to `Answer`. Answers below the calibrated threshold are "uncertain".

        Raises:
            ValueError: if the model does not predict attributes with probabilities, or as `embed`.
        """
        reader = self._reader()
        if not hasattr(reader, "confidences"):
            raise ValueError(f"{self.cfg.MODEL.WEIGHTS}: this model predicts attributes without probabilities; use "
                             "`recognise`")
        if not (self.calibration and self.calibration.temperatures):
            logger.warning(f"{self.run_folder}: attributes are not calibrated: probabilities are plain softmax outputs "
                           f"and no answer is \"uncertain\"; calibrate with {COMMAND} {self.run_folder}")
        return answers_of(reader, self.embed(images), self.calibration)

    def same_person(self, first: str | Path, second: str | Path, prior: float | None = None) -> float:
        """Compute the probability that two images show the same person; needs RUN/calibration.

        Args:
            first, second: paths of the images.
            prior: prior probability; if None, that of the calibration, 0.5 by default.

        Returns:
            the probability, 0 to 1.

        Raises:
            FileNotFoundError: if the run is not calibrated.
            ValueError: if the calibration belongs to another checkpoint or to other settings, or as `embed`.
        """
        if self.calibration is None:
            raise FileNotFoundError(f"{self.run_folder / CALIBRATION_FILE}: not found; scores are not probabilities "
                                    f"without it. Calibrate with {COMMAND} {self.run_folder}")
        fitted, test = self.calibration.verification, self.cfg.TEST
        if (fitted.metric, fitted.groups) != (test.METRIC, tuple(test.GROUPS)):
            raise ValueError(f"{self.run_folder / CALIBRATION_FILE}: was fitted on {fitted.metric} scores of "
                             f"{', '.join(fitted.groups) or 'all groups'}, but TEST.METRIC is {test.METRIC} and "
                             f"TEST.GROUPS {list(test.GROUPS)}; calibrate again with {COMMAND} {self.run_folder}")
        embeddings = self.embed([first, second])
        return fitted.probability(self.picture_scores(embeddings[:1], embeddings[1:]).item(), prior)

    @cached_property
    def calibration(self) -> Calibration | None:
        """The calibration of this run, written by `experiments.calibrate`; None if there is none.

        Raises:
            ValueError: if it is damaged, or belongs to another checkpoint or to other settings.
        """
        if not (self.run_folder / CALIBRATION_FILE).is_file():
            return None
        calibration = read_calibration(self.run_folder, self.cfg.MODEL.WEIGHTS, self.settings)
        columns = [column.name for column in self.reader.schema.columns] if self.reader else []
        unknown = [name for name in calibration.temperatures if name not in columns]
        if unknown:
            raise ValueError(f"{self.run_folder / CALIBRATION_FILE}: has a temperature of {unknown[0]!r:.60}, expected "
                             f"{', '.join(columns) or 'none'}; calibrate again with {COMMAND} {self.run_folder}")
        return calibration

    @cached_property
    def attribute_model(self) -> AttributeModel | None:
        """The attribute tables of the model, not calibrated; None for a model without prototypes."""
        if not isinstance(self.reader, PrototypeReader):
            return None
        try:
            return self.reader.attribute_model(self.model.prototypes.synthesis)
        except ValueError as error:
            raise ValueError(f"{self.cfg.MODEL.WEIGHTS}: {error}") from error

    @property
    def settings(self) -> dict:
        """The settings of config.yaml on which calibrated probabilities depend: plain values by name."""
        par = self.cfg.TEST.PAR
        return {"reader": type(self.reader).__name__ if self.reader else None,
                "TEST.PAR.COSINE_SCALE": float(par.COSINE_SCALE), "TEST.PAR.FORCE_COLOUR": bool(par.FORCE_COLOUR),
                "TEST.PAR.TAU": float(par.TAU), "TEST.PAR.UNSEEN_PRIOR": float(par.UNSEEN_PRIOR),
                "INPUT.SIZE_TEST": list(self.cfg.INPUT.SIZE_TEST)}

    def search(self, query: dict[str, str] | str | Path, gallery: str | Path | Sequence[str | Path],
               top: int = 10, groups: Sequence[str] = (), may_have_changed_clothes: bool = False) -> list[Match]:
        """Search a folder or list of images, in memory, with the scores of `GalleryIndex.search`.

        Args:
            query: values of some or all attributes, such as {"gender": "female"}, or the path of an image.
            gallery: a folder, see `images`, or a sequence of paths.
            top: maximum number of results.
            groups: groups of Cerberus that an image query compares; if empty, those of TEST.GROUPS, or else all.
            may_have_changed_clothes: compare only `groups_for_changed_clothes`; for image queries.

        Returns:
            the best matches, best first.

        Raises:
            ValueError: if the query has unknown attributes or values, if `groups` does not fit the query or the model,
                or as `embed`.
            FileNotFoundError: if the gallery folder does not exist.
        """
        if isinstance(query, dict) and (groups or may_have_changed_clothes):
            raise ValueError("search: groups can only be chosen for an image query; to ignore clothes in a query by "
                             "attributes, give no attributes of clothes")
        if groups and may_have_changed_clothes:
            raise ValueError("search: give either groups or may_have_changed_clothes, not both")
        labels = self._reader().schema.parse(query) if isinstance(query, dict) else None  # rejected before embedding
        paths = self.images(gallery) if isinstance(gallery, str | Path) else list(gallery)
        embeddings = self.embed(paths)
        known = None if labels is None else self.attribute_model
        if labels is not None and known is None:  # a model without prototypes: compared by its reader
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
        """Return the query of an image, with the groups that `search` compares."""
        chosen = self.groups_for_changed_clothes if may_have_changed_clothes else self._compared_groups(groups)
        if may_have_changed_clothes and not chosen:
            raise ValueError(f"{self.run_folder}: none of the groups {', '.join(self.groups)} stays the same when "
                             "clothes change; choose the groups to compare with `groups`")
        weights = dict.fromkeys(self.groups if chosen else (), 0.0) | dict.fromkeys(chosen, 1.0)
        return Query(self.embed(picture)[0].numpy(), weights=weights)

    def picture_scores(self, queries: Tensor, gallery: Tensor, groups: Sequence[str] = ()) -> Tensor:
        """Compute the scores of image pairs.

        Args:
            queries: float (Q, E).
            gallery: float (N, E).
            groups: groups to compare; if empty, those of TEST.GROUPS, or else all.

        Returns:
            float (Q, N); higher is more similar.

        Raises:
            ValueError: if the model has no such group.
        """
        if groups := self._compared_groups(groups):
            queries, gallery = (of_groups(side, groups, self.groups) for side in (queries, gallery))
        return image_scores(queries, gallery, self.cfg.TEST.METRIC)

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the groups of Cerberus, in the order of the blocks of an embedding; () for other models."""
        return groups_of(self.model)

    @property
    def groups_for_changed_clothes(self) -> tuple[str, ...]:
        """Groups that stay the same when clothes change, chosen by `experiments.groups` or given by the schema.

        Raises:
            ValueError: if the model has no groups, or RUN/groups/groups.json is damaged.
        """
        self._check_groups()
        path = self.run_folder / "groups" / GROUPS_FILE
        if not path.is_file():
            return tuple(group.name for group in self.model.groups if group.lasting)
        remedy = f"write it again with python -m cerberus_plugin.experiments.groups {self.run_folder}, or delete it"
        record = read_json(path, remedy)
        chosen = record.get("chosen") if isinstance(record, dict) else None
        if not (isinstance(chosen, list) and chosen and all(group in self.groups for group in chosen)):
            raise ValueError(f"{path}: 'chosen' is {chosen!r:.60}, expected one or more of {', '.join(self.groups)}; "
                             f"{remedy}")
        return tuple(chosen)

    def _compared_groups(self, groups: Sequence[str]) -> Sequence[str]:
        """Return these groups, or those of TEST.GROUPS if none are given; () stands for all groups."""
        chosen = groups or self.cfg.TEST.GROUPS
        if chosen:
            self._check_groups()
        return chosen

    def _check_groups(self) -> None:
        if not self.groups:
            raise ValueError(f"{self.run_folder}: {self.cfg.MODEL.META_ARCHITECTURE} has no groups; only Cerberus "
                             "compares images by groups")

    def _reader(self):
        if self.reader is None:
            raise ValueError(f"{self.cfg.MODEL.WEIGHTS}: this model does not predict attributes (it has neither "
                             "prototypes nor attribute classifiers); it can only embed images and search by image")
        return self.reader

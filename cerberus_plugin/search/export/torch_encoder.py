"""A run folder as an encoder of pictures: what a gallery and an exported model are made with.

Shapes: N images, H x W the model's input, E values of an embedding.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from fastreid.config import CfgNode
from torch import Tensor, nn

from ...config import changed, is_among
from ...modeling.checkpoint_tables import HELD
from ...predictor import CerberusPredictor
from ...utils.images import to_rgb

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..portable import AttributeModel

# Settings that change no embedding of trained weights: where they are, and what training began with.
WITHOUT_EFFECT = ("MODEL.DEVICE", "MODEL.WEIGHTS", "MODEL.BACKBONE.PRETRAIN", "MODEL.BACKBONE.PRETRAIN_PATH",
                  "MODEL.BACKBONE.PRETRAIN_SOURCE", "MODEL.BACKBONE.PRETRAIN_PARTIAL",
                  "MODEL.LOSSES", "MODEL.COMPILE", "MODEL.COMPILE_MODE", "MODEL.CHANNELS_LAST", "MODEL.FREEZE_LAYERS")
# What rows of galleries have beside embeddings where attributes are read by probability.
OF_PROBABILITIES = ("TEST.READING", "TEST.PAR.TAU", "TEST.PAR.UNSEEN_PRIOR", "TEST.PAR.COSINE_SCALE",
                    "TEST.APS.SYNTHESISE")
WITH_EFFECT = ("MODEL", "INPUT.SIZE_TEST", "INPUT.CROP", "INPUT.INTERPOLATION", "TEST.METRIC")


class Embedder(nn.Module):
    """Pixels to the embeddings that are compared: blocks of unit length, unless they are compared by distance.

    Args:
        model: in evaluation mode; takes the host's batch.
        blocks: of an embedding, side by side.
        metric: "cosine" or "euclidean".
    """

    def __init__(self, model: nn.Module, blocks: int, metric: str) -> None:
        super().__init__()
        self.model = model
        self.blocks = blocks
        self.unit = metric == "cosine" or blocks > 1

    def forward(self, images: Tensor) -> Tensor:
        """RGB in 0..255 of any type, (N, 3, H, W), to float (N, E)."""
        embeddings = self.model({"images": images.float()}).float()
        if not self.unit:
            return embeddings
        return F.normalize(embeddings.unflatten(1, (self.blocks, -1)), dim=2).flatten(1)


class TorchEncoder:
    """The `portable.Encoder` of a run folder: a predictor's model, pictures resized as in its test.

    Args:
        predictor: what it is calibrated by, if it is, is the encoder's as well.
        batch_size: images at a time.
    """

    def __init__(self, predictor: CerberusPredictor, batch_size: int = 64) -> None:
        self.predictor = predictor
        self.batch_size = batch_size
        self.metric: str = predictor.cfg.TEST.METRIC
        self.groups = predictor.groups
        self.lasting_groups = predictor.groups_for_changed_clothes if self.groups else ()
        calibration = predictor.calibration  # a damaged one names its own file
        self.vocabulary: AttributeModel | None = predictor.attribute_model
        if self.vocabulary is not None and calibration is not None:
            self.vocabulary = self.vocabulary.calibrated(calibration.temperatures, calibration.withhold_below)
        self.verification = calibration.verification if calibration else None
        self.embedder = Embedder(predictor.model, max(1, len(self.groups)), self.metric).eval()

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint_of(self.predictor)

    @cached_property
    def dim(self) -> int:
        """Values of an embedding, counted on a black picture: models do not tell."""
        from PIL import Image

        return self.encode([Image.new("RGB", (64, 128))]).shape[1]

    @torch.no_grad()
    def encode(self, images: Sequence[Image]) -> np.ndarray:
        """Pictures of any size and mode to embeddings: float32 (N, E)."""
        if not len(images):
            return np.zeros((0, self.dim), dtype=np.float32)
        parts = []
        for start in range(0, len(images), self.batch_size):
            batch = [self.predictor.transform(to_rgb(image)) for image in images[start:start + self.batch_size]]
            with self.predictor.computing():
                parts.append(self.embedder(torch.stack(batch).to(self.predictor.model.device)).cpu())
            self.predictor.check_finite(parts[-1], [f"picture {start + i}" for i in range(len(batch))])
        return torch.cat(parts).numpy()


def fingerprint_of(predictor: CerberusPredictor) -> str:
    """Hexadecimal SHA-256 of a run's weights and of the settings that change its embeddings.

    Settings count where they differ from their defaults, so that a key that a later version adds changes nothing.
    """
    digest = hashlib.sha256(json.dumps(_settings(predictor.cfg), sort_keys=True).encode())
    for name, value in sorted(predictor.model.state_dict().items()):
        if name == HELD:  # what attributes are called changes no embedding, and earlier checkpoints have none
            continue
        values = value.detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()


def _settings(cfg: CfgNode) -> dict:
    """By dotted name, what differs from the defaults among what changes embeddings."""
    by_probability = cfg.MODEL.META_ARCHITECTURE == "Cerberus" and cfg.TEST.READING == "probability"
    with_effect = (*WITH_EFFECT, *(OF_PROBABILITIES if by_probability else ()))
    return {name: value for name, value in changed(cfg).items()
            if is_among(name, with_effect) and not is_among(name, WITHOUT_EFFECT)}

"""An encoder that runs the model of a run folder with torch, for galleries and for the export.

Shapes: N images, H x W input size of the model, E values of an embedding.
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

# Settings without effect on the embeddings of trained weights: devices, paths, and settings of the training.
WITHOUT_EFFECT = ("MODEL.DEVICE", "MODEL.WEIGHTS", "MODEL.BACKBONE.PRETRAIN", "MODEL.BACKBONE.PRETRAIN_PATH",
                  "MODEL.BACKBONE.PRETRAIN_SOURCE", "MODEL.BACKBONE.PRETRAIN_PARTIAL",
                  "MODEL.LOSSES", "MODEL.COMPILE", "MODEL.COMPILE_MODE", "MODEL.CHANNELS_LAST", "MODEL.FREEZE_LAYERS")
# Settings of the log-probabilities that galleries store with embeddings if TEST.READING is probability.
OF_PROBABILITIES = ("TEST.READING", "TEST.PAR.TAU", "TEST.PAR.UNSEEN_PRIOR", "TEST.PAR.COSINE_SCALE",
                    "TEST.APS.SYNTHESISE")
WITH_EFFECT = ("MODEL", "INPUT.SIZE_TEST", "INPUT.CROP", "INPUT.INTERPOLATION", "TEST.METRIC")


class Embedder(nn.Module):
    """Computes embeddings from pixels; blocks have unit length unless embeddings are compared by Euclidean distance.

    Args:
        model: in evaluation mode; its input is a batch of FastReID.
        blocks: number of blocks of an embedding.
        metric: "cosine" or "euclidean".
    """

    def __init__(self, model: nn.Module, blocks: int, metric: str) -> None:
        super().__init__()
        self.model = model
        self.blocks = blocks
        self.unit = metric == "cosine" or blocks > 1

    def forward(self, images: Tensor) -> Tensor:
        """Compute embeddings.

        Args:
            images: (N, 3, H, W) of any type, RGB, in 0..255.

        Returns:
            float (N, E).
        """
        embeddings = self.model({"images": images.float()}).float()
        if not self.unit:
            return embeddings
        return F.normalize(embeddings.unflatten(1, (self.blocks, -1)), dim=2).flatten(1)


class TorchEncoder:
    """A `portable.Encoder` that runs the model of a predictor.

    Args:
        predictor: its model, its test transforms and its calibration are used.
        batch_size: images per forward pass.

    Raises:
        ValueError: if the calibration or the groups of the run are damaged.
    """

    def __init__(self, predictor: CerberusPredictor, batch_size: int = 64) -> None:
        self.predictor = predictor
        self.batch_size = batch_size
        self.metric: str = predictor.cfg.TEST.METRIC
        self.groups = predictor.groups
        self.lasting_groups = predictor.groups_for_changed_clothes if self.groups else ()
        calibration = predictor.calibration
        self.vocabulary: AttributeModel | None = predictor.attribute_model
        if self.vocabulary is not None and calibration is not None:
            self.vocabulary = self.vocabulary.calibrated(calibration.temperatures, calibration.withhold_below)
        self.verification = calibration.verification if calibration else None
        self.embedder = Embedder(predictor.model, max(1, len(self.groups)), self.metric).eval()

    @cached_property
    def fingerprint(self) -> str:
        """See `fingerprint_of`."""
        return fingerprint_of(self.predictor)

    @cached_property
    def dim(self) -> int:
        """E, determined by encoding a black image."""
        from PIL import Image

        return self.encode([Image.new("RGB", (64, 128))]).shape[1]

    @torch.no_grad()
    def encode(self, images: Sequence[Image]) -> np.ndarray:
        """Compute the embeddings of images.

        Args:
            images: N images of any size and mode.

        Returns:
            float32 (N, E).

        Raises:
            ValueError: if the model fails, or an embedding is not finite.
        """
        if not len(images):
            return np.zeros((0, self.dim), dtype=np.float32)
        parts = []
        for start in range(0, len(images), self.batch_size):
            batch = [self.predictor.transform(to_rgb(image)) for image in images[start:start + self.batch_size]]
            with self.predictor.computing():
                parts.append(self.embedder(torch.stack(batch).to(self.predictor.model.device)).cpu())
            self.predictor.check_finite(parts[-1], [f"image {start + i}" for i in range(len(batch))])
        return torch.cat(parts).numpy()


def fingerprint_of(predictor: CerberusPredictor) -> str:
    """Compute the fingerprint of a run: the hexadecimal SHA-256 of its weights and of settings that affect embeddings.

    Only settings that differ from their defaults are included, so that new keys of later versions do not change it.

    Args:
        predictor: of the run.
    """
    digest = hashlib.sha256(json.dumps(_settings(predictor.cfg), sort_keys=True).encode())
    for name, value in sorted(predictor.model.state_dict().items()):
        if name == HELD:  # attribute tables do not affect embeddings, and earlier checkpoints have none
            continue
        values = value.detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()


def _settings(cfg: CfgNode) -> dict:
    """Return the settings that affect embeddings and differ from their defaults, by dotted name."""
    by_probability = cfg.MODEL.META_ARCHITECTURE == "Cerberus" and cfg.TEST.READING == "probability"
    with_effect = (*WITH_EFFECT, *(OF_PROBABILITIES if by_probability else ()))
    return {name: value for name, value in changed(cfg).items()
            if is_among(name, with_effect) and not is_among(name, WITHOUT_EFFECT)}

"""CSSC, content and salient semantics collaboration for cloth-changing re-identification (arXiv 2405.16597).

Two branches share a trunk. Each branch re-weights the channels of its maps twice, once by the average-pooled map
(content) and once by the max-pooled map (salient). The two branches use opposite orders.
Shapes: B images, C channels of the last layer of the backbone (2048), H x W the map (24 x 12 for images of 384x192), K
training identities. An image has 5 features: those of the four refinements, and the final one.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from fastreid.config import configurable
from fastreid.layers import get_norm
from fastreid.modeling.backbones import build_backbone
from fastreid.modeling.meta_arch.build import META_ARCH_REGISTRY
from fastreid.utils.events import get_event_storage
from torch import Tensor, nn

from ..utils.distributed import gather_batch
from .backbones import split_backbone
from .inputs import ImageModel
from .losses import IdentityLoss, Loss, Targets, TripletLoss, terms_of

logger = logging.getLogger("fastreid.cerberus")

POOLINGS = ("average", "max")  # SMR-C, content, and SMR-S, salient
FEATURES = 5
STRIPES = 8
REDUCTION = 16  # ratio of the channels to the width of the hidden layer of the gate
STRIPE_SHARE = 8  # ratio of the channels to the feature size of each stripe


class SMR(nn.Module):
    """Semantics mining and refinement: re-weight the channels of a map by its pooled feature.

    The map is multiplied by gate(pooled), without a residual connection. In training, the pooled feature and the
    features of eight stripes of the unrefined map, after batch normalisation, are classified by identity.

    Args:
        channels: C.
        num_classes: K.
        pooling: one of `POOLINGS`, for the whole map and for its stripes.
        norm: FastReID's name of a normalisation layer ("BN", "syncBN").
    """

    def __init__(self, channels: int, num_classes: int, pooling: str, norm: str = "BN") -> None:
        super().__init__()
        assert pooling in POOLINGS, pooling
        self.pooling = pooling
        self.gate = nn.Sequential(nn.Linear(channels, channels // REDUCTION), nn.ReLU(),
                                  nn.Linear(channels // REDUCTION, channels), nn.Sigmoid())
        self.bn = get_norm(norm, channels, bias_freeze=True)
        # Each stripe has a linear layer without bias and a batch normalisation; computed together for all stripes.
        size = channels // STRIPE_SHARE
        self.stripe_weight = nn.Parameter(torch.empty(STRIPES, size, channels))
        nn.init.uniform_(self.stripe_weight, -channels ** -0.5, channels ** -0.5)  # as in nn.Linear
        self.stripe_bn = get_norm(norm, STRIPES * size)
        self.classifier = _classifier(channels + STRIPES * size, num_classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the refined map (B, C, H, W), the pooled feature (B, C), and in training the logits (B, K)."""
        pooled = self._pool(x[:, :, None])[:, :, 0]  # (B, C)
        logits = self._classify(x, pooled) if self.training else None
        return self.gate(pooled)[:, :, None, None] * x, pooled, logits

    def _classify(self, x: Tensor, pooled: Tensor) -> Tensor:
        height = x.shape[2] // STRIPES
        if height == 0:
            raise ValueError(f"a map of {x.shape[2]} rows cannot be divided into the {STRIPES} stripes of CSSC: "
                             "increase INPUT.SIZE_TRAIN. With MODEL.BACKBONE.LAST_STRIDE 1 a row corresponds to 16 "
                             "pixels, and images must have a height of at least 128; with LAST_STRIDE 2, and with most "
                             "backbones without this key, 32 pixels and at least 256.")
        stripes = self._pool(x[:, :, :STRIPES * height].unflatten(2, (STRIPES, height)))  # (B, C, 8)
        stripes = torch.einsum("bcs,sdc->bsd", stripes, self.stripe_weight).flatten(1)  # (B, 8 * C / 8)
        parts = torch.cat([_normalised(self.bn, pooled), _normalised(self.stripe_bn, stripes)], dim=1)
        return F.linear(parts, self.classifier)

    def _pool(self, x: Tensor) -> Tensor:
        """(B, C, stripes, rows, W) -> (B, C, stripes)."""
        return x.mean(dim=(3, 4)) if self.pooling == "average" else x.amax(dim=(3, 4))


class Branch(nn.Module):
    """Blocks of the last layer of the backbone, with refinements after the first and after the last of them.

    Args:
        blocks: blocks of the last layer, without the last one. For ResNet-18 this is one block, followed by both
            refinements.
        poolings: poolings of the two refinements.
        smr: other arguments of `SMR`.
    """

    def __init__(self, blocks: nn.Sequential, poolings: tuple[str, str], **smr) -> None:
        super().__init__()
        self.first, self.rest = blocks[0], blocks[1:]
        self.smr = nn.ModuleList([SMR(pooling=pooling, **smr) for pooling in poolings])

    def forward(self, x: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor | None]]]:
        """Return the refined map, and for both refinements the pooled feature and the logits."""
        x, *first = self.smr[0](self.first(x))
        x, *last = self.smr[1](self.rest(x))
        return x, [tuple(first), tuple(last)]


@META_ARCH_REGISTRY.register()
class CSSC(ImageModel):
    """The meta-architecture of CSSC. Returns losses by name in training, and unit embeddings (B, C) in evaluation.

    Args:
        trunk: shared part of the backbone, images (B, 3, ...) -> (B, C', H', W').
        last_layer: blocks of the last layer of the backbone. Each branch has a copy of all blocks except the last one;
            the last block is applied to the sum of the maps of the branches.
        channels: C.
        width: number of channels of the maps of the branches, if it is not C.
        num_classes: K; 0 for a model that is only used for inference.
        norm: see `SMR`.
        pixel_mean: mean of RGB values in 0..255.
        pixel_std: standard deviation of RGB values in 0..255.
        criteria: the losses, each `loss(outputs, targets) -> {name: scalar}`, see `terms_of`. Label smoothing
            distributes epsilon evenly over all K identities as in the code of the paper. FastReID's loss distributes it
            over the K - 1 other identities, which is equivalent with epsilon * (K - 1) / K.
        triplet_epoch: the first epoch with triplet losses, counted from 1.
        flip_sum: add the features of the image and of the flipped image.
    """

    compilable = ("represent", "losses")  # methods of tensors only, for torch.compile
    # The meaning of "backbone" in MODEL.FREEZE_LAYERS: the blocks of the backbone, without the refinements.
    backbone_layers = ("trunk", *(f"{branch}.{blocks}" for branch in ("content_branch", "salient_branch")
                                  for blocks in ("first", "rest")), "shared")

    @configurable
    def __init__(self, *, trunk: nn.Module, last_layer: nn.Sequential, channels: int, num_classes: int,
                 norm: str = "BN", pixel_mean: list[float], pixel_std: list[float], criteria: Sequence[Loss],
                 triplet_epoch: int = 36, flip_sum: bool = True, width: int | None = None) -> None:
        super().__init__(pixel_mean, pixel_std)
        smr = {"channels": width or channels, "num_classes": num_classes, "norm": norm}
        self.trunk = trunk
        self.content_branch = Branch(last_layer[:-1], ("average", "max"), **smr)
        self.salient_branch = Branch(copy.deepcopy(last_layer[:-1]), ("max", "average"), **smr)
        self.shared = last_layer[-1]
        self.bn = get_norm(norm, channels, bias_freeze=True)
        self.classifier = _classifier(channels, num_classes)
        self.criteria = list(criteria)
        self.triplet_epoch = triplet_epoch
        self.flip_sum = flip_sum
        self.ignored_rows = 0  # of the maps of the previous batch

    @classmethod
    def from_config(cls, cfg) -> dict:
        """Arguments from a configuration, see `fastreid.config.configurable`."""
        node = cfg.MODEL.CSSC
        if node.FLIP_SUM and cfg.TEST.FLIP.ENABLED:
            raise ValueError("MODEL.CSSC.FLIP_SUM and TEST.FLIP.ENABLED are both True: flipped images would be used "
                             "twice. Set one of them to False; the paper uses FLIP_SUM.")
        split = split_backbone(build_backbone(cfg), cfg, "conv5_1")
        return {
            "trunk": split.trunk,
            "last_layer": split.branch,
            "channels": split.channels,
            "width": split.width,
            "num_classes": cfg.MODEL.HEADS.NUM_CLASSES,
            "norm": cfg.MODEL.HEADS.NORM,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            # The losses are means over the features; the paper uses the sum.
            "criteria": [IdentityLoss(FEATURES, cfg.MODEL.LOSSES.CE.EPSILON),
                         TripletLoss(FEATURES, cfg.MODEL.LOSSES.TRI.MARGIN)],
            "triplet_epoch": node.TRIPLET_EPOCH,
            "flip_sum": node.FLIP_SUM,
        }

    def forward(self, batched_inputs):
        """Return losses by name for a training batch (a dict), or embeddings (B, C) in evaluation mode.

        In evaluation mode the input can also be a tensor of images.
        """
        images = self.preprocess_image(batched_inputs)
        if not self.training:
            feature = self.pool(images)[0].float()
            if self.flip_sum:
                feature = feature + self.pool(images.flip(3))[0].float()
            return F.normalize(feature, dim=1)
        targets = self.training_targets(batched_inputs)
        outputs = self.represent(images) | {"targets": targets}
        self._log_ignored_rows(outputs.pop("rows"))
        mined = None
        if self.mines_triplets():  # triplet mining uses the batches of all processes
            outputs["representations"], mined = gather_batch(outputs["representations"], targets)
        return self.losses(outputs, mined)

    def pool(self, images: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor | None]], int]:
        """Return the feature (B, C) of normalised images, features and logits of the refinements, and H."""
        shared = self.trunk(images)  # (B, C', H', W')
        content, of_content = self.content_branch(shared)  # (B, C, H, W)
        salient, of_salient = self.salient_branch(shared)
        refined = self.shared(content + salient)
        return refined.amax(dim=(2, 3)), of_content + of_salient, refined.shape[2]

    def represent(self, images: Tensor) -> dict:
        """Return {"representations": (5, B, C), "logits": (5, B, K), "rows": H} for normalised training images."""
        feature, refinements, rows = self.pool(images)
        features, logits = zip(*refinements, (feature, F.linear(_normalised(self.bn, feature), self.classifier)))
        narrower = feature.shape[1] - features[0].shape[1]
        if narrower:  # padding with zeros does not change distances
            features = (*(F.pad(each, (0, narrower)) for each in features[:-1]), feature)
        return {"representations": torch.stack(features), "logits": torch.stack(logits), "rows": rows}

    def losses(self, outputs: dict, mined: Tensor | None) -> dict[str, Tensor]:
        """Return the terms of the objective by name; the terms of the paper are sums over the five features.

        Args:
            outputs: outputs of `represent`, with "targets" int64 (B,), identities of the logits.
            mined: int64, identities of the representations, which can include the batches of all processes; None to
                disable the triplet losses.
        """
        return terms_of(self.criteria, outputs, Targets(mined))

    def mines_triplets(self) -> bool:
        """Return whether the current epoch of the trainer has triplet losses; always True outside a trainer."""
        try:
            epoch = getattr(get_event_storage(), "epoch", None)  # counted from 0; set before each epoch
        except AssertionError:
            return True
        return epoch is None or epoch + 1 >= self.triplet_epoch

    @staticmethod
    def finish_embeddings(embeddings: Tensor) -> Tensor:
        """Normalise embeddings (n, C) again, after FastReID has averaged over flipped images."""
        return F.normalize(embeddings, dim=1)

    def _log_ignored_rows(self, rows: int) -> None:
        if rows % STRIPES != self.ignored_rows:
            self.ignored_rows = rows % STRIPES
            logger.warning(f"CSSC: the map has {rows} rows, which is not a multiple of {STRIPES}: the last "
                           f"{self.ignored_rows} rows are not used for the classification of the refinements. "
                           "INPUT.SIZE_TRAIN 384x192 gives a multiple of 8")


def _classifier(size: int, num_classes: int) -> nn.Parameter:
    """Weight (K, size), initialised as in the published code."""
    return nn.Parameter(nn.init.normal_(torch.empty(num_classes, size), std=0.001))


def _normalised(bn: nn.Module, x: Tensor) -> Tensor:
    return bn(x[:, :, None, None])[:, :, 0, 0]  # FastReID's normalisation layers expect (B, D, 1, 1)

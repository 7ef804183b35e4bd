"""CSSC (arXiv 2405.16597): content and salient semantics refine each other, for people who change their clothes.

Two branches share a trunk. Each weights the channels of its maps twice, by what the mean of the map says (content)
and by what its maximum says (salient): one in this order, the other in the reverse.
Shapes: B images, C channels of the backbone's last layer (2048), H x W the map (24 x 12 at 384x192), K training
identities. An image has 5 features: of the four refinements, and of the whole.
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
REDUCTION = 16  # channels to the width of the gate's hidden layer
STRIPE_SHARE = 8  # channels to what each stripe gives the classifier


class SMR(nn.Module):
    """Semantics mining and refinement: weigh a map's channels by its pooled self; in training, classify it as well.

    The map is multiplied by gate(pooled), without a residual. What it is classified by, its pooled self after batch
    normalisation and eight stripes of it, is of the map before that, and trains the pooled features.

    Args:
        pooling: of `POOLINGS`, for the whole map and for its stripes.
        norm: FastReID's name of a normalisation ("BN", "syncBN").
    """

    def __init__(self, channels: int, num_classes: int, pooling: str, norm: str = "BN") -> None:
        super().__init__()
        assert pooling in POOLINGS, pooling
        self.pooling = pooling
        self.gate = nn.Sequential(nn.Linear(channels, channels // REDUCTION), nn.ReLU(),
                                  nn.Linear(channels // REDUCTION, channels), nn.Sigmoid())
        self.bn = get_norm(norm, channels, bias_freeze=True)
        # A linear layer without bias and a batch normalisation for each stripe: here one product and one normalisation.
        size = channels // STRIPE_SHARE
        self.stripe_weight = nn.Parameter(torch.empty(STRIPES, size, channels))
        nn.init.uniform_(self.stripe_weight, -channels ** -0.5, channels ** -0.5)  # as torch's linear layers
        self.stripe_bn = get_norm(norm, STRIPES * size)
        self.classifier = _classifier(channels + STRIPES * size, num_classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Map (B, C, H, W) to the refined map, the pooled feature (B, C) and, in training, logits (B, K)."""
        pooled = self._pool(x[:, :, None])[:, :, 0]  # (B, C)
        logits = self._classify(x, pooled) if self.training else None
        return self.gate(pooled)[:, :, None, None] * x, pooled, logits

    def _classify(self, x: Tensor, pooled: Tensor) -> Tensor:
        height = x.shape[2] // STRIPES
        if height == 0:
            raise ValueError(f"a map of {x.shape[2]} rows cannot be cut into the {STRIPES} stripes of CSSC: raise "
                             "INPUT.SIZE_TRAIN. A row is 16 pixels where MODEL.BACKBONE.LAST_STRIDE is 1, so images "
                             "must be 128 high or more; it is 32, so 256, at 2 and of most backbones without this key.")
        stripes = self._pool(x[:, :, :STRIPES * height].unflatten(2, (STRIPES, height)))  # (B, C, 8)
        stripes = torch.einsum("bcs,sdc->bsd", stripes, self.stripe_weight).flatten(1)  # (B, 8 * C / 8)
        parts = torch.cat([_normalised(self.bn, pooled), _normalised(self.stripe_bn, stripes)], dim=1)
        return F.linear(parts, self.classifier)

    def _pool(self, x: Tensor) -> Tensor:
        """(B, C, stripes, rows, W) -> (B, C, stripes)."""
        return x.mean(dim=(3, 4)) if self.pooling == "average" else x.amax(dim=(3, 4))


class Branch(nn.Module):
    """Blocks of the backbone's last layer with a refinement after the first of them and one after the last.

    Args:
        blocks: its blocks but the last. Of ResNet-18, whose last layer has two, that is one: both refinements follow
            it, one after the other.
        poolings: of the two refinements.
    """

    def __init__(self, blocks: nn.Sequential, poolings: tuple[str, str], **smr) -> None:
        super().__init__()
        self.first, self.rest = blocks[0], blocks[1:]
        self.smr = nn.ModuleList([SMR(pooling=pooling, **smr) for pooling in poolings])

    def forward(self, x: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor | None]]]:
        """The refined map, and pooled feature and logits of both refinements."""
        x, *first = self.smr[0](self.first(x))
        x, *last = self.smr[1](self.rest(x))
        return x, [tuple(first), tuple(last)]


@META_ARCH_REGISTRY.register()
class CSSC(ImageModel):
    """The meta-architecture: training returns named losses, evaluation one embedding (B, C) of unit length.

    Args:
        trunk: image -> (B, C', H', W'), shared.
        last_layer: blocks of the backbone's last layer: all but the last go into both branches, as two copies, the
            last one takes the sum of the branches' maps.
        channels: C.   width: channels of the branches' maps, where they are others.
        num_classes: K; 0 for a model that only embeds.
        norm: see `SMR`.
        pixel_mean, pixel_std: of RGB in 0..255.
        criteria: the losses, each `loss(outputs, targets) -> {name: scalar}`, see `terms_of`. Label smoothing spreads
            its epsilon evenly over all K identities as in the paper's code. FastReID's loss spreads it over the K - 1
            others, which at epsilon * (K - 1) / K is the same.
        triplet_epoch: the first epoch that has them, from 1 on.
        flip_sum: embed image and mirror image, and add the two.
    """

    compilable = ("represent", "losses")  # methods of tensors alone, for torch.compile
    # What "backbone" in MODEL.FREEZE_LAYERS stands for: the blocks of the backbone, without the refinements between.
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
        self.ignored_rows = 0  # of the maps seen last

    @classmethod
    def from_config(cls, cfg) -> dict:
        node = cfg.MODEL.CSSC
        if node.FLIP_SUM and cfg.TEST.FLIP.ENABLED:
            raise ValueError("MODEL.CSSC.FLIP_SUM and TEST.FLIP.ENABLED are both True: mirror images would be embedded "
                             "twice. Set one of them to False; FLIP_SUM is the paper's.")
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
            # The paper sums over the features; the losses are means.
            "criteria": [IdentityLoss(FEATURES, cfg.MODEL.LOSSES.CE.EPSILON),
                         TripletLoss(FEATURES, cfg.MODEL.LOSSES.TRI.MARGIN)],
            "triplet_epoch": node.TRIPLET_EPOCH,
            "flip_sum": node.FLIP_SUM,
        }

    def forward(self, batched_inputs):
        """FastReID's batch (a dict, or images alone when evaluating) to losses by name or to the embedding."""
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
        if self.mines_triplets():  # over the batches of all processes
            outputs["representations"], mined = gather_batch(outputs["representations"], targets)
        return self.losses(outputs, mined)

    def pool(self, images: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor | None]], int]:
        """The feature (B, C) of normalised images, features and logits of the refinements, rows of their maps."""
        shared = self.trunk(images)  # (B, C', H', W')
        content, of_content = self.content_branch(shared)  # (B, C, H, W)
        salient, of_salient = self.salient_branch(shared)
        refined = self.shared(content + salient)
        return refined.amax(dim=(2, 3)), of_content + of_salient, refined.shape[2]

    def represent(self, images: Tensor) -> dict:
        """{"representations": (5, B, C), "logits": (5, B, K), "rows": H} of normalised training images."""
        feature, refinements, rows = self.pool(images)
        features, logits = zip(*refinements, (feature, F.linear(_normalised(self.bn, feature), self.classifier)))
        narrower = feature.shape[1] - features[0].shape[1]
        if narrower:  # zeros beside them change no distance
            features = (*(F.pad(each, (0, narrower)) for each in features[:-1]), feature)
        return {"representations": torch.stack(features), "logits": torch.stack(logits), "rows": rows}

    def losses(self, outputs: dict, mined: Tensor | None) -> dict[str, Tensor]:
        """Named terms whose sum is the objective; each of the paper's is a sum over the five features.

        Args:
            outputs: of `represent`, with "targets" int64 (B,), identities of the logits.
            mined: int64, of the representations, which may be those of all processes' batches; None without triplets.
        """
        return terms_of(self.criteria, outputs, Targets(mined))

    def mines_triplets(self) -> bool:
        """Whether the trainer's epoch, a resumed one's too, has triplet losses; always outside a trainer."""
        try:
            epoch = getattr(get_event_storage(), "epoch", None)  # from 0 on; set before each epoch
        except AssertionError:
            return True
        return epoch is None or epoch + 1 >= self.triplet_epoch

    @staticmethod
    def finish_embeddings(embeddings: Tensor) -> Tensor:
        """Of unit length again, after FastReID has averaged over the flip test: (n, C)."""
        return F.normalize(embeddings, dim=1)

    def _log_ignored_rows(self, rows: int) -> None:
        if rows % STRIPES != self.ignored_rows:
            self.ignored_rows = rows % STRIPES
            logger.warning(f"CSSC: {STRIPES} equal stripes of a map of {rows} rows leave the last {self.ignored_rows} "
                           "out of the classification of the refinements; a multiple of 8 rows, as INPUT.SIZE_TRAIN "
                           "384x192 gives, leaves out none")


def _classifier(size: int, num_classes: int) -> nn.Parameter:
    """Weight (K, size), as the published code initialises it."""
    return nn.Parameter(nn.init.normal_(torch.empty(num_classes, size), std=0.001))


def _normalised(bn: nn.Module, x: Tensor) -> Tensor:
    return bn(x[:, :, None, None])[:, :, 0, 0]  # FastReID's norms take (B, D, 1, 1)

"""IDE, ARN and APR: identity and attribute classifiers on one feature (Lin et al., arXiv 1703.07220).

IDE only classifies identities, ARN only attributes, APR both. In APR the input of the identity classifier is the
concatenation of the feature and the re-weighted attribute scores. At inference all three return the feature.
Shapes: B images, C channels, E feature size, A label fields, M attributes (columns), C_m classes of attribute m,
m attribute scores.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from fastreid.config import configurable
from fastreid.layers import get_norm
from fastreid.modeling.heads.build import REID_HEADS_REGISTRY
from fastreid.modeling.heads.embedding_head import EmbeddingHead
from fastreid.modeling.meta_arch.baseline import Baseline
from fastreid.modeling.meta_arch.build import META_ARCH_REGISTRY
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from ..attributes import MISSING, AttributeSchema, find_schema
from ..inference import ProbabilityReader
from .checkpoint_tables import ClassLabels, HeldSchema
from .losses import attribute_loss

# Whether each meta-architecture has classifiers of identities and of attributes.
PARTS = {"IDE": (True, False), "ARN": (False, True), "APR": (True, True)}
NECK_FEATS = ("before", "after")
SCORES = ("probabilities", "positive", "highest")
SCHEMA = "MODEL.APR.SCHEMA"  # for error messages


class AttributeReweighting(nn.Linear):
    """Attribute re-weighting module (ARM): a = sigmoid(V a' + b) * a', (B, m) -> (B, m)."""

    def __init__(self, num_scores: int) -> None:
        super().__init__(num_scores, num_scores)

    def forward(self, scores: Tensor) -> Tensor:
        """Re-weight scores, float (B, m)."""
        return torch.sigmoid(super().forward(scores)) * scores


def attribute_scores(logits: Tensor, sizes: tuple[int, ...], reading: str = "probabilities") -> Tensor:
    """Compute the attribute scores that are the input of ARM, by one of three possible interpretations of the paper.

    Args:
        logits: float (B, sum of sizes), of all classifiers, concatenated.
        sizes: C_m.
        reading: "probabilities": of all classes, m = sum of C_m (Market-1501 39, DukeMTMC 31); "positive": of the
            second class of attributes with two classes, and of all classes of others (30, 23); "highest": of the
            most probable class of each attribute (12, 10).

    Returns:
        float (B, m).

    Examples:
        >>> attribute_scores(torch.tensor([[0.0, 0.0, 0.0, 0.0]]), (2, 2), "positive").tolist()
        [[0.5, 0.5]]
    """
    # Converted explicitly, because autocast on a CPU computes softmax in half precision.
    parts = [part.softmax(dim=1) for part in logits.float().split(sizes, dim=1)]
    if reading == "positive":
        parts = [part[:, 1:] if part.shape[1] == 2 else part for part in parts]
    elif reading == "highest":
        parts = [part.amax(dim=1, keepdim=True) for part in parts]
    return torch.cat(parts, dim=1)


def num_scores(sizes: tuple[int, ...], reading: str) -> int:
    """Return m, the number of scores of `attribute_scores`.

    Raises:
        ValueError: if `reading` is unknown.

    Examples:
        >>> [num_scores((2, 4), reading) for reading in SCORES]
        [6, 5, 2]
    """
    if reading not in SCORES:
        raise ValueError(f"MODEL.APR.SCORES is '{reading}', expected one of {', '.join(SCORES)}")
    return attribute_scores(torch.zeros(1, sum(sizes)), sizes, reading).shape[1]


class ColumnAnswers(nn.Module):
    """`AttributeSchema.column_answers` for tensors on their device: int64 (B, A) -> int64 (B, M), -1 if undefined.

    The method of the schema uses NumPy, which would synchronise the GPU in each training step.
    """

    def __init__(self, schema: AttributeSchema) -> None:
        super().__init__()
        columns = schema.columns
        # The field of each class, and its value for the class; padded to the largest number of classes.
        fields = [column.fields if column.is_colour else column.fields * len(column.classes) for column in columns]
        values = [[1] * len(fields[m]) if column.is_colour else range(len(fields[m]))
                  for m, column in enumerate(columns)]
        for name, rows, padding in (("fields", fields, 0), ("values", values, MISSING - 1)):
            table = pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=padding)  # (M, C)
            self.register_buffer(name, table, persistent=False)

    def forward(self, attributes: Tensor) -> Tensor:
        """Convert labels, int64 (B, A), to classes."""
        yes = attributes[:, self.fields] == self.values  # (B, M, C)
        return torch.where(yes.any(dim=2), yes.long().argmax(dim=2), -1)


@REID_HEADS_REGISTRY.register()
class AttributeHead(EmbeddingHead):
    """FastReID's embedding head with attribute classifiers, whose scores are an input of the identity classifier.

    The feature is the one of FastReID's head at inference: pooled, and passed through the bottleneck if there is one.

    Args:
        identity: whether there are classifiers of identities, see `PARTS`.
        attributes: whether there are classifiers of attributes, see `PARTS`.
        schema: defines the classified columns; None without attributes.
        scores: `reading` of `attribute_scores`.
        reweighting: apply ARM to the scores; False for the ablation.
        block_dim: size of a block of FC, BN, dropout and ReLU after pooling; 0 for none.
        dropout: dropout probability of the block, or of the pooled feature without a block.
        host: arguments of FastReID's head.
    """

    @configurable
    def __init__(self, *, identity: bool, attributes: bool, schema: AttributeSchema | None, scores: str,
                 reweighting: bool, block_dim: int, dropout: float, **host) -> None:
        if host["neck_feat"] not in NECK_FEATS:
            raise ValueError(f"MODEL.HEADS.NECK_FEAT is '{host['neck_feat']}', expected one of {', '.join(NECK_FEATS)}")
        pooled = host["feat_dim"]
        super().__init__(**(host | {"feat_dim": block_dim or pooled}))
        block = [nn.Conv2d(pooled, block_dim, 1), get_norm(host["norm_type"], block_dim)] if block_dim else []
        self.block = nn.Sequential(*block, nn.Dropout(dropout), *([nn.ReLU()] if block_dim else []))
        size = self.weight.shape[1]
        self.scores = scores
        self.sizes = schema.column_sizes if attributes else ()
        self.attributes = nn.Linear(size, sum(self.sizes)) if attributes else None
        self.arm = None
        if identity and attributes:
            m = num_scores(self.sizes, scores)
            self.arm = AttributeReweighting(m) if reweighting else nn.Identity()
            self.weight = nn.Parameter(torch.empty(len(self.weight), size + m))
            nn.init.normal_(self.weight, std=0.01)  # as in FastReID
        elif not identity:
            self.weight = None

    @classmethod
    def from_config(cls, cfg) -> dict:
        """Arguments from a configuration, see `fastreid.config.configurable`."""
        name, node = cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.APR
        if name not in PARTS:
            raise ValueError(f"MODEL.HEADS.NAME AttributeHead supports {', '.join(PARTS)}; MODEL.META_ARCHITECTURE is "
                             f"'{name}'")
        identity, attributes = PARTS[name]
        return super().from_config(cfg) | {
            "identity": identity, "attributes": attributes,
            "schema": find_schema(node.SCHEMA, SCHEMA) if attributes else None,
            "scores": node.SCORES, "reweighting": node.ARM, "block_dim": node.BLOCK_DIM, "dropout": node.DROPOUT}

    def forward(self, features: Tensor, targets: Tensor | None = None):
        """Compute the feature, or in training the outputs for the losses.

        Args:
            features: maps (B, C, H, W).
            targets: int64 (B,), identities, in training.

        Returns:
            the feature (B, E); in training the dict of FastReID's head and "attribute_logits".
        """
        pooled = self.block(self.pool_layer(features))  # (B, C, 1, 1)
        feature = self.bottleneck(pooled)[..., 0, 0]  # (B, E)
        if not self.training:
            return feature
        outputs = {"features": pooled[..., 0, 0] if self.neck_feat == "before" else feature}
        joined = feature
        if self.attributes is not None:
            outputs["attribute_logits"] = logits = self.attributes(feature)
            if self.arm is not None:
                joined = torch.cat([feature, self.arm(attribute_scores(logits, self.sizes, self.scores))], dim=1)
        if self.weight is not None:
            outputs |= self._classify(joined, targets)
        return outputs

    def _classify(self, joined: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Identity logits as in FastReID's head."""
        linear = type(self.cls_layer).__name__ == "Linear"
        logits = F.linear(joined, self.weight) if linear else F.linear(F.normalize(joined), F.normalize(self.weight))
        return {"cls_outputs": self.cls_layer(logits.clone(), targets), "pred_class_logits": logits * self.cls_layer.s}


@META_ARCH_REGISTRY.register()
class APR(Baseline):
    """FastReID's baseline with attributes. The loss is lambda * identity losses + (1 - lambda) * mean attribute loss.

    The identity losses are those of MODEL.LOSSES.NAME; the paper only uses cross-entropy.

    Args:
        schema: schema of the attributes; None for a model without attributes.
        lambda_id: lambda.
        num_classes: number of training identities, or of their outfits if outfits are labelled.
        host: arguments of FastReID's Baseline.
    """

    @configurable
    def __init__(self, *, schema: AttributeSchema | None, lambda_id: float, num_classes: int, **host) -> None:
        super().__init__(**host)
        self.schema = schema
        self.held_schema = HeldSchema(schema) if schema else None
        self.lambda_id = lambda_id
        self.class_labels = ClassLabels(num_classes, len(schema.fields)) if schema else None
        self.column_answers = ColumnAnswers(schema) if schema else None

    @classmethod
    def from_config(cls, cfg) -> dict:
        """Arguments from a configuration, see `fastreid.config.configurable`."""
        head, attributes = cfg.MODEL.HEADS.NAME, PARTS[cls.__name__][1]
        if head != "AttributeHead":
            raise ValueError(f"MODEL.HEADS.NAME is '{head}'; {cls.__name__} needs AttributeHead")
        if not 0 <= cfg.MODEL.APR.LAMBDA <= 1:
            raise ValueError(f"MODEL.APR.LAMBDA is {cfg.MODEL.APR.LAMBDA}, expected a share between 0 and 1")
        return super().from_config(cfg) | {
            "schema": find_schema(cfg.MODEL.APR.SCHEMA, SCHEMA) if attributes else None,
            "lambda_id": cfg.MODEL.APR.LAMBDA,
            "num_classes": cfg.MODEL.NUM_OUTFITS or cfg.MODEL.HEADS.NUM_CLASSES}

    def forward(self, batched_inputs):
        """Return losses by name for a training batch, or features (B, E) in evaluation mode."""
        features = self.backbone(self.preprocess_image(batched_inputs))
        if not self.training:
            return self.heads(features)
        # FastReID's PreciseBN passes -1 for identities of other datasets, and ignores the losses.
        targets = batched_inputs["targets"].to(self.device).clamp(min=0)
        return self.losses(self.heads(features, targets), targets, batched_inputs.get("attributes"))

    def losses(self, outputs: dict, targets: Tensor, attributes: Tensor | None) -> dict[str, Tensor]:
        """Return the terms of the objective by name; the objective is their sum.

        Args:
            outputs: outputs of `AttributeHead`.
            targets: int64 (B,), identities.
            attributes: int64 (B, A), labels.
        """
        identity = {name: self.lambda_id * loss for name, loss in super().losses(outputs, targets).items()}
        return identity | {"loss_attribute": (1 - self.lambda_id) * self._attribute_loss(outputs, attributes)}

    def attribute_reader(self) -> ProbabilityReader | None:
        """Return a reader with the current classifiers; None for a model without attributes."""
        if self.schema is None:
            return None
        classifiers = self.heads.attributes
        labels = self.class_labels.labels.cpu() if len(self.class_labels.labels) else None
        return ProbabilityReader(self.schema, classifiers.weight.detach(), classifiers.bias.detach(),
                                 train_labels=labels)

    def _attribute_loss(self, outputs: dict, attributes: Tensor | None, reduction: str = "mean") -> Tensor:
        if attributes is None:
            raise ValueError("training batch without 'attributes': DATASETS.NAMES must be datasets with annotations, "
                             "such as Market1501Attributes")
        answers = self.column_answers(attributes.to(self.device))
        return attribute_loss(outputs["attribute_logits"], answers, self.heads.sizes, reduction)


@META_ARCH_REGISTRY.register()
class ARN(APR):
    """Attributes only; the loss is the sum of their cross-entropies."""

    def losses(self, outputs: dict, targets: Tensor, attributes: Tensor | None) -> dict[str, Tensor]:
        """See `APR.losses`."""
        return {"loss_attribute": self._attribute_loss(outputs, attributes, "sum")}


@META_ARCH_REGISTRY.register()
class IDE(APR):
    """Identities only; the losses are FastReID's identity losses."""

    def losses(self, outputs: dict, targets: Tensor, attributes: Tensor | None) -> dict[str, Tensor]:
        """See `APR.losses`."""
        return Baseline.losses(self, outputs, targets)

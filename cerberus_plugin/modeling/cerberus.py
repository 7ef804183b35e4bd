"""The Cerberus model: a shared trunk, a global and a local branch, and one representation per attribute group."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

from fastreid.config import configurable
from fastreid.modeling.backbones import build_backbone
from fastreid.modeling.heads import build_heads
from fastreid.modeling.meta_arch.build import META_ARCH_REGISTRY
from fastreid.utils.events import get_event_storage
from torch import Tensor, nn

from ..attributes import PERSON_GROUPS, AttributeSchema, SIDTable, find_schema
from ..inference import PrototypeReader, blocks
from ..utils.distributed import gather_batch
from .backbones import split_backbone
from .checkpoint_tables import HeldSchema
from .inputs import ImageModel
from .losses import (
    GuidanceLoss,
    IdentityLoss,
    Loss,
    PrototypeSoftmaxLoss,
    RegularisationLoss,
    Targets,
    TripletLoss,
    terms_of,
)
from .sid_prototypes import PROTOTYPES, SIDPrototypes, has_prototypes

ALIGNMENT_LOG_PERIOD = 20  # iterations


@META_ARCH_REGISTRY.register()
class Cerberus(ImageModel):
    """The meta-architecture of Cerberus. Returns losses by name in training, and one embedding per image in evaluation.

    Shapes: B images, G groups, D dimensions of a representation, C channels of a map of H x W.

    Args:
        trunk: shared part of the backbone, images (B, 3, ...) -> (B, C', H, W).
        branch: the rest of the backbone; each of the two branches is a copy.
        to_global: converts the output of the global branch to a map if it consists of tokens, see `Split`.
        to_map: converts the output of the local branch to a map if it consists of tokens, see `Split`.
        heads: a `CerberusHead`.
        prototypes: `SIDPrototypes`, or None to train with identities only (first rows of Table 6 of the paper).
        schema: schema of the attributes; None for a model without prototypes and with the groups of the paper.
        pixel_mean: mean of RGB values in 0..255.
        pixel_std: standard deviation of RGB values in 0..255.
        criteria: the losses, each `loss(outputs, targets) -> {name: scalar}`, see `terms_of`; losses can be appended.
        reading: arguments of `PrototypeReader`. Its cosine scale is used if the prototypes have neither a learned nor a
            measured one. None if no loss relates representations to prototypes.
        synthesise: in inference, replace prototypes without training identities by `SIDPrototypes.synthesise`.
    """

    compilable = ("represent", "losses")  # methods of tensors only, for torch.compile
    backbone_layers = ("trunk", "global_branch", "local_branch")  # the meaning of "backbone" in MODEL.FREEZE_LAYERS

    @configurable
    def __init__(self, *, trunk: nn.Module, branch: nn.Module, heads: nn.Module, prototypes: SIDPrototypes | None,
                 schema: AttributeSchema | None, pixel_mean: list[float], pixel_std: list[float],
                 criteria: Sequence[Loss], reading: Mapping | None = None, synthesise: bool = False,
                 to_global: nn.Module | None = None, to_map: nn.Module | None = None) -> None:
        super().__init__(pixel_mean, pixel_std)
        self.trunk = trunk
        self.global_branch = branch
        self.local_branch = copy.deepcopy(branch)
        self.to_global, self.to_map = to_global or nn.Identity(), to_map or nn.Identity()
        self.heads = heads
        self.prototypes = prototypes
        self.schema = schema
        self.groups = schema.groups if schema else PERSON_GROUPS
        self.held_schema = HeldSchema(schema) if schema else None
        self.criteria = list(criteria)
        self.synthesise_unseen = synthesise
        self.reading = reading

    @classmethod
    def from_config(cls, cfg) -> dict:
        """Arguments from a configuration, see `fastreid.config.configurable`."""
        node = cfg.MODEL.CERBERUS
        split = split_backbone(build_backbone(cfg), cfg, "conv4_2")
        prototypes, reading, schema = None, None, None
        if node.SCHEMA or has_prototypes(node):
            schema = find_schema(node.SCHEMA, "MODEL.CERBERUS.SCHEMA")
        # A training set without identities has no classes; only the attribute losses are used.
        criteria: list[Loss] = [IdentityLoss(node.LAMBDA_ID, cfg.MODEL.LOSSES.CE.EPSILON), TripletLoss(
            node.LAMBDA_ID)] if cfg.MODEL.HEADS.NUM_CLASSES else []
        if node.PROTOTYPES not in PROTOTYPES:
            raise ValueError(f"MODEL.CERBERUS.PROTOTYPES is '{node.PROTOTYPES}', expected one of "
                             f"{', '.join(PROTOTYPES)}")
        if node.SOFTMAX < 0 or node.SOFTMAX_SCALE <= 0:
            raise ValueError(f"MODEL.CERBERUS.SOFTMAX is {node.SOFTMAX} and SOFTMAX_SCALE {node.SOFTMAX_SCALE}, "
                             "expected a weight of at least 0 (off) and a scale above 0, such as 16")
        if node.AGREEMENT < 0 or node.AGREEMENT and not node.SOFTMAX:
            raise ValueError(f"MODEL.CERBERUS.AGREEMENT is {node.AGREEMENT} and SOFTMAX {node.SOFTMAX}, expected a "
                             "temperature above 0, such as 0.2, with a weight SOFTMAX above 0; or AGREEMENT 0 (off)")
        if node.SOFTMAX_PRIOR and not node.SOFTMAX:
            raise ValueError("MODEL.CERBERUS.SOFTMAX_PRIOR is True, but SOFTMAX is 0: set its weight, such as 1, or "
                             "SOFTMAX_PRIOR to False")
        if has_prototypes(node):
            prototypes = PROTOTYPES[node.PROTOTYPES](
                tuple(node.NUM_SIDS), schema.group_bits, cfg.MODEL.NUM_OUTFITS or cfg.MODEL.HEADS.NUM_CLASSES,
                cfg.MODEL.HEADS.EMBEDDING_DIM, node.INIT, node.SOFTMAX_SCALE if node.SOFTMAX_PRIOR else None,
                schema.group_names)
            criteria += [GuidanceLoss(node.LAMBDA_SEM), RegularisationLoss(node.LAMBDA_REG)]
            if node.SOFTMAX:
                criteria.append(PrototypeSoftmaxLoss(node.SOFTMAX, node.SOFTMAX_SCALE, node.AGREEMENT))
            if node.LAMBDA_SEM or node.SOFTMAX:
                reading = {"reading": cfg.TEST.READING, "force_colour": cfg.TEST.PAR.FORCE_COLOUR,
                           "partial": cfg.TEST.APS.PARTIAL, "cosine_scale": cfg.TEST.PAR.COSINE_SCALE,
                           "tau": cfg.TEST.PAR.TAU, "unseen_prior": cfg.TEST.PAR.UNSEEN_PRIOR}
        return {
            "trunk": split.trunk,
            "branch": split.branch,
            "to_global": split.to_global,
            "to_map": split.to_map,
            "heads": build_heads(cfg),
            "prototypes": prototypes,
            "schema": schema,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "criteria": criteria,
            "reading": reading,
            "synthesise": cfg.TEST.APS.SYNTHESISE,
        }

    def forward(self, batched_inputs):
        """Return losses by name for a training batch (a dict), or embeddings (B, G * D) in evaluation mode.

        In evaluation mode the input can also be a tensor of images.
        """
        images = self.preprocess_image(batched_inputs)
        if not self.training:
            return self.heads(self.maps(images))
        targets = self.training_targets(batched_inputs)
        outputs = self.represent(images, targets)
        self._log_alignment(outputs.pop("alignment"))
        sids = None if self.prototypes is None else self.training_sids(batched_inputs, len(self.groups))
        # Triplet mining and means over labels use the batches of all processes.
        labels = [targets] if sids is None else [targets, sids]
        outputs["representations"], *labels = gather_batch(outputs["representations"], *labels)
        if "before" in outputs:
            outputs["before"], = gather_batch(outputs["before"])
        return self.losses(outputs, *labels)

    def maps(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the global and local maps (B, C, H, W) of normalised images; the map of a class token is 1 x 1."""
        shared = self.trunk(images)  # (B, C', H, W)
        return self.to_global(self.global_branch(shared)), self.to_map(self.local_branch(shared))

    def represent(self, images: Tensor, targets: Tensor) -> dict:
        """Return the outputs of `CerberusHead` for normalised training images (B, 3, H, W) and their classes (B,)."""
        return self.heads(self.maps(images), targets)

    def losses(self, outputs: dict, targets: Tensor, sids: Tensor | None = None) -> dict[str, Tensor]:
        """Return the terms of the total loss (Eq. 2) by name; the terms of the paper are means over the groups.

        Args:
            outputs: outputs of `CerberusHead`; the representations can include the batches of all processes.
            targets: int64 (B,), identities of the representations.
            sids: int64 (B, G), semantic IDs of the representations, -1 where missing; None without prototypes.
        """
        return terms_of(self.criteria, outputs | {"prototypes": self.prototypes}, Targets(targets, sids))

    def attribute_reader(self) -> PrototypeReader | None:
        """Return a reader with the current prototypes; None for a model without prototypes."""
        if self.prototypes is None or self.reading is None:
            return None
        names = self.schema.group_names
        tables = [self.prototypes.bits(g).cpu() for g in names], [self.prototypes.counts(g).cpu() for g in names]
        table = SIDTable.from_bits(self.schema, *map(tuple, tables))
        read = self.prototypes.with_synthesised if self.synthesise_unseen else self.prototypes.prototypes
        rows = [read(group).detach() for group in names]

        def synthesise(group: str, bits: Tensor) -> Tensor:
            return self.prototypes.synthesise(group, bits.to(self.device))

        train_labels = table.decode(self.prototypes.sid_of_class.cpu())
        scales = self.prototypes.column_scales(table.schema)
        options = dict(self.reading) | ({} if scales is None else {"cosine_scale": scales})
        return PrototypeReader(table, rows, synthesise, train_labels=train_labels, **options)

    def finish_embeddings(self, embeddings: Tensor) -> Tensor:
        """Normalise the blocks of embeddings (n, G * D) again, after FastReID has averaged over flipped images."""
        return blocks(embeddings, len(self.groups)).flatten(1)

    def _log_alignment(self, alignment: dict[str, Tensor]) -> None:
        """Log crop ratio and fallback share: a crop ratio that stays at 1 indicates an unsuitable sigma."""
        try:
            storage = get_event_storage()
        except AssertionError:  # used outside a trainer
            return
        if storage.iter % ALIGNMENT_LOG_PERIOD == 0:
            for name, value in alignment.items():
                storage.put_scalar(f"alignment/{name}", value)

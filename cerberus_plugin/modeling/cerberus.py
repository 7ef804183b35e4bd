"""Cerberus: one trunk, a global and a local branch, a representation a group, guided by prototypes of semantic IDs."""

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
    """The meta-architecture: training returns named losses, evaluation one embedding (B, G * D), G groups.

    Args:
        trunk: image -> (B, C', H, W), shared.   branch: the rest of the backbone; used twice, as two copies.
        to_global, to_map: what is read of the global branch, and of the local one, where they give tokens, see `Split`.
        heads: `CerberusHead`.
        prototypes: `SIDPrototypes`, or None to train identities alone (first rows of Table 6 of the paper).
        schema: of the attributes; None for a model without prototypes of the paper's groups.
        pixel_mean, pixel_std: of RGB in 0..255.
        criteria: the losses, each `loss(outputs, targets) -> {name: scalar}`, see `terms_of`; more may be appended.
        reading: how attributes are read, arguments of `PrototypeReader`. A cosine scale is used where the prototypes
            have neither learned nor measured one. None where no loss ties representations to prototypes.
        synthesise: read prototypes that no training identity carries as `SIDPrototypes.synthesise` makes them.
    """

    compilable = ("represent", "losses")  # methods of tensors alone, for torch.compile
    backbone_layers = ("trunk", "global_branch", "local_branch")  # what "backbone" in MODEL.FREEZE_LAYERS stands for

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
        node = cfg.MODEL.CERBERUS
        split = split_backbone(build_backbone(cfg), cfg, "conv4_2")
        prototypes, reading, schema = None, None, None
        if node.SCHEMA or has_prototypes(node):
            schema = find_schema(node.SCHEMA, "MODEL.CERBERUS.SCHEMA")
        # A training set without identities has no classes: the attribute half is trained alone.
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
        """FastReID's batch (a dict, or images alone when evaluating) to losses by name or to the embedding."""
        images = self.preprocess_image(batched_inputs)
        if not self.training:
            return self.heads(self.maps(images))
        targets = self.training_targets(batched_inputs)
        outputs = self.represent(images, targets)
        self._log_alignment(outputs.pop("alignment"))
        sids = None if self.prototypes is None else self.training_sids(batched_inputs, len(self.groups))
        # Triplets are mined, and labels counted, over the batches of all processes.
        labels = [targets] if sids is None else [targets, sids]
        outputs["representations"], *labels = gather_batch(outputs["representations"], *labels)
        if "before" in outputs:
            outputs["before"], = gather_batch(outputs["before"])
        return self.losses(outputs, *labels)

    def maps(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Global and local map, each (B, C, H, W), of normalised images; of a class token the global one is 1 x 1."""
        shared = self.trunk(images)  # (B, C', H, W)
        return self.to_global(self.global_branch(shared)), self.to_map(self.local_branch(shared))

    def represent(self, images: Tensor, targets: Tensor) -> dict:
        """What `CerberusHead` makes of normalised training images (B, 3, H, W) and their classes (B,)."""
        return self.heads(self.maps(images), targets)

    def losses(self, outputs: dict, targets: Tensor, sids: Tensor | None = None) -> dict[str, Tensor]:
        """Named terms whose sum is the total loss (Eq. 2); each of the paper's is a mean over the groups.

        Args:
            outputs: of `CerberusHead`; the representations may be those of all processes' batches.
            targets: int64 (B,), identities of the representations.
            sids: int64 (B, G), their semantic IDs, -1 where missing; None without prototypes.
        """
        return terms_of(self.criteria, outputs | {"prototypes": self.prototypes}, Targets(targets, sids))

    def attribute_reader(self) -> PrototypeReader | None:
        """Recognition and search with the present prototypes; None for a model without them."""
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
        """Blocks of unit length again, after FastReID has averaged over the flip test: (n, G * D)."""
        return blocks(embeddings, len(self.groups)).flatten(1)

    def _log_alignment(self, alignment: dict[str, Tensor]) -> None:
        """A wrong sigma shows as a crop ratio that stays at 1, so both figures go to the training log."""
        try:
            storage = get_event_storage()
        except AssertionError:  # used outside a trainer
            return
        if storage.iter % ALIGNMENT_LOG_PERIOD == 0:
            for name, value in alignment.items():
                storage.put_scalar(f"alignment/{name}", value)

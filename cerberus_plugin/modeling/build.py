"""Build models from a configuration and load the weights of a checkpoint.

A model is built from the configuration only. The numbers of classes and semantic IDs are therefore written into the
configuration first: from the training set (`engine.label_tables`), or from the checkpoint to be loaded.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from typing import Any

import torch
from fastreid.config import CfgNode
from fastreid.modeling.meta_arch import build_model
from fastreid.utils.checkpoint import Checkpointer
from torch import Tensor, nn

from .. import host
from ..attributes import SCHEMAS, AttributeSchema
from ..config import defaults, flat, with_values
from ..inference import AttributeReader
from ..utils.distributed import unwrapped
from . import precision
from .apr import PARTS
from .cameras import pass_cameras
from .checkpoint_tables import HELD, schema_in
from .convolutions import adapt_to_cpu, avoid_strided_points
from .sid_prototypes import has_prototypes

logger = logging.getLogger("fastreid.cerberus")


def needs_prototypes(cfg: CfgNode) -> bool:
    """Return whether the model has prototypes of semantic IDs."""
    return cfg.MODEL.META_ARCHITECTURE == "Cerberus" and has_prototypes(cfg.MODEL.CERBERUS)


def needs_labels(cfg: CfgNode) -> bool:
    """Return whether the model learns attributes, so that training requires labels of each identity."""
    return needs_prototypes(cfg) or PARTS.get(cfg.MODEL.META_ARCHITECTURE, (True, False))[1]


def load_model(cfg: CfgNode) -> nn.Module:
    """Build the model of a configuration, load all weights from MODEL.WEIGHTS, and set evaluation mode.

    Raises:
        FileNotFoundError: if MODEL.WEIGHTS is not a file.
        ValueError: if the checkpoint was trained with another configuration, or tensors of the model are missing.
    """
    path = cfg.MODEL.WEIGHTS
    if not os.path.isfile(path):
        raise FileNotFoundError(f"MODEL.WEIGHTS '{path}' is not a file; set it to a checkpoint of this model "
                                "(model_final.pth or model_best.pth of a run folder).")
    state, settings = _state_of(path)
    cfg = with_settings(cfg, settings, path)
    model = build_model(_with_checkpoint_sizes(cfg, state))
    wanted = {key: value.shape for key, value in model.state_dict().items()
              # Empty: classifiers without classes. Earlier checkpoints have no schema. FastReID ignores the counters.
              if value.numel() and key != HELD and not key.endswith("num_batches_tracked")}
    unmatched = [key for key, shape in wanted.items() if key not in state or state[key].shape != shape]
    if unmatched:
        raise ValueError(f"{path}: {len(wanted) - len(unmatched)} of {len(wanted)} tensors of the model match, not "
                         f"'{unmatched[0]}'. The checkpoint belongs to another model or size; use the config.yaml of "
                         "its run folder.")
    _Weights(model).load(path)
    if cfg.MODEL.CHANNELS_LAST:
        model.to(memory_format=torch.channels_last)
    pass_cameras(model)
    return with_precision(model, cfg).eval()


class _Weights(Checkpointer):
    """FastReID's checkpointer, without log messages about the empty weights of classifiers without classes."""

    def _log_incompatible_keys(self, incompatible) -> None:
        empty = {key for key, value in self.model.state_dict().items() if not value.numel()}
        incompatible.missing_keys[:] = [key for key in incompatible.missing_keys if key not in empty]
        incompatible.incorrect_shapes[:] = [found for found in incompatible.incorrect_shapes if found[0] not in empty]
        super()._log_incompatible_keys(incompatible)


def with_precision(model: nn.Module, cfg: CfgNode) -> nn.Module:
    """Apply the precision and memory format of the configuration to a model, as far as its device supports them."""
    precisions = {"SOLVER.AUTOCAST": cfg.SOLVER.AUTOCAST, "TEST.AUTOCAST": cfg.TEST.AUTOCAST}
    device = torch.device(cfg.MODEL.DEVICE)
    if any(precisions.values()) and not precision.computes_in_half(device):
        logger.info(f"{device} has no bfloat16 arithmetic: using float32 instead of {precisions}")
        precisions = dict.fromkeys(precisions, "")
    precision.cast_forward(model, *precisions.values(), channels_last=cfg.MODEL.CHANNELS_LAST)
    if device.type == "cpu":
        avoid_strided_points(model)
        if any(precisions.values()):
            adapt_to_cpu(model)
    return model


def reader_of(model: nn.Module | None) -> AttributeReader | None:
    """Return the attribute reader of a model, from its method `attribute_reader`; None if it has no such method."""
    model = unwrapped(model)
    return model.attribute_reader() if hasattr(model, "attribute_reader") else None


def groups_of(model: nn.Module | None) -> tuple[str, ...]:
    """Return the names of the groups, in the order of the blocks of an embedding; () for a model without groups."""
    return tuple(group.name for group in getattr(unwrapped(model), "groups", ()))


def _state_of(path: str) -> tuple[dict[str, Tensor], Mapping[str, Any]]:
    """Tensors of a checkpoint by name, and the settings of its training."""
    checkpoint = host.read_tensors(path, map_location="cpu")
    state = checkpoint.get("model") if isinstance(checkpoint, Mapping) else None
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path}: contains no tensors under the key 'model', so it is not a checkpoint of a training "
                         "run; use a checkpoint such as model_final.pth or model_best.pth of a run folder.")
    settings = checkpoint.get("settings", {})  # absent in checkpoints of earlier versions
    return dict(state), settings if isinstance(settings, Mapping) else {}


def weight_settings(cfg: CfgNode) -> dict[str, Any]:
    """Return the settings of a model that depend on pretrained weights (`host.SETTINGS`), by dotted key."""
    values = flat(cfg)
    return {key: values[key] for key in host.SETTINGS}


def with_settings(cfg: CfgNode, settings: Mapping[str, Any], path: str) -> CfgNode:
    """Copy settings of a run to keys of a configuration that have their default values.

    Args:
        cfg: the configuration.
        settings: values by dotted key.
        path: path of the checkpoint, for messages.

    Returns:
        a copy of the configuration, not frozen.

    Raises:
        ValueError: if the configuration sets a key to another value than the run; with the keys.
    """
    values, usual = flat(cfg), defaults()
    own = {key: value for key, value in settings.items() if key in host.SETTINGS and values[key] != value}
    different = [f"{key} {value}, not {values[key]}" for key, value in own.items() if values[key] != usual[key]]
    if different:
        raise ValueError(f"{path}: was trained with {'; '.join(different)}. Use the config.yaml of its run folder, or "
                         "remove the keys from the configuration")
    cfg = with_values(cfg, own)
    cfg.defrost()
    return cfg


def _with_checkpoint_sizes(cfg: CfgNode, state: dict) -> CfgNode:
    """Write the sizes of a trained model from its checkpoint into the configuration, and disable pretrained weights."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.BACKBONE.PRETRAIN = False
    if not needs_labels(cfg):
        schema = _checked_schema(cfg, state)
        return with_sizes(cfg, 0, schema_key(schema) if schema else "")
    name = cfg.MODEL.META_ARCHITECTURE
    table, what = ("prototypes.sid_of_class", "semantic IDs") if needs_prototypes(cfg) else (
        "class_labels.labels", "labels of training identities")
    if table not in state:
        raise ValueError(f"{cfg.MODEL.WEIGHTS}: contains no {what}. It is not a checkpoint of {name}, or was trained "
                         "without them; evaluate it with the config.yaml of its run folder.")
    kind = "fingerprint" if needs_prototypes(cfg) else "column_fingerprint"
    schema = _checked_schema(cfg, state, f"{table.partition('.')[0]}.schema", kind)
    if schema is None:
        raise ValueError(f"{cfg.MODEL.WEIGHTS}: was trained with an unknown attribute schema; known: "
                         f"{', '.join(SCHEMAS)}. Register it with cerberus_plugin.attributes.register_schema.")
    names = schema.group_names
    sizes = [len(state[f"prototypes.bits_{group}"]) for group in names] if needs_prototypes(cfg) else ()
    weight = f"heads.classifiers.{names[0]}.weight" if name == "Cerberus" else "heads.weight"
    classifier = state.get(weight, state[table])
    outfits = len(state[table]) if len(state[table]) != len(classifier) else 0
    return with_sizes(cfg, len(classifier), schema_key(schema), sizes, outfits)


def _checked_schema(cfg: CfgNode, *args) -> AttributeSchema | None:
    """`schema_in`, with the path of the checkpoint in error messages."""
    try:
        return schema_in(*args)
    except ValueError as error:
        raise ValueError(f"{cfg.MODEL.WEIGHTS}: {error}") from error


def schema_key(schema: AttributeSchema) -> str:
    """Return the value of a configuration key for a schema: its name if it is registered, otherwise its JSON."""
    return schema.name if SCHEMAS.get(schema.name) == schema else json.dumps(schema.to_dict())


def with_sizes(cfg: CfgNode, num_classes: int, schema: str = "", sizes=(), outfits: int = 0) -> CfgNode:
    """Return a frozen copy of a configuration with the keys `config.FILLED`.

    Args:
        cfg: configuration; not changed.
        num_classes: number of training identities.
        schema: see `schema_key`.
        sizes: number of semantic IDs of each group.
        outfits: number of labelled outfits, 0 if there are none.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.HEADS.NUM_CLASSES = num_classes
    cfg.MODEL.NUM_OUTFITS = outfits
    (cfg.MODEL.CERBERUS if cfg.MODEL.META_ARCHITECTURE == "Cerberus" else cfg.MODEL.APR).SCHEMA = schema
    cfg.MODEL.CERBERUS.NUM_SIDS = [int(size) for size in sizes]
    cfg.freeze()
    return cfg

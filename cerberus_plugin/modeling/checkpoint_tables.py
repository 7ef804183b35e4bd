"""Label tables stored in the checkpoint: it loads without the training set, and other tables are refused."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from ..attributes import MISSING, SCHEMAS, AttributeSchema

HELD = "held_schema.record"  # name of a checkpoint's tensor


class HeldSchema(nn.Module):
    """The whole attribute schema of a model, so that a checkpoint can be read where its schema is not registered.

    Buffer: `record` uint8 (n,), JSON of `AttributeSchema.to_dict` in UTF-8. A model keeps its own: what a checkpoint
    holds is read before the model is built, by `schema_in`.
    """

    beginning = False  # see `begin_from_other_weights`

    def __init__(self, schema: AttributeSchema) -> None:
        super().__init__()
        self.register_buffer("record", torch.tensor(list(json.dumps(schema.to_dict()).encode()), dtype=torch.uint8))

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        found = state_dict.pop(f"{prefix}record", None)
        if not self.beginning or found is not None and torch.equal(found.cpu(), self.record.cpu()):
            state_dict[f"{prefix}record"] = self.record  # earlier checkpoints have none
        super()._load_from_state_dict(state_dict, prefix, *args)


def schema_in(state: Mapping[str, Tensor], fingerprint: str = "", kind: str = "fingerprint") -> AttributeSchema | None:
    """The attribute schema that a checkpoint holds.

    Args:
        state: tensors by name.
        fingerprint: name of the tensor with the schema's fingerprint, by which earlier checkpoints name one of the
            registered schemas; "" if the checkpoint is of a model without such a table.
        kind: which of the schema's fingerprints it is.

    Returns:
        the schema; None if the checkpoint holds none, or a fingerprint that no registered schema has.

    Raises:
        ValueError: if the record is damaged, or is not that of the fingerprint.
    """
    if HELD not in state:
        number = int(state[fingerprint]) if fingerprint else None
        return next((schema for schema in SCHEMAS.values() if getattr(schema, kind) == number), None)
    try:
        schema = AttributeSchema.from_dict(json.loads(bytes(state[HELD].tolist())))
    except Exception as error:  # whatever it holds: any bytes can be in its place
        raise ValueError(f"'{HELD}', the attribute schema of the checkpoint, is damaged ({error!r:.200}); use another "
                         "checkpoint") from error
    if fingerprint and getattr(schema, kind) != int(state[fingerprint]):
        raise ValueError(f"'{HELD}' is the schema {schema.name}, but '{fingerprint}' is the number of another one; the "
                         "checkpoint is damaged, use another one")
    return schema


class ClassLabels(nn.Module):
    """Attributes of the training identities, by class index as FastReID numbers them, or of their outfits.

    Buffers: `labels` int64 (C, A); `schema`, the fingerprint of the attribute set and its columns, 0 before `fill`.
    """

    beginning = False  # see `begin_from_other_weights`

    def __init__(self, num_classes: int, num_fields: int) -> None:
        super().__init__()
        self.register_buffer("labels", torch.full((num_classes, num_fields), MISSING, dtype=torch.int64))
        self.register_buffer("schema", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def fill(self, schema: AttributeSchema, labels: Tensor) -> None:
        """Write the labels of a training set, int64 (C, A)."""
        self.labels.copy_(labels)
        self.schema.fill_(schema.column_fingerprint)

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        if self.beginning:
            leave(state_dict, prefix, ("schema", "labels"))
        else:
            refuse_other_tables(self, state_dict, prefix, ("schema", "labels"), "DATASETS.HOLD_OUT")
        super()._load_from_state_dict(state_dict, prefix, *args)


def begin_from_other_weights(model: nn.Module, beginning: bool) -> None:
    """Choose what the modules with tables in `model` do with the weights that are loaded next.

    Args:
        beginning: True to start a training: the tables stay those of its own dataset, and weights whose meaning hangs
            on other tables stay as they are. False to resume or evaluate: other tables are an error.
    """
    for module in model.modules():
        if hasattr(module, "beginning"):
            module.beginning = beginning


def leave(state: dict[str, Tensor], prefix: str, names: Iterable[str]) -> None:
    """Take tensors out of what is loaded, in place, so that the module keeps its own."""
    for name in names:
        state.pop(prefix + name, None)


def refuse_other_tables(module: nn.Module, state: Mapping[str, Tensor], prefix: str, tables: Sequence[str],
                        keys: str) -> None:
    """Refuse a checkpoint of other tables, which FastReID's checkpointer would skip with a warning.

    Args:
        module: whose tensors are to be loaded; its tables count once `schema` is filled from a dataset.
        state: the checkpoint's tensors; FastReID has taken out those of another size.   prefix: of the module's names.
        tables: names of the buffers that must be those of the checkpoint.   keys: of the configuration that size them.
    """
    tensors = module.state_dict()
    absent = [name for name in tensors if prefix + name not in state]
    if absent:
        raise ValueError(f"checkpoint: '{prefix}{absent[0]}' is absent or of another size than this model's "
                         f"({tuple(tensors[absent[0]].shape)}). It was trained on another dataset, with another "
                         f"{keys}, or is the checkpoint of another model. Use the config.yaml of its run folder.")
    if not tensors["schema"].item():
        return
    for name in tables:
        if not torch.equal(state[prefix + name].cpu(), tensors[name].cpu()):
            raise ValueError(f"checkpoint: table '{prefix}{name}' differs from that of the training dataset; same "
                             "sizes, other identities or attributes. Resume with the data it began with.")

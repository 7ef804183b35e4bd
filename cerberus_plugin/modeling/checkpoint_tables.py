"""Label tables in the checkpoint, so that it loads without the training set and can be checked for compatibility."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from ..attributes import MISSING, SCHEMAS, AttributeSchema

HELD = "held_schema.record"  # name of a checkpoint's tensor


class HeldSchema(nn.Module):
    """The attribute schema of a model, stored so that a checkpoint can be used if its schema is not registered.

    The buffer `record`, uint8 (n,), is the JSON of `AttributeSchema.to_dict` in UTF-8. Loading a checkpoint does not
    change it: `schema_in` reads the schema of a checkpoint before the model is built.
    """

    beginning = False  # see `begin_from_other_weights`

    def __init__(self, schema: AttributeSchema) -> None:
        super().__init__()
        self.register_buffer("record", torch.tensor(list(json.dumps(schema.to_dict()).encode()), dtype=torch.uint8))

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        found = state_dict.pop(f"{prefix}record", None)
        if not self.beginning or found is not None and torch.equal(found.cpu(), self.record.cpu()):
            state_dict[f"{prefix}record"] = self.record  # absent in earlier checkpoints
        super()._load_from_state_dict(state_dict, prefix, *args)


def schema_in(state: Mapping[str, Tensor], fingerprint: str = "", kind: str = "fingerprint") -> AttributeSchema | None:
    """Read the attribute schema of a checkpoint.

    Args:
        state: tensors by name.
        fingerprint: name of the tensor with the fingerprint of the schema, which identifies a registered schema in
            earlier checkpoints; "" for a model without such a tensor.
        kind: the property of `AttributeSchema` with the fingerprint.

    Returns:
        the schema; None if the checkpoint contains no schema and its fingerprint is not that of a registered schema.

    Raises:
        ValueError: if the schema is damaged or does not have the fingerprint.
    """
    if HELD not in state:
        number = int(state[fingerprint]) if fingerprint else None
        return next((schema for schema in SCHEMAS.values() if getattr(schema, kind) == number), None)
    try:
        schema = AttributeSchema.from_dict(json.loads(bytes(state[HELD].tolist())))
    except Exception as error:  # a damaged record can contain any bytes
        raise ValueError(f"'{HELD}', the attribute schema of the checkpoint, is damaged ({error!r:.200}); use another "
                         "checkpoint") from error
    if fingerprint and getattr(schema, kind) != int(state[fingerprint]):
        raise ValueError(f"'{HELD}' is the schema {schema.name}, but '{fingerprint}' is the fingerprint of another "
                         "schema; the checkpoint is damaged, use another one")
    return schema


class ClassLabels(nn.Module):
    """Attribute labels of the training identities, by FastReID's class index, or of their outfits.

    Buffers: `labels`, int64 (C, A); `schema`, the column fingerprint of the schema, 0 before `fill`.
    """

    beginning = False  # see `begin_from_other_weights`

    def __init__(self, num_classes: int, num_fields: int) -> None:
        super().__init__()
        self.register_buffer("labels", torch.full((num_classes, num_fields), MISSING, dtype=torch.int64))
        self.register_buffer("schema", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def fill(self, schema: AttributeSchema, labels: Tensor) -> None:
        """Store the labels, int64 (C, A), and the column fingerprint of their schema."""
        self.labels.copy_(labels)
        self.schema.fill_(schema.column_fingerprint)

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        if self.beginning:
            leave(state_dict, prefix, ("schema", "labels"))
        else:
            refuse_other_tables(self, state_dict, prefix, ("schema", "labels"), "DATASETS.HOLD_OUT")
        super()._load_from_state_dict(state_dict, prefix, *args)


def begin_from_other_weights(model: nn.Module, beginning: bool) -> None:
    """Set how modules with label tables treat the weights that are loaded next.

    Args:
        model: a module that contains them.
        beginning: True to start training from other weights: the tables of the current dataset are not changed, and
            weights that depend on different tables are not loaded. False to resume or evaluate: different tables raise
            ValueError.
    """
    for module in model.modules():
        if hasattr(module, "beginning"):
            module.beginning = beginning


def leave(state: dict[str, Tensor], prefix: str, names: Iterable[str]) -> None:
    """Remove tensors from a state dict in place, so that the module does not load them.

    Args:
        state: tensors by name.
        prefix: prefix of the names of the module.
        names: names of the tensors, without the prefix.

    Examples:
        >>> state = {"a.x": torch.ones(1), "a.y": torch.ones(1)}
        >>> leave(state, "a.", ["x"])
        >>> list(state)
        ['a.y']
    """
    for name in names:
        state.pop(prefix + name, None)


def refuse_other_tables(module: nn.Module, state: Mapping[str, Tensor], prefix: str, tables: Sequence[str],
                        keys: str) -> None:
    """Check that the tables of a checkpoint equal those of a module; FastReID would skip them with a warning.

    Args:
        module: to load the tensors into; its tables are compared if its `schema` has been filled from a dataset.
        state: tensors of the checkpoint, without those of another size, which FastReID has removed.
        prefix: prefix of the names of the module.
        tables: names of the buffers to compare.
        keys: configuration keys that determine the sizes, for the message.

    Raises:
        ValueError: if a tensor is missing, or a table differs.
    """
    tensors = module.state_dict()
    absent = [name for name in tensors if prefix + name not in state]
    if absent:
        raise ValueError(f"checkpoint: '{prefix}{absent[0]}' is missing or has a different size than in this model "
                         f"({tuple(tensors[absent[0]].shape)}). It was trained on another dataset, with another "
                         f"{keys}, or is the checkpoint of another model. Use the config.yaml of its run folder.")
    if not tensors["schema"].item():
        return
    for name in tables:
        if not torch.equal(state[prefix + name].cpu(), tensors[name].cpu()):
            raise ValueError(f"checkpoint: table '{prefix}{name}' differs from that of the training dataset: the "
                             "sizes are equal, but identities or attributes differ. Resume with the original dataset.")

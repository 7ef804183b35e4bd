"""Attribute schemas, annotation files and semantic IDs. Independent of FastReID."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .annotations import Annotations, find_annotations, read_annotations
    from .schema import (
        DUKEMTMC,
        GROUPS,
        MARKET1501,
        MISSING,
        PERSON_GROUPS,
        SCHEMAS,
        AttributeSchema,
        Field,
        Group,
        find_schema,
        register_schema,
    )
    from .semantic_ids import SIDTable

__all__ = ["Annotations", "AttributeSchema", "DUKEMTMC", "Field", "GROUPS", "Group", "MARKET1501", "MISSING",
           "PERSON_GROUPS", "SCHEMAS", "SIDTable", "find_annotations", "find_schema", "read_annotations",
           "register_schema"]


def __getattr__(name: str):
    """Import public names on first use, so that the modules that do not need torch load without it."""
    if name in __all__:
        for module in ("schema", "annotations", "semantic_ids"):
            if hasattr(found := import_module(f".{module}", __name__), name):
                return getattr(found, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

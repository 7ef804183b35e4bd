"""What is labelled: schemas, annotation files and semantic IDs. Plain Python and tensors, no FastReID."""

from .annotations import Annotations, find_annotations, read_annotations
from .schema import DUKEMTMC, GROUPS, MARKET1501, MISSING, SCHEMAS, AttributeSchema
from .sids import SIDTable

__all__ = ["Annotations", "AttributeSchema", "DUKEMTMC", "GROUPS", "MARKET1501", "MISSING", "SCHEMAS", "SIDTable",
           "find_annotations", "read_annotations"]

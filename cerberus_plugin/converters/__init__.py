"""Converters of published datasets with attributes into the format of own data, see docs/converters.md.

Each converter reads a dataset as it is published and gives its labels names. `convert` writes the folder.
"""

from . import agreid, pa100k, peta, rap, reid, upar  # noqa: F401  register their converters
from .questions import Questions, binary, several
from .registry import CONVERTERS, register_converter
from .sources import read_annotation
from .writing import Converted, convert

__all__ = ["CONVERTERS", "Converted", "Questions", "binary", "convert", "read_annotation", "register_converter",
           "several"]

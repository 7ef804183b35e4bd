"""Converters of published attribute sets into the form of one's own data, see docs/converters.md.

A converter reads a set as it is published and names its labels in words; one writer makes the folder of all of them.
"""

from . import agreid, pa100k, peta, rap, reid, upar  # noqa: F401  register their sets
from .questions import Questions, binary, several
from .registry import CONVERTERS, register_converter
from .sources import read_annotation
from .writing import Converted, convert

__all__ = ["CONVERTERS", "Converted", "Questions", "binary", "convert", "read_annotation", "register_converter",
           "several"]
